"""Before a rollback after the commit: is what it goes back to still there?

The old slot has lain unused since the commit. Its image is read back from the medium and compared with the digest that
its label keeps from the signed release, and its config bundle with its own; what the running boot uses itself needs no
proof. This waits for nothing: no gate, hub or network has a say. A boot that the environment does not call previous is
the packed last known good: it is restored to the slot that does not run, from the last mark after a power cut.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

from device.offload import Worker
from device.progress import Event, ReturnRefused, ReturnVerified
from wavemesh.errors import WavemeshError

if TYPE_CHECKING:
    from device.bootenv import Boot
    from device.equipment import Equipment
    from device.platform import SlotWriter
    from device.progress import Progress


async def read_back(equipment: Equipment, progress: Progress) -> Event:
    """The work of ROLLING_BACK: whether the boot to return to is intact."""
    boot = progress.return_to
    if boot in {None, equipment.record.boot}:
        await asyncio.Event().wait()  # the boot environment is being written; nothing is left to read
    try:
        with equipment.tracing.check("read-back"):
            why = "" if boot is None else await _restored(equipment, boot) or await _damage(equipment, boot)
    except WavemeshError as error:
        why = str(error)
    return ReturnRefused(why, equipment.boot_control.read()) if why else ReturnVerified()


async def _restored(equipment: Equipment, boot: Boot) -> str:
    """Put the packed image onto its slot, unless it is there; what was wrong, or empty. Raises LocalError."""
    packed, slots = equipment.lkg.held(), equipment.slots
    if boot == equipment.boot_control.read().previous or boot.slot is equipment.record.boot.slot:
        return ""
    if packed is None or packed.config_generation != boot.config_generation:
        return "the packed last known good is not there any more"
    image = packed.label.firmware
    if slots.label(boot.slot) == packed.label:
        return ""
    writer = await slots.begin(boot.slot, image)
    try:
        await _fill(equipment, writer)
        found = writer.read_back
    finally:
        await writer.close()
    if found != image.sha256:
        await slots.discard(boot.slot)
        return f"slot {boot.slot.value} reads back SHA-256 {found} after it was restored, {image.sha256} was packed"
    await slots.seal(boot.slot, packed.label)
    return ""


async def _fill(equipment: Equipment, writer: SlotWriter) -> None:
    skipped, synced = writer.offset, writer.offset
    async with aclosing(equipment.lkg.content()) as pieces:
        async for piece in pieces:
            rest = piece[skipped:]
            skipped -= len(piece) - len(rest)
            await writer.write(rest)
            if writer.offset - synced >= equipment.config.staging.fsync_step_bytes:
                await writer.sync()
                synced = writer.offset
    await writer.sync()


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
