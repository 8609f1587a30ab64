"""The campaign itself: what it counts, what it follows once, what it names, on a component of two files.

The toy counts to three. Each count is a write to the side, a flush, and a switch: steps that a cut may come between.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from tests.crashpoints.campaign import AFTER, BEFORE, Options, explore, replay

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.crashpoints.campaign import Look, Persists

GOAL = 3


@dataclass(frozen=True, slots=True)
class Toy:
    """What is durable: the count, and the one beside it that is being written."""

    count: int = 0
    beside: int = 0
    recovered: int = 0


@dataclass(slots=True)
class Counting:
    """Implements ``Tale``. ``forgets``: the count is lost when a second recovery finds an unfinished write."""

    forgets: bool = False
    flushes: bool = True
    told: int = 0
    log: list[str] = field(default_factory=list)
    name: str = "counting"

    def begin(self) -> Toy:
        return Toy()

    def tell(self, standing: Toy, look: Look[Toy] | None) -> list[str]:
        self.told += 1
        toy = standing
        if toy.beside != toy.count:
            toy = replace(toy, recovered=toy.recovered + 1)
            if self.forgets and toy.recovered == 2:
                return ["the count is forgotten"]
        while toy.count < GOAL:
            for step, change in self._steps(toy.count + 1):
                toy = self._step(toy, step, change, look)
        return [] if toy.count == GOAL else [f"counted to {toy.count}"]

    def _steps(self, number: int) -> list[tuple[str, Callable[[Toy], Toy]]]:
        return [
            ("write beside", lambda toy: replace(toy, beside=number)),
            ("switch", lambda toy: replace(toy, count=toy.beside)),
        ]

    def _step(self, toy: Toy, step: str, change: Callable[[Toy], Toy], look: Look[Toy] | None) -> Toy:
        after = change(toy)
        if look is not None:
            look(step, BEFORE, lambda _: toy, is_pending=False)
            is_pending = step == "write beside" and not self.flushes

            def cut(persists: Persists) -> Toy:
                return replace(after, beside=after.beside if persists() else -1) if is_pending else after

            look(step, AFTER, cut, is_pending=is_pending)
        return after

    def judge(self, standing: Toy) -> list[str]:
        return ["half a number is beside"] if standing.beside == -1 else []

    def key(self, standing: Toy) -> str:
        return str(standing)


def test_points_are_counted_and_states_followed_once() -> None:
    tale = Counting()
    result = explore(tale, Options())
    assert (result.steps, result.failures) == (6, [])
    assert result.points - result.double == 2 * 6, "before and after each of six steps"
    assert result.survived == result.points
    # Seven states of the first run, and those of a recovery that came upon a write beside.
    assert result.states == tale.told - 1 < result.points


def test_a_fault_of_the_second_cut_is_found_and_named() -> None:
    tale = Counting(forgets=True)
    assert explore(tale, Options(double_of=0)).failures == [], "no single cut shows it"
    result = explore(tale, Options())
    assert result.survived < result.points
    point = result.failures[0].point
    assert point.count("/") == 2
    problems, standing = replay(tale, point, Options())
    assert problems == ["the count is forgotten"]
    assert standing.recovered == 1
    assert replay(Counting(), point, Options())[0] == []


def test_what_is_not_flushed_is_lost_kept_and_torn() -> None:
    result = explore(Counting(flushes=False), Options(double_of=0))
    found = {failure.point.partition(".")[2] for failure in result.failures}
    assert "after" in found, "lost is a state of its own, named by its first point"
    assert result.torn == 3 * (1 + Options().torn)
    assert explore(Counting(flushes=False), Options(double_of=0, torn_of=10_000)).torn == 3


def test_samples_are_drawn_by_the_seed() -> None:
    some = [explore(Counting(), Options(seed=seed, double_of=4)).double for seed in (1, 1, 2, 3)]
    everything = explore(Counting(), Options()).double
    assert some[0] == some[1]
    assert len(set(some)) > 1
    assert all(count < everything for count in some)


@pytest.mark.parametrize("point", ["counting/99.after", "counting/1.torn-0"])
def test_a_point_that_there_is_not(point: str) -> None:
    with pytest.raises(LookupError, match="no point"):
        replay(Counting(), point, Options())


def test_the_first_failure_may_end_it() -> None:
    tale = Counting(flushes=False)
    result = explore(tale, Options(ends_at_first_failure=True))
    assert len(result.failures) == 1
    assert tale.told < 5
