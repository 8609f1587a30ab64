"""Which slots and boot environment a device has: the one place that knows the back-ends.

``[board] backend`` chooses. The agent works with ``slots`` and ``boot_control``; the factory, and a supervisor that
plays the board, have the same boot environment as ``bootloader`` and the same slots as ``media``. A back-end is
imported only when it is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from device.bootenv import SlotName
from device.config import Backend

if TYPE_CHECKING:
    from pathlib import Path

    from device.config import DeviceConfig
    from device.platform import BootControl, Bootloader, Media, Slots
    from device.slots.environments import StoredEnvironment
    from device.slots.images import ImageSlots
    from wavemesh.runtime.durable import Disk


@dataclass(frozen=True, slots=True)
class SlotSystem:
    """The system partitions of one device and what boots them."""

    slots: Slots
    boot_control: BootControl
    bootloader: Bootloader
    media: Media


def open_slots(directory: Path, config: DeviceConfig, disk: Disk) -> SlotSystem:
    """The slots of the device in ``directory``; every durable step goes through ``disk``. Raises LocalError."""
    control = _environment(directory, config, disk)
    slots = _slots(directory, config, disk, control)
    return SlotSystem(slots, control, control, slots)


def _environment(directory: Path, config: DeviceConfig, disk: Disk) -> StoredEnvironment:
    redundant = config.board.redundant_bootloader
    match config.board.backend:
        case Backend.SIMULATED:
            from device.slots.simulated import SimulatedBootControl

            return SimulatedBootControl(directory / "slots", disk, redundant_bootloader=redundant)
        case Backend.GRUB:
            from device.slots.grub import GrubBootControl

            return GrubBootControl(config.grub.environment, disk, redundant_bootloader=redundant)
        case Backend.UBOOT:
            from device.slots.uboot import UbootBootControl

            return UbootBootControl(config.uboot.config, disk, redundant_bootloader=redundant)


def _slots(directory: Path, config: DeviceConfig, disk: Disk, control: BootControl) -> ImageSlots:
    capacity_bytes = config.board.slot_capacity_bytes
    if config.board.backend is Backend.SIMULATED:
        from device.slots.simulated import SimulatedSlots

        return SimulatedSlots(directory / "slots", disk, control, capacity_bytes)
    from device.slots.raw import RawSlots

    paths = {SlotName.A: config.slots.a, SlotName.B: config.slots.b}
    return RawSlots(paths, directory / "slots", disk, control, capacity_bytes)
