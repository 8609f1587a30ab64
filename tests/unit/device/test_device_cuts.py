"""Power cuts and crashes between any two effects of the update machine, under a true bootloader (D9). Pure.

The model keeps what is durable (progress, burns, boot environment) and what is not (the running boot). After any number
of cuts and watchdog resets the device is at rest on a complete image, and every attempt is accounted for.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

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
    Ordered,
    Outcome,
    Persist,
    Progress,
    Reboot,
    Revert,
    RollbackAsked,
    Rules,
    Staged,
    Started,
    Target,
    Unhealthy,
)
from device.update import advance
from wavemesh.trust.statements import Digest, OutcomeKind, UpdateState

S = UpdateState
NOW = datetime(2026, 5, 1, tzinfo=UTC)
A1, B2 = Boot(SlotName.A, 1), Boot(SlotName.B, 2)
RULES = Rules("either", 300.0, False, 86_400.0, 40, 70.0, 0, True, "", (), ())
TARGET = Target("142", 1, "r", "3.8.2", Digest("a" * 64, 10), None, "", "", NOW, B2, RULES)
ATTEMPTS = 3


class ResetError(Exception):
    """The board was reset; with no reason, only the agent crashed and the boot goes on."""


@dataclass
class Model:
    """One device; ``cuts`` says before which effects the board is reset, and why."""

    healthy: bool
    supervised: bool
    cuts: dict[int, ResetReason | None]
    progress: Progress = field(default_factory=Progress)
    volatile: Progress = field(default_factory=Progress)
    environment: BootEnvironment = field(default_factory=lambda: BootEnvironment(A1))
    running: Boot = A1
    outcomes: list[Outcome] = field(default_factory=list)
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
            self.trial_boots += 1
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
            case Persist(outcome):
                if self.volatile.state is S.ARMED:
                    self.burns.append(self.volatile.attempt)
                self.progress = self.volatile
                if outcome is not None:
                    self.outcomes.append(outcome)
            case Arm(boot):
                self.environment = self.environment.arm(boot)
            case Disarm():
                self.environment = self.environment.disarm()
            case KeepTrying():
                self.environment = self.environment.keep_trying(3)
            case CommitBoot():
                self.environment = self.environment.commit()
                return CommitRead(self.environment)
            case Revert():
                self.environment = self.environment.revert()
            case Reboot():
                raise ResetError(ResetReason.REBOOT)
        return None

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
            S.AWAITING_SIGNOFF: RollbackAsked("signed off", self.environment),
        }
        return said.get(self.volatile.state)


resets = st.sampled_from([ResetReason.POWER_LOSS, ResetReason.WATCHDOG, None])


@settings(max_examples=200, deadline=None)
@given(st.booleans(), st.booleans(), st.dictionaries(st.integers(1, 60), resets, max_size=6))
def test_wherever_the_power_fails(healthy: bool, supervised: bool, cuts: dict[int, ResetReason | None]) -> None:  # noqa: FBT001  # drawn
    model = Model(healthy, supervised, cuts)
    model.run()
    check(model)


def test_every_single_cut() -> None:
    for healthy in (True, False):
        for supervised in (True, False):
            whole = Model(healthy, supervised, {})
            whole.run()
            check(whole)
            for moment in range(1, whole.effects + 1):
                for reason in (ResetReason.POWER_LOSS, ResetReason.WATCHDOG, None):
                    model = Model(healthy, supervised, {moment: reason})
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
    assert bool(updated) == (state is S.COMMITTED)
    if not model.healthy:
        assert state is not S.COMMITTED
    if not model.cuts:
        assert state is (S.COMMITTED if model.healthy else S.ROLLED_BACK)
