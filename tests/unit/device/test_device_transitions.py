"""What the steps of the update machine leave behind, whole: every field that is kept, forgotten or told."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from device.bootenv import Boot, SlotName
from device.progress import Disarm, GateRefused, Notice, Outcome, Persist, Progress, Reboot, Rules, Step, Target
from device.transitions import committed, fresh, roll_back, said_by_gate, stay_put, to
from wavemesh.trust.statements import ROLLBACK_FAILED, OutcomeKind, UpdateState

S = UpdateState
A1, B2 = Boot(SlotName.A, 1), Boot(SlotName.B, 2)
NOW = datetime(2026, 5, 1, tzinfo=UTC)
RULES = Rules("either", 300.0, False, 86_400.0, 40, 70.0, 0, True, "probe", (), ())
TARGET = Target("142", 1, "r", "3.8.2", None, None, "12.4.1", "", NOW, B2, RULES)
# No field has its default, so that a field that is forgotten is seen.
FULL = Progress(
    S.ROLLING_BACK,
    "142",
    TARGET,
    attempt=2,
    gate="operator",
    evidence="asked",
    verdict=OutcomeKind.ROLLED_BACK,
    return_to=A1,
    lease_expires_at=NOW,
    trial_boot_id="b",
    trial_began_s=7.0,
    lease_id="l",
    permit_generation=3,
    observed="5 %",
    required="40 %",
    returns=2,
    intent_id="i-9",
    supervised=True,
    awaiting_since=NOW,
    strays=1,
)
NO_GATE = {"gate": "", "evidence": "", "observed": "", "required": ""}
BARRED = Notice(ROLLBACK_FAILED, "operator", "i-9", "torn")
SAID = {**NO_GATE, "evidence": "rollback failed: torn"}


def after(before: Progress, *effects: object, **changes: Any) -> Step:
    return Step(replace(before, **changes), effects)  # type: ignore[arg-type]  # effects of a test's own


def test_a_step_forgets_the_gate_unless_it_is_given() -> None:
    assert to(FULL, S.STAGING) == after(FULL, Persist(), state=S.STAGING, **NO_GATE)
    said = said_by_gate(GateRefused("disk", "full", "1", "2"))
    assert said == {"gate": "disk", "evidence": "full", "observed": "1", "required": "2"}
    told = Outcome(OutcomeKind.REFUSED, "disk")
    assert to(FULL, S.REFUSED, Disarm(), **said, outcome=told, notice=BARRED) == after(
        FULL, Persist(told, BARRED), Disarm(), state=S.REFUSED, **said
    )


def test_what_holds_beyond_a_wave() -> None:
    assert fresh(FULL) == Progress(intent_id="i-9", supervised=True)
    assert fresh(FULL, wave_id="143", attempt=1) == Progress(wave_id="143", attempt=1, intent_id="i-9", supervised=True)


def test_a_trial_is_left_by_one_gate() -> None:
    left = roll_back(FULL, "disk", "full", OutcomeKind.INCONCLUSIVE, observed="1", required="2")
    words = {"gate": "disk", "evidence": "full", "observed": "1", "required": "2"}
    assert left == after(FULL, Persist(), Disarm(), Reboot(), verdict=OutcomeKind.INCONCLUSIVE, **words)


@pytest.mark.parametrize(
    ("target", "supervised"),
    [(TARGET, False), (None, False), (replace(TARGET, rules=replace(RULES, supervised=True)), True)],
)
def test_what_is_committed(target: Target | None, supervised: bool) -> None:  # noqa: FBT001 - a table
    before = replace(FULL, target=target)
    done = Persist(Outcome(OutcomeKind.UPDATED))
    ends = {"verdict": OutcomeKind.UPDATED, "return_to": None, "supervised": supervised}
    assert committed(before) == after(before, done, state=S.COMMITTED, **NO_GATE, **ends)


def test_where_a_device_stays_whose_way_back_is_barred() -> None:
    """Without a wave in none; on the slot it was to leave, COMMITTED again; elsewhere it has gone back already."""
    idle = replace(FULL, target=None)
    assert stay_put(idle, A1, "torn") == after(
        Progress(intent_id="i-9", supervised=True), Persist(None, BARRED), Disarm(), **SAID
    )
    assert stay_put(FULL, A1, "torn") == after(
        FULL,
        Persist(None, BARRED),
        Disarm(),
        state=S.ROLLED_BACK,
        return_to=None,
        returns=0,
        **{**SAID, "gate": "operator"},
    )
    assert stay_put(FULL, B2, "torn") == after(
        FULL,
        Persist(Outcome(OutcomeKind.UPDATED), BARRED),
        Disarm(),
        state=S.COMMITTED,
        return_to=None,
        returns=0,
        verdict=OutcomeKind.UPDATED,
        **SAID,
    )
