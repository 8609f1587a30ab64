"""The update machine, step by step: what each rule keeps, forgets, persists and does, whole."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from device.bootenv import Boot, BootEnvironment, SlotName, Trial
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
    Obstructed,
    Ordered,
    Outcome,
    Persist,
    Progress,
    Reboot,
    RecheckDue,
    ReturnVerified,
    RollbackAsked,
    SecondRollbackAsked,
    SignedOff,
    SignoffBegan,
    SignoffOverdue,
    Staged,
    Step,
    Unhealthy,
    Unobstructed,
    Withdrawn,
)
from device.transitions import stay
from device.update import BEFORE_ARM, IN_SWAP, TRANSITIONS, advance, is_transient
from storehub.swaps import IN_SWAP as IN_SWAP_AT_HUB
from tests.unit.device.test_device_transitions import A1, B2, FULL, NO_GATE, NOW, TARGET, after
from wavemesh.trust.statements import OutcomeKind, UpdateState

S = UpdateState
B3 = Boot(SlotName.B, 3)
OLD, NEW = BootEnvironment(A1), BootEnvironment(B2, A1)
TRYING = BootEnvironment(A1, trial=Trial(B2, 0))
WORDS = {"gate": "disk", "evidence": "full", "observed": "1", "required": "2"}
HALTED = {"gate": "halted", "evidence": "smoke", "observed": "halted", "required": "running"}
SUPERVISED = replace(TARGET, rules=replace(TARGET.rules, supervised=True))
RENEWED = replace(TARGET, order_generation=2)
OTHER = replace(TARGET, wave_id="143")
ENDS = {"Ordered", "Declined", "Withdrawn"}
BEFORE = {*ENDS, "Halted", "GateRefused", "RollbackAsked"}


def at(state: UpdateState, **changes: Any) -> Progress:
    return replace(FULL, state=state, **changes)


def kept(**changes: Any) -> Progress:
    """What holds beyond a wave."""
    return Progress(intent_id="i-9", supervised=True, **changes)


def refused(**words: str) -> Persist:
    return Persist(Outcome(OutcomeKind.REFUSED, **words))


@pytest.mark.parametrize(
    ("state", "events"),
    [
        (S.IDLE, {"Ordered", "Declined", "RollbackAsked"}),
        (S.PREFLIGHT, {*BEFORE, "GatesPassed"}),
        (S.STAGING, {*BEFORE, "Obstructed", "Staged"}),
        (S.PAUSED, {*BEFORE, "Obstructed", "Unobstructed"}),
        (S.VERIFIED, {*BEFORE, "Obstructed", "Unobstructed", "Cleared"}),
        (S.ARMED, {"RollbackAsked"}),
        (S.TRIAL, {"Halted", "Healthy", "Unhealthy", "RollbackAsked"}),
        (S.COMMITTING, {"CommitRead", "RollbackAsked"}),
        (S.COMMITTED, {*ENDS, "RollbackAsked"}),
        (S.ROLLING_BACK, {"ReturnVerified", "ReturnRefused", "CommitRead"}),
        (S.ROLLED_BACK, {*ENDS, "SecondRollbackAsked"}),
        (S.AWAITING_SIGNOFF, {"SignedOff", "SignoffBegan", "SignoffOverdue"}),
        (S.REFUSED, {*ENDS, "Halted", "RecheckDue", "RollbackAsked"}),
    ],
)
def test_what_a_state_takes_notice_of(state: UpdateState, events: set[str]) -> None:
    assert {event.__name__ for event, rule in TRANSITIONS[state].items() if rule is not stay} == {*events, "Started"}


def test_a_swap_is_the_same_to_device_and_hub() -> None:
    assert IN_SWAP == IN_SWAP_AT_HUB
    assert {state.name for state in BEFORE_ARM} == {"PREFLIGHT", "STAGING", "PAUSED", "VERIFIED"}


@pytest.mark.parametrize(("gate", "passes"), [("", False), ("battery", True), ("class", False)])
def test_which_gates_may_pass_later(gate: str, passes: bool) -> None:  # noqa: FBT001 - a table
    assert is_transient(gate) is passes


CASES: dict[str, tuple[Progress, Event, Step]] = {
    "a wave is taken up": (
        at(S.COMMITTED),
        Ordered(OTHER, 1),
        Step(kept(state=S.PREFLIGHT, wave_id="143", target=OTHER, attempt=1), (Persist(),)),
    ),
    "the wave that just ended is not": (at(S.COMMITTED), Ordered(TARGET, 1), Step(at(S.COMMITTED))),
    "the same order under way": (at(S.STAGING), Ordered(TARGET, 0), Step(at(S.STAGING))),
    "a new generation under way": (
        at(S.STAGING),
        Ordered(RENEWED, 0),
        Step(at(S.STAGING, target=RENEWED), (Persist(),)),
    ),
    "another wave under way": (
        at(S.STAGING),
        Ordered(OTHER, 1),
        Step(kept(state=S.PREFLIGHT, wave_id="143", target=OTHER, attempt=1), (Persist(),)),
    ),
    "an order after one declined before it had a target": (
        at(S.PREFLIGHT, target=None),
        Ordered(TARGET, 1),
        Step(kept(state=S.PREFLIGHT, wave_id="142", target=TARGET, attempt=1), (Persist(),)),
    ),
    "a new generation of what was refused": (
        at(S.REFUSED),
        Ordered(RENEWED, 0),
        Step(at(S.REFUSED, target=RENEWED)),
    ),
    "another wave after a refusal": (
        at(S.REFUSED),
        Ordered(OTHER, 0),
        Step(kept(state=S.PREFLIGHT, wave_id="143", target=OTHER), (Persist(),)),
    ),
    "an order after a refusal without a target": (
        at(S.REFUSED, target=None),
        Ordered(OTHER, 0),
        Step(kept(state=S.PREFLIGHT, wave_id="143", target=OTHER), (Persist(),)),
    ),
    "withdrawn": (at(S.VERIFIED), Withdrawn(), Step(kept(), (Persist(),))),
    "gates passed": (at(S.PREFLIGHT), GatesPassed(), after(FULL, Persist(), state=S.STAGING, **NO_GATE)),
    "a gate refused": (
        at(S.STAGING),
        GateRefused(**WORDS),
        after(FULL, refused(**WORDS), state=S.REFUSED, verdict=OutcomeKind.REFUSED, **WORDS),
    ),
    "declined again": (at(S.REFUSED, gate="disk"), Declined("142", 0, **WORDS), Step(at(S.REFUSED, gate="disk"))),
    "declined by another gate": (
        at(S.REFUSED, gate="hold"),
        Declined("142", 0, **WORDS),
        after(FULL, refused(**WORDS), state=S.REFUSED, verdict=OutcomeKind.REFUSED, **WORDS),
    ),
    "declined under way": (
        at(S.STAGING, gate="disk"),
        Declined("142", 0, **WORDS),
        after(FULL, refused(**WORDS), state=S.REFUSED, verdict=OutcomeKind.REFUSED, **WORDS),
    ),
    "declined in another wave": (
        at(S.ROLLED_BACK),
        Declined("143", 1, **WORDS),
        Step(
            kept(state=S.REFUSED, wave_id="143", attempt=1, verdict=OutcomeKind.REFUSED, **WORDS),
            (refused(**WORDS),),
        ),
    ),
    "halted before ARM": (
        at(S.VERIFIED),
        Halted("smoke"),
        after(FULL, refused(**HALTED), state=S.REFUSED, verdict=OutcomeKind.REFUSED, **HALTED),
    ),
    "halted after a refusal that may pass": (
        at(S.REFUSED, gate="battery"),
        Halted("smoke"),
        after(FULL, refused(**HALTED), state=S.REFUSED, verdict=OutcomeKind.REFUSED, **HALTED),
    ),
    "halted after a refusal for good": (
        at(S.REFUSED, gate="class"),
        Halted("smoke"),
        Step(at(S.REFUSED, gate="class")),
    ),
    "halted while a gate is shown": (
        at(S.VERIFIED, gate="class"),
        Halted("smoke"),
        after(FULL, refused(**HALTED), state=S.REFUSED, verdict=OutcomeKind.REFUSED, **HALTED),
    ),
    "writing is held up": (at(S.STAGING), Obstructed(**WORDS), after(FULL, Persist(), state=S.PAUSED, **WORDS)),
    "ARM is held up": (at(S.VERIFIED), Obstructed(**WORDS), after(FULL, state=S.VERIFIED, **WORDS)),
    "writing goes on": (at(S.PAUSED), Unobstructed(), after(FULL, Persist(), state=S.STAGING, **NO_GATE)),
    "ARM is free": (at(S.VERIFIED), Unobstructed(), after(FULL, state=S.VERIFIED, **NO_GATE)),
    "staged": (at(S.STAGING), Staged(), after(FULL, Persist(), state=S.VERIFIED, **NO_GATE)),
    "cleared": (
        at(S.VERIFIED),
        Cleared(3, NOW + timedelta(hours=1), "l-2", 4),
        after(
            FULL,
            Persist(),
            Arm(B2),
            Reboot(),
            state=S.ARMED,
            attempt=3,
            lease_expires_at=NOW + timedelta(hours=1),
            lease_id="l-2",
            permit_generation=4,
            verdict=OutcomeKind.PENDING,
            **NO_GATE,
        ),
    ),
    "cleared without a target": (at(S.VERIFIED, target=None), Cleared(3, NOW), Step(at(S.VERIFIED, target=None))),
    "healthy": (at(S.TRIAL), Healthy(), after(FULL, Persist(), CommitBoot(), state=S.COMMITTING, **NO_GATE)),
    "committed": (
        at(S.COMMITTING),
        CommitRead(NEW),
        after(
            FULL,
            Persist(Outcome(OutcomeKind.UPDATED)),
            state=S.COMMITTED,
            verdict=OutcomeKind.UPDATED,
            return_to=None,
            supervised=False,
            **NO_GATE,
        ),
    ),
    "unhealthy": (
        at(S.TRIAL),
        Unhealthy("disk", "full", OutcomeKind.INCONCLUSIVE, "1", "2"),
        after(FULL, Persist(), Disarm(), Reboot(), state=S.ROLLING_BACK, verdict=OutcomeKind.INCONCLUSIVE, **WORDS),
    ),
    "unhealthy under supervision": (
        at(S.TRIAL, target=SUPERVISED),
        Unhealthy("disk", "full", OutcomeKind.INCONCLUSIVE, "1", "2"),
        after(
            FULL,
            Persist(),
            KeepTrying(),
            target=SUPERVISED,
            state=S.AWAITING_SIGNOFF,
            verdict=OutcomeKind.INCONCLUSIVE,
            awaiting_since=None,
            **WORDS,
        ),
    ),
    "halted in trial": (
        at(S.TRIAL),
        Halted("smoke"),
        after(FULL, Persist(), Disarm(), Reboot(), state=S.ROLLING_BACK, verdict=OutcomeKind.INCONCLUSIVE, **HALTED),
    ),
    "rolled back by hand before ARM": (
        at(S.VERIFIED, verdict=OutcomeKind.PENDING),
        RollbackAsked("why", OLD, intent_id="i-1"),
        after(
            FULL,
            Persist(Outcome(OutcomeKind.ROLLED_BACK, "operator", "why (nothing was swapped yet)")),
            Disarm(),
            state=S.ROLLED_BACK,
            verdict=OutcomeKind.ROLLED_BACK,
            intent_id="i-1",
            **{**NO_GATE, "gate": "operator", "evidence": "why (nothing was swapped yet)"},
        ),
    ),
    "rolled back by hand in trial": (
        at(S.TRIAL),
        RollbackAsked("why", TRYING, intent_id="i-1"),
        after(
            FULL,
            Persist(),
            Disarm(),
            Reboot(),
            state=S.ROLLING_BACK,
            verdict=OutcomeKind.ROLLED_BACK,
            intent_id="i-1",
            **{**NO_GATE, "gate": "operator", "evidence": "why"},
        ),
    ),
    "rolled back by hand when the commit is written and not read yet": (
        at(S.COMMITTING, supervised=False),
        RollbackAsked("why", NEW, intent_id="i-1"),
        after(
            FULL,
            Persist(),
            state=S.ROLLING_BACK,
            verdict=OutcomeKind.ROLLED_BACK,
            return_to=A1,
            returns=0,
            intent_id="i-1",
            supervised=False,
            **{**NO_GATE, "gate": "operator", "evidence": "why"},
        ),
    ),
    "nothing to go back to": (at(S.COMMITTED), RollbackAsked("why", OLD), Step(at(S.COMMITTED))),
    "a second rollback": (
        at(S.ROLLED_BACK),
        SecondRollbackAsked("why", B3, intent_id="i-1"),
        Step(
            Progress(
                S.ROLLING_BACK,
                gate="operator",
                evidence="why",
                verdict=OutcomeKind.ROLLED_BACK,
                return_to=B3,
                intent_id="i-1",
                supervised=True,
            ),
            (Persist(),),
        ),
    ),
    "a second rollback asked for at what is supervised": (
        at(S.ROLLED_BACK),
        SecondRollbackAsked("why", B3, Asker.LOCAL),
        Step(at(S.ROLLED_BACK)),
    ),
    "what is gone back to is whole": (
        at(S.ROLLING_BACK),
        ReturnVerified(),
        after(FULL, Persist(), Arm(A1), Reboot(), returns=3, observed="", required=""),
    ),
    "nothing is gone back to": (
        at(S.ROLLING_BACK, return_to=None),
        ReturnVerified(),
        Step(replace(FULL, return_to=None)),
    ),
    "signed off": (
        at(S.AWAITING_SIGNOFF, verdict=OutcomeKind.INCONCLUSIVE),
        SignedOff("seen", "i-1"),
        after(
            FULL,
            Persist(),
            Disarm(),
            Reboot(),
            evidence="asked; seen",
            verdict=OutcomeKind.INCONCLUSIVE,
            intent_id="i-1",
        ),
    ),
    "signed off when overdue": (
        at(S.AWAITING_SIGNOFF, verdict=OutcomeKind.FAILED),
        SignedOff("seen", "i-1"),
        after(FULL, Persist(), Disarm(), Reboot(), evidence="asked; seen", intent_id="i-1"),
    ),
    "the wait began": (
        at(S.AWAITING_SIGNOFF),
        SignoffBegan(NOW + timedelta(hours=1)),
        after(FULL, Persist(), state=S.AWAITING_SIGNOFF, awaiting_since=NOW + timedelta(hours=1)),
    ),
    "the wait is overdue": (
        at(S.AWAITING_SIGNOFF),
        SignoffOverdue(),
        after(
            FULL,
            Persist(Outcome(OutcomeKind.FAILED, "operator", "asked", "5 %", "40 %")),
            state=S.AWAITING_SIGNOFF,
            verdict=OutcomeKind.FAILED,
        ),
    ),
    "the wait was overdue": (
        at(S.AWAITING_SIGNOFF, verdict=OutcomeKind.FAILED),
        SignoffOverdue(),
        Step(at(S.AWAITING_SIGNOFF, verdict=OutcomeKind.FAILED)),
    ),
    "looked at again": (
        at(S.REFUSED, gate="battery"),
        RecheckDue(),
        after(FULL, Persist(), state=S.PREFLIGHT, **NO_GATE),
    ),
    "an order that was declined as such": (
        at(S.REFUSED, gate="battery", target=None),
        RecheckDue(),
        Step(at(S.REFUSED, gate="battery", target=None)),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step(case: str) -> None:
    before, event, step = CASES[case]
    assert advance(before, event) == step


def test_a_commit_that_was_not_taken_is_the_boot_probes() -> None:
    for target in (TARGET, None):
        step = advance(at(S.COMMITTING, target=target), CommitRead(TRYING))
        assert (step.progress.state, step.progress.gate) == (S.ROLLING_BACK, "boot-probe")
        assert step.progress.verdict is OutcomeKind.ROLLED_BACK
        assert step.effects == (Persist(), Disarm(), Reboot())


def test_a_target_that_is_gone_is_left_without_supervision() -> None:
    step = advance(at(S.TRIAL, target=None), Unhealthy("disk", "full", OutcomeKind.ROLLED_BACK))
    assert step.progress.state is S.ROLLING_BACK
    asked = RollbackAsked("why", NEW)
    assert advance(at(S.TRIAL, target=None), asked).progress.return_to == FULL.return_to


def test_a_return_is_confirmed_by_what_was_read_back() -> None:
    assert advance(at(S.ROLLING_BACK), CommitRead(OLD)).progress.state is S.ROLLED_BACK
    assert advance(at(S.ROLLING_BACK), CommitRead(NEW)) == Step(FULL, (Disarm(), Reboot()))
