"""Every state that a world can come to, by breadth-first search, with the shortest trace to whatever is wrong in one.

A *world* is a value that can be copied, says which steps are possible in it, and what is wrong with it. Two worlds of
equal key are one state. Keys are kept as 64-bit hashes (hash compaction: Wolper and Leroy, "Reliable Hashing without
Collision Detection", 1993): with a million states the odds that one was missed are about one in thirty million.

What is checked:

* *safety*: no state reached has a problem, and no step raises one;
* *rest*: a state without a further step, faults aside, has none of the problems that a state at rest may not have;
* *convergence*: without further faults no run goes on for ever, so each comes to such a state.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

MAX_STATES = 5_000_000
CONVERGES = "converges: every run without further faults comes to rest (M3, M5)"


@dataclass(frozen=True, slots=True)
class Problem:
    """An invariant that does not hold, by its name, and in what way."""

    invariant: str
    detail: str


class BrokenError(Exception):
    """A step found an invariant broken."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.problem = Problem(invariant, detail)


W = TypeVar("W", bound="World")


@dataclass(frozen=True, slots=True)
class Step(Generic[W]):
    """Something that may happen; ``act`` changes a world in place."""

    label: str
    act: Callable[[W], None]
    is_fault: bool = False


class World(Protocol):
    """What is explored."""

    def copy(self) -> Self:
        """An independent world in the same state."""
        ...

    def key(self) -> Hashable:
        """Equal if and only if two worlds are in the same state."""
        ...

    def steps(self) -> Iterable[Step[Self]]:
        """All that may happen now; one that changes nothing does not count."""
        ...

    def problems(self) -> Iterable[Problem]:
        """What must never be so."""
        ...

    def problems_at_rest(self) -> Iterable[Problem]:
        """What must not be so when nothing happens any more."""
        ...


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken invariant and the shortest way there."""

    invariant: str
    detail: str
    trace: tuple[str, ...]


@dataclass(slots=True)
class Findings:
    """What an exploration came to; ``depth`` is the longest of the shortest ways to a state."""

    states: int = 0
    transitions: int = 0
    depth: int = 0
    at_rest: int = 0
    violations: list[Violation] = field(default_factory=list)


class Explorer(Generic[W]):
    """One exploration; ``run`` once."""

    def __init__(self, initial: W, *, max_states: int = MAX_STATES) -> None:
        """Start from that world."""
        self._max_states = max_states
        self._findings = Findings()
        self._indices: dict[int, int] = {}
        self._came_from = array("l")
        self._by: list[str] = []
        # Edges without faults, for convergence.
        self._sources = array("l")
        self._targets = array("l")
        self._frontier: list[tuple[int, W]] = []
        self._reach(initial, -1, "")

    def run(self) -> Findings:
        """Explore until there is nothing new, or until the first violation: the trace to it is then a shortest one."""
        found = self._findings
        while self._frontier and not found.violations:
            level, self._frontier = self._frontier, []
            for index, world in level:
                self._expand(index, world)
                if found.violations:
                    break
            found.depth += bool(self._frontier)
        found.states = len(self._by)
        if not found.violations:
            self._check_convergence()
        return found

    def _expand(self, index: int, world: W) -> None:
        is_at_rest = True
        for step in world.steps():
            successor = world.copy()
            try:
                step.act(successor)
            except BrokenError as error:
                self._violated(error.problem, index, step.label)
                return
            target = self._reach(successor, index, step.label)
            if target == index:
                continue
            self._findings.transitions += 1
            if not step.is_fault:
                is_at_rest = False
                self._sources.append(index)
                self._targets.append(target)
        if is_at_rest:
            self._findings.at_rest += 1
            for problem in world.problems_at_rest():
                self._violated(problem, index)

    def _reach(self, world: W, came_from: int, by: str) -> int:
        """The index of a world's state; a new one is looked at and will be expanded."""
        digest = hash(world.key())
        known = self._indices.get(digest)
        if known is not None:
            return known
        index = self._indices[digest] = len(self._by)
        if index >= self._max_states:
            msg = f"more than {self._max_states} states"
            raise RuntimeError(msg)
        self._came_from.append(came_from)
        self._by.append(by)
        for problem in world.problems():
            self._violated(problem, index)
        self._frontier.append((index, world))
        return index

    def _violated(self, problem: Problem, index: int, last: str = "") -> None:
        trace = [last] if last else []
        while index > 0:
            trace.append(self._by[index])
            index = self._came_from[index]
        self._findings.violations.append(Violation(problem.invariant, problem.detail, tuple(reversed(trace))))

    def _check_convergence(self) -> None:
        """Peel off states all of whose ways end; what is left runs for ever (Kahn's topological sort, backwards)."""
        count = len(self._by)
        ways = array("l", bytes(array("l").itemsize * count))
        into = array("l", bytes(array("l").itemsize * (count + 1)))
        for source, target in zip(self._sources, self._targets, strict=True):
            ways[source] += 1
            into[target + 1] += 1
        for index in range(count):
            into[index + 1] += into[index]
        place, back = array("l", into), array("l", bytes(array("l").itemsize * len(self._sources)))
        for source, target in zip(self._sources, self._targets, strict=True):
            back[place[target]] = source
            place[target] += 1
        ended = [index for index in range(count) if not ways[index]]
        while ended:
            index = ended.pop()
            for source in back[into[index] : into[index + 1]]:
                ways[source] -= 1
                if not ways[source]:
                    ended.append(source)
        endless = next((index for index in range(count) if ways[index]), None)
        if endless is not None:
            self._violated(Problem(CONVERGES, "this state can be left for ever without coming to rest"), endless)


def shown(violation: Violation) -> Sequence[str]:
    """A violation as lines for people."""
    steps = [f"{number:4}. {label}" for number, label in enumerate(violation.trace, start=1)]
    return [f"{violation.invariant}: {violation.detail}; after {len(steps)} steps:", *steps]
