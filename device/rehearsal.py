"""A rehearsal (O4): everything that arming the staged slot would rely on, looked at without doing it.

It reads and runs; it writes nothing: no slot, no environment, no state, not even a log line. In this order:

* ``checksum``      the staged slot reads back from the medium as its label says
* ``config``        the config generation that would boot with it is complete
* ``environment``   the boot environment as arming would leave it: tries the staged boot once, falls back to the running
* ``boot-probe``    the release's own probe, contained as always
* ``kexec``         the kernel of the slot can be loaded (``[rehearsal]``), and is unloaded again; it is not executed.
  A reboot must never go to a kernel that was left loaded, past the bootloader and its count of tries: a Linux board
  unloads before it reboots, and when its agent starts.

A device in a swap is past that, and without a staged slot there is nothing to rehearse: both are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from device.bootenv import ResetReason
from device.commands import run_command
from device.staging import staged_facts
from device.update import IN_SWAP
from wavemesh.errors import LocalError
from wavemesh.policy.gates import Gate

if TYPE_CHECKING:
    from collections.abc import Callable

    from device.equipment import Equipment
    from device.progress import Progress, Target

KEXEC_TIMEOUT_S = 60.0


class NothingToRehearseError(LocalError):
    """The device is in a swap, or nothing is staged."""

    reason = "NOTHING_TO_REHEARSE"


@dataclass(frozen=True, slots=True)
class Check:
    """One part of a rehearsal: ``detail`` is what was found, or what is wrong."""

    name: str
    passes: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What was rehearsed, and what came of it."""

    release: str
    slot: str
    checks: tuple[Check, ...]

    @property
    def passes(self) -> bool:
        """Whether nothing speaks against arming."""
        return all(check.passes for check in self.checks)

    @property
    def gate(self) -> str:
        """The gate that would refuse, empty where none would, or none is there for it."""
        names = {gate.value for gate in Gate}
        return next((check.name for check in self.checks if not check.passes and check.name in names), "")

    def sentence(self) -> str:
        """In words, for an audit."""
        bad = [f"{check.name}: {check.detail}" for check in self.checks if not check.passes]
        good = ", ".join(check.name for check in self.checks if check.passes)
        what = f"{self.release or 'the config'} on slot {self.slot}"
        return f"{what} fails: {'; '.join(bad)}" if bad else f"{what} passes: {good}"


async def rehearse(equipment: Equipment, progress: Callable[[], Progress]) -> Rehearsal:
    """Rehearse what is staged now; raises NothingToRehearseError, also when the machine goes on meanwhile."""
    before = progress()
    target = _staged(equipment, before)
    checks = [await _slot(equipment, target), _config(equipment, target), _environment(equipment, target)]
    if target.rules.boot_probe:
        checks.append(await _boot_probe(equipment, target))
    if equipment.config.rehearsal.kexec_load:
        checks.append(await _kexec(equipment, target))
    if progress().target != target or progress().state in IN_SWAP:
        msg = f"the device went on to {progress().state.name} meanwhile; what was found is of no use any more"
        raise NothingToRehearseError(msg)
    return Rehearsal(target.release, target.boot.slot.value, tuple(checks))


def _staged(equipment: Equipment, progress: Progress) -> Target:
    """What is ready to be armed."""
    target = progress.target
    if progress.state in IN_SWAP:
        msg = f"the device is in a swap ({progress.state.name}): rehearse before it, or after it"
        raise NothingToRehearseError(msg)
    if target is None or target.boot == equipment.record.boot:
        msg = f"nothing is staged (the device is {progress.state.name})"
        raise NothingToRehearseError(msg)
    label = equipment.slots.label(target.boot.slot)
    if target.firmware is not None and (label is None or label.firmware != target.firmware):
        msg = f"slot {target.boot.slot.value} does not hold {target.release} yet (the device is {progress.state.name})"
        raise NothingToRehearseError(msg)
    return target


async def _slot(equipment: Equipment, target: Target) -> Check:
    slot, label = target.boot.slot, equipment.slots.label(target.boot.slot)
    if label is None:
        return Check("checksum", passes=False, detail=f"slot {slot.value} has no label")
    try:
        found = await equipment.slots.digest(slot, label.firmware.size_bytes)
    except LocalError as error:
        return Check("checksum", passes=False, detail=str(error))
    passes = found == label.firmware.sha256
    wrong = "" if passes else f", its label says {label.firmware.sha256}"
    return Check("checksum", passes=passes, detail=f"slot {slot.value} reads back SHA-256 {found}{wrong}")


def _config(equipment: Equipment, target: Target) -> Check:
    generation = target.boot.config_generation
    label = equipment.configs.label(generation)
    if label is None:
        return Check("config", passes=False, detail=f"config generation {generation} is not complete")
    return Check("config", passes=True, detail=f"config generation {generation} is {label.version}")


def _environment(equipment: Equipment, target: Target) -> Check:
    """What arming would write, by the environment's own rules, and what a bootloader would make of it."""
    running = equipment.record.boot
    try:
        environment = equipment.boot_control.read()
        tried = environment.arm(target.boot).attempt()
        fallen, committed = tried.fall_back(ResetReason.WATCHDOG), tried.commit()
    except LocalError as error:
        return Check("environment", passes=False, detail=str(error))
    if environment.active != running or environment.trial is not None:
        return Check("environment", passes=False, detail=f"it is not settled on the running boot: {environment}")
    falls_back = fallen.trial is not None and not fallen.trial.tries_left and fallen.active == running
    detail = (
        f"would try slot {target.boot.slot.value} with config {target.boot.config_generation} once,"
        f" and fall back to slot {running.slot.value} with config {running.config_generation}"
    )
    return Check("environment", passes=falls_back and committed.active == target.boot, detail=detail)


async def _boot_probe(equipment: Equipment, target: Target) -> Check:
    finding = await equipment.probes.run(
        Gate.BOOT_PROBE.value, target.rules.boot_probe, staged_facts(equipment.slots, target)
    )
    return Check("boot-probe", passes=finding.passes, detail=finding.evidence or f"{target.rules.boot_probe!r} passes")


async def _kexec(equipment: Equipment, target: Target) -> Check:
    """Load the slot's kernel and unload it again."""
    settings = equipment.config.rehearsal
    slot = str(equipment.slots.path(target.boot.slot))
    command = [word.replace("{slot}", slot) for word in settings.kexec_load]
    try:
        ended = await run_command(command, KEXEC_TIMEOUT_S)
    finally:
        unloaded = await run_command(settings.kexec_unload, KEXEC_TIMEOUT_S)
    problem = ended.problem or unloaded.problem
    return Check("kexec", passes=not problem, detail=problem or f"{' '.join(command)} loads it")
