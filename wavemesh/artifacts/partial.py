"""A blob that is still being written: an append-only file that resumes where it can be trusted.

After a crash of the process everything in the file is good: the page cache outlived it. After a power cut only what was
fsynced is. So beside the file lies a *mark*: the boot in which it was made and the offset up to which the file was
fsynced then. In the same boot the whole file is believed, in another one it is cut back to the mark, without a mark it
starts again. What is believed is hashed again when the file is opened, because the state of a SHA-256 cannot be kept.
In the end the digest alone decides.

Synchronous; every method is called in a thread, one at a time. Raises DiskFaultError, DiskFullError.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from wavemesh.artifacts.digests import STEP_BYTES
from wavemesh.artifacts.tags import Tagger
from wavemesh.errors import LocalError
from wavemesh.runtime.durable import disk_errors

if TYPE_CHECKING:
    from wavemesh.runtime.durable import Disk
    from wavemesh.trust.statements import Digest

MARK_EVERY_BYTES = 16 * STEP_BYTES

_BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
_MARK = re.compile(r"(\S{1,64}) (0|[1-9][0-9]{0,12})\n")


class BlobMismatchError(LocalError):
    """The bytes of a blob are not what its digest says; they are served no more and must be fetched again."""

    reason = "BLOB_MISMATCH"

    def __init__(self, digest: Digest, found: str) -> None:
        """Name the blob and what was found in its place."""
        super().__init__(f"blob {digest.sha256} of {digest.size_bytes} bytes: {found}", sha256=digest.sha256)
        self.digest = digest


def boot_id() -> str:
    """Names this boot of the machine; empty, so that only fsynced bytes are believed, where the kernel does not say."""
    with suppress(OSError):
        return _BOOT_ID_FILE.read_text("ascii").strip()
    return ""


def mark_path(path: Path) -> Path:
    """Where the mark of a partial file lies."""
    return path.with_name(path.name + ".mark")


def take_over(source: Path, path: Path, digest: Digest, disk: Disk, boot: str) -> None:
    """Make a whole file the partial one of a blob, to be verified and finished by its next writer; copies nothing.

    A file of another length is refused with BlobMismatchError and stays. It is on disk before it has its name: whatever
    mark an earlier partial file left there, what is believed by it are bytes of this one.
    """
    with disk_errors(source):
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor).st_size
        if found != digest.size_bytes:
            raise BlobMismatchError(digest, f"{found} bytes were rebuilt")
        disk.fsync(descriptor, source)
    finally:
        os.close(descriptor)
    disk.rename(source, path)
    disk.fsync_dir(path.parent)
    disk.write_atomic(mark_path(path), _mark(boot, found))


def _mark(boot: str, offset: int) -> bytes:
    return f"{boot or '-'} {offset}\n".encode()


class PartialFile:
    """One partial file, open for appending."""

    def __init__(self, path: Path, digest: Digest, disk: Disk, boot: str) -> None:
        """Open or create the file and cut it back to what can be believed; ``rehash`` must follow."""
        self.path = path
        self.digest = digest
        self._disk = disk
        self._boot = boot
        self._hasher = hashlib.sha256()
        self._tagger = Tagger()
        self._hashed = 0
        self.is_finished = False
        self.mismatch: BlobMismatchError | None = None
        """What ``finish`` found wrong with it."""
        self.tags: tuple[bytes, ...] = ()
        if not path.exists():
            os.close(disk.create(path))
        with disk_errors(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            self.offset = min(self._believed(), digest.size_bytes)
        self._cut_back()
        self._marked = -1
        self.mark()

    def _believed(self) -> int:
        """How many bytes from the start can be trusted to be what was written."""
        length = os.fstat(self._descriptor).st_size
        match: re.Match[str] | None = None
        with suppress(FileNotFoundError, UnicodeDecodeError):
            match = _MARK.fullmatch(mark_path(self.path).read_text("ascii"))
        if match is None:
            return 0
        return length if self._boot and match[1] == self._boot else min(length, int(match[2]))

    def _cut_back(self) -> None:
        """End the file at ``offset``, and write from there on."""
        self._disk.truncate(self._descriptor, self.offset, self.path)
        with disk_errors(self.path):
            os.lseek(self._descriptor, self.offset, os.SEEK_SET)

    def rehash(self) -> bool:
        """Hash one more step of what was there before; returns whether more is left."""
        with disk_errors(self.path):
            piece = os.pread(self._descriptor, min(STEP_BYTES, self.offset - self._hashed), self._hashed)
        self._hasher.update(piece)
        self._tagger.update(piece)
        self._hashed += len(piece)
        return bool(piece) and self._hashed < self.offset

    def append(self, data: bytes | memoryview) -> None:
        """Write and hash; every MARK_EVERY_BYTES the bytes are fsynced and marked.

        A write that failed half way (disk full) is cut off again, so that file, hash and offset keep saying the same.
        """
        if self.offset + len(data) > self.digest.size_bytes:
            raise BlobMismatchError(self.digest, f"the sender has more than its size, byte {self.offset + len(data)}")
        try:
            self._disk.write(self._descriptor, data, self.path)
        except BaseException:
            self._cut_back()
            raise
        self._hasher.update(data)
        self._tagger.update(data)
        self.offset += len(data)
        self._hashed = self.offset
        if self.offset - self._marked >= MARK_EVERY_BYTES:
            self.mark()

    def mark(self) -> None:
        """Fsync what is written and note how far that is."""
        if self._marked == self.offset:
            return
        self._disk.fsync(self._descriptor, self.path)
        self._disk.write_atomic(mark_path(self.path), _mark(self._boot, self.offset))
        self._marked = self.offset

    def finish(self, target: Path) -> None:
        """Check the digest and move the file to its final name, durably; raises BlobMismatchError, file untouched."""
        found = self._hasher.hexdigest()
        if self.offset != self.digest.size_bytes or found != self.digest.sha256:
            self.mismatch = BlobMismatchError(self.digest, f"{self.offset} bytes with SHA-256 {found} arrived")
            raise self.mismatch
        self._disk.fsync(self._descriptor, self.path)
        self._disk.make_dir(target.parent)
        self._disk.rename(self.path, target)
        self._disk.fsync_dir(target.parent)
        self.tags = self._tagger.tags()
        # Said here, in the thread: whoever waits for it may be cancelled meanwhile, and must know all the same.
        self.is_finished = True
        self._disk.unlink(mark_path(self.path))

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._descriptor)
