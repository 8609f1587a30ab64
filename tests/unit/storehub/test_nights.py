"""In how many nights a prefetch is done: forecasts against weeks of pieces, in four zones whose clocks change (H3)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storehub.nights import MOST_NIGHTS, Forecast, Meter, forecast, rate_of
from wavemesh.artifacts.rates import Rate, TokenBucket
from wavemesh.policy.windows import Window

PIECE = 1024 * 1024
RATE = 64 * 1024
WEEK = 7

CHANGES = [
    ("America/Chicago", datetime(2027, 3, 11, 18, tzinfo=UTC), "00:30-03:30"),  # an hour left out on the 14th
    ("Europe/Berlin", datetime(2026, 10, 22, 12, tzinfo=UTC), "23:15-04:00"),  # an hour twice on the 25th
    ("Australia/Lord_Howe", datetime(2027, 4, 1, 6, tzinfo=UTC), "22:00-02:15"),  # half an hour twice on the 4th
    ("America/Sao_Paulo", datetime(2018, 11, 1, 12, tzinfo=UTC), "23:30-00:45"),  # midnight itself left out
]


def move(
    window: Window, zone: ZoneInfo, begin: datetime, total: int, dark: frozenset[int] = frozenset()
) -> list[datetime]:
    """When each piece moves that a store fetches at its rate, in its windows but those that are dark, by number."""
    bucket, now, night, moved = TokenBucket(Rate.of(RATE), 0.0), begin, -1, list[datetime]()
    while len(moved) * PIECE < total:
        if not window.contains(now, zone):
            now, night = window.next_opening(now, zone), night + 1
        if night in dark:
            now = window.closing(now, zone)
            continue
        seconds = (now - begin).total_seconds()
        bucket.spend(PIECE, seconds)
        moved.append(now)
        now += timedelta(seconds=bucket.delay_s(seconds))
    return moved


def openings(window: Window, zone: ZoneInfo, begin: datetime) -> list[tuple[datetime, datetime]]:
    """The nights to come."""
    found = []
    for _ in range(2 * WEEK):
        opening = window.next_opening(begin, zone)
        begin = window.closing(opening, zone)
        found.append((opening, begin))
    return found


@pytest.mark.parametrize(("name", "begin", "text"), CHANGES)
def test_a_week_of_nights(name: str, begin: datetime, text: str) -> None:
    """Nothing by day, never above the rate; the forecast comes true, over a change of clocks and over a dark spell."""
    window, zone = Window.parse(text), ZoneInfo(name)
    coming = openings(window, zone, begin)
    total = int(sum((closing - opening).total_seconds() for opening, closing in coming[: WEEK - 1]) * RATE)
    for dark in (frozenset[int](), frozenset({2, 3})):
        moved = move(window, zone, begin, total, dark)
        nights = sorted({number for when in moved for number, (o, c) in enumerate(coming) if o <= when < c})
        assert nights == [number for number in range(WEEK + len(dark)) if number not in dark][: len(nights)]
        assert len(moved) == sum(o <= when < c for when in moved for o, c in coming), "none outside a night"
        for at, when in enumerate(moved):
            since = moved[max(at - 100, 0)]
            assert (min(at, 100)) * PIECE <= RATE * ((when - since).total_seconds() + 1) + PIECE
        # Forecast before the first night, and again when the WAN is back, of what is left then.
        again = coming[max(dark)][1] if dark else begin
        left = total - PIECE * sum(when < again for when in moved)
        expected = forecast(left, RATE, window, zone, again)
        assert expected.done_at is not None
        assert abs((moved[-1] - expected.done_at).total_seconds()) <= PIECE / RATE * (expected.nights + 2)
        assert expected.nights == len([number for number in nights if coming[number][0] >= again])


def test_without_a_window_the_bytes_come_at_once() -> None:
    now = datetime(2026, 5, 1, tzinfo=UTC)
    assert forecast(3_600_000, 1000.0, None, UTC, now) == Forecast(1, now + timedelta(hours=1))
    assert forecast(10**15, 1.0, None, UTC, now).done_at is None


def test_what_takes_too_long_is_said_so() -> None:
    now, window = datetime(2026, 5, 1, tzinfo=UTC), Window.parse("00:30-03:30")
    found = forecast(10**12, 1000.0, window, UTC, now)
    assert (found.done_at, "longer window" in found.words(UTC)) == (None, True)
    exactly = MOST_NIGHTS * 3 * 3600 * 1000
    assert forecast(exactly, 1000.0, window, UTC, now).nights == MOST_NIGHTS
    assert forecast(exactly + 1, 1000.0, window, UTC, now).done_at is None


def test_the_words_are_in_the_stores_time() -> None:
    now, zone = datetime(2026, 5, 1, 12, tzinfo=UTC), ZoneInfo("America/Chicago")
    found = forecast(4 * 3600 * 1000, 1000.0, Window.parse("00:30-03:30"), zone, now)
    assert found.words(zone) == "done in 2 nights, 2026-05-03 01:30 store time"
    assert forecast(0, 1.0, None, zone, now).words(zone) == "done 2026-05-01 07:00 store time"


@settings(deadline=None)
@given(left=st.integers(0, 10**10), rate=st.floats(1e4, 1e8), more=st.floats(1, 10))
def test_more_bytes_or_a_lower_rate_never_end_earlier(left: int, rate: float, more: float) -> None:
    zone, begin, text = CHANGES[0]
    window, place = Window.parse(text), ZoneInfo(zone)
    found = forecast(left, rate, window, place, begin)
    for other in (
        forecast(left + 10**7, rate, window, place, begin),
        forecast(left, rate / more, window, place, begin),
    ):
        assert other.nights >= found.nights
        assert other.done_at is None or (found.done_at is not None and other.done_at >= found.done_at)


def test_a_rate_is_what_was_measured_and_at_most_the_cap() -> None:
    assert rate_of(None, 0) is None
    assert rate_of(None, 5.0) == 5.0
    assert rate_of(9.0, 5.0) == 5.0
    assert rate_of(3.0, 5.0) == 3.0
    assert rate_of(3.0, 0) == 3.0


def test_the_meter_counts_while_bytes_come_alone() -> None:
    """A day between two windows is no part of the rate; a link that got slower is seen within minutes."""
    meter, rng, now = Meter(), Random(1), 100.0
    assert meter.bytes_per_s is None
    for _ in range(1000):
        now += rng.uniform(0.05, 0.15)
        meter.moved(100_000, now)
    assert meter.bytes_per_s == pytest.approx(1e6, rel=0.1)
    now += 80_000
    for _ in range(20):
        meter.moved(100_000, now)
        now += 0.1
    assert meter.bytes_per_s == pytest.approx(1e6, rel=0.1)
    for _ in range(1200):
        now += 0.5
        meter.moved(100_000, now)
    assert meter.bytes_per_s == pytest.approx(2e5, rel=0.1)
    before = meter.bytes_per_s
    meter.moved(100_000, now - 50)  # a clock that went back says nothing
    assert meter.bytes_per_s == before
