"""The boot environment: what the bootloader boots, as a value, its transitions and its form on disk.

Theory. The environment is the only truth of commit. It names up to three *boots* (a slot with the config generation
that belongs to it):

* ``active``    what boots when nothing is on trial; always a complete, verified, good image;
* ``previous``  the last known good one, if it is still intact: what a rollback after the commit returns to;
* ``trial``     what boots next instead of ``active``, for as long as ``tries_left`` is above zero.

A slot is good if and only if ``active`` or ``previous`` names it. Each transition is one atomic replacement:

    invalidate   before the first byte is written to a slot: ``previous`` no longer names it
    arm          trial := boot, one try
    attempt      (bootloader, before it boots a trial) tries_left := tries_left - 1, durably, so power cuts cannot loop
    fall_back    (bootloader, once no try is left) remember the reset reason that ended the trial
    count_fall_back  (the same, by a bootloader that does not know reset reasons) count the boots after the trial
    keep_trying  supervised mode: the trial stays bootable for some more tries
    disarm       no trial any more; ``active`` stays what it is
    commit       previous := active, active := trial, no trial
    revert       a trial that was the way back of a rollback: active := trial, no previous, no trial

No transition makes a slot active that was not on trial or good before. This module is shared by the agent and by the
supervisor and imports nothing heavy.
"""

from __future__ import annotations

import enum
import hashlib
import json
from dataclasses import dataclass, replace

from wavemesh.errors import LocalError

FORMAT = 1
MAX_BYTES = 16 * 1024
MAX_TRIES = 10
MAX_FALL_BACKS = 2


class SlotName(enum.Enum):
    """One of the two system partitions."""

    A = "A"
    B = "B"

    @property
    def other(self) -> SlotName:
        """The slot that does not run while this one does."""
        return SlotName.B if self is SlotName.A else SlotName.A


class ResetReason(enum.Enum):
    """Why the board started; values as in boot.json."""

    POWER_ON = "power-on"
    REBOOT = "reboot"
    WATCHDOG = "watchdog"
    POWER_LOSS = "power-loss"


class BootEnvironmentError(LocalError):
    """The boot environment is unreadable, or a transition was asked that its state does not allow."""

    reason = "BOOT_ENVIRONMENT"


@dataclass(frozen=True, slots=True)
class Boot:
    """Something bootable: a slot and the config generation that belongs to it."""

    slot: SlotName
    config_generation: int


@dataclass(frozen=True, slots=True)
class Trial:
    """A boot on trial; ``ended_by`` is the reset that used up its last try, None before that.

    A bootloader that cannot know it counts in ``fall_backs`` how often it booted the active slot since, up to
    MAX_FALL_BACKS, which stands for "more than once".
    """

    boot: Boot
    tries_left: int
    ended_by: ResetReason | None = None
    fall_backs: int = 0

    def end(self, this_boot: ResetReason) -> ResetReason:
        """What ended the trial, asked in a boot that fell back; what nobody can tell is no power loss.

        Only the first such boot has the reset reason that ended it.
        """
        if self.ended_by is not None:
            return self.ended_by
        return this_boot if self.fall_backs == 1 else ResetReason.WATCHDOG


