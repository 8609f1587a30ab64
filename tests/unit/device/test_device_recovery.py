"""What a start makes of each state at each position, as one table, and what it leaves behind, whole."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from device.bootenv import Boot, BootEnvironment, ResetReason, SlotName, Trial
from device.platform import BootRecord
from device.progress import Disarm, Effect, KeepTrying, Outcome, Persist, Reboot, Revert, Started, Step
from device.recovery import Position, finish, position, start
from tests.unit.device.test_device_transitions import A1, B2, FULL, NO_GATE, after
from wavemesh.trust.statements import OutcomeKind, UpdateState

if TYPE_CHECKING:
    from device.progress import Progress

S = UpdateState
OLD, NEW = BootEnvironment(A1), BootEnvironment(B2, A1)
TRYING, RETURNING = BootEnvironment(A1, trial=Trial(B2, 0)), BootEnvironment(B2, A1, Trial(A1, 0))
BOOT, OTHER_BOOT = "b", "another"


def started(boot: Boot, environment: BootEnvironment, boot_id: str = BOOT) -> Started:
    return Started(BootRecord(boot_id, boot, ResetReason.REBOOT), environment, 5.0)


STARTS = {
    Position.SETTLED: started(A1, OLD),
    Position.ON_TRIAL: started(B2, TRYING),
    Position.FELL_BACK: started(A1, TRYING),
    Position.NOT_TRIED: started(A1, OLD.arm(B2)),
    Position.STRAY: started(B2, OLD),
}
AGAIN = ("STAGING", "p")
DISARM_AGAIN = ("STAGING", "pd")
BACK = ("ROLLED_BACK", "pd")
LEAVE = ("ROLLING_BACK", "pdb")
# State by state: where it leads, and the effects. p persist, d disarm, b reboot, k keep trying; "": nothing happens.
TABLE: dict[Position, dict[str, tuple[str, str]]] = {
    Position.SETTLED: {
        **dict.fromkeys(("STAGING", "PAUSED", "VERIFIED", "ARMED"), AGAIN),
        **dict.fromkeys(("TRIAL", "COMMITTING", "COMMITTED", "AWAITING_SIGNOFF", "ROLLING_BACK"), BACK),
    },
    Position.ON_TRIAL: {
        **{state.name: LEAVE for state in S},
        **dict.fromkeys(("ARMED", "TRIAL", "COMMITTING"), ("TRIAL", "p")),
        "AWAITING_SIGNOFF": ("AWAITING_SIGNOFF", "k"),
        "ROLLING_BACK": ("ROLLING_BACK", "db"),
    },
    Position.FELL_BACK: {
        **{state.name: (state.name, "d") for state in S},
        **dict.fromkeys(("STAGING", "PAUSED", "VERIFIED"), DISARM_AGAIN),
        **dict.fromkeys(("ARMED", "TRIAL", "COMMITTING", "AWAITING_SIGNOFF", "ROLLING_BACK"), BACK),
    },
    Position.NOT_TRIED: {
        **{state.name: (state.name, "d") for state in S},
        **dict.fromkeys(("STAGING", "PAUSED", "VERIFIED", "ARMED"), DISARM_AGAIN),
        "ROLLING_BACK": BACK,
    },
    Position.STRAY: {state.name: (state.name, "pb") for state in S},
}
LETTERS = {Persist: "p", Disarm: "d", Reboot: "b", KeepTrying: "k"}


@pytest.mark.parametrize("where", Position)
@pytest.mark.parametrize("state", UpdateState)
def test_what_a_start_does(where: Position, state: UpdateState) -> None:
    event = STARTS[where]
    assert position(event.record.boot, event) is where
    step = start(replace(FULL, state=state, return_to=None, gate="disk"), event)
    found = (step.progress.state.name, "".join(LETTERS[type(effect)] for effect in step.effects))
    assert found == TABLE[where].get(state.name, (state.name, ""))


def test_a_boot_that_neither_the_environment_nor_its_trial_names_is_astray() -> None:
    event = started(Boot(SlotName.B, 3), TRYING)
    assert position(event.record.boot, event) is Position.STRAY
    assert start(FULL, event) == after(FULL, Persist(), Reboot(), strays=2)
    assert start(replace(FULL, state=S.IDLE), STARTS[Position.SETTLED]).progress.strays == 0


def test_a_trial_begins_once() -> None:
    """Its boot and its begin are noted; another boot of the same trial must not extend it."""
    armed = replace(FULL, state=S.ARMED, strays=0)
    begun = after(armed, Persist(), state=S.TRIAL, **NO_GATE, trial_boot_id=OTHER_BOOT, trial_began_s=5.0)
    assert start(armed, started(B2, TRYING, OTHER_BOOT)) == begun
    twice = start(replace(armed, state=S.TRIAL), started(B2, TRYING, OTHER_BOOT)).progress
    assert (twice.state, twice.gate, twice.verdict) == (S.ROLLING_BACK, "watchdog", OutcomeKind.ROLLED_BACK)


def test_a_trial_without_a_record() -> None:
    """Of the previous boot it is a rollback, and good; of anything else it has no permit."""
    staging = replace(FULL, state=S.STAGING, verdict=OutcomeKind.PENDING, strays=0)
    unknown = start(staging, started(B2, TRYING)).progress
    assert (unknown.gate, unknown.verdict) == ("permit", OutcomeKind.ROLLED_BACK)
    made_good = {
        **NO_GATE,
        "gate": "operator",
        "evidence": "a rollback of which there is no record",
        "verdict": OutcomeKind.ROLLED_BACK,
        "return_to": A1,
    }
    before = replace(staging, return_to=None)
    assert start(before, started(A1, RETURNING)) == after(
        before, Persist(), Revert(), state=S.ROLLING_BACK, **made_good
    )


@pytest.mark.parametrize(
    ("reason", "verdict", "gate", "ends"),
    [
        (ResetReason.POWER_LOSS, OutcomeKind.INCONCLUSIVE, "power-loss", S.STAGING),
        (ResetReason.WATCHDOG, OutcomeKind.ROLLED_BACK, "watchdog", S.ROLLED_BACK),
    ],
)
def test_what_is_said_of_a_trial_that_the_board_ended(
    reason: ResetReason, verdict: OutcomeKind, gate: str, ends: UpdateState
) -> None:
    """Nothing of the way back is left; a second attempt starts without a gate."""
    words = {
        "gate": gate,
        "evidence": f"the trial of attempt 2 ended by {reason.value}",
        "observed": f"reset: {reason.value}",
        "required": "a commit",
    }
    kept = words if ends is S.ROLLED_BACK else NO_GATE
    settled = {"return_to": None, "returns": 0, "awaiting_since": None, "strays": 0}
    fell = started(A1, replace(TRYING, trial=Trial(B2, 0, reason)))
    assert start(replace(FULL, state=S.TRIAL), fell) == after(
        FULL, Persist(Outcome(verdict, **words)), Disarm(), state=ends, verdict=verdict, **kept, **settled
    )


def test_a_halt_proves_nothing_and_is_not_tried_again() -> None:
    halted = replace(FULL, verdict=OutcomeKind.INCONCLUSIVE, gate="halted")
    assert finish(halted).progress.state is S.ROLLED_BACK
    assert finish(replace(halted, gate="clock")).progress.state is S.STAGING
    overdue = finish(replace(FULL, verdict=OutcomeKind.FAILED))
    assert overdue.progress.verdict is OutcomeKind.ROLLED_BACK


def test_a_commit_that_the_environment_took_back() -> None:
    """A rollback whose record the disk did not take is told all the same, as an operator's."""
    before = replace(FULL, state=S.COMMITTED, verdict=OutcomeKind.UPDATED, gate="", return_to=None)
    words: dict[str, Any] = {
        "gate": "operator",
        "evidence": "the boot environment went back; there is no record of who asked",
    }
    step = start(before, started(A1, OLD))
    assert step.progress.verdict is OutcomeKind.ROLLED_BACK
    assert {key: getattr(step.progress, key) for key in words} == words
    assert step.effects == (Persist(_told(step.progress)), Disarm())
    assert start(before, started(B2, NEW)) == after(before, strays=0)


def _told(progress: Progress) -> Outcome:
    return Outcome(progress.verdict, progress.gate, progress.evidence, progress.observed, progress.required)


@pytest.mark.parametrize(
    ("event", "effects"),
    [
        (started(A1, RETURNING), (Revert(),)),
        (started(B2, TRYING), (Disarm(), Reboot())),
        (started(A1, OLD.arm(B2)), (Reboot(),)),
        (started(B2, NEW), (Disarm(),)),
    ],
    ids=["there", "still on trial", "only the reset is missing", "lost before it was tried"],
)
def test_a_rollback_after_the_commit_goes_on_where_it_was(event: Started, effects: tuple[Effect, ...]) -> None:
    before = replace(FULL, strays=0)
    assert start(before, event) == Step(before, effects)
