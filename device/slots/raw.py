"""Slots on partitions, loop devices or files of a fixed size, at the paths that ``[slots]`` names.

Rules. Both must be there and be different devices. A slot's size is its device's. A block device is opened exclusively,
which the kernel refuses while it is mounted, the running root, or under a device-mapper target: such a slot is not
written, whatever the boot environment says. Nothing is truncated: an image's digest is that of the slot's first bytes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import sys
from typing import TYPE_CHECKING

from device.bootenv import SlotName
from device.slots.images import ImageSlots, SlotError
from wavemesh.runtime.durable import disk_errors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from device.platform import BootControl
    from wavemesh.runtime.durable import Disk
    from wavemesh.trust.statements import Digest

COPY_BYTES = 1024 * 1024
_BLKROGET = 0x125E  # linux/fs.h: whether a block device is read-only


class RawSlots(ImageSlots):
    """Two devices or files."""

    def __init__(
        self,
        paths: Mapping[SlotName, Path],
        directory: Path,
        disk: Disk,
        boot_control: BootControl,
        file_bytes: int,
    ) -> None:
        """``directory`` holds labels and marks; a factory makes a file of ``file_bytes`` where there is no device.

        Raises SlotError when both paths are the same device.
        """
        super().__init__(directory, disk, boot_control)
        self._file_bytes = file_bytes
        self._paths = dict(paths)
        first, second = (_identity(self.path(slot)) for slot in SlotName)
        if first is not None and first == second:
            msg = f"slots A ({self.path(SlotName.A)}) and B ({self.path(SlotName.B)}) are the same device"
            raise SlotError(msg, file=str(self.path(SlotName.A)))

    def present(self) -> bool:
        """Whether both devices are there."""
        return all(_identity(path) is not None for path in self._paths.values())

    def capacity_bytes(self, slot: SlotName) -> int:
        """Size of the device or file."""
        path = self.path(slot)
        if _identity(path) is None:
            return 0
        with disk_errors(path), path.open("rb") as file:
            return file.seek(0, os.SEEK_END)

    def path(self, slot: SlotName) -> Path:
        """The device or file."""
        return self._paths[slot]

    def _lay_image(self, image: Path) -> None:
        for path in self._paths.values():
            if not path.exists():
                path.touch()
                os.truncate(path, self._file_bytes)
        size_bytes, capacity_bytes = image.stat().st_size, self.capacity_bytes(SlotName.A)
        if size_bytes > capacity_bytes:
            msg = f"slot A ({self.path(SlotName.A)}) cannot hold {size_bytes} bytes (capacity {capacity_bytes})"
            raise SlotError(msg, slot="A")
        with image.open("rb") as source, os.fdopen(self._open_device(SlotName.A), "wb") as target:
            shutil.copyfileobj(source, target, COPY_BYTES)
            target.flush()
            os.fsync(target.fileno())

    def _check_unused(self, slot: SlotName) -> None:
        os.close(self._open_device(slot))

    def _open(self, slot: SlotName, image: Digest) -> int:  # noqa: ARG002  # a device keeps its size
        return self._open_device(slot)

    def _open_device(self, slot: SlotName) -> int:
        path = self.path(slot)
        with disk_errors(path):
            if not path.is_block_device():
                return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_EXCL)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                msg = f"slot {slot.value} ({path}) is in use: mounted, or the running root: see lsblk and /proc/cmdline"
                raise SlotError(msg, slot=slot.value) from error
            if int.from_bytes(fcntl.ioctl(descriptor, _BLKROGET, bytes(4)), sys.byteorder):
                os.close(descriptor)
                msg = f"slot {slot.value} ({path}) is read-only: see blockdev --getro, --setrw"
                raise SlotError(msg, slot=slot.value)
            return descriptor


def _identity(path: Path) -> tuple[int, ...] | None:
    """What tells one device or file from another; None when it is neither."""
    try:
        found = path.stat()
    except OSError:
        return None
    if stat.S_ISBLK(found.st_mode):
        return (found.st_rdev,)
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None
