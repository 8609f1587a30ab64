"""Reading what the medium holds, not what the page cache remembers of it.

A read with O_DIRECT passes the cache by; where a file system does not offer that (tmpfs of older kernels), the cache is
asked to forget the range first, which it does for pages that are flushed.
"""

from __future__ import annotations

import mmap
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from wavemesh.runtime.durable import disk_errors

if TYPE_CHECKING:
    import hashlib
    from collections.abc import Iterator
    from pathlib import Path

BUFFER_BYTES = 1024 * 1024
_BLOCK_BYTES = 4096  # O_DIRECT wants offset, length and memory aligned; no common disk has larger blocks


class MediumReader:
    """One file, open for reading from its medium. Blocks; one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open; raises DiskFaultError."""
        self._path = path
        self._buffer = mmap.mmap(-1, BUFFER_BYTES)
        with disk_errors(path):
            try:
                self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
                self._is_direct = True
            except OSError:
                self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                self._is_direct = False

    def hash_into(self, hasher: hashlib._Hash, start: int, end: int) -> None:
        """Hash the bytes from ``start`` to ``end``, fewer where the file ends earlier; raises DiskFaultError."""
        with disk_errors(self._path), memoryview(self._buffer) as buffer:
            if not self._is_direct:
                os.posix_fadvise(self._descriptor, start, end - start, os.POSIX_FADV_DONTNEED)
            while start < end:
                skipped = start % _BLOCK_BYTES
                count = os.preadv(self._descriptor, [buffer], start - skipped)
                with buffer[skipped : min(count, skipped + end - start)] as piece:
                    if not piece:
                        return
                    hasher.update(piece)
                    start += len(piece)

    def close(self) -> None:
        """Give the descriptor and the buffer back."""
        os.close(self._descriptor)
        self._buffer.close()


@contextmanager
def reading_medium(path: Path) -> Iterator[MediumReader]:
    """A reader for one block; raises DiskFaultError."""
    reader = MediumReader(path)
    try:
        yield reader
    finally:
        reader.close()
