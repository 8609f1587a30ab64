"""Power cuts and crashes between any two effects of the update machine, under a true bootloader (D9). Pure.

The model keeps what is durable (progress, burns, boot environment) and what is not (the running boot). After any number
of cuts and watchdog resets the device is at rest on a complete image, and every attempt is accounted for. In some lives
an operator wants the old slot back after the commit; that slot may have rotted, or not boot any more.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

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
    GatesPassed,
    Healthy,
    KeepTrying,
    Notice,
    Ordered,
    Outcome,
    Persist,
    Progress,
    Reboot,
    ReturnRefused,
    ReturnVerified,
    Revert,
    RollbackAsked,
    Rules,
    SignedOff,
    Staged,
    Started,
    Target,
    Unhealthy,
)
from device.update import advance
from wavemesh.trust.statements import ROLLBACK_FAILED, Digest, OutcomeKind, UpdateState

S = UpdateState
NOW = datetime(2026, 5, 1, tzinfo=UTC)
A1, B2 = Boot(SlotName.A, 1), Boot(SlotName.B, 2)
RULES = Rules("either", 300.0, False, 86_400.0, 40, 70.0, 0, True, "", (), ())
TARGET = Target("142", 1, "r", "3.8.2", Digest("a" * 64, 10), None, "", "", NOW, B2, RULES)
ATTEMPTS = 3


class Old(enum.Enum):
    """What an operator finds who wants the old slot back."""

    LEFT_ALONE = "nobody asks"
    GOOD = "good"
    ROTTEN = "rotten"
    UNBOOTABLE = "unbootable"


class ResetError(Exception):
    """The board was reset; with no reason, only the agent crashed and the boot goes on."""


@dataclass
class Model:
    """One device; ``cuts`` says before which effects the board is reset, and why."""

    healthy: bool
    supervised: bool
    cuts: dict[int, ResetReason | None]
    old: Old = Old.LEFT_ALONE
    progress: Progress = field(default_factory=Progress)
    volatile: Progress = field(default_factory=Progress)
    environment: BootEnvironment = field(default_factory=lambda: BootEnvironment(A1))
    running: Boot = A1
    outcomes: list[Outcome] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    burns: list[int] = field(default_factory=list)
    trial_boots: int = 0
    boots: int = 0
    effects: int = 0

    def run(self) -> None:
        reason = ResetReason.POWER_ON
        self.boot(reason)
        for _ in range(40):
            try:
                self.live(reason)
            except ResetError as reset:
                if reset.args[0] is not None:
                    reason = reset.args[0]
                    self.boot(reason)
            else:
                return
        msg = "the device never came to rest"
        raise AssertionError(msg)

    def boot(self, reason: ResetReason) -> None:
        trial = self.environment.trial
        self.boots += 1
        if trial is not None and trial.tries_left > 0:
            self.running = trial.boot
            self.environment = self.environment.attempt()
            self.trial_boots += trial.boot == B2
            if trial.boot == A1 and self.old is Old.UNBOOTABLE:
                self.boot(ResetReason.WATCHDOG)
        else:
            self.running = self.environment.active
            if trial is not None:
                self.environment = self.environment.fall_back(reason)

    def live(self, reason: ResetReason) -> None:
        self.volatile = self.progress
        record = BootRecord(str(self.boots), self.running, reason)
        event: Event | None = Started(record, self.environment, 0.0)
        while event is not None:
            event = self.handle(event) or self.next_event()

    def handle(self, event: Event) -> Event | None:
        step = advance(self.volatile, event)
        self.volatile = step.progress
        follow: Event | None = None
        for effect in step.effects:
            self.cut()
            follow = self.perform(effect) or follow
        self.cut()
        return follow

    def cut(self) -> None:
        self.effects += 1
        if self.effects in self.cuts:
            raise ResetError(self.cuts[self.effects])

    def perform(self, effect: Effect) -> Event | None:
        match effect:
            case Persist(outcome, notice):
                if self.volatile.state is S.ARMED:
                    self.burns.append(self.volatile.attempt)
                self.progress = self.volatile
                if outcome is not None:
                    self.outcomes.append(outcome)
                if notice is not None:
                    self.notices.append(notice)
            case Arm(boot):
                self.environment = self.environment.arm(boot)
            case Disarm():
                self.environment = self.environment.disarm()
            case KeepTrying():
                self.environment = self.environment.keep_trying(3)
            case Reboot():
                raise ResetError(ResetReason.REBOOT)
            case _:
                return self.make_active(effect)
        return None

    def make_active(self, effect: CommitBoot | Revert) -> Event:
        if isinstance(effect, CommitBoot):
            self.environment = self.environment.commit()
        else:
            assert self.old is Old.GOOD, "made a slot active that was not verified, or did not boot"
            self.environment = self.environment.revert()
        return CommitRead(self.environment)

    def next_event(self) -> Event | None:
        """What activities and levels say in this state."""
        attempt = self.volatile.attempt + 1
        target = replace(TARGET, rules=replace(RULES, supervised=self.supervised))
        failed = Unhealthy("peripheral:scanner", "x", OutcomeKind.ROLLED_BACK)
        assert self.volatile.state is not S.TRIAL or self.running == B2
        said: dict[UpdateState, Event | None] = {
            S.IDLE: Ordered(target, max(self.burns, default=0)),
            S.PREFLIGHT: GatesPassed(),
            S.STAGING: Staged(),
            S.VERIFIED: Cleared(attempt, NOW) if attempt <= ATTEMPTS else None,
            S.TRIAL: Healthy() if self.healthy else failed,
            S.AWAITING_SIGNOFF: SignedOff("signed off", "i-1"),
            S.COMMITTED: self.wish(),
            S.ROLLING_BACK: self.reading(),
        }
        return said.get(self.volatile.state)

    def wish(self) -> Event | None:
        """An intent is told until the machine has kept that it acted on it."""
        if self.old is Old.LEFT_ALONE or self.progress.intent_id == "i-2":
            return None
        return RollbackAsked("driver missing", self.environment, intent_id="i-2")

    def reading(self) -> Event:
        return ReturnRefused("torn", self.environment) if self.old is Old.ROTTEN else ReturnVerified()


resets = st.sampled_from([ResetReason.POWER_LOSS, ResetReason.WATCHDOG, None])


@settings(max_examples=200, deadline=None)
@given(st.booleans(), st.booleans(), st.dictionaries(st.integers(1, 80), resets, max_size=8), st.sampled_from(Old))
def test_wherever_the_power_fails(
    healthy: bool,  # noqa: FBT001  # drawn
    supervised: bool,  # noqa: FBT001  # drawn
    cuts: dict[int, ResetReason | None],
    old: Old,
) -> None:
    model = Model(healthy, supervised, cuts, old)
    model.run()
    check(model)


def test_every_single_cut() -> None:
    for healthy, supervised, old in product((True, False), (True, False), Old):
        whole = Model(healthy, supervised, {}, old)
        whole.run()
        check(whole)
        for moment in range(1, whole.effects + 1):
            for reason in (ResetReason.POWER_LOSS, ResetReason.WATCHDOG, None):
                model = Model(healthy, supervised, {moment: reason}, old)
                model.run()
                check(model)


def check(model: Model) -> None:
    state = model.volatile.state
    environment = model.environment
    # VERIFIED: all attempts are burned, nobody will grant another lease.
    assert state in {S.COMMITTED, S.ROLLED_BACK} or (state is S.VERIFIED and len(model.burns) == ATTEMPTS)
    assert model.running == environment.active
    assert environment.trial is None
    assert (environment.active == B2) == (state is S.COMMITTED), state
    assert model.burns == sorted(set(model.burns)), "an attempt was burned twice"
    assert len(model.burns) <= ATTEMPTS
    assert model.trial_boots <= len(model.burns) + 3 * model.supervised * (model.boots - 1)
    updated = [outcome for outcome in model.outcomes if outcome.kind is OutcomeKind.UPDATED]
    went_back = [one for one in model.outcomes if (one.kind, one.gate) == (OutcomeKind.ROLLED_BACK, "operator")]
    assert bool(updated) == (state is S.COMMITTED or bool(went_back))
    if not model.healthy:
        assert state is not S.COMMITTED
    if model.old is Old.LEFT_ALONE:
        assert not went_back
    elif state is S.COMMITTED:
        assert [(one.kind, one.subject) for one in model.notices] == [(ROLLBACK_FAILED, "i-2")]
    if model.old in {Old.ROTTEN, Old.UNBOOTABLE}:
        assert not went_back
    if not model.cuts:
        stays = model.healthy and model.old is not Old.GOOD
        assert state is (S.COMMITTED if stays else S.ROLLED_BACK)
        assert bool(went_back) == (model.healthy and model.old is Old.GOOD)
    elif model.old is Old.GOOD and updated and len(model.cuts) == 1:
        assert went_back or ResetReason.WATCHDOG in model.cuts.values(), "one power cut made a rollback fail"
