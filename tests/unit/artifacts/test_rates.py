"""A token bucket: never more than burst and rate allow, never less over time, whatever the clock does (S4, H3)."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wavemesh.artifacts.rates import MIN_BURST_BYTES, Rate, TokenBucket

RATE = Rate(1000.0, 500)


def test_a_full_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(RATE, 0.0)
    assert bucket.granted(800, 0.0) == 500
    bucket.spend(500, 0.0)
    assert (bucket.granted(800, 0.0), bucket.delay_s(0.0)) == (0, 0.001)
    assert bucket.granted(800, 0.25) == 250
    assert bucket.granted(100, 0.25) == 100


def test_an_idle_hour_is_not_caught_up_on() -> None:
    bucket = TokenBucket(RATE, 0.0)
    bucket.spend(500, 0.0)
    assert bucket.granted(10_000, 3600.0) == RATE.burst_bytes


def test_what_was_overdrawn_is_waited_for() -> None:
    """A reader learns the size of a piece when it is here."""
    bucket = TokenBucket(RATE, 0.0)
    bucket.spend(2500, 0.0)
    assert bucket.delay_s(0.0) == pytest.approx(2.001)
    assert bucket.granted(1, 2.0) == 0
    assert bucket.delay_s(2.0, 100) == pytest.approx(0.1)
    assert bucket.delay_s(2.002) == 0.0


def test_more_than_the_burst_is_waited_for_as_long_as_the_burst() -> None:
    bucket = TokenBucket(RATE, 0.0)
    bucket.spend(500, 0.0)
    assert bucket.delay_s(0.0, 10_000) == pytest.approx(0.5)


def test_a_clock_that_goes_back_gains_nothing() -> None:
    bucket = TokenBucket(RATE, 100.0)
    bucket.spend(500, 100.0)
    assert bucket.granted(500, 50.0) == 0
    assert bucket.granted(500, 50.1) == 100


@given(st.builds(Rate, st.floats(1, 1e9), st.integers(1, 1 << 24)), st.floats(0, 1e7), st.integers(1, 1 << 26))
def test_whoever_waited_as_long_as_told_need_not_wait_again(rate: Rate, began: float, moved: int) -> None:
    bucket = TokenBucket(rate, began)
    bucket.spend(moved, began)
    now = began + bucket.delay_s(began)
    assert bucket.delay_s(now + 1e-6) == 0.0
    assert bucket.granted(1, now + 1e-6) == 1


def test_no_rate_is_no_limit() -> None:
    bucket = TokenBucket(None, 0.0)
    bucket.spend(1 << 40, 0.0)
    assert (bucket.granted(1 << 40, 0.0), bucket.delay_s(0.0, 1 << 40)) == (1 << 40, 0.0)


def test_another_rate_is_no_new_allowance() -> None:
    bucket = TokenBucket(RATE, 0.0)
    bucket.spend(600, 0.0)
    bucket.change(Rate(10.0, 5000), 0.0)
    assert bucket.granted(5000, 0.0) == 0
    assert bucket.delay_s(0.0) == pytest.approx(10.1)
    bucket.change(None, 0.0)
    bucket.change(RATE, 0.0)
    assert bucket.delay_s(0.0) == pytest.approx(0.101)
    bucket.change(Rate(1.0, 10), 5.0)
    assert bucket.granted(500, 5.0) == 10


@pytest.mark.parametrize("rate", [(0.0, 1), (-1.0, 1), (math.nan, 1), (1.0, 0)])
def test_a_rate_at_which_nothing_moves_is_misuse(rate: tuple[float, int]) -> None:
    with pytest.raises(RuntimeError, match="a rate is at least"):
        Rate(*rate)


@pytest.mark.parametrize(("bytes_per_s", "burst"), [(1.0, MIN_BURST_BYTES), (1e6, 1_000_000)])
def test_a_burst_is_a_second_of_the_rate(bytes_per_s: float, burst: int) -> None:
    assert Rate.of(bytes_per_s) == Rate(bytes_per_s, burst)


@given(
    rate=st.builds(Rate, st.floats(1, 1e9), st.integers(1, 1 << 24)),
    steps=st.lists(st.tuples(st.floats(0, 100), st.integers(0, 1 << 24)), max_size=30),
)
def test_what_is_granted_never_exceeds_burst_and_rate(rate: Rate, steps: list[tuple[float, int]]) -> None:
    bucket, now, moved = TokenBucket(rate, 0.0), 0.0, 0
    for after_s, wanted in steps:
        now += after_s
        granted = bucket.granted(wanted, now)
        assert 0 <= granted <= wanted
        bucket.spend(granted, now)
        moved += granted
        assert moved <= rate.burst_bytes + rate.bytes_per_s * now * (1 + 1e-9) + 1


def test_readers_that_share_a_bucket_get_the_rate_between_them() -> None:
    """Each takes pieces and waits for its turn: alike, and no faster together than one alone."""
    bucket, rng = TokenBucket(Rate(1000.0, 100), 0.0), Random(1)
    due, moved = dict.fromkeys(range(4), 0.0), dict.fromkeys(range(4), 0)
    while (now := min(due.values())) < 1000.0:
        reader = rng.choice([one for one, at in due.items() if at == now])
        bucket.spend(100, now)
        moved[reader] += 100
        due[reader] = now + bucket.delay_s(now)
    assert sum(moved.values()) == pytest.approx(1_000_000, rel=0.01)
    assert max(moved.values()) < 1.1 * min(moved.values())
