"""Make a delta, and rebuild a target from bases and a delta.

Both block and are meant for a process of their own (worker.py). Making holds bases and target in memory and some ten
bytes for each of theirs; rebuilding maps the bases and holds a few megabytes beside the contents of re-compressed
streams. A result appears under its name only when it is whole, right and on disk. The form is in container.py.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from wavemesh.artifacts.delta.container import parse
from wavemesh.artifacts.delta.errors import BadDeltaError
from wavemesh.artifacts.delta.making import delta_of
from wavemesh.artifacts.delta.rebuilding import layout_of, map_file, rebuild_into
from wavemesh.artifacts.digests import check_digest, digest_of
from wavemesh.runtime.durable import Disk, disk_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from wavemesh.trust.statements import Digest

__all__ = ["BadDeltaError", "make", "rebuild", "rebuild_s", "temporary_of"]

_TEMPORARY_SUFFIX = ".tmp"
_CORES = 2
_REBUILT_BYTES_PER_S = 400e6
"""Assembled, hashed and written in a second, where the disk does not hold it up."""


def temporary_of(out: Path) -> Path:
    """Where ``make`` and ``rebuild`` write before ``out`` appears; left behind only by a killed process."""
    return out.with_name(out.name + _TEMPORARY_SUFFIX)


def make(bases: Sequence[Path], target: Path, out: Path) -> None:
    """Write the delta from ``bases``, in this order, to ``target``; it was rebuilt and compared before it appears.

    Raises DiskFaultError.
    """
    old, new = [_read(base) for base in bases], _read(target)
    delta = delta_of(old, new)
    # BadDeltaError here would be a fault of the maker, found in time: nothing is written.
    rebuild_into([memoryview(base) for base in old], memoryview(delta), digest_of(new), _nowhere)
    _place(out, lambda write: write(delta))


def rebuild(bases: Sequence[Path], payload: Path, out: Path, target: Digest) -> None:
    """Write the target of a delta to ``out``; raises BadDeltaError, DiskFaultError, and then there is no ``out``."""
    check_digest(target)
    old, delta = [map_file(base) for base in bases], map_file(payload)
    try:
        _place(out, lambda write: rebuild_into(old, delta, target, write))
    except BadDeltaError as error:
        raise BadDeltaError(f"delta {payload.name}: {error}", sha256=target.sha256) from error


def rebuild_s(payload: Path) -> float:
    """Nominal seconds to rebuild from a delta on two cores, for a planner; raises BadDeltaError, DiskFaultError."""
    head = parse(map_file(payload))
    encoding_s = sum(one.recipe.seconds(one.content_bytes) for one in layout_of(head).recompressed)
    return encoding_s / _CORES + head.target.size_bytes / _REBUILT_BYTES_PER_S


def _read(path: Path) -> bytes:
    with disk_errors(path):
        return path.read_bytes()


def _nowhere(_piece: bytes | bytearray | memoryview) -> None:
    """Takes pieces that were hashed, which was all they were made for."""


def _place(out: Path, fill: Callable[[Callable[[bytes | bytearray | memoryview], None]], None]) -> None:
    """A file that appears when it is filled and on disk."""
    disk, temporary = Disk(), temporary_of(out)
    try:
        disk.unlink(temporary)
        descriptor = disk.create(temporary)
        try:
            fill(lambda piece: disk.write(descriptor, piece, temporary))
            disk.fsync(descriptor, temporary)
        finally:
            os.close(descriptor)
        disk.rename(temporary, out)
        disk.fsync_dir(out.parent)
    except BaseException:
        disk.unlink(temporary)
        raise
