"""The update machine: every (state, event) and (state, position) is defined, and the rules hold in all of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from itertools import product

import pytest

from device.bootenv import Boot, BootEnvironment, ResetReason, SlotName, Trial
from device.platform import BootRecord
from device.progress import (
    Arm,
    Asker,
    Cleared,
    CommitBoot,
    CommitRead,
    Declined,
    Disarm,
    Event,
    GateRefused,
    GatesPassed,
    Halted,
    Healthy,
    KeepTrying,
    Notice,
    Obstructed,
    Ordered,
    Persist,
    Progress,
    Reboot,
    RecheckDue,
    ReturnRefused,
    ReturnVerified,
    Revert,
    RollbackAsked,
    Rules,
    SecondRollbackAsked,
    SignedOff,
    SignoffBegan,
    SignoffOverdue,
    Staged,
    Started,
    Step,
    Target,
    Unhealthy,
    Unobstructed,
    Withdrawn,
)
from device.recovery import MAX_STRAYS, RETURN_TRIES, STARTS, Position, ignored_by_bootloader, position
from device.update import ACTIVITY, BEFORE_ARM, IN_SWAP, TRANSITIONS, advance
from wavemesh.trust.statements import ROLLBACK_DONE, ROLLBACK_FAILED, Digest, OutcomeKind, UpdateState

S = UpdateState
A1, B2, B3 = Boot(SlotName.A, 1), Boot(SlotName.B, 2), Boot(SlotName.B, 3)
NOW = datetime(2026, 5, 1, tzinfo=UTC)
RULES = Rules("either", 300.0, False, 86_400.0, 40, 70.0, 0, True, "probe", ("lsusb | grep scanner",), ())
TARGET = Target("142", 1, "r", "3.8.2", Digest("a" * 64, 10), None, "12.4.1", "", NOW, B2, RULES)
SUPERVISED = replace(TARGET, rules=replace(RULES, supervised=True))
OLD = BootEnvironment(A1)
TRYING = BootEnvironment(A1, trial=Trial(B2, 0))
NEW = BootEnvironment(B2, A1)
RETURNING = BootEnvironment(B2, A1, Trial(A1, 0))


def progress(state: UpdateState, **changes: object) -> Progress:
    base = Progress(state=state, wave_id="142", target=TARGET, attempt=1 if state not in BEFORE_ARM else 0)
    return replace(base, **changes)  # type: ignore[arg-type]  # values of a test's own


def started(
    boot: Boot, environment: BootEnvironment, reason: ResetReason = ResetReason.REBOOT, boot_id: str = "b"
) -> Started:
    return Started(BootRecord(boot_id, boot, reason), environment, 5.0)


EVENTS: list[Event] = [
    started(A1, OLD),
    Ordered(TARGET, 0),
    Ordered(replace(TARGET, wave_id="143"), 0),
    Declined("142", 0, "hold", "held"),
    Withdrawn(),
    Halted("halted"),
    GatesPassed(),
    GateRefused("battery", "5 %"),
    Obstructed("temperature", "90"),
    Unobstructed(),
    Staged(),
    Cleared(1, NOW),
    Cleared(2, NOW),
    Healthy(),
    Unhealthy("peripheral:scanner", "none", OutcomeKind.ROLLED_BACK),
    CommitRead(NEW),
    CommitRead(TRYING),
    RollbackAsked("why", OLD),
    RollbackAsked("why", NEW),
    RollbackAsked("why", NEW, Asker.LOCAL),
    RollbackAsked("why", OLD, packed=B3),
    SecondRollbackAsked("why", B3),
    ReturnVerified(),
    ReturnRefused("torn", NEW),
    SignedOff("agreed", "i-1"),
    SignoffBegan(NOW),
    SignoffOverdue(),
    RecheckDue(),
]
POSITIONS = {
    Position.SETTLED: [started(A1, OLD), started(B2, NEW)],
    Position.ON_TRIAL: [started(B2, TRYING), started(A1, RETURNING)],
    Position.FELL_BACK: [started(A1, replace(TRYING, trial=Trial(B2, 0, reason)), reason) for reason in ResetReason],
    Position.NOT_TRIED: [started(A1, OLD.arm(B2))],
    Position.STRAY: [started(B2, OLD)],
}


def test_the_tables_are_total() -> None:
    events = {type(event) for event in EVENTS}
    assert events == set(Event.__args__)
    assert set(TRANSITIONS) == set(UpdateState) == set(ACTIVITY)
    assert all(set(row) == events for row in TRANSITIONS.values())
    assert set(STARTS) == set(Position) == set(POSITIONS)
    for where, cases in POSITIONS.items():
        assert all(position(case.record.boot, case) is where for case in cases)


@pytest.mark.parametrize("state", UpdateState, ids=lambda state: state.name)
def test_rules_of_every_step(state: UpdateState) -> None:
    """Persist comes first, a reboot last, ARM only with a burn; nothing but a commit read back is reported UPDATED."""
    starts = [case for cases in POSITIONS.values() for case in cases]
    for event, target, back in product([*EVENTS, *starts], (TARGET, SUPERVISED, None), (A1, None)):
        before = progress(
            state, target=target, gate="peripheral:scanner", verdict=OutcomeKind.ROLLED_BACK, return_to=back
        )
        step = advance(before, event)
        check_step(before, event, step)


def check_step(before: Progress, event: Event, step: Step) -> None:
    kinds = [type(effect) for effect in step.effects]
    moved = step.progress.state is not before.state
    assert not moved or kinds[0] is Persist, (before, event, step)
    assert Persist not in kinds[1:]
    assert Reboot not in kinds[:-1]
    if Arm in kinds:
        assert kinds == [Persist, Arm, Reboot]
        returns = step.progress.state is S.ROLLING_BACK
        assert step.progress.attempt == before.attempt + (not returns)
        assert step.progress.returns == before.returns + returns
    else:
        assert step.progress.attempt in {before.attempt, getattr(event, "burned", 0), 0}
    if step.progress.state is S.COMMITTED and moved:
        active = event.environment.active if isinstance(event, (Started, CommitRead, ReturnRefused)) else None
        assert active == B2
    for outcome in [effect.outcome for effect in step.effects if isinstance(effect, Persist) and effect.outcome]:
        assert bool(outcome.gate) == (outcome.kind is not OutcomeKind.UPDATED)


def test_a_bootloader_that_ignores_the_environment_is_named_and_not_reset_for_ever() -> None:
    """D9: a reset may bring the wanted boot a few times over, then somebody has to look."""
    stray, now = started(B2, OLD), Progress()
    for number in range(1, MAX_STRAYS + 1):
        assert ignored_by_bootloader(now, stray) == ""
        step = advance(now, stray)
        assert step.effects == (Persist(), Reboot())
        now = step.progress
        assert now.strays == number
    assert "the boot environment wants slot A with config 1" in ignored_by_bootloader(now, stray)
    mended = started(A1, OLD)
    assert ignored_by_bootloader(now, mended) == ""
    assert advance(now, mended).progress.strays == 0


def test_the_path_of_an_update() -> None:
    now = Progress()
    for event, state in (
        (Ordered(TARGET, 0), S.PREFLIGHT),
        (GatesPassed(), S.STAGING),
        (Obstructed("temperature", "90"), S.PAUSED),
        (Unobstructed(), S.STAGING),
        (Staged(), S.VERIFIED),
        (Cleared(1, NOW), S.ARMED),
        (started(B2, TRYING), S.TRIAL),
        (Healthy(), S.COMMITTING),
        (CommitRead(NEW), S.COMMITTED),
        (RollbackAsked("why", NEW), S.ROLLING_BACK),
        (ReturnVerified(), S.ROLLING_BACK),
        (started(A1, RETURNING), S.ROLLING_BACK),
        (CommitRead(OLD), S.ROLLED_BACK),
        (Withdrawn(), S.IDLE),
    ):
        now = advance(now, event).progress
        assert now.state is state


def test_an_attempt_is_never_burned_twice() -> None:
    verified = progress(S.VERIFIED, attempt=1)
    assert advance(verified, Cleared(1, NOW)) == Step(verified)
    assert advance(verified, Cleared(3, NOW)) == Step(verified)


@pytest.mark.parametrize(
    ("state", "reason", "kind", "gate"),
    [
        (S.ARMED, ResetReason.WATCHDOG, OutcomeKind.ROLLED_BACK, "watchdog"),
        (S.ARMED, ResetReason.POWER_LOSS, OutcomeKind.INCONCLUSIVE, "power-loss"),
        (S.TRIAL, ResetReason.POWER_LOSS, OutcomeKind.INCONCLUSIVE, "power-loss"),
        (S.TRIAL, ResetReason.WATCHDOG, OutcomeKind.ROLLED_BACK, "watchdog"),
        (S.TRIAL, ResetReason.REBOOT, OutcomeKind.ROLLED_BACK, "watchdog"),
        (S.COMMITTING, ResetReason.POWER_LOSS, OutcomeKind.INCONCLUSIVE, "power-loss"),
    ],
)
def test_only_a_proven_power_loss_is_inconclusive(
    state: UpdateState, reason: ResetReason, kind: OutcomeKind, gate: str
) -> None:
    step = advance(progress(state), started(A1, replace(TRYING, trial=Trial(B2, 0, reason)), reason))
    [outcome] = [effect.outcome for effect in step.effects if isinstance(effect, Persist)]
    assert outcome is not None
    assert (outcome.kind, outcome.gate) == (kind, gate)
    assert step.progress.state is (S.STAGING if kind is OutcomeKind.INCONCLUSIVE else S.ROLLED_BACK)


def test_the_first_reset_reason_counts() -> None:
    """A power cut after the watchdog's reset does not turn a bad release into bad luck."""
    environment = replace(TRYING, trial=Trial(B2, 0, ResetReason.WATCHDOG))
    step = advance(progress(S.TRIAL), started(A1, environment, ResetReason.POWER_LOSS))
    assert (step.progress.state, step.progress.gate) == (S.ROLLED_BACK, "watchdog")


