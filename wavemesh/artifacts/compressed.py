"""A blob as one zstd frame, made and taken apart in steps.

The window is 128 MiB at most, which is what taking it apart needs in memory, and more is refused; long-distance
matching finds what an image has twice. What comes out is hashed while it is written, never grows past its target's
size, and does not stay if it is wrong. Both functions block: call them in threads, or in a process of their own.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import zstandard

from wavemesh.artifacts.digests import STEP_BYTES
from wavemesh.errors import PeerError
from wavemesh.runtime.durable import Disk, disk_errors

if TYPE_CHECKING:
    from pathlib import Path

    from wavemesh.trust.statements import Digest

FULL_LEVEL = 19
MAX_WINDOW_LOG = 27
_MIN_WINDOW_LOG = 20


class BadCompressedError(PeerError):
    """What was to be a compressed blob is no zstd frame, or one of something else."""

    reason = "BAD_COMPRESSED"


def make_full_zstd(target: Path, out: Path, *, level: int = FULL_LEVEL, disk: Disk | None = None) -> None:
    """Write the file ``target`` as one zstd frame, a new file, on disk when it returns; raises DiskFaultError.

    The same bytes and level give the same frame with the same version of zstd.
    """
    disk = disk or Disk()
    disk.unlink(out)
    with disk_errors(target), target.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        window_log = max(_MIN_WINDOW_LOG, min(MAX_WINDOW_LOG, size.bit_length()))
        parameters = zstandard.ZstdCompressionParameters.from_level(
            level, source_size=size, window_log=window_log, enable_ldm=True, write_content_size=True
        )
        compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=size)
        descriptor = disk.create(out)
        try:
            while piece := file.read(STEP_BYTES):
                disk.write(descriptor, compressor.compress(piece), out)
            disk.write(descriptor, compressor.flush(), out)
            disk.fsync(descriptor, out)
        finally:
            os.close(descriptor)


def rebuild_full_zstd(payload: Path, out: Path, target: Digest, disk: Disk | None = None) -> None:
    """Write the target to ``out``, a new file; raises BadCompressedError, DiskFaultError, and then it is not there."""
    disk = disk or Disk()
    disk.unlink(out)
    hasher, size = hashlib.sha256(), 0
    with disk_errors(payload), payload.open("rb", buffering=0) as file:
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << MAX_WINDOW_LOG)
        descriptor = disk.create(out)
        try:
            with decompressor.stream_reader(file, read_across_frames=False, closefd=False) as reader:
                while piece := reader.read(STEP_BYTES):
                    size += len(piece)
                    if size > target.size_bytes:
                        raise _bad(target, f"it holds more than {target.size_bytes} bytes")
                    hasher.update(piece)
                    disk.write(descriptor, piece, out)
            if (hasher.hexdigest(), size) != (target.sha256, target.size_bytes):
                raise _bad(target, f"it holds {size} bytes with SHA-256 {hasher.hexdigest()}")
            disk.fsync(descriptor, out)
        except BaseException as error:
            disk.unlink(out)
            if isinstance(error, zstandard.ZstdError):
                raise _bad(target, str(error)) from error
            raise
        finally:
            os.close(descriptor)


def _bad(target: Digest, what: str) -> BadCompressedError:
    msg = f"the compressed blob {target.sha256} is wrong: {what}; bring it by another delivery"
    return BadCompressedError(msg, sha256=target.sha256)
