"""States become spans: one for each stay, ended by the write that leaves it, with ids that a repetition keeps."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from device.progress import Outcome, Progress
from device.state import Document, StoredBatch
from device.steps import NAMES, Check, Here, OpenStep, Said, next_step, spans_of
from device.tracing import MAX_BATCHES, MAX_BYTES, bounded
from wavemesh.identity.nodes import NodeId
from wavemesh.telemetry.spans import Trace
from wavemesh.trust.statements import OutcomeKind, UpdateState

S = UpdateState
NODE = NodeId("test.example", "region/midwest/store/store-209/device/pos-17")
NOW = datetime(2026, 11, 26, 22, 0, tzinfo=UTC)
HERE = Here(NODE, NOW, "b" * 32, "A")
LATER = replace(HERE, now=NOW + timedelta(seconds=9), boot_id="c" * 32, slot="B")
TRACE = Trace(NODE.fleet, "142", NODE.path)


def at(state: UpdateState, **changes: object) -> Progress:
    return replace(Progress(state, "142", attempt=1, lease_id="l1", permit_generation=4), **changes)  # type: ignore[arg-type]  # what the tests change


def entered(state: UpdateState) -> OpenStep:
    step = next_step(None, at(state), HERE)
    assert step is not None
    return step


@pytest.mark.parametrize("state", list(UpdateState))
def test_work_and_waiting_are_steps_and_endings_are_not(state: UpdateState) -> None:
    endings = {S.IDLE, S.COMMITTED, S.ROLLED_BACK, S.REFUSED}
    assert (state in NAMES) == (state not in endings)
    assert (next_step(None, at(state), HERE) is None) == (state in endings)


def test_a_step_lasts_as_long_as_its_state_across_boots() -> None:
    step = entered(S.TRIAL)
    again = at(S.TRIAL, trial_boot_id="x")
    assert next_step(step, again, LATER) is step
    assert spans_of(step, again, None, (), LATER) == []
    assert next_step(step, at(S.TRIAL, wave_id="143"), LATER) != step


def test_a_repetition_after_a_cut_is_the_same_span() -> None:
    step = entered(S.ARMED)
    [one] = spans_of(step, at(S.TRIAL), None, (), LATER)
    [two] = spans_of(step, at(S.TRIAL), None, (), replace(LATER, now=NOW + timedelta(seconds=20)))
    assert one.span_id == two.span_id
    [other] = spans_of(replace(step, began_at=NOW + timedelta(seconds=1)), at(S.TRIAL), None, (), LATER)
    assert other.span_id != one.span_id
    assert (one.name, one.began_at, one.ended_at) == ("device.reboot", NOW, LATER.now)
    assert (one.attributes["wavemesh.boot_before"], one.attributes["wavemesh.boot"]) == ("b" * 32, "c" * 32)
    assert (one.parent_id, one.links) == (TRACE.lease("l1"), (TRACE.permit(4),))


def test_before_the_lease_steps_are_parts_of_the_wave() -> None:
    [span] = spans_of(entered(S.STAGING), at(S.VERIFIED), None, (), LATER)
    assert (span.parent_id, span.links) == (TRACE.root(), ())


def test_an_outcome_ends_its_step_under_the_id_that_others_derive() -> None:
    said = Said(Outcome(OutcomeKind.ROLLED_BACK, "watchdog", "it hung"), 1, 3)
    [span] = spans_of(entered(S.ROLLING_BACK), at(S.ROLLED_BACK, gate="watchdog"), said, (), LATER)
    assert span.span_id == TRACE.outcome(NODE.path, 1, 3)
    assert (span.name, span.gate, span.error) == ("device.rollback", "watchdog", "rolled_back: watchdog: it hung")


def test_an_outcome_without_a_step_is_a_span_of_its_own() -> None:
    said = Said(Outcome(OutcomeKind.REFUSED, "hold", "on hold"), 0, 1)
    [span] = spans_of(None, at(S.REFUSED, gate="hold"), said, (), HERE)
    assert (span.name, span.span_id, span.gate) == ("device.outcome", TRACE.outcome(NODE.path, 0, 1), "hold")


def test_a_new_wave_ends_the_step_of_the_old_one_in_the_old_trace() -> None:
    said = Said(Outcome(OutcomeKind.REFUSED, "hold", "on hold"), 0, 1)
    old, new = spans_of(entered(S.STAGING), at(S.REFUSED, wave_id="143", gate="hold"), said, (), LATER)
    assert (old.trace.wave_id, old.gate, old.error) == ("142", "", "")
    assert (new.trace.wave_id, new.gate) == ("143", "hold")


def test_a_pause_has_a_gate_and_is_no_failure() -> None:
    [span] = spans_of(entered(S.STAGING), at(S.PAUSED, gate="temperature", evidence="71"), None, (), LATER)
    assert (span.gate, span.error) == ("temperature", "")


def test_checks_are_parts_of_their_step() -> None:
    check = Check("check boot-probe", NOW, LATER.now, "boot-probe", "exit code 1")
    failing = at(S.ROLLING_BACK, gate="boot-probe", evidence="exit code 1")
    trial, first, second = spans_of(entered(S.TRIAL), failing, None, (check, check), LATER)
    assert (trial.gate, trial.error) == ("boot-probe", "boot-probe: exit code 1")
    assert first.parent_id == second.parent_id == trial.span_id
    assert first.span_id != second.span_id
    assert (first.name, first.gate, first.error) == ("device.check boot-probe", "boot-probe", "exit code 1")


@pytest.mark.parametrize(("count", "size"), [(MAX_BATCHES + 2, 10), (20, MAX_BYTES // 18)])
def test_a_document_takes_a_bounded_number_of_spans_and_counts_the_others(count: int, size: int) -> None:
    batches = tuple(StoredBatch("i", number, b"x" * size) for number in range(count))
    kept = bounded(Document("i", spans=batches))
    assert kept.spans == batches[2:]
    assert (kept.spans_first, kept.spans_dropped) == (3, 2)
    assert bounded(kept) == kept