@pytest.mark.parametrize(("fall_backs", "gate"), [(0, "watchdog"), (1, "power-loss"), (2, "watchdog")])
def test_a_bootloader_that_counts_proves_a_power_loss_by_its_first_fall_back_only(fall_backs: int, gate: str) -> None:
    """Semantics: what ended the trial must be proven; later boots, or a count that was not saved, prove nothing."""
    environment = replace(TRYING, trial=Trial(B2, 0, fall_backs=fall_backs))
    step = advance(progress(S.TRIAL), started(A1, environment, ResetReason.POWER_LOSS))
    assert [effect.outcome.gate for effect in step.effects if isinstance(effect, Persist) and effect.outcome] == [gate]


def test_a_restarted_agent_does_not_extend_a_trial() -> None:
    trial = progress(S.TRIAL, trial_boot_id="b", trial_began_s=1.0)
    assert advance(trial, started(B2, TRYING)).progress.trial_began_s == 1.0
    again = advance(trial, started(B2, TRYING, boot_id="another"))
    assert (again.progress.state, again.progress.gate) == (S.ROLLING_BACK, "watchdog")


def test_a_trial_without_a_record_must_not_commit() -> None:
    for state in set(UpdateState) - IN_SWAP:
        step = advance(progress(state), started(B2, TRYING))
        assert step.progress.state is S.ROLLING_BACK
        assert step.effects[-2:] == (Disarm(), Reboot())


