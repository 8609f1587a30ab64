"""Windows whose bound is the very instant at which clocks change, and moments between whole minutes (P7)."""

from __future__ import annotations

from datetime import timedelta

from tests.unit.policy.test_policy_windows import BERLIN, at
from wavemesh.policy.windows import Window


def test_a_window_that_would_open_when_the_clock_jumps_opens_the_next_day() -> None:
    """At that instant the wall says 03:00."""
    assert Window.parse("02:00-02:30").next_opening(at("2026-03-29T01:00"), BERLIN) == at("2026-03-30T02:00")


def test_a_window_that_would_close_when_the_clock_is_set_back_closes_an_hour_later() -> None:
    """At that instant the wall says 02:00 again."""
    assert Window.parse("01:00-03:00").closing(at("2026-10-25T01:30"), BERLIN) == at("2026-10-25T03:00")


def test_a_window_opens_and_closes_on_the_minute_whenever_that_is_asked() -> None:
    window, odd = Window.parse("12:00-13:00"), timedelta(seconds=30, microseconds=5)
    assert window.next_opening(at("2026-06-01T11:00") + odd, BERLIN) == at("2026-06-01T12:00")
    assert window.closing(at("2026-06-01T12:00") + odd, BERLIN) == at("2026-06-01T13:00")
