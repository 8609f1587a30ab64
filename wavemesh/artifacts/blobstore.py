"""Content-addressed blobs on disk, with a quota.

    DIR/blobs/ab/abcdef…-SIZE     complete, verified when it was written
    DIR/partial/abcdef…-SIZE      being fetched; resumes (partial.py)

Rules: a blob becomes visible under its name only after its digest was verified and its bytes are on disk. Room is
reserved in full before the first byte is written, quota and free disk both, so a fetch never dies half way for want of
space that was never there. Reads verify as they go: the last step of a read from disk is given out only if the whole
file still has its digest, and where this process has verified the blob before, each step only if it is what it was then
(vouching.py); a file that went bad is removed. Any number of readers may follow the one writer of a blob
that is still arriving; they get its last step only once it is verified. So nobody ever receives all bytes of a blob
that is not what its name says. What to evict is decided elsewhere; ``delete`` evicts.

The index lives in memory and is the directory read once; the modification time of a complete file is its last use.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn, ParamSpec, TypeVar

from wavemesh.artifacts.digests import OutOfRangeError, blob_name, check_digest, end_of, in_thread, parse_blob_name
from wavemesh.artifacts.partial import BlobMismatchError, PartialFile, boot_id, mark_path
from wavemesh.artifacts.tags import READ_STEP_BYTES, Tagger, tag_of
from wavemesh.errors import ConflictError, LocalError, NotFoundError, WavemeshError
from wavemesh.runtime.durable import Disk, DiskFaultError, disk_errors

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
    from pathlib import Path

    from wavemesh.runtime.clock import Clock
    from wavemesh.trust.statements import Digest

__all__ = ["BlobEntry", "BlobMismatchError", "BlobStore", "BlobWriter", "OutOfRangeError", "QuotaExceededError"]

_P = ParamSpec("_P")
_R = TypeVar("_R")

FREE_DISK_RESERVE_BYTES = 16 * 1024 * 1024
"""Never filled by blobs, so that databases and marks can still be written."""


class QuotaExceededError(LocalError):
    """A blob does not fit into the quota or onto the disk; known before its first byte is written."""

    reason = "QUOTA_EXCEEDED"


class FetchStoppedError(LocalError):
    """The writer that a reader followed went away before the blob was complete."""

    reason = "FETCH_STOPPED"


@dataclass(frozen=True, slots=True)
class BlobEntry:
    """One blob of the store; ``present_bytes`` is less than its size while it is partial."""

    digest: Digest
    present_bytes: int
    last_used_at: datetime

    @property
    def is_complete(self) -> bool:
        """Whether the blob is there, verified."""
        return self.present_bytes == self.digest.size_bytes


class _Arrival:
    """How far the one writer of a blob is, for those who follow it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self.outcome: WavemeshError | None = None
        self.is_over = False
        self._changed = asyncio.Event()

    def tell(self, offset: int) -> None:
        """More bytes are readable."""
        self.offset = offset
        self._wake()

    def end(self, outcome: WavemeshError | None) -> None:
        """The writer is gone; None means that the blob is complete and verified."""
        self.is_over, self.outcome = True, outcome
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait(self) -> None:
        """Wait for the next call of tell or end."""
        await self._changed.wait()

    async def open(self) -> int | None:
        """A descriptor to read the partial file by; None if the blob is complete. Raises what ended the writer."""
        while not self.is_over:
            with suppress(FileNotFoundError):
                return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            await self.wait()  # its writer is about to create it, or to tell that it is finished
        if self.outcome is not None:
            raise self.outcome
        return None


