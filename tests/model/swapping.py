"""A device of the permit scenarios: the product's update machine, its boot environment and its board.

Effects are done one at a time, so that the power may go between any two. What is durable is ``disk`` (the progress as
persisted), ``environment`` and the grant in hand. Staging always succeeds at once; it holds no slot and no permit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from control.ledger import Outcome
from device.bootenv import Boot, BootEnvironment, ResetReason, SlotName
from device.platform import BootRecord
from device.progress import (
    Arm,
    Cleared,
    CommitBoot,
    CommitRead,
    Disarm,
    Effect,
    Event,
    Halted,
    Healthy,
    Persist,
    Progress,
    Reboot,
    Rules,
    Staged,
    Started,
    Target,
    Unhealthy,
)
from device.update import BEFORE_ARM, IN_SWAP, advance
from tests.model.explorer import BrokenError
from wavemesh.trust.statements import Digest, OutcomeKind, Permit, UpdateState

WAVE = "w"
BEGAN = datetime(2026, 3, 1, tzinfo=UTC)
TICK_S = 60
FOREVER = BEGAN + timedelta(days=365)
OLD, NEW = Boot(SlotName.A, 1), Boot(SlotName.B, 1)
FIRMWARE = Digest("0" * 64, 1)
RULES = Rules("hub", 60.0, False, 1e9, 0, 99.0, 0, False, "", (), ())  # positions of a long record
TARGET = Target(WAVE, 1, "r2", "2.0", FIRMWARE, None, "", "", FOREVER, NEW, RULES)
VERIFIED, ON_OLD = Progress(UpdateState.VERIFIED, WAVE, TARGET), BootEnvironment(OLD)

BURNED_FIRST = "an attempt is burned durably before it is armed, and only once (permits)"
LIVE_PERMIT = "no ARM without a live permit and lease, within its attempts (permits)"


def at(tick: int) -> datetime:
    """A moment of the coarse clock."""
    return BEGAN + timedelta(seconds=tick * TICK_S)


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease with its permit, as the device holds it."""

    attempt: int
    permit: Permit
    expires_tick: int


@dataclass(frozen=True, slots=True)
class Device:
    """One device. ``last`` is its last word, ``untold`` are those its hub does not have; ``burned`` and ``armed``
    are the attempts that were, for the checks; ``ended`` is why the board last stopped, None while it runs.
    """

    name: str
    progress: Progress = VERIFIED
    disk: Progress = VERIFIED
    environment: BootEnvironment = ON_OLD
    running: Boot = OLD
    boots: int = 1
    todo: tuple[Effect, ...] = ()
    ended: ResetReason | None = None
    grant: Grant | None = None
    hub: str = ""
    sequence: int = 0
    untold: tuple[Outcome, ...] = ()
    last: Outcome | None = None
    armed: tuple[int, ...] = ()
    knows_halt: bool = False

    @property
    def is_inside(self) -> bool:
        """Whether it is inside a swap: from the burn to the slot it ends on, by what is durable."""
        return self.disk.state in IN_SWAP

    @property
    def is_done(self) -> bool:
        """Whether it will not ARM in this wave again, by its own word."""
        state = self.disk.state
        return state in {UpdateState.COMMITTED, UpdateState.ROLLED_BACK} or (state is UpdateState.REFUSED)

    @property
    def asks(self) -> tuple[UpdateState, int]:
        """State and attempt as its status says them."""
        progress = self.progress
        return progress.state, progress.attempt + (progress.state in BEFORE_ARM)

    def hears(self, event: Event) -> Device:
        """An event for the machine; its effects are still to be done."""
        step = advance(self.progress, event)
        return replace(self, progress=step.progress, todo=(*self.todo, *step.effects))

    def may_clear(self, tick: int) -> bool:
        """What ``device/clearance.py`` looks at of lease and permit, before the machine is told ``Cleared``."""
        grant = self.grant
        return (
            self.progress.state is UpdateState.VERIFIED
            and not self.knows_halt
            and grant is not None
            and grant.attempt == self.progress.attempt + 1
            and tick < grant.expires_tick
            and grant.attempt <= grant.permit.attempts
        )

    def clears(self) -> Device:
        """Everything holds: ARM."""
        assert self.grant is not None
        return self.hears(Cleared(self.grant.attempt, at(self.grant.expires_tick)))

    def does(self, tick: int) -> Device:
        """The next effect."""
        effect, *rest = self.todo
        device = replace(self, todo=tuple(rest))
        match effect:
            case Persist():
                return device._persists(effect, tick)
            case Arm():
                return device._arms(effect)
            case Disarm():
                return replace(device, environment=device.environment.disarm())
            case CommitBoot():
                environment = device.environment.commit()
                return replace(device, environment=environment).hears(CommitRead(environment))
            case Reboot():
                return device.stops(ResetReason.REBOOT)
        msg = f"no device of the model does {effect}"
        raise AssertionError(msg)

    def _persists(self, effect: Persist, tick: int) -> Device:
        device = replace(self, disk=self.progress)
        if self.progress.attempt > self.disk.attempt:
            grant = self.grant
            if grant is None or tick >= grant.expires_tick or not self.progress.attempt <= grant.permit.attempts:
                raise BrokenError(LIVE_PERMIT, f"{self.name} burns attempt {self.progress.attempt} with {grant}")
        if effect.outcome is not None:
            word = Outcome(
                self.name,
                self.progress.attempt,
                self.sequence + 1,
                effect.outcome.kind,
                effect.outcome.gate,
                by_device=True,
            )
            device = replace(device, sequence=self.sequence + 1, untold=(*self.untold, word), last=word)
        return device._stages()

    def _stages(self) -> Device:
        """STAGING takes no time here."""
        return self.hears(Staged()) if self.disk.state is UpdateState.STAGING and not self.todo else self

    def _arms(self, effect: Arm) -> Device:
        attempt = self.disk.attempt
        if self.disk.state is not UpdateState.ARMED or attempt in self.armed:
            raise BrokenError(BURNED_FIRST, f"{self.name} arms, its disk says {self.disk.state.name} {attempt}")
        return replace(self, environment=self.environment.arm(effect.boot), armed=(*self.armed, attempt))

    def stops(self, reason: ResetReason) -> Device:
        """The board resets: what is not durable is gone."""
        return replace(self, todo=(), ended=reason, hub="", progress=self.disk)

    def starts(self) -> Device:
        """The bootloader, then the agent's start."""
        assert self.ended is not None
        environment, running = self.environment, self.environment.active
        if environment.trial is not None and environment.trial.tries_left > 0:
            running, environment = environment.trial.boot, environment.attempt()
        elif environment.trial is not None:
            environment = environment.fall_back(self.ended)
        boots = self.boots + 1
        record = BootRecord(str(boots), running, self.ended)
        device = replace(self, environment=environment, running=running, boots=boots, ended=None)
        return device.hears(Started(record, environment, 0.0))._stages()

    def tries(self, tick: int) -> tuple[tuple[str, Event], ...]:
        """How its trial may end (``device/trial.py``): one that began after its lease had lapsed proves nothing."""
        expires_at = self.progress.lease_expires_at
        if expires_at is not None and at(tick) >= expires_at:
            lapsed = Unhealthy("lease-expired", "", OutcomeKind.INCONCLUSIVE)
            return (("finds its lease lapsed", lapsed),)
        return (
            ("passes its trial", Healthy()),
            ("fails its trial", Unhealthy("boot-probe", "", OutcomeKind.ROLLED_BACK)),
        )

    def is_told_of_halt(self) -> Device:
        """The order says HALTED."""
        return replace(self, knows_halt=True).hears(Halted(""))
