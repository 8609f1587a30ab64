"""Which slots and boot environment a device has: the one place that knows the back-ends.

``[board] backend`` chooses. The agent works with ``slots`` and ``boot_control``; a supervisor that plays the board has
the same boot environment as ``bootloader``. A back-end is imported only when it is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from device.config import Backend

if TYPE_CHECKING:
    from pathlib import Path

    from device.config import DeviceConfig
    from device.platform import BootControl, Bootloader, Slots
    from wavemesh.runtime.durable import Disk


@dataclass(frozen=True, slots=True)
class SlotSystem:
    """The system partitions of one device and what boots them."""

    slots: Slots
    boot_control: BootControl
    bootloader: Bootloader


def open_slots(directory: Path, config: DeviceConfig, disk: Disk) -> SlotSystem:
    """The slots of the device in ``directory``; every durable step goes through ``disk``. Raises LocalError."""
    match config.board.backend:
        case Backend.SIMULATED:
            from device.slots.simulated import SimulatedBootControl, SimulatedSlots

            control = SimulatedBootControl(directory / "slots", disk)
            slots = SimulatedSlots(directory / "slots", disk, control, config.board.slot_capacity_bytes)
            return SlotSystem(slots, control, control)
