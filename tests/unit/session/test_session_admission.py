"""The door of a parent: a storm, told when to come back."""

from __future__ import annotations

import heapq
import math
from itertools import pairwise
from random import Random

import pytest

from wavemesh.session.admission import GRACE_S, MAX_WAIT_S, Admission


def storm(door: Admission, children: int, *, jitter_s: float, rng: Random) -> tuple[list[float], int]:
    """All ask at once and then heed what they are told, late by up to the jitter; when each got in, and the asks."""
    waiting = [(0.0, f"child-{number}") for number in range(children)]
    admitted, asks = [], 0
    while waiting:
        now, child = heapq.heappop(waiting)
        asks += 1
        wait_s = door.ask(child, now)
        if wait_s:
            heapq.heappush(waiting, (now + wait_s + rng.uniform(0, jitter_s), child))
        else:
            admitted.append(now)
    return admitted, asks


@pytest.mark.parametrize("jitter_s", [0.0, 0.5])
@pytest.mark.parametrize(("children", "rate", "burst"), [(2000, 200.0, 200), (300, 20.0, 1), (50, 100.0, 100)])
def test_a_storm_gets_in_at_the_rate_and_asks_twice_at_most(
    children: int, rate: float, burst: int, jitter_s: float
) -> None:
    door = Admission(rate, burst)
    admitted, asks = storm(door, children, jitter_s=jitter_s, rng=Random(1))
    late = max(0, children - burst)
    assert len(admitted) == children
    assert asks == children + late
    assert sum(1 for at in admitted if at == 0.0) == min(burst, children)
    assert admitted[-1] <= late / rate + jitter_s + 1e-6
    assert admitted[-1] >= late / rate - 1e-6
    for start in range(int(late / rate) + 1):
        assert sum(1 for at in admitted if start < at <= start + 1) <= rate * (1 + jitter_s) + 1
    assert door.places == 0


def test_everybody_who_is_turned_away_has_a_time_of_his_own() -> None:
    door = Admission(10.0, 2)
    waits = [door.ask(f"child-{number}", 5.0) for number in range(12)]
    assert waits[:2] == [0.0, 0.0]
    assert [after - before for before, after in pairwise(waits[2:])] == pytest.approx([0.1] * 9)
    assert waits[2] == pytest.approx(0.1)


def test_who_comes_early_is_told_the_same_time_and_loses_nothing() -> None:
    door = Admission(1.0, 1)
    assert door.ask("first", 0.0) == 0.0
    assert door.ask("second", 0.0) == pytest.approx(1.0)
    assert door.ask("third", 0.0) == pytest.approx(2.0)
    assert door.ask("second", 0.25) == pytest.approx(0.75)
    assert door.ask("third", 2.0) == 0.0
    assert door.ask("second", 2.0) == 0.0


def test_a_place_is_lost_after_its_grace() -> None:
    door = Admission(1.0, 1)
    assert door.ask("first", 0.0) == 0.0
    assert door.ask("kept", 0.0) == pytest.approx(1.0)
    assert door.ask("lost", 0.0) == pytest.approx(2.0)
    assert door.ask("kept", 1.0 + GRACE_S) == 0.0
    assert door.ask("other", 2.5 + GRACE_S) == 0.0
    assert door.places == 0
    assert door.ask("lost", 2.5 + GRACE_S) == pytest.approx(1.0)


def test_a_pressing_child_goes_first_and_the_others_wait_longer() -> None:
    door = Admission(1.0, 1)
    assert door.ask("first", 0.0) == 0.0
    assert door.ask("in a trial", 0.0, pressing=True) == 0.0
    assert door.ask("second", 0.0) == pytest.approx(2.0)
    assert door.ask("second", 0.5, pressing=True) == 0.0


def test_nobody_is_sent_away_for_long_and_places_are_bounded() -> None:
    door = Admission(2.0, 1)
    waits = [door.ask(f"child-{number}", 0.0) for number in range(10_000)]
    assert max(waits) == MAX_WAIT_S
    assert door.places <= 2.0 * MAX_WAIT_S + 1
    assert door.ask("child-9999", MAX_WAIT_S) <= MAX_WAIT_S


def test_a_door_without_a_bound_is_open() -> None:
    door = Admission(math.inf, 1)
    assert {door.ask(f"child-{number}", 0.0) for number in range(100)} == {0.0}
    assert door.spread(3) == [0.0, 0.0, 0.0]


def test_a_farewell_is_spread_as_an_admission_would_be() -> None:
    assert Admission(4.0, 100).spread(3) == [0.0, 0.25, 0.5]


def test_the_door_recovers_its_burst_with_time() -> None:
    door = Admission(10.0, 5)
    assert [door.ask(f"a{number}", 0.0) for number in range(5)] == [0.0] * 5
    assert door.ask("late", 0.05) > 0.0
    assert [door.ask(f"b{number}", 10.0) for number in range(5)] == [0.0] * 5
