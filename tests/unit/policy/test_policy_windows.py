"""Windows in store-local time, correct when clocks change (H3, P7)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wavemesh.policy.windows import BadWindowError, Window

BERLIN = ZoneInfo("Europe/Berlin")
NIGHT = Window.parse("00:30-03:30")
MINUTE = timedelta(minutes=1)

# New York and Berlin change by an hour, Lord Howe by half an hour, Apia left out 2011-12-30, Kathmandu is at +05:45.
ZONES = st.sampled_from(
    ["UTC", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "Pacific/Apia", "Asia/Kathmandu"]
).map(ZoneInfo)
CLOCKS = st.tuples(st.integers(0, 23), st.integers(0, 59)).map(lambda t: f"{t[0]:02}:{t[1]:02}")
WINDOWS = st.tuples(CLOCKS, CLOCKS).filter(lambda t: t[0] != t[1]).map(lambda t: Window.parse(f"{t[0]}-{t[1]}"))
CHANGES = st.sampled_from(["2026-03-08T07:00", "2026-11-01T06:00", "2026-03-29T01:00", "2026-10-25T01:00",
                           "2026-04-04T15:00", "2026-10-03T15:30", "2011-12-30T10:00"])  # fmt: skip
INSTANTS = st.builds(
    lambda change, minutes: datetime.fromisoformat(change).replace(tzinfo=UTC) + minutes * MINUTE,
    CHANGES,
    st.integers(-3000, 3000),
)


def at(text: str, zone: ZoneInfo = BERLIN, *, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).astimezone(UTC)


def test_opening_belongs_to_the_window_and_closing_does_not() -> None:
    assert NIGHT.contains(at("2026-06-01T00:30"), BERLIN)
    assert NIGHT.contains(at("2026-06-01T03:29:59.999999"), BERLIN)
    assert not NIGHT.contains(at("2026-06-01T03:30"), BERLIN)
    assert not NIGHT.contains(at("2026-06-01T00:29:59"), BERLIN)


def test_a_window_across_midnight() -> None:
    window = Window.parse("22:00-06:00")
    assert window.contains(at("2026-06-01T23:00"), BERLIN)
    assert window.contains(at("2026-06-01T05:59"), BERLIN)
    assert not window.contains(at("2026-06-01T12:00"), BERLIN)
    assert window.closing(at("2026-06-01T23:00"), BERLIN) == at("2026-06-02T06:00")
    assert window.next_opening(at("2026-06-01T12:00"), BERLIN) == at("2026-06-01T22:00")


@pytest.mark.parametrize(("day", "hours"), [("2026-03-28", 3), ("2026-03-29", 2), ("2026-10-25", 4)])
def test_length_of_the_night_window_when_clocks_change(day: str, hours: int) -> None:
    opening = NIGHT.next_opening(at(f"{day}T00:00"), BERLIN)
    assert opening == at(f"{day}T00:30")
    assert NIGHT.closing(opening, BERLIN) - opening == timedelta(hours=hours)


def test_a_window_in_the_hour_left_out_opens_the_next_day() -> None:
    assert Window.parse("02:10-02:50").next_opening(at("2026-03-29T01:00"), BERLIN) == at("2026-03-30T02:10")


def test_a_window_half_in_the_hour_left_out_opens_when_the_clock_jumps_into_it() -> None:
    window = Window.parse("02:30-03:30")
    opening = window.next_opening(at("2026-03-29T01:00"), BERLIN)
    assert opening == at("2026-03-29T03:00")
    assert window.closing(opening, BERLIN) == at("2026-03-29T03:30")


def test_a_window_in_the_repeated_hour_opens_twice() -> None:
    window = Window.parse("02:10-02:50")
    first = window.next_opening(at("2026-10-25T00:00"), BERLIN)
    assert first == at("2026-10-25T02:10")
    second = window.next_opening(window.closing(first, BERLIN), BERLIN)
    assert second == at("2026-10-25T02:10", fold=1)


def test_a_window_open_when_the_clock_is_set_back_may_be_cut() -> None:
    window = Window.parse("02:30-03:30")
    opening = window.next_opening(at("2026-10-25T00:00"), BERLIN)
    assert window.closing(opening, BERLIN) == at("2026-10-25T02:00", fold=1)
    assert window.next_opening(window.closing(opening, BERLIN), BERLIN) == at("2026-10-25T02:30", fold=1)


WEEKS = (
    # Berlin's and New York's spring and autumn, Lord Howe's half hour both ways, and Kathmandu, which changes nothing.
    # A night is of the day on which it begins; the first one begins on the evening before that day, or in its morning.
    ("Europe/Berlin", "2026-03-25", "00:30-03:30", [180, 180, 180, 180, 120, 180, 180]),
    ("Europe/Berlin", "2026-10-21", "00:30-03:30", [180, 180, 180, 180, 240, 180, 180]),
    ("Europe/Berlin", "2026-03-25", "22:00-06:00", [480, 480, 480, 480, 420, 480, 480]),
    ("America/New_York", "2026-03-04", "22:30-02:30", [240, 240, 240, 240, 210, 240, 240]),
    ("America/New_York", "2026-10-28", "22:30-02:30", [240, 240, 240, 240, 300, 240, 240]),
    ("Australia/Lord_Howe", "2026-10-01", "01:00-03:00", [120, 120, 120, 90, 120, 120, 120]),
    ("Australia/Lord_Howe", "2026-04-02", "23:30-02:15", [165, 165, 165, 195, 165, 165, 165]),
    ("Asia/Kathmandu", "2026-03-25", "23:45-00:15", [30] * 7),
)


@pytest.mark.parametrize(("name", "day", "text", "minutes"), WEEKS)
def test_a_week_of_nights(name: str, day: str, text: str, minutes: list[int]) -> None:
    zone, window = ZoneInfo(name), Window.parse(text)
    now, lengths = at(f"{day}T12:00", zone) - timedelta(days=1), []
    for _ in minutes:
        opening = window.next_opening(now, zone)
        now = window.closing(opening, zone)
        lengths.append((now - opening) // MINUTE)
    assert lengths == minutes


def test_a_calendar_day_left_out() -> None:
    """Apia went from 29 to 31 December 2011."""
    apia = ZoneInfo("Pacific/Apia")
    opening = Window.parse("12:00-13:00").next_opening(at("2011-12-29T14:00", apia), apia)
    assert opening == at("2011-12-31T12:00", apia)


def test_an_open_window_opens_now() -> None:
    now = at("2026-06-01T01:00")
    assert NIGHT.next_opening(now, BERLIN) == now


def test_a_shut_window_has_no_closing() -> None:
    with pytest.raises(RuntimeError, match="not open"):
        NIGHT.closing(at("2026-06-01T12:00"), BERLIN)


@given(WINDOWS, INSTANTS, ZONES)
@settings(max_examples=200, deadline=None)
def test_next_opening_is_the_first_open_minute(window: Window, now: datetime, zone: ZoneInfo) -> None:
    """Against a walk minute by minute; all changes of these zones fall on whole minutes."""
    walked = now
    while not window.contains(walked, zone):
        walked += MINUTE
    assert window.next_opening(now, zone) == walked


@given(WINDOWS, INSTANTS, ZONES)
@settings(max_examples=200, deadline=None)
def test_closing_is_the_first_shut_minute(window: Window, now: datetime, zone: ZoneInfo) -> None:
    opening = window.next_opening(now, zone)
    walked = opening
    while window.contains(walked, zone):
        walked += MINUTE
    assert window.closing(opening, zone) == walked


@given(WINDOWS)
def test_a_window_reads_back(window: Window) -> None:
    assert Window.parse(str(window)) == window


@pytest.mark.parametrize(
    "text",
    ["", "25:00-03:30", "24:00-01:00", "00:60-01:00", "0:30-03:30", "00:30\u201303:30", "00:30 - 03:30", "00:30-00:30",
     "00:30-03:30\n", "00:30-03:30-04:00", "\u0660\u0660:30-03:30"],
)  # fmt: skip
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(BadWindowError, match="HH:MM-HH:MM"):
        Window.parse(text)
