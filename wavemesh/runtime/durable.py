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
from contextlib import contextmanager
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

    def rename(self, source: Path, target: Path) -> None:
        """Rename over ``target``; durable only after ``fsync_dir(target.parent)``."""
        with disk_errors(target):
            source.replace(target)

    def unlink(self, path: Path) -> None:
        """Remove a file if it is there; durable only after ``fsync_dir(path.parent)``."""
        with disk_errors(path):
            path.unlink(missing_ok=True)

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
            with disk_errors(path):
                path.mkdir(exist_ok=True)
            self.fsync_dir(path.parent)

    def write_atomic(self, path: Path, data: bytes | bytearray | memoryview, mode: int = 0o600) -> None:
        """Replace ``path`` by a file with these bytes; durable when it returns, all or nothing when it does not.

        One writer per path at a time: the temporary name is fixed, so that a crash leaves one file, soon overwritten.
        """
        temporary = path.with_name(path.name + _TEMPORARY_SUFFIX)
        with disk_errors(temporary):
            # Unlinked first: an old temporary file may carry a wider mode than this one shall have.
            temporary.unlink(missing_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            self.write(descriptor, data, temporary)
            self.fsync(descriptor, temporary)
        finally:
            os.close(descriptor)
        self.rename(temporary, path)
        self.fsync_dir(path.parent)

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