def test_supervised_failure_waits_and_fails_once() -> None:
    failed = advance(
        progress(S.TRIAL, target=SUPERVISED), Unhealthy("peripheral:scanner", "x", OutcomeKind.ROLLED_BACK)
    )
    assert (failed.progress.state, failed.effects) == (S.AWAITING_SIGNOFF, (Persist(), KeepTrying()))
    overdue = advance(failed.progress, SignoffOverdue())
    assert overdue.progress.verdict is OutcomeKind.FAILED
    assert advance(overdue.progress, SignoffOverdue()).effects == ()
    fell = advance(overdue.progress, started(A1, TRYING))
    assert (fell.progress.state, fell.progress.gate) == (S.ROLLED_BACK, "peripheral:scanner")
    assert "fell back unsigned" in fell.progress.evidence


def test_final_refusals_are_not_rechecked() -> None:
    refused = advance(progress(S.PREFLIGHT), GateRefused("dual-partition", "no B")).progress
    assert advance(refused, RecheckDue()) == Step(refused)
    assert advance(refused, Ordered(replace(TARGET, order_generation=2), 0)).progress.state is S.REFUSED
    transient = advance(progress(S.PREFLIGHT), GateRefused("battery", "5 %")).progress
    assert advance(transient, RecheckDue()).progress.state is S.PREFLIGHT


