"""Whether a slot can be written at all: a block of random bytes goes there, is flushed, and is read back. Blocks.

Refurbished hardware has second slots that are read-only, worn out, or not what they claim to be. It is looked at once
in a device's life for each slot, before its first flash. What stood there is put back, so nothing is lost but by a
power cut in between; what could be lost then is not bootable any more, because the caller invalidates the slot first.
The last whole block is tried; a file that stands for a slot and is shorter grows to one and shrinks again.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from device.slots.medium import reading_medium
from wavemesh.runtime.durable import DiskFaultError, disk_errors

if TYPE_CHECKING:
    from pathlib import Path

    from wavemesh.runtime.durable import Disk

PROBE_BYTES = 4096


def probe_medium(path: Path, disk: Disk, pattern: bytes) -> str:
    """What is wrong with the medium, empty if nothing is; ``pattern`` are PROBE_BYTES that stand nowhere yet."""
    try:
        with disk_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return _probe(descriptor, path, disk, pattern)
        finally:
            os.close(descriptor)
    except DiskFaultError as error:
        return f"cannot be written: {error}"


def _probe(descriptor: int, path: Path, disk: Disk, pattern: bytes) -> str:
    with disk_errors(path):
        size = os.lseek(descriptor, 0, os.SEEK_END)
        place = max(0, size - PROBE_BYTES) // PROBE_BYTES * PROBE_BYTES
        before = os.pread(descriptor, PROBE_BYTES, place)
    found = hashlib.sha256()
    try:
        _put(descriptor, path, disk, pattern, place)
        with reading_medium(path) as medium:
            medium.hash_into(found, place, place + PROBE_BYTES)
    finally:
        _put(descriptor, path, disk, before, place)
        if len(before) < PROBE_BYTES:  # a file that stands for a slot, and is shorter than a block
            with disk_errors(path):
                os.ftruncate(descriptor, size)
            disk.fsync(descriptor, path)
    if found.digest() != hashlib.sha256(pattern).digest():
        return f"does not keep what is written: {path} at byte {place} reads back something else"
    return ""


def _put(descriptor: int, path: Path, disk: Disk, data: bytes, place: int) -> None:
    with disk_errors(path):
        os.lseek(descriptor, place, os.SEEK_SET)
    disk.write(descriptor, data, path)
    disk.fsync(descriptor, path)
