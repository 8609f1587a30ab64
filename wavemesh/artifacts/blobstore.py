"""Content-addressed blobs on disk, with a quota.

    DIR/blobs/ab/abcdef…-SIZE     complete, verified when it was written
    DIR/partial/abcdef…-SIZE      being fetched; resumes (partial.py)
    DIR/quarantine/abcdef…-SIZE   found wrong, kept for diagnosis while there is room (quarantine.py)

Rules: a blob becomes visible under its name only after its digest was verified and its bytes are on disk. Room is
reserved in full before the first byte is written, quota and free disk both, so a fetch never dies half way for want of
space that was never there. Reads verify as they go: the last step of a read from disk is given out only if the whole
file still has its digest, and where this process has verified the blob before, each step only if it is what it was then
(tags.py). Any number of readers may follow the one writer of a blob that is still arriving (arriving.py); they get its
last step only once it is verified. So nobody ever receives all bytes of a blob that is not what its name says. What to
evict is decided elsewhere (room.py); ``delete`` evicts.

A blob whose bytes are found wrong, on arrival, on a read or by the scrub, is a *suspect*: not held from that moment on,
its file untouched. Whoever keeps the store (``keep``) first makes durable what has to be known of it, then calls
``set_aside``; a power cut between leaves the wrong file where it is found again (ADR 35). A store without a keeper sets
aside at once.

The index lives in memory and is the directory read once; the modification time of a complete file is its last use.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn, ParamSpec, TypeVar

from wavemesh.artifacts.arriving import Arrival, BlobWriter, FetchStoppedError
from wavemesh.artifacts.counting import Counters
from wavemesh.artifacts.digests import OutOfRangeError, blob_name, check_digest, end_of, in_thread
from wavemesh.artifacts.entries import BlobEntry, QuotaExceededError
from wavemesh.artifacts.finding import find_blobs, place_of
from wavemesh.artifacts.partial import BlobMismatchError, PartialFile, boot_id, mark_path
from wavemesh.artifacts.quarantine import Quarantine
from wavemesh.artifacts.steps import read_and_hash, read_cached, reread_and_hash
from wavemesh.artifacts.tags import READ_STEP_BYTES, Tagger, tag_of
from wavemesh.errors import ConflictError, NotFoundError, WavemeshError
from wavemesh.runtime.durable import Disk, DiskFaultError, disk_errors

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Container, Iterable, Mapping, Sequence
    from pathlib import Path

    from wavemesh.runtime.clock import Clock
    from wavemesh.trust.statements import Digest

__all__ = [
    "BlobEntry",
    "BlobMismatchError",
    "BlobStore",
    "BlobWriter",
    "FetchStoppedError",
    "OutOfRangeError",
    "QuotaExceededError",
]

_P = ParamSpec("_P")
_R = TypeVar("_R")

FREE_DISK_RESERVE_BYTES = 16 * 1024 * 1024
"""Never filled by blobs, so that databases and marks can still be written."""


class BlobStore:
    """The blobs of one directory. One process at a time may own the directory."""

    def __init__(self, directory: Path, quota_bytes: int, clock: Clock, disk: Disk) -> None:
        """Use ``open``."""
        self.directory = directory
        self.disk = disk
        self._blobs = directory / "blobs"
        self._partials = directory / "partial"
        self.quota_bytes = quota_bytes
        self._clock = clock
        self._boot = boot_id()
        self._complete: dict[Digest, datetime] = {}
        self._partial: dict[Digest, datetime] = {}
        self._arrivals: dict[Digest, Arrival] = {}
        self._tags: dict[Digest, tuple[bytes, ...]] = {}
        self._suspects: dict[Digest, BlobMismatchError] = {}
        self._changed: Callable[[], None] | None = None
        self.quarantine = Quarantine(directory / "quarantine", disk)
        self.counters = Counters(clock.now())

    @classmethod
    async def open(cls, directory: Path, quota_bytes: int, clock: Clock, disk: Disk | None = None) -> BlobStore:
        """Read the directory, creating it if need be; files that cannot be blobs are removed. Raises DiskFaultError."""
        store = cls(directory, quota_bytes, clock, disk or Disk())
        await in_thread(store._read_directory)
        return store

    def _read_directory(self) -> None:
        for directory in (self._blobs, self._partials):
            self.disk.make_dir(directory)
        found = find_blobs(self._blobs, self._partials, self.disk)
        self._complete, self._partial, self._suspects = found.complete, found.partial, found.suspects
        self.quarantine.load()

    def keep(self, changed: Callable[[], None]) -> None:
        """From now on suspects wait for ``set_aside``; ``changed`` is called when there is one more suspect or blob."""
        self._changed = changed

    def _path(self, digest: Digest) -> Path:
        return place_of(self._blobs, digest)

    # -- what is there ----------------------------------------------------------------------------------------------

    def has(self, digest: Digest) -> bool:
        """Whether the blob is complete and verified."""
        return digest in self._complete

    def is_arriving(self, digest: Digest) -> bool:
        """Whether a writer is at work on it, so that ``follow`` will yield bytes."""
        return digest in self._arrivals

    def partial_size(self, digest: Digest) -> int:
        """Bytes present of a blob that is not complete; 0 if there are none."""
        if digest in self._arrivals:
            return self._arrivals[digest].offset
        if digest in self._partial:
            with suppress(OSError):
                return min((self._partials / blob_name(digest)).stat().st_size, digest.size_bytes)
        return 0

    @property
    def complete(self) -> list[Digest]:
        """All blobs that are held, in no order."""
        return list(self._complete)

    def is_verified(self, digest: Digest) -> bool:
        """Whether this process itself has seen that the blob is what its name says."""
        return digest in self._complete and digest in self._tags

    @property
    def suspects(self) -> Mapping[Digest, BlobMismatchError]:
        """Blobs whose bytes were found wrong and that still lie where they were."""
        return self._suspects

    @property
    def used_bytes(self) -> int:
        """Bytes accounted against the quota: complete blobs and, in full, those partly there; suspects too."""
        return sum(digest.size_bytes for digest in (*self._complete, *self._partial, *self._suspects))

    def free_bytes(self) -> int:
        """Bytes the disk has for blobs that are not here yet: what is free or may be given up, less what is promised.

        Negative when more is promised than there is. Raises DiskFaultError.
        """
        with disk_errors(self._partials):
            free = os.statvfs(self._partials)
        promised = sum(other.size_bytes - self.partial_size(other) for other in self._partial)
        return free.f_bavail * free.f_frsize + self.quarantine.used_bytes - FREE_DISK_RESERVE_BYTES - promised

    def entries(self) -> list[BlobEntry]:
        """All blobs, complete and partial, longest unused first."""
        found = [BlobEntry(digest, digest.size_bytes, used) for digest, used in self._complete.items()]
        # A partial blob never counts as complete, even when only its verification is left.
        found += [
            BlobEntry(digest, min(self.partial_size(digest), max(digest.size_bytes - 1, 0)), used)
            for digest, used in self._partial.items()
        ]
        return sorted(found, key=lambda entry: entry.last_used_at)

    def check_room(self, digest: Digest) -> None:
        """Raise QuotaExceededError unless the blob fits into quota and disk, what is reserved for others included."""
        if digest in self._complete:
            return
        known = digest in self._partial
        over = self.used_bytes + (0 if known else digest.size_bytes) - self.quota_bytes
        if over > 0:
            msg = f"blob {digest.sha256} of {digest.size_bytes} bytes: {over} bytes over the quota {self.quota_bytes}"
            raise QuotaExceededError(msg, sha256=digest.sha256, missing_bytes=str(over), bound="quota")
        short = (0 if known else digest.size_bytes) - self.free_bytes()
        if short > 0:
            msg = f"blob {digest.sha256} of {digest.size_bytes} bytes: the disk lacks {short} bytes for it"
            raise QuotaExceededError(msg, sha256=digest.sha256, missing_bytes=str(short), bound="disk")

    def _excess_bytes(self) -> int:
        """By how much that which is kept for diagnosis alone is too much, quota and disk both."""
        over = self.used_bytes + self.quarantine.used_bytes - self.quota_bytes
        return max(over, self.quarantine.used_bytes - self.free_bytes())

    def reserve(self, digest: Digest) -> None:
        """Account for a blob before its first byte, until it is written or deleted; raises QuotaExceededError."""
        self.check_room(digest)
        if digest not in self._complete:
            self._partial.setdefault(digest, self._clock.now())

    def file_of(self, digest: Digest) -> Path:
        """Where a complete blob lies, to be read by who verifies what comes of it."""
        return self._path(digest)

    def partial_of(self, digest: Digest) -> Path:
        """Where a blob lies that is not complete."""
        return self._partials / blob_name(digest)

    # -- writing ----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def writer(self, digest: Digest) -> AsyncIterator[BlobWriter]:
        """Write a blob from where it was left; at a clean end of the block a complete one is verified.

        Left incomplete, the bytes stay for the next writer. Raises BadDigestError, QuotaExceededError, ConflictError
        (complete already, or another writer is at work), at the end BlobMismatchError.
        """
        check_digest(digest)
        if self._changed is None:
            await self.set_aside(digest)
        self._check_absent(digest)
        self.check_room(digest)
        path = self._partials / blob_name(digest)
        # Reserved and announced before the first await, so that no second writer slips in.
        arrival = self._arrivals[digest] = Arrival(path)
        self._partial.setdefault(digest, self._clock.now())
        outcome: WavemeshError = FetchStoppedError(f"the fetch of blob {digest.sha256} stopped before its end")
        file: PartialFile | None = None
        writer: BlobWriter | None = None
        try:
            await in_thread(self.quarantine.make_room, self._excess_bytes())
            file = await in_thread(PartialFile, path, digest, self.disk, self._boot)
            while await in_thread(file.rehash):
                pass
            arrival.tell(file.offset)
            writer = BlobWriter(file, arrival, self._path(digest), self.counters.fetched)
            yield writer
            if writer.offset == digest.size_bytes:
                await writer.finish()
        except WavemeshError as error:
            outcome = error
            raise
        finally:
            try:
                await self._close(digest, file, writer)
            finally:
                del self._arrivals[digest]
                arrival.end(None if digest in self._complete else outcome)

    def _check_absent(self, digest: Digest) -> None:
        """Raise ConflictError if the blob is here already, in whatever state but a partial one."""
        states: dict[str, Container[Digest]] = {
            "complete": self._complete,
            "being written": self._arrivals,
            "about to be set aside": self._suspects,
        }
        for state, blobs in states.items():
            if digest in blobs:
                msg = f"blob {digest.sha256} is {state} already"
                raise ConflictError(msg)

    async def _close(self, digest: Digest, file: PartialFile | None, writer: BlobWriter | None) -> None:
        """Settle the index with what is on disk and give the descriptor back."""
        is_finished = writer is not None and writer.is_finished
        try:
            if file is not None and not is_finished and file.path.exists():
                await in_thread(file.mark)
        finally:
            if file is not None:
                await in_thread(file.close)
            if file is not None and is_finished:
                self._tags[digest] = file.tags
                await self._touch(digest, self._clock.now())
                if self._changed is not None:
                    self._changed()
            if is_finished or not (self._partials / blob_name(digest)).exists():
                self._partial.pop(digest, None)
            else:
                self._partial[digest] = self._clock.now()
            if file is not None and file.mismatch is not None:
                self._partial.pop(digest, None)
                await self._suspect(file.mismatch)

    async def delete(self, digest: Digest) -> int:
        """Remove a blob, complete or partial; returns the bytes freed from the quota, 0 if it was not there.

        Readers that have it open read on. Raises ConflictError while it is being written.
        """
        if digest in self._arrivals:
            msg = f"blob {digest.sha256} is being written and cannot be deleted"
            raise ConflictError(msg)
        if digest not in self._complete and digest not in self._partial:
            return 0
        path = self._partials / blob_name(digest)
        # Announced like a writer, so that a new one cannot start while the old files go.
        arrival = self._arrivals[digest] = Arrival(path)
        self._complete.pop(digest, None)
        self._partial.pop(digest, None)
        self._tags.pop(digest, None)
        try:
            await in_thread(self._remove, (mark_path(path), path, self._path(digest)))
        except DiskFaultError:
            await in_thread(self._look_again, digest)
            raise
        finally:
            del self._arrivals[digest]
            arrival.end(NotFoundError(f"blob {digest.sha256} was deleted", sha256=digest.sha256))
        return digest.size_bytes

    def _remove(self, paths: Iterable[Path]) -> None:
        for path in paths:
            if path.exists():
                self.disk.remove(path)

    def _look_again(self, digest: Digest) -> None:
        """After a removal that failed: what still lies there goes on to count."""
        with disk_errors(self._blobs):
            for index, path in (
                (self._complete, self._path(digest)),
                (self._partial, self._partials / blob_name(digest)),
            ):
                if path.exists():
                    index[digest] = datetime.fromtimestamp(path.stat().st_mtime, UTC)

    # -- suspects ---------------------------------------------------------------------------------------------------

    async def _suspect(self, error: BlobMismatchError) -> None:
        """Hold a blob no more; its file stays until it is set aside."""
        self._complete.pop(error.digest, None)
        self._tags.pop(error.digest, None)
        self._suspects[error.digest] = error
        if self._changed is None:
            await self.set_aside(error.digest)
        else:
            self._changed()

    async def set_aside(self, digest: Digest) -> None:
        """Move a suspect into quarantine, durably; whatever has to be known of it must be durable already.

        Twice is once. Raises DiskFaultError: then it is a suspect still.
        """
        if digest not in self._suspects:
            return
        await in_thread(self._set_aside, digest)
        self.counters.quarantined += self._suspects.pop(digest, None) is not None

    def _set_aside(self, digest: Digest) -> None:
        partial = self._partials / blob_name(digest)
        self.disk.unlink(mark_path(partial))
        for path in (partial, self._path(digest)):
            self.quarantine.take(path)
        self.quarantine.make_room(self._excess_bytes())

    # -- reading ----------------------------------------------------------------------------------------------------

    async def follow(self, digest: Digest, offset: int, length_bytes: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes from ``offset`` on, at most READ_STEP_BYTES at a time, waiting for a writer that is at work.

        ``length_bytes`` of them, or with 0 all to the end. Raises NotFoundError, OutOfRangeError, BlobMismatchError,
        the error that ended the writer, DiskFaultError.
        """
        end = end_of(digest, offset, length_bytes)
        arrival = self._arrivals.get(digest)
        descriptor = None if arrival is None else await arrival.open()
        if arrival is None or descriptor is None:
            async with aclosing(self.read(digest, offset, length_bytes)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        try:
            while offset < end:
                if arrival.outcome is not None:
                    raise arrival.outcome
                held_back = 0 if arrival.is_over else READ_STEP_BYTES
                readable = min(arrival.offset, digest.size_bytes - held_back, end) - offset
                if readable <= 0:
                    await arrival.wait()
                    continue
                with disk_errors(arrival.path):
                    piece = await in_thread(os.pread, descriptor, min(readable, READ_STEP_BYTES), offset)
                offset += len(piece)
                yield piece
        finally:
            os.close(descriptor)

    async def read(self, digest: Digest, offset: int = 0, length_bytes: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes of a complete blob from ``offset`` on, verified: ``length_bytes``, or with 0 all to its end.

        A read to the end verifies what lies before ``offset`` too; one that is to stop before it does not, but where
        the blob was not verified by this process yet, all of it first. Raises NotFoundError, OutOfRangeError and,
        before the last step, BlobMismatchError, also for bytes that cannot be read: then the blob is gone from here and
        can be fetched again.
        """
        end = end_of(digest, offset, length_bytes)
        if end < digest.size_bytes and digest not in self._tags:
            await self._verify(digest)
        tags, position = self._tags.get(digest), 0
        if tags is None:
            steps = self._hashed_steps(digest)
        else:
            # A read to the end resumes one: what went bad before it is found out too. A part stands alone.
            position = offset - offset % READ_STEP_BYTES if end < digest.size_bytes else 0
            steps = self._tagged_steps(digest, tags, position // READ_STEP_BYTES)
        async with aclosing(steps):
            async for piece in steps:
                wanted = piece[max(0, offset - position) : max(0, end - position)]
                position += len(piece)
                if wanted:
                    yield wanted
                if position >= end:
                    break

    async def _verify(self, digest: Digest) -> None:
        """Hash the whole blob, so that any part of it may be given out by its tags; raises as ``read``."""
        async with aclosing(self._hashed_steps(digest)) as steps:
            async for _ in steps:
                pass

    async def _tagged_steps(self, digest: Digest, tags: Sequence[bytes], first: int) -> AsyncGenerator[bytes, None]:
        """All steps from number ``first`` on, each checked by its tag before it is given out."""
        buffer = bytearray(READ_STEP_BYTES)
        async with self._open(digest) as descriptor:
            for index, tag in enumerate(tags[first:], start=first):
                position = index * READ_STEP_BYTES
                piece = read_cached(descriptor, position, buffer, digest.size_bytes)
                if piece is None:
                    piece = await self._step(digest, os.pread, descriptor, READ_STEP_BYTES, position)
                if tag_of(piece) != tag:
                    await self._drop(digest, None)
                yield piece

    async def _hashed_steps(
        self, digest: Digest, read: Callable[[int, int, hashlib._Hash, Tagger], bytes] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """All steps, the last one only if the whole file has its digest; then its tags are known for the next read."""
        hasher, tagger = hashlib.sha256(), Tagger()
        position = 0
        async with self._open(digest) as descriptor:
            while position < digest.size_bytes:
                piece = await self._step(digest, read or read_and_hash, descriptor, position, hasher, tagger)
                position += len(piece)
                if position >= digest.size_bytes or not piece:
                    if position != digest.size_bytes or hasher.hexdigest() != digest.sha256:
                        await self._drop(digest, None)
                    if digest in self._complete:
                        self._tags[digest] = tagger.tags()
                yield piece

    @asynccontextmanager
    async def _open(self, digest: Digest) -> AsyncIterator[int]:
        """A descriptor of a complete blob, which counts as used now."""
        if digest not in self._complete:
            msg = f"blob {digest.sha256} of {digest.size_bytes} bytes is not held here"
            raise NotFoundError(msg, sha256=digest.sha256)
        path = self._path(digest)
        try:
            with disk_errors(path):
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except DiskFaultError as error:
            await self._drop(digest, error)
        try:
            await self._touch(digest, self._clock.now())
            yield descriptor
        finally:
            os.close(descriptor)

    async def _step(self, digest: Digest, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Read one step in a thread; what cannot be read is dropped like what is wrong."""
        try:
            with disk_errors(self._path(digest)):
                return await in_thread(function, *args, **kwargs)
        except DiskFaultError as error:
            await self._drop(digest, error)

    async def _drop(self, digest: Digest, fault: DiskFaultError | None) -> NoReturn:
        """Suspect a blob whose bytes went bad, cannot be read or are gone, so that it is fetched again."""
        error = BlobMismatchError(digest, str(fault or "the disk holds other bytes"))
        if digest in self._complete:
            await self._suspect(error)
        raise error from fault

    async def scrub(self, digest: Digest) -> None:
        """All of ``scrub_steps`` without a pause."""
        async for _ in self.scrub_steps(digest):
            pass

    async def scrub_steps(self, digest: Digest) -> AsyncGenerator[int, None]:
        """Read and hash one complete blob in full, from the disk; yields the bytes of each step. No use of the blob.

        Raises NotFoundError, and BlobMismatchError: then it is a suspect.
        """
        used = self._complete.get(digest)
        try:
            async for piece in self._hashed_steps(digest, reread_and_hash):
                yield len(piece)
        finally:
            if used is not None and digest in self._complete:
                await self._touch(digest, used)

    async def _touch(self, digest: Digest, used_at: datetime) -> None:
        """Note the last use of a complete blob, here and as the file's time for the next start."""
        self._complete[digest] = used_at
        with suppress(FileNotFoundError):  # evicted while it is being read
            await in_thread(os.utime, self._path(digest), (used_at.timestamp(),) * 2)
