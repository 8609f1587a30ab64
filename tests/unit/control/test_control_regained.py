"""What control's own words come to that a region shows it after a restore (P6, S2; ADR 20)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from control.regained import PauseSince, Regained, changed_releases, ended_by, holds_after, wave_after
from wavemesh.trust.statements import Hold, HoldList, Pause, WaveOrder, WaveState

AT = datetime(2026, 5, 4, 20, tzinfo=UTC)
LATER = AT + timedelta(minutes=5)
OLD, NEW = Hold("old", "", "driver"), Hold("new", "", "scanner")


def order(generation: int, state: WaveState = WaveState.RUNNING, *pauses: Pause) -> WaveOrder:
    fields: dict[str, Any] = {
        "wave_id": "142",
        "generation": generation,
        "state": state,
        "cohort": "c",
        "device_class": "pos",
        "hardware_revision": "r2",
        "store": "region/midwest/store/a",
        "devices": ("pos-01",),
        "release": "new",
        "policy_digest": "0" * 64,
        "least_hold_epoch": 1,
        "issued_at": AT,
        "expires_at": AT + timedelta(hours=8),
    }
    return WaveOrder(**fields, pauses=pauses)


def test_an_order_that_is_not_newer_is_no_news() -> None:
    for generation in (1, 3):
        assert wave_after(3, WaveState.RUNNING, (), order(generation)) is None
    assert wave_after(3, WaveState.RUNNING, (), order(4)) == Regained(4, WaveState.RUNNING, ())


@pytest.mark.parametrize("generation", [2, 3, 9])
def test_a_halt_counts_whatever_its_number(generation: int) -> None:
    """P6: control may have said more since the restore than it had said before it was lost."""
    found = wave_after(3, WaveState.RUNNING, (), order(generation, WaveState.HALTED))
    assert found == Regained(max(3, generation), WaveState.HALTED, ())


@pytest.mark.parametrize("state", [WaveState.HALTED, WaveState.CLOSED])
def test_what_is_over_here_stays_over(state: WaveState) -> None:
    for shown in (order(9), order(9, WaveState.HALTED)):
        assert wave_after(3, state, (), shown) is None


def test_a_start_that_was_forgotten_is_a_start() -> None:
    shown = order(4, WaveState.PAUSED, Pause("operator:alice", "a look"))
    assert wave_after(1, WaveState.PLANNED, (), order(2, WaveState.PLANNED)) == Regained(2, WaveState.PLANNED, ())
    assert wave_after(1, WaveState.PLANNED, (), order(2)) == Regained(2, WaveState.RUNNING, ())
    assert wave_after(1, WaveState.PLANNED, (), shown) == Regained(4, WaveState.RUNNING, shown.pauses)
    assert wave_after(1, WaveState.RUNNING, (), order(2, WaveState.PLANNED)) == Regained(2, WaveState.RUNNING, ())


def test_pauses_are_those_shown_and_those_since() -> None:
    """One that was lifted after the backup stays lifted, one given after the restore stays in force."""
    lifted = PauseSince("operator:alice", "a look", AT - timedelta(hours=1))
    since = PauseSince("operator:bob", "smoke", LATER)
    again = PauseSince("operator:carol", "now", LATER)
    shown = order(5, WaveState.PAUSED, Pause("operator:carol", "then"))
    found = wave_after(3, WaveState.RUNNING, (lifted, since, again), shown)
    assert found is not None
    assert found.pauses == (Pause("operator:carol", "then"), Pause("operator:bob", "smoke"))


def test_the_newer_list_of_holds_counts_as_it_is() -> None:
    """S2: a hold that control forgot is in force again, one that was lifted since the backup stays lifted."""
    own, shown = HoldList(4, (OLD,), AT), HoldList(6, (NEW,), LATER)
    after = holds_after(own, shown, LATER + timedelta(hours=1))
    assert after == HoldList(7, (NEW,), LATER + timedelta(hours=1))
    assert changed_releases(own, shown) == ("new", "old")
    assert holds_after(shown, own, LATER) is None
    assert holds_after(own, replace(own, issued_at=LATER), LATER) is None


@pytest.mark.parametrize("epoch", [6, 7])
def test_where_control_said_holds_since_all_of_both_count(epoch: int) -> None:
    """Two lists of one epoch, too: nobody can tell which hold was lifted, and which never heard of."""
    own, shown = HoldList(6, (OLD,), LATER), HoldList(epoch, (NEW,), AT)
    after = holds_after(own, shown, LATER)
    assert after == HoldList(epoch + 1, (NEW, OLD), LATER)


def test_a_last_word_ends_as_it_says() -> None:
    assert ended_by(WaveState.HALTED) is WaveState.HALTED
    assert ended_by(WaveState.CLOSED) is ended_by(WaveState.RUNNING) is WaveState.CLOSED