def test_a_rollback_after_the_commit_reads_back_then_tries_once() -> None:
    """D5: nothing but reading happens before the old slot is known to be whole, and it is only tried."""
    asked = advance(progress(S.COMMITTED), RollbackAsked("why", NEW, intent_id="i-1"))
    assert asked.effects == (Persist(),)
    cut = advance(asked.progress, started(B2, NEW, ResetReason.POWER_LOSS))
    assert (cut.progress, cut.effects) == (asked.progress, (Disarm(),))
    tried = advance(asked.progress, ReturnVerified())
    assert tried.effects == (Persist(), Arm(A1), Reboot())
    there = advance(tried.progress, started(A1, RETURNING))
    assert there.effects == (Revert(),)
    back = advance(there.progress, CommitRead(OLD))
    assert (back.progress.state, back.progress.gate, back.progress.intent_id) == (S.ROLLED_BACK, "operator", "i-1")
    assert advance(tried.progress, started(A1, OLD)).progress == back.progress


@pytest.mark.parametrize(
    "event",
    [
        ReturnRefused("slot A reads back other bytes", NEW),
        started(B2, replace(RETURNING, trial=Trial(A1, 0, ResetReason.WATCHDOG))),
    ],
    ids=["damaged", "fell back"],
)
def test_a_rollback_that_cannot_be_done_stays_and_says_so(event: Event) -> None:
    """D5, D7: the device is still on the new slot, COMMITTED, and whoever asked is answered by the intent's id."""
    asked = advance(progress(S.COMMITTED), RollbackAsked("why", NEW, intent_id="i-1")).progress
    step = advance(replace(asked, returns=1), event)
    assert (step.progress.state, step.progress.return_to, step.progress.gate) == (S.COMMITTED, None, "")
    assert step.progress.evidence.startswith("rollback failed: slot A")
    persist = step.effects[0]
    assert isinstance(persist, Persist)
    assert persist.notice is not None
    assert (persist.notice.kind, persist.notice.subject) == (ROLLBACK_FAILED, "i-1")
    idle = advance(replace(asked, target=None, wave_id=""), event).progress
    assert (idle.state, idle.wave_id) == (S.IDLE, "")


def test_a_second_rollback_leaves_what_the_first_returned_to() -> None:
    """D6: it is asked for as such; the wave that was rolled back has had its word, so it ends in no wave."""
    back = progress(S.ROLLED_BACK, gate="operator")
    assert advance(back, RollbackAsked("why", OLD, packed=B3)) == Step(back)
    asked = advance(back, SecondRollbackAsked("why", B3, intent_id="i-2")).progress
    assert (asked.state, asked.return_to, asked.wave_id) == (S.ROLLING_BACK, B3, "")
    there = BootEnvironment(A1, trial=Trial(B3, 0))
    assert advance(asked, started(B3, there)).effects == (Revert(),)
    done = advance(asked, CommitRead(BootEnvironment(B3)))
    assert done.progress.state is S.IDLE
    assert isinstance(done.effects[0], Persist)
    assert done.effects[0].notice == Notice(ROLLBACK_DONE, "operator", "i-2", "why")
    stays = advance(replace(asked, returns=1), started(A1, there)).progress
    assert (stays.state, stays.evidence.split(":")[0]) == (S.IDLE, "rollback failed")
    # Without a previous slot, a plain rollback of what is committed goes there as well.
    assert advance(progress(S.COMMITTED), RollbackAsked("why", OLD, packed=B3)).progress.return_to == B3


def test_power_losses_are_retried_and_bounded() -> None:
    asked = advance(progress(S.COMMITTED), RollbackAsked("why", NEW)).progress
    lost = started(B2, replace(RETURNING, trial=Trial(A1, 0, ResetReason.POWER_LOSS)), ResetReason.POWER_LOSS)
    for returns in range(1, RETURN_TRIES):
        again = advance(replace(asked, returns=returns), lost)
        assert (again.progress.state, again.effects) == (S.ROLLING_BACK, (Disarm(),))
    for event in (lost, started(B2, NEW)):
        assert advance(replace(asked, returns=RETURN_TRIES), event).progress.state is S.COMMITTED


