"""What really runs and why, from what a Linux board says about its boot. Pure.

The running boot. The bootloader puts ``wavemesh.slot=A wavemesh.config=3`` on the kernel's command line; it alone knows
the config generation. Where the slots are block devices, the root file system must rest on the named one and not on the
other. Anything missing, said twice or contradicted means that nobody knows for certain what runs: the agent must not
start, because it would take the running slot for the spare one and overwrite it.

The reset reason. ``power-loss`` keeps a failed trial out of the rollback ratio, so the board's own record alone proves
it, and only when no watchdog and no crashed kernel speaks against it. A boot that the agent asked for is a ``reboot``,
one after an orderly stop a ``power-on``; what nothing proves is ``watchdog``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from device.bootenv import Boot, ResetReason, SlotName
from wavemesh.errors import LocalError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SLOT_KEY, CONFIG_KEY = "wavemesh.slot", "wavemesh.config"
MAX_DIGITS = 9
# Bit of a watchdog's bootstatus: WDIOF_CARDRESET of linux/watchdog.h.
CARD_RESET = 0x20


class RunningSlotError(LocalError):
    """What runs cannot be told for certain."""

    reason = "RUNNING_SLOT"


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of mountinfo: its device number ("8:2") and its source ("/dev/sda2")."""

    number: str
    source: str


@dataclass(frozen=True, slots=True)
class Boots:
    """All sources of the running boot.

    ``root`` are the device numbers that the file system mounted at ``root_at`` rests on, through mappings and verity;
    ``slots`` has those of the slots that are block devices.
    """

    command_line_at: str
    command_line: str
    root_at: str
    root: Sequence[str]
    slots: Mapping[SlotName, str]


def running_boot(said: Boots) -> Boot:
    """Slot and config generation; raises RunningSlotError, which names each source and what it says."""
    slots, configs = _values(said.command_line, SLOT_KEY), _values(said.command_line, CONFIG_KEY)
    if len(slots) != 1 or slots[0] not in {slot.value for slot in SlotName}:
        raise _uncertain(said, f"{SLOT_KEY} must be there once, A or B; the bootloader's script puts it there")
    if len(configs) != 1 or not (configs[0].isascii() and configs[0].isdigit() and len(configs[0]) <= MAX_DIGITS):
        raise _uncertain(said, f"{CONFIG_KEY} must be there once, a number; the bootloader's script puts it there")
    slot = SlotName(slots[0])
    if said.slots.get(slot.other) in said.root:
        raise _uncertain(said, f"the root rests on slot {slot.other.value}: mend root= in the bootloader's script")
    if slot in said.slots and said.slots[slot] not in said.root:
        raise _uncertain(said, "the root rests on no slot: name the mount of the slot's file system as [linux] root")
    return Boot(slot, int(configs[0]))


def mount_at(mountinfo: str, place: str) -> Mount | None:
    """What is mounted at a place, the last one where several cover each other; see proc_pid_mountinfo(5)."""
    found = None
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) > 4 and len(kind) > 1 and fields[4] == place:
            found = Mount(fields[2], kind[1])
    return found


def reset_reason(
    *, board: ResetReason | None, bootstatus: Sequence[int], crashed: bool, agent: ResetReason | None
) -> ResetReason:
    """Why the board started.

    ``board`` is its own record by the configured meaning, ``bootstatus`` what the kernel has of each watchdog,
    ``crashed`` whether a kernel left a crash record, ``agent`` how the agent left the boot before, None if by no word.
    """
    if crashed or any(status & CARD_RESET for status in bootstatus):
        return ResetReason.WATCHDOG
    return board or agent or ResetReason.WATCHDOG


def _values(command_line: str, key: str) -> list[str]:
    """All values of a parameter, each once."""
    words = (word.partition("=") for word in command_line.split())
    return sorted({value for name, _, value in words if name == key})


def _uncertain(said: Boots, problem: str) -> RunningSlotError:
    slots = ", ".join(f"slot {slot.value} is {number}" for slot, number in said.slots.items()) or "no slot is a device"
    words = " ".join(
        word for word in said.command_line.split() if word.partition("=")[0] in {SLOT_KEY, CONFIG_KEY, "root"}
    )
    msg = (
        f"it is not certain which slot runs: {problem}. {said.command_line_at} says {words or 'nothing of it'!r};"
        f" {said.root_at} rests on {' over '.join(said.root) or 'nothing known'}; {slots}"
    )
    return RunningSlotError(msg)
