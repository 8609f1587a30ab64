"""A simulated disk with two slots, and its boot environment: ordinary files that behave as a medium does.

Layout: ``slots/A.img`` and ``slots/B.img`` hold the images, ``slots/bootenv.json`` is the boot environment; labels and
marks lie beside them (device/slots/images.py).
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from device.bootenv import MAX_BYTES, BootEnvironment, BootEnvironmentError, SlotName, decode, encode
from device.slots.environments import StoredEnvironment
from device.slots.images import ImageSlots
from wavemesh.runtime.durable import DiskFaultError, disk_errors

if TYPE_CHECKING:
    from pathlib import Path

    from device.bootenv import ResetReason
    from device.platform import BootControl
    from wavemesh.runtime.durable import Disk
    from wavemesh.trust.statements import Digest


class SimulatedBootControl(StoredEnvironment):
    """The boot environment as one JSON file, replaced atomically."""

    def __init__(self, directory: Path, disk: Disk, *, redundant_bootloader: bool = False) -> None:
        """``directory`` is the slots directory."""
        super().__init__(redundant_bootloader=redundant_bootloader)
        self._path = directory / "bootenv.json"
        self._disk = disk

    def read(self) -> BootEnvironment:
        """The environment on the medium; raises BootEnvironmentError, DiskFaultError."""
        with disk_errors(self._path):
            if not self._path.exists():
                msg = f"{self._path} is absent; equip the device first: python -m device.factory --dir DIR"
                raise BootEnvironmentError(msg)
            with self._path.open("rb") as file:
                return decode(file.read(MAX_BYTES + 1), str(self._path))

    def write(self, environment: BootEnvironment) -> None:
        """Replace the file."""
        self._disk.write_atomic(self._path, encode(environment), 0o644)

    def _fallen_back(self, environment: BootEnvironment, reason: ResetReason) -> BootEnvironment:
        return environment.fall_back(reason)


class SimulatedSlots(ImageSlots):
    """Two image files, each as long as the image on it."""

    def __init__(self, directory: Path, disk: Disk, boot_control: BootControl, capacity_bytes: int) -> None:
        """``directory`` is the slots directory; a slot holds images up to ``capacity_bytes``."""
        super().__init__(directory, disk, boot_control)
        self._capacity_bytes = capacity_bytes

    def present(self) -> bool:
        """Whether both image files are there."""
        return all(self.path(slot).is_file() for slot in SlotName)

    def capacity_bytes(self, slot: SlotName) -> int:
        """The same for both."""
        return self._capacity_bytes if self.path(slot).is_file() else 0

    def path(self, slot: SlotName) -> Path:
        """The image file."""
        return self._directory / f"{slot.value}.img"

    def _lay_image(self, image: Path) -> None:
        shutil.copyfile(image, self.path(SlotName.A))
        self.path(SlotName.B).touch()

    def _check_unused(self, slot: SlotName) -> None:
        """Nobody else knows these files."""

    def _open(self, slot: SlotName, image: Digest) -> int:
        path = self.path(slot)
        with disk_errors(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            # The file is the medium: exactly as long as the image, so that its digest is the slot's digest.
            self._disk.truncate(descriptor, image.size_bytes, path)
        except DiskFaultError:
            os.close(descriptor)
            raise
        return descriptor
