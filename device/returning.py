"""Before a rollback after the commit: is what it goes back to still there?

The old slot has lain unused since the commit. Its image is read back from the medium and compared with the digest that
its label keeps from the signed release, and its config bundle with its own; what the running boot uses itself needs no
proof. This waits for nothing: no gate, hub or network has a say.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from device.offload import Worker
from device.progress import Event, ReturnRefused, ReturnVerified
from wavemesh.errors import WavemeshError

if TYPE_CHECKING:
    from device.bootenv import Boot
    from device.equipment import Equipment
    from device.progress import Progress


async def read_back(equipment: Equipment, progress: Progress) -> Event:
    """The work of ROLLING_BACK: whether the boot to return to is intact."""
    boot = progress.return_to
    if boot in {None, equipment.record.boot}:
        await asyncio.Event().wait()  # the boot environment is being written; nothing is left to read
    try:
        with equipment.tracing.check("read-back"):
            why = "" if boot is None else await _damage(equipment, boot)
    except WavemeshError as error:
        why = str(error)
    return ReturnRefused(why, equipment.boot_control.read()) if why else ReturnVerified()


async def _damage(equipment: Equipment, boot: Boot) -> str:
    """What is wrong with a boot, empty when it is whole; raises LocalError when it cannot be read."""
    running, slots = equipment.record.boot, equipment.slots
    if boot.slot is not running.slot:
        label = slots.label(boot.slot)
        if label is None:
            return f"nothing says that slot {boot.slot.value} holds a complete image"
        found = await slots.digest(boot.slot, label.firmware.size_bytes)
        if found != label.firmware.sha256:
            return f"slot {boot.slot.value} reads back SHA-256 {found}, {label.version} has {label.firmware.sha256}"
    if boot.config_generation != running.config_generation:
        async with Worker() as worker:
            if not await equipment.configs.is_intact(boot.config_generation, worker):
                return f"config generation {boot.config_generation} is not what its label says"
    return ""
