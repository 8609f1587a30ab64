"""Make a delta, and rebuild a target from bases and a delta.

Both block, hold their inputs in memory and are meant for a process of their own (worker.py). A result appears under
its name only when it is whole, right and on disk.

The payload, first form: MAGIC, version, SHA-256 and size of the target, size of the concatenated bases, then
a zstd frame with HDiffPatch's diff.
"""

from __future__ import annotations

import hashlib
import os
import struct
from typing import TYPE_CHECKING

import hdiffpatch
import zstandard

from wavemesh.artifacts.digests import MAX_BLOB_BYTES, check_digest
from wavemesh.errors import PeerError
from wavemesh.runtime.durable import Disk, disk_errors
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MAGIC = b"WMDELTA"
VERSION = 0
_HEADER = struct.Struct(">7sB32sQQ")
_TEMPORARY_SUFFIX = ".tmp"


class BadDeltaError(PeerError):
    """A delta is malformed, is for other bases, or does not rebuild what it should."""

    reason = "BAD_DELTA"


def temporary_of(out: Path) -> Path:
    """Where ``make`` and ``rebuild`` write before ``out`` appears; left behind only by a killed process."""
    return out.with_name(out.name + _TEMPORARY_SUFFIX)


def make(bases: Sequence[Path], target: Path, out: Path) -> None:
    """Write the delta from ``bases``, in this order, to ``target``; it was rebuilt and compared before it appears.

    Raises DiskFaultError.
    """
    old, new = _read(bases), _read([target])
    diff = hdiffpatch.diff(old, new, "none", validate=True)
    body = zstandard.ZstdCompressor(level=19, write_checksum=False).compress(diff)
    header = _HEADER.pack(MAGIC, VERSION, hashlib.sha256(new).digest(), len(new), len(old))
    _place(out, header + body)


def rebuild(bases: Sequence[Path], payload: Path, out: Path, target: Digest) -> None:
    """Write the target of a delta to ``out``; raises BadDeltaError, DiskFaultError, and then there is no ``out``."""
    check_digest(target)
    old, delta = _read(bases), _read([payload])
    if len(delta) < _HEADER.size:
        raise BadDeltaError(f"delta {payload.name} ends after {len(delta)} bytes, in its header")
    magic, version, sha256, size_bytes, old_bytes = _HEADER.unpack_from(delta)
    if magic != MAGIC or version != VERSION:
        raise BadDeltaError(f"delta {payload.name} is of an unknown form: {magic!r}, version {version}")
    if Digest(sha256.hex(), size_bytes) != target:
        raise BadDeltaError(f"delta {payload.name} is for {sha256.hex()} of {size_bytes} bytes, not for {target}")
    if old_bytes != len(old):
        raise BadDeltaError(f"delta {payload.name} wants bases of {old_bytes} bytes in all, these have {len(old)}")
    try:
        diff = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompress(
            delta[_HEADER.size :], max_output_size=min(2 * size_bytes + (1 << 20), MAX_BLOB_BYTES)
        )
        new = hdiffpatch.apply(old, diff)
    except (zstandard.ZstdError, hdiffpatch.HDiffPatchError, ValueError) as error:
        raise BadDeltaError(f"delta {payload.name} cannot be applied: {error}") from error
    if len(new) != size_bytes or hashlib.sha256(new).digest() != sha256:
        raise BadDeltaError(f"delta {payload.name} with these bases does not rebuild {target.sha256}")
    _place(out, new)


def _read(paths: Sequence[Path]) -> bytes:
    """The files, one after the other."""
    parts: list[bytes] = []
    for path in paths:
        with disk_errors(path):
            parts.append(path.read_bytes())
    return b"".join(parts)


def _place(out: Path, content: bytes) -> None:
    disk, temporary = Disk(), temporary_of(out)
    try:
        disk.unlink(temporary)
        descriptor = disk.create(temporary)
        try:
            disk.write(descriptor, content, temporary)
            disk.fsync(descriptor, temporary)
        finally:
            os.close(descriptor)
        disk.rename(temporary, out)
        disk.fsync_dir(out.parent)
    except BaseException:
        disk.unlink(temporary)
        raise
