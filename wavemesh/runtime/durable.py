"""Durable file steps: the one seam through which state files reach the disk.

Rules: a file that matters is never written in place, but for what ``overwrite`` names. It is written to a temporary
name in the same directory, flushed (fsync), renamed over the old one, and the directory is flushed, in that order; a
reader sees the old bytes or the new ones. Each primitive of ``Disk`` is one durable step; a test that cuts the power
subclasses it and overrides them.

All calls block. State files of a few KiB are fine on the event loop; large files belong into a thread.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from wavemesh.errors import LocalError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_TEMPORARY_SUFFIX = ".tmp"
# What a disk writes whole or not at all.
SECTOR_BYTES = 512


class DiskFaultError(LocalError):
    """The disk refused: full, read-only, not permitted, broken."""

    reason = "DISK_FAULT"


class DiskFullError(DiskFaultError):
    """No space or no quota is left."""

    reason = "DISK_FULL"


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError about ``path`` into DiskFullError or DiskFaultError."""
    try:
        yield
    except OSError as error:
        kind = DiskFullError if error.errno in {errno.ENOSPC, errno.EDQUOT} else DiskFaultError
        msg = f"{path}: {error.strerror or error}"
        raise kind(msg, path=str(path)) from error


class Disk:
    """The real disk. Every method raises DiskFaultError (DiskFullError when no space is left)."""

    def write(self, descriptor: int, data: bytes | bytearray | memoryview, path: Path) -> None:
        """Write all of ``data`` at the descriptor's position; ``path`` names it in errors."""
        with disk_errors(path):
            rest = memoryview(data).cast("B")
            while rest:
                rest = rest[os.write(descriptor, rest) :]

    def fsync(self, descriptor: int, path: Path) -> None:
        """Flush the descriptor's data and metadata to the medium."""
        with disk_errors(path):
            os.fsync(descriptor)

    def create(self, path: Path, mode: int = 0o600) -> int:
        """Create a file that must not be there and open it for writing; its name is durable after ``fsync_dir``."""
        with disk_errors(path):
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)

    def truncate(self, descriptor: int, size_bytes: int, path: Path) -> None:
        """Cut the file to this length, or let it grow to it with zeros; durable after ``fsync``."""
        with disk_errors(path):
            os.ftruncate(descriptor, size_bytes)

    def allocate(self, descriptor: int, size_bytes: int, path: Path) -> None:
        """Reserve space for the first ``size_bytes`` and let the file grow to them; durable after ``fsync``."""
        with disk_errors(path):
            os.posix_fallocate(descriptor, 0, size_bytes)

    def rename(self, source: Path, target: Path) -> None:
        """Rename over ``target``; durable only after ``fsync_dir(target.parent)``."""
        with disk_errors(target):
            source.replace(target)

    def unlink(self, path: Path) -> None:
        """Remove a file if it is there; durable only after ``fsync_dir(path.parent)``."""
        with disk_errors(path):
            path.unlink(missing_ok=True)

    def create_dir(self, directory: Path) -> None:
        """Create one directory; its name is durable after ``fsync_dir(directory.parent)``."""
        with disk_errors(directory):
            directory.mkdir(exist_ok=True)

    def remove_dir(self, directory: Path) -> None:
        """Remove an empty directory; durable only after ``fsync_dir(directory.parent)``."""
        with disk_errors(directory):
            directory.rmdir()

    def fsync_dir(self, directory: Path) -> None:
        """Flush a directory: the names in it."""
        with disk_errors(directory):
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def make_dir(self, directory: Path) -> None:
        """Create a directory and its parents, each durably named in its own parent."""
        missing = [path for path in (directory, *directory.parents) if not path.exists()]
        for path in reversed(missing):
            self.create_dir(path)
            self.fsync_dir(path.parent)

    def remove_tree(self, directory: Path) -> None:
        """Remove a directory, if it is there, and all that is in it; durable only after ``fsync_dir`` of its parent."""
        if not directory.exists():
            return
        with disk_errors(directory):
            inside = sorted(directory.iterdir())
        for path in inside:
            if path.is_dir() and not path.is_symlink():
                self.remove_tree(path)
            else:
                self.unlink(path)
        self.remove_dir(directory)

    def write_new(self, path: Path, data: bytes | bytearray | memoryview, mode: int = 0o600) -> None:
        """A new file with these bytes, flushed, in place of one that may lie there; durable after ``fsync_dir``.

        What lies there is removed first and not opened: an old file may carry a wider mode than this one shall have.
        """
        if path.exists():
            self.unlink(path)
        descriptor = self.create(path, mode)
        try:
            self.write(descriptor, data, path)
            self.fsync(descriptor, path)
        finally:
            os.close(descriptor)

    def write_atomic(self, path: Path, data: bytes | bytearray | memoryview, mode: int = 0o600) -> None:
        """Replace ``path`` by a file with these bytes; durable when it returns, all or nothing when it does not.

        One writer per path at a time: the temporary name is fixed, so that a crash leaves one file, soon overwritten. A
        disk that refuses (full) keeps nothing of it.
        """
        temporary = path.with_name(path.name + _TEMPORARY_SUFFIX)
        try:
            self.write_new(temporary, data, mode)
            self.rename(temporary, path)
        except DiskFaultError:
            with suppress(DiskFaultError):
                self.unlink(temporary)
            raise
        self.fsync_dir(path.parent)

    def discard_temporary(self, path: Path) -> None:
        """Remove what a ``write_atomic`` of ``path`` that was cut off left behind, for what is written rarely."""
        self.unlink(path.with_name(path.name + _TEMPORARY_SUFFIX))

    def overwrite(self, path: Path, offset: int, data: bytes) -> None:
        """Write in place, for what others find by its place: a sector, or a copy that is not the one in use.

        Durable when it returns; when it does not, any of its sectors may be old or new.
        """
        with disk_errors(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            with disk_errors(path):
                os.lseek(descriptor, offset, os.SEEK_SET)
            self.write(descriptor, data, path)
            self.fsync(descriptor, path)
        finally:
            os.close(descriptor)

    def remove(self, path: Path) -> None:
        """Remove a file if it is there; durable when it returns."""
        self.unlink(path)
        self.fsync_dir(path.parent)


def write_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """``Disk().write_atomic`` for files no crash test asks about: certificates, contexts, generated configuration."""
    Disk().write_atomic(path, data, mode)
