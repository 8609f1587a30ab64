"""One step of a blob's file: read where it costs no wait, read and hashed, or read again from the medium."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from wavemesh.artifacts.tags import READ_STEP_BYTES

if TYPE_CHECKING:
    import hashlib

    from wavemesh.artifacts.tags import Tagger


def read_cached(descriptor: int, position: int, buffer: bytearray, size: int) -> bytes | None:
    """One step, if it can be had without waiting for the disk: handing it to a thread would cost more than the copy."""
    wanted = min(len(buffer), size - position)
    try:
        count = os.preadv(descriptor, [buffer], position, os.RWF_NOWAIT)
    except OSError:  # not in the page cache, or the file system cannot tell: the thread that waits meets real errors
        return None
    return bytes(memoryview(buffer)[:count]) if count == wanted else None


def read_and_hash(descriptor: int, position: int, hasher: hashlib._Hash, tagger: Tagger) -> bytes:
    """One step of a read that verifies for the first time."""
    data = os.pread(descriptor, READ_STEP_BYTES, position)
    hasher.update(data)
    tagger.update(data)
    return data


def reread_and_hash(descriptor: int, position: int, hasher: hashlib._Hash, tagger: Tagger) -> bytes:
    """``read_and_hash`` from the medium, which a scrub is about; what was not in memory before is not after it."""
    was_cached = read_cached(descriptor, position, bytearray(1), position + 1) is not None
    os.posix_fadvise(descriptor, position, READ_STEP_BYTES, os.POSIX_FADV_DONTNEED)
    data = read_and_hash(descriptor, position, hasher, tagger)
    if not was_cached:
        os.posix_fadvise(descriptor, position, READ_STEP_BYTES, os.POSIX_FADV_DONTNEED)
    return data