class BlobWriter:
    """The one writer of a blob; made by ``BlobStore.writer``."""

    def __init__(self, file: PartialFile, arrival: _Arrival, target: Path) -> None:
        """Only BlobStore makes these."""
        self._file = file
        self._arrival = arrival
        self._target = target

    @property
    def is_finished(self) -> bool:
        """Whether the blob is verified and visible."""
        return self._file.is_finished

    @property
    def digest(self) -> Digest:
        """What is being written."""
        return self._file.digest

    @property
    def offset(self) -> int:
        """Bytes present: where the sender must go on."""
        return self._file.offset

    async def write(self, data: bytes | memoryview) -> None:
        """Append, at most a few steps at a time; raises BlobMismatchError (too long), DiskFaultError, DiskFullError."""
        await in_thread(self._file.append, data)
        self._arrival.tell(self._file.offset)

    async def finish(self) -> None:
        """Verify and make visible; raises BlobMismatchError, and then what was there is gone. Twice is once."""
        if not self.is_finished:
            await in_thread(self._file.finish, self._target)


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
        self._disk = disk
        self._boot = boot_id()
        self._complete: dict[Digest, datetime] = {}
        self._partial: dict[Digest, datetime] = {}
        self._arrivals: dict[Digest, _Arrival] = {}
        self._tags: dict[Digest, tuple[bytes, ...]] = {}

    @classmethod
    async def open(cls, directory: Path, quota_bytes: int, clock: Clock, disk: Disk | None = None) -> BlobStore:
        """Read the directory, creating it if need be; files that cannot be blobs are removed. Raises DiskFaultError."""
        store = cls(directory, quota_bytes, clock, disk or Disk())
        await in_thread(store._read_directory)
        return store

    def _read_directory(self) -> None:
        for directory in (self._blobs, self._partials):
            self._disk.make_dir(directory)
        with disk_errors(self._blobs):
            for path in self._blobs.glob("??/*"):
                digest = parse_blob_name(path.name)
                status = path.stat()
                if digest is None or status.st_size != digest.size_bytes or path != self._path(digest):
                    self._disk.unlink(path)
                else:
                    self._complete[digest] = datetime.fromtimestamp(status.st_mtime, UTC)
            for path in self._partials.iterdir():
                digest = parse_blob_name(path.name.removesuffix(".mark"))
                if digest is None or digest in self._complete:
                    self._disk.unlink(path)
                elif not path.name.endswith(".mark"):
                    self._partial[digest] = datetime.fromtimestamp(path.stat().st_mtime, UTC)
                elif not path.with_name(blob_name(digest)).exists():
                    self._disk.unlink(path)

    def _path(self, digest: Digest) -> Path:
        return self._blobs / digest.sha256[:2] / blob_name(digest)

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
    def used_bytes(self) -> int:
        """Bytes accounted against the quota: complete blobs and, in full, those partly there."""
        return sum(digest.size_bytes for digest in (*self._complete, *self._partial))

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
        awaited = sum(other.size_bytes - self.partial_size(other) for other in {*self._partial, digest})
        with disk_errors(self._partials):
            free = os.statvfs(self._partials)
        short = awaited + FREE_DISK_RESERVE_BYTES - free.f_bavail * free.f_frsize
        if short > 0:
            msg = f"blob {digest.sha256} of {digest.size_bytes} bytes: the disk lacks {short} bytes for it"
            raise QuotaExceededError(msg, sha256=digest.sha256, missing_bytes=str(short), bound="disk")

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
        if digest in self._complete or digest in self._arrivals:
            state = "complete" if digest in self._complete else "being written"
            msg = f"blob {digest.sha256} is {state} already"
            raise ConflictError(msg)
        self.check_room(digest)
        path = self._partials / blob_name(digest)
        # Reserved and announced before the first await, so that no second writer slips in.
        arrival = self._arrivals[digest] = _Arrival(path)
        self._partial.setdefault(digest, self._clock.now())
        outcome: WavemeshError = FetchStoppedError(f"the fetch of blob {digest.sha256} stopped before its end")
        file: PartialFile | None = None
        writer: BlobWriter | None = None
        try:
            file = await in_thread(PartialFile, path, digest, self._disk, self._boot)
            while await in_thread(file.rehash):
                pass
            arrival.tell(file.offset)
            writer = BlobWriter(file, arrival, self._path(digest))
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
            if is_finished or not (self._partials / blob_name(digest)).exists():
                self._partial.pop(digest, None)

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
        arrival = self._arrivals[digest] = _Arrival(path)
        self._complete.pop(digest, None)
        self._partial.pop(digest, None)
        self._tags.pop(digest, None)
        try:
            await in_thread(self._remove, (mark_path(path), path, self._path(digest)))
        finally:
            del self._arrivals[digest]
            arrival.end(NotFoundError(f"blob {digest.sha256} was deleted", sha256=digest.sha256))
        return digest.size_bytes

    def _remove(self, paths: Iterable[Path]) -> None:
        for path in paths:
            if path.exists():
                self._disk.remove(path)

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
                piece = _read_cached(descriptor, position, buffer, digest.size_bytes)
                if piece is None:
                    piece = await self._step(digest, os.pread, descriptor, READ_STEP_BYTES, position)
                if tag_of(piece) != tag:
                    await self._drop(digest, None)
                yield piece

    async def _hashed_steps(self, digest: Digest) -> AsyncGenerator[bytes, None]:
        """All steps, the last one only if the whole file has its digest; then its tags are known for the next read."""
        hasher, tagger = hashlib.sha256(), Tagger()
        position = 0
        async with self._open(digest) as descriptor:
            while position < digest.size_bytes:
                piece = await self._step(digest, _read_and_hash, descriptor, position, hasher, tagger)
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
        """Forget a blob whose bytes went bad, cannot be read or are gone, so that it is fetched again."""
        if digest in self._complete:
            await self.delete(digest)
        raise BlobMismatchError(digest, str(fault or "the disk holds other bytes")) from fault

    async def scrub(self, digest: Digest) -> None:
        """Read and hash one complete blob in full; raises NotFoundError, BlobMismatchError (and it is gone)."""
        used = self._complete.get(digest)
        await self._verify(digest)
        if used is not None and digest in self._complete:
            await self._touch(digest, used)

    async def _touch(self, digest: Digest, used_at: datetime) -> None:
        """Note the last use of a complete blob, here and as the file's time for the next start."""
        self._complete[digest] = used_at
        with suppress(FileNotFoundError):  # evicted while it is being read
            await in_thread(os.utime, self._path(digest), (used_at.timestamp(),) * 2)


def _read_cached(descriptor: int, position: int, buffer: bytearray, size: int) -> bytes | None:
    """One step, if it can be had without waiting for the disk: handing it to a thread would cost more than the copy."""
    wanted = min(len(buffer), size - position)
    try:
        count = os.preadv(descriptor, [buffer], position, os.RWF_NOWAIT)
    except OSError:  # not in the page cache, or the file system cannot tell: the thread that waits meets real errors
        return None
    return bytes(memoryview(buffer)[:count]) if count == wanted else None


def _read_and_hash(descriptor: int, position: int, hasher: hashlib._Hash, tagger: Tagger) -> bytes:
    """One step of a read that verifies for the first time."""
    data = os.pread(descriptor, READ_STEP_BYTES, position)
    hasher.update(data)
    tagger.update(data)
    return data
