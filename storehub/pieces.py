"""What is read for deliveries, on disk, and what is rebuilt of it.

    state/cache/pieces/NAME.part    the bytes of some ranges of a pack, one range after the other
    state/cache/pieces/NAME.out     what is being rebuilt (and what a killed rebuild leaves)

Whole payloads and indexes are blobs of the cache like others. Parts of a pack have no digest of their own: they are
kept under a *stand-in*, a digest of what is wanted and how long it is, which accounts for them in the cache's quota.
A stand-in is never complete; what is rebuilt of its bytes is believed by the target's digest.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Protocol

from storehub.deliveries import GAP_BYTES, pieces_needed
from wavemesh.artifacts.chunkindex import MAX_INDEX_BYTES, BadIndexError, Range, missing, parse_index
from wavemesh.artifacts.chunks import chunk_file
from wavemesh.artifacts.delta.worker import Workers, leavings
from wavemesh.artifacts.digests import blob_name, in_thread
from wavemesh.artifacts.download import Patience, download, download_ranges
from wavemesh.artifacts.partial import PartialFile, boot_id, mark_path, take_over
from wavemesh.artifacts.plan import Method, coalesced
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Sequence
    from pathlib import Path
    from random import Random

    from wavemesh.artifacts.blobstore import BlobStore
    from wavemesh.artifacts.plan import Offer, TransferPlan

FETCH_ATTEMPTS = 5


class DeliveryReader(Protocol):
    """The parent: its blobs, and what it offers. ``YieldingReader`` is one."""

    def read(self, digest: Digest, offset: int = 0, length_bytes: int = 0) -> AsyncGenerator[memoryview, None]:
        """Bytes of a blob; raises PeerErrors."""
        ...

    async def offer(
        self, target: Digest, bases: Sequence[Digest], methods: Sequence[Method]
    ) -> tuple[Offer, ...] | None:
        """Deliveries of a blob; None from a parent that knows none. Raises PeerErrors."""
        ...


class _Gathered:
    """A RangeSink on a partial file."""

    def __init__(self, file: PartialFile) -> None:
        self._file = file

    @property
    def offset(self) -> int:
        return self._file.offset

    async def write(self, data: bytes | memoryview) -> None:
        await in_thread(self._file.append, data)


def ranges_of(plan: TransferPlan) -> tuple[Range, ...]:
    """The ranges of the pack that a plan of chunks reads, once it knows them."""
    return tuple(Range(piece.offset, piece.length) for piece in plan.pieces if piece.digest == plan.payload)


def stand_in(plan: TransferPlan) -> Digest | None:
    """What accounts for the parts of a pack; None for a plan that reads none."""
    ranges = ranges_of(plan) if plan.method is Method.CHUNKS else ()
    if not ranges or plan.payload is None:
        return None
    words = f"{blob_name(plan.payload)} {[(one.offset, one.length) for one in ranges]}"
    return Digest(hashlib.sha256(words.encode()).hexdigest(), sum(one.length for one in ranges))


class Pieces:
    """Pieces of all deliveries of one cache."""

    def __init__(self, blobs: BlobStore, reader: DeliveryReader, workers: Workers, rng: Random) -> None:
        """Read from ``reader``, rebuild by ``workers``."""
        self._blobs = blobs
        self._reader = reader
        self._workers = workers
        self._rng = rng
        self._disk = blobs.disk
        self._directory = blobs.directory / "pieces"

    def present(self, digest: Digest) -> int:
        """Bytes of a blob that are here."""
        return digest.size_bytes if self._blobs.has(digest) else self._blobs.partial_size(digest)

    def gathered_bytes(self, plan: TransferPlan | None) -> int:
        """Bytes of the pack that are here."""
        held = stand_in(plan) if plan is not None else None
        path = self._part(held) if held is not None else None
        return path.stat().st_size if path is not None and path.exists() else 0

    def room_of(self, plan: TransferPlan) -> tuple[Digest, ...]:
        """All that needs room until the target is there."""
        held = stand_in(plan)
        return (plan.target, *pieces_needed(plan), *(() if held is None else (held,)))

    def reserve(self, plan: TransferPlan) -> None:
        """Account for all of it; raises QuotaExceededError, and then the plan is to be given up."""
        for digest in self.room_of(plan):
            self._blobs.reserve(digest)

    async def fetch(self, digest: Digest, patience: Patience) -> None:
        """Have a whole payload or index; raises as ``download`` and BlobMismatchError."""
        if not self._blobs.has(digest):
            async with self._blobs.writer(digest) as writer:
                await download(self._reader, writer, rng=self._rng, patience=patience)

    async def lacking(self, plan: TransferPlan) -> tuple[Range, ...]:
        """By the index that is here, what of the pack the bases lack; raises BadIndexError."""
        if plan.index is None or plan.index.size_bytes > MAX_INDEX_BYTES:
            raise BadIndexError(f"an index of chunks has at most {MAX_INDEX_BYTES} bytes")
        index = parse_index(b"".join([piece async for piece in self._blobs.read(plan.index)]))
        if index.target != plan.target:
            raise BadIndexError(f"the index is of blob {index.target.sha256}, not of {plan.target.sha256}")
        have: set[bytes] = set()
        for base in plan.bases:
            have.update(chunk.id for chunk in await in_thread(chunk_file, self._blobs.file_of(base)))
        return coalesced(missing(index, have), GAP_BYTES)

    async def gather(self, plan: TransferPlan, patience: Patience) -> None:
        """Read the ranges of the pack, from where that stopped; raises as ``download_ranges``."""
        held = stand_in(plan)
        if held is None or plan.payload is None:
            return
        await in_thread(self._disk.make_dir, self._directory)
        file = await in_thread(PartialFile, self._part(held), held, self._disk, boot_id())
        try:
            await download_ranges(
                self._reader, plan.payload, ranges_of(plan), _Gathered(file), rng=self._rng, patience=patience
            )
        finally:
            await in_thread(_close, file)

    async def rebuild(self, plan: TransferPlan) -> None:
        """Rebuild the target in a contained process and lay it where its writer verifies and finishes it.

        Raises BadDeltaError, BadIndexError, BadPackError, BadCompressedError, DeltaBoundError, BlobMismatchError (of
        another length), DiskFaultError.
        """
        await in_thread(self._disk.make_dir, self._directory)
        target, out = plan.target, self._out(plan.target)
        bases = [self._blobs.file_of(base) for base in plan.bases]
        if plan.payload is None:
            raise RuntimeError("a plan that waits cannot be carried out")
        await in_thread(self._disk.unlink, out)
        if plan.method is Method.DELTA:
            await self._workers.rebuild(bases, self._blobs.file_of(plan.payload), out, target)
        elif plan.method is Method.FULL_ZSTD:
            await self._workers.unpack(self._blobs.file_of(plan.payload), out, target)
        else:
            await self._assemble(plan, bases, out)
        await in_thread(take_over, out, self._blobs.partial_of(target), target, self._disk, boot_id())

    async def _assemble(self, plan: TransferPlan, bases: Sequence[Path], out: Path) -> None:
        held = stand_in(plan)
        part = self._part(held or plan.target)
        if held is None:  # everything is in the bases
            await in_thread(self._disk.write_new, part, b"")
        if plan.index is None:
            raise RuntimeError("a plan of chunks has an index")
        index = self._blobs.file_of(plan.index)
        await self._workers.assemble(index, part, ranges_of(plan), bases, out=out, target=plan.target)

    async def discard(self, plan: TransferPlan, needed: Iterable[Digest]) -> None:
        """Remove what was read for a plan, but for blobs that are needed otherwise."""
        kept = frozenset(needed)
        for digest in pieces_needed(plan):
            if digest not in kept and not self._blobs.is_arriving(digest):
                await self._blobs.delete(digest)
        held = stand_in(plan)
        if held is not None:
            await self._blobs.delete(held)
        await in_thread(self._remove, plan.target, held)

    def _remove(self, target: Digest, held: Digest | None) -> None:
        if not self._directory.exists():
            return
        parts = [self._part(target)] if held is None else [self._part(target), self._part(held)]
        out = self._out(target)
        for path in (*(one for part in parts for one in (mark_path(part), part)), out, *leavings(out)):
            self._disk.unlink(path)
        self._disk.fsync_dir(self._directory)

    async def sweep(self, plans: Iterable[TransferPlan]) -> None:
        """At the start: remove files that belong to no plan."""
        keep = {self._part(held).name for plan in plans if (held := stand_in(plan)) is not None}
        await in_thread(self._sweep, keep)

    def _sweep(self, keep: set[str]) -> None:
        if self._directory.exists():
            for path in sorted(self._directory.iterdir()):
                if path.name.removesuffix(".mark") not in keep:
                    self._disk.unlink(path)

    def _part(self, held: Digest) -> Path:
        return self._directory / f"{blob_name(held)}.part"

    def _out(self, target: Digest) -> Path:
        return self._directory / f"{blob_name(target)}.out"


def _close(file: PartialFile) -> None:
    """Flush what arrived and give the descriptor back."""
    try:
        file.mark()
    finally:
        file.close()
