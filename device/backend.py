"""Which slots and boot environment a device has: the one place that knows the back-ends.

``[board] backend`` chooses. The agent works with ``slots`` and ``boot_control``, and with ``installer`` where another
program writes the slots; the factory, and a supervisor that plays the board, have the same boot environment as
``bootloader`` and the same slots as ``media``, and run the ``services``. A back-end is imported only when it is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from device.bootenv import SlotName
from device.config import Backend, BootStore

if TYPE_CHECKING:
    from pathlib import Path

    from device.config import DeviceConfig
    from device.platform import BoardServices, BootControl, Bootloader, Installer, Media, Slots
    from device.slots.environments import StoredEnvironment
    from wavemesh.runtime.durable import Disk


@dataclass(frozen=True, slots=True)
class SlotSystem:
    """The system partitions of one device and what boots them."""

    slots: Slots
    boot_control: BootControl
    bootloader: Bootloader
    media: Media
    installer: Installer | None = None
    services: BoardServices | None = None


_STORES = {Backend.SIMULATED: BootStore.FILE, Backend.GRUB: BootStore.GRUB, Backend.UBOOT: BootStore.UBOOT}


def open_slots(directory: Path, config: DeviceConfig, disk: Disk) -> SlotSystem:
    """The slots of the device in ``directory``; every durable step goes through ``disk``. Raises LocalError."""
    control = open_environment(directory, config, disk)
    capacity_bytes = config.board.slot_capacity_bytes
    match config.board.backend:
        case Backend.SIMULATED:
            from device.slots.simulated import SimulatedSlots

            simulated = SimulatedSlots(directory / "slots", disk, control, capacity_bytes)
            return SlotSystem(simulated, control, control, simulated)
        case Backend.GRUB | Backend.UBOOT:
            from device.slots.raw import RawSlots

            paths = {SlotName.A: config.slots.a, SlotName.B: config.slots.b}
            raw = RawSlots(paths, directory / "slots", disk, control, capacity_bytes)
            return SlotSystem(raw, control, control, raw)
        case Backend.RAUC:
            from device.slots.rauc import RaucBootControl, RaucSlots
            from device.slots.rauc_board import RaucBoard, bus_address
            from device.slots.rauc_installer import RaucInstaller

            services = None if config.rauc.bus else RaucBoard(directory, config)
            bus = config.rauc.bus or bus_address(directory)
            slots = RaucSlots(directory, config, disk, control, bus)
            marks = RaucBootControl(control, slots, disk, config.rauc, bus)
            installer = RaucInstaller(slots, config.rauc, disk, bus)
            return SlotSystem(slots, marks, control, slots, installer, services)


def open_environment(directory: Path, config: DeviceConfig, disk: Disk) -> StoredEnvironment:
    """The boot environment alone. Raises LocalError."""
    redundant = config.board.redundant_bootloader
    match _STORES.get(config.board.backend, config.rauc.environment):
        case BootStore.FILE:
            from device.slots.simulated import SimulatedBootControl

            return SimulatedBootControl(directory / "slots", disk, redundant_bootloader=redundant)
        case BootStore.GRUB:
            from device.slots.grub import GrubBootControl

            return GrubBootControl(config.grub.environment, disk, redundant_bootloader=redundant)
        case BootStore.UBOOT:
            from device.slots.uboot import UbootBootControl

            return UbootBootControl(config.uboot.config, disk, redundant_bootloader=redundant)