@dataclass(frozen=True, slots=True)
class BootEnvironment:
    """All the bootloader knows; ``sequence`` grows with each write, for people and checkers."""

    active: Boot
    previous: Boot | None = None
    trial: Trial | None = None
    sequence: int = 0

    def invalidate(self, slot: SlotName) -> BootEnvironment:
        """Make sure that nothing boots this slot any more; raises BootEnvironmentError for the active one."""
        if slot is self.active.slot:
            msg = f"slot {slot.value} is the active one and must not be written: write the other one"
            raise BootEnvironmentError(msg, slot=slot.value)
        previous = None if self.previous is not None and self.previous.slot is slot else self.previous
        trial = None if self.trial is not None and self.trial.boot.slot is slot else self.trial
        return replace(self, previous=previous, trial=trial)

    def arm(self, boot: Boot) -> BootEnvironment:
        """Boot this once, next time."""
        return replace(self, trial=Trial(boot, tries_left=1))

    def attempt(self) -> BootEnvironment:
        """Take one try of the trial."""
        trial = self._trial()
        return replace(self, trial=replace(trial, tries_left=trial.tries_left - 1))

    def fall_back(self, reason: ResetReason) -> BootEnvironment:
        """Note why the trial ended; the first reason stands."""
        trial = self._trial()
        return replace(self, trial=replace(trial, ended_by=trial.ended_by or reason))

    def count_fall_back(self) -> BootEnvironment:
        """Note that the trial ended, for a bootloader that knows no reason."""
        trial = self._trial()
        return replace(self, trial=replace(trial, fall_backs=min(trial.fall_backs + 1, MAX_FALL_BACKS)))

    def keep_trying(self, tries: int) -> BootEnvironment:
        """Let the trial boot again, ``tries`` times at most."""
        return replace(self, trial=Trial(self._trial().boot, tries))

    def disarm(self) -> BootEnvironment:
        """Forget the trial."""
        return replace(self, trial=None)

    def commit(self) -> BootEnvironment:
        """The trial becomes active and what was active the last known good."""
        return replace(self, active=self._trial().boot, previous=self.active, trial=None)

    def revert(self) -> BootEnvironment:
        """The trial was a rollback: it becomes active, and nobody goes back to what was rolled away from."""
        return replace(self, active=self._trial().boot, previous=None, trial=None)

    def _trial(self) -> Trial:
        if self.trial is None:
            msg = "nothing is on trial"
            raise BootEnvironmentError(msg)
        return self.trial


def encode(environment: BootEnvironment) -> bytes:
    """JSON with a checksum over its content."""
    content = {
        "format": FORMAT,
        "sequence": environment.sequence,
        "active": _boot_to_json(environment.active),
        "previous": None if environment.previous is None else _boot_to_json(environment.previous),
        "trial": None if environment.trial is None else _trial_to_json(environment.trial),
    }
    return json.dumps({**content, "checksum": _checksum(content)}, indent=1).encode() + b"\n"


def decode(data: bytes, where: str) -> BootEnvironment:
    """Read what ``encode`` wrote; ``where`` names the file in errors. Raises BootEnvironmentError."""
    try:
        content = json.loads(data[: MAX_BYTES + 1])
        checksum = content.pop("checksum")
        if checksum != _checksum(content) or content["format"] != FORMAT:
            msg = f"{where}: checksum or format is wrong; write it anew with the slot that is known to be good"
            raise BootEnvironmentError(msg, file=where)
        trial = content["trial"]
        return BootEnvironment(
            _boot_from_json(content["active"]),
            None if content["previous"] is None else _boot_from_json(content["previous"]),
            None if trial is None else _trial_from_json(trial),
            int(content["sequence"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{where}: not a boot environment ({error}); write it anew with the slot that is known to be good"
        raise BootEnvironmentError(msg, file=where) from error


def _checksum(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _boot_to_json(boot: Boot) -> dict[str, object]:
    return {"slot": boot.slot.value, "config_generation": boot.config_generation}


def _boot_from_json(value: dict[str, object]) -> Boot:
    return Boot(SlotName(value["slot"]), _number(value["config_generation"]))


def _trial_to_json(trial: Trial) -> dict[str, object]:
    ended_by = None if trial.ended_by is None else trial.ended_by.value
    return {**_boot_to_json(trial.boot), "tries_left": trial.tries_left, "ended_by": ended_by}


def _trial_from_json(value: dict[str, object]) -> Trial:
    ended_by = value["ended_by"]
    tries_left = min(_number(value["tries_left"]), MAX_TRIES)
    return Trial(_boot_from_json(value), tries_left, None if ended_by is None else ResetReason(ended_by))


def _number(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        msg = f"{value!r} is not a count"
        raise ValueError(msg)
    return value