def test_a_return_without_a_record_is_made_good() -> None:
    """A rollback never waits for the disk: the environment alone tells what the trial of the previous boot is."""
    there = advance(progress(S.COMMITTED), started(A1, RETURNING))
    assert there.effects == (Persist(), Revert())
    assert advance(there.progress, CommitRead(OLD)).progress.state is S.ROLLED_BACK
    assert advance(progress(S.COMMITTED), started(A1, OLD)).progress.state is S.ROLLED_BACK


def test_a_return_that_is_not_written_leaves_again() -> None:
    there = progress(S.ROLLING_BACK, return_to=A1, returns=1)
    assert advance(there, CommitRead(RETURNING)).effects == (Disarm(), Reboot())


def test_only_a_signature_leaves_what_is_supervised() -> None:
    """D5, supervised: neither the local socket nor a rollback asked for otherwise ends the wait for a sign-off."""
    committed = advance(progress(S.COMMITTING, target=SUPERVISED), CommitRead(NEW)).progress
    idle = advance(committed, Withdrawn()).progress
    for now in (progress(S.TRIAL, target=SUPERVISED), committed, idle):
        assert advance(now, RollbackAsked("why", NEW, Asker.LOCAL)) == Step(now)
        assert advance(now, RollbackAsked("why", NEW)).progress.state is S.ROLLING_BACK
    waiting = progress(S.AWAITING_SIGNOFF, target=SUPERVISED, gate="peripheral:scanner", evidence="none")
    for asker in Asker:
        assert advance(waiting, RollbackAsked("why", TRYING, asker)) == Step(waiting)
    signed = advance(waiting, SignedOff("signed off: seen it", "i-1"))
    assert signed.effects == (Persist(), Disarm(), Reboot())
    assert (signed.progress.gate, signed.progress.intent_id) == ("peripheral:scanner", "i-1")
    assert "seen it" in signed.progress.evidence


def test_the_wait_for_a_sign_off_outlasts_boots() -> None:
    waiting = advance(progress(S.AWAITING_SIGNOFF, target=SUPERVISED), SignoffBegan(NOW)).progress
    assert advance(waiting, started(B2, TRYING, ResetReason.POWER_LOSS)).progress.awaiting_since == NOW


def test_a_commit_that_did_not_take_goes_back() -> None:
    step = advance(progress(S.COMMITTING), CommitRead(TRYING))
    assert (step.progress.state, step.progress.gate) == (S.ROLLING_BACK, "boot-probe")
    assert advance(progress(S.TRIAL), Healthy()).effects == (Persist(), CommitBoot())


def test_a_new_generation_of_the_order_keeps_the_work() -> None:
    staging = progress(S.STAGING)
    renewed = advance(staging, Ordered(replace(TARGET, order_generation=2), 0)).progress
    assert renewed.state is S.STAGING
    assert advance(staging, Ordered(replace(TARGET, release="other"), 0)).progress.state is S.PREFLIGHT


def test_what_a_gate_found_and_wanted_reaches_the_outcome() -> None:
    """D7: through a pause, a supervised trial and its overdue sign-off, and a rollback; and is gone with the gate."""
    words = ("battery", "low", "5 %", "at least 40 %")
    paused = advance(progress(S.STAGING), Obstructed(*words)).progress
    assert (paused.observed, paused.required) == words[2:]
    assert advance(paused, Unobstructed()).progress.observed == ""
    failure = Unhealthy("peripheral:scanner", "none", OutcomeKind.ROLLED_BACK, "exit code 1", "exit code 0")
    awaiting = advance(progress(S.TRIAL, target=SUPERVISED), failure).progress
    [persist] = [one for one in advance(awaiting, SignoffOverdue()).effects if isinstance(one, Persist)]
    assert persist.outcome is not None
    assert (persist.outcome.kind, persist.outcome.observed) == (OutcomeKind.FAILED, "exit code 1")
    leaving = advance(progress(S.TRIAL), failure).progress
    [persist, *_] = [one for one in advance(leaving, started(A1, OLD)).effects if isinstance(one, Persist)]
    assert persist.outcome is not None
    assert (persist.outcome.observed, persist.outcome.required) == ("exit code 1", "exit code 0")
