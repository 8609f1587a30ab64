"""Virtual time: a heap of things to happen, nodes that live and crash, and the trace of what came to pass.

Nothing here ticks. A thing happens at its time, in the order in which things of one time were asked for; so the same
seed gives the same trace. A node's code runs inside ``Node.run``: a ``Crash`` anywhere in it ends the node's life, and
of its memory nothing is left but what it had made durable.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from wavemesh.errors import LocalError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.simulation.facts import Facts

EPOCH = datetime(2026, 5, 4, 21, 0, tzinfo=UTC)
"""When every night begins, by the world's own clock."""
MAX_YIELDS = 100


class Crash(BaseException):  # nothing may catch it on its way out
    """The node dies here and now."""


class Entry(NamedTuple):
    """One line of the trace: when, who, what, and the particulars."""

    at: float
    node: str
    event: str
    detail: Any

    def __str__(self) -> str:
        """For people."""
        at = timedelta(seconds=round(self.at, 3))
        return f"{at!s:>16}  {self.node:<28} {self.event:<18} {self.detail}"


def drive(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine of the product to its end: here nothing that it awaits ever has to be waited for."""
    try:
        coroutine.send(None)
        for _ in range(MAX_YIELDS):
            coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise RuntimeError(f"{coroutine} waits for something that the simulation does not know")


class World:
    """Time, chance and the trace."""

    def __init__(self, seed: int, facts: Facts) -> None:
        self.seed = seed
        self.facts = facts
        self.now = 0.0
        self.trace: list[Entry] = []
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self.steps = 0
        self.is_traced = True

    def rng(self, concern: str) -> Random:
        """The chance of one concern, so that drawing more for one leaves the others as they were."""
        return Random(f"{self.seed}/{concern}")

    def at(self, when: float, action: Callable[..., None], *arguments: Any) -> None:
        """Have something happen, never in the past."""
        heappush(self._heap, (max(when, self.now), next(self._numbers), action, arguments))

    def after(self, delay: float, action: Callable[..., None], *arguments: Any) -> None:
        """Have something happen some seconds from now."""
        heappush(self._heap, (self.now + delay, next(self._numbers), action, arguments))

    def note(self, node: str, event: str, detail: Any = "") -> None:
        """Add to the trace."""
        if self.is_traced:
            self.trace.append(Entry(self.now, node, event, detail))

    def run(self, until: float) -> None:
        """Let time pass; what is due at ``until`` happens too."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, action, arguments = heappop(heap)
            action(*arguments)
            self.steps += 1
        self.now = until

    def digest(self) -> str:
        """SHA-256 over the trace."""
        digest = hashlib.sha256()
        for entry in self.trace:
            digest.update(repr(tuple(entry)).encode())
        return digest.hexdigest()


@dataclass(slots=True)
class WorldClock:
    """A node's clock: ``skew_s`` off the world's, and jumping when that is changed."""

    world: World
    skew_s: float = 0.0
    _told_s: float = -1e9
    _told: datetime = EPOCH

    def now(self) -> datetime:
        seconds = self.world.now + self.skew_s
        if seconds != self._told_s:
            self._told_s, self._told = seconds, EPOCH + timedelta(seconds=seconds)
        return self._told

    def monotonic(self) -> float:
        return self.world.now


class Node:
    """A process on a host. ``life`` counts its starts and ends: what an earlier life planned does not happen."""

    def __init__(self, world: World, path: str) -> None:
        self.world = world
        self.path = path
        self.label = "/".join(path.split("/")[1::2])
        self.clock = WorldClock(world)
        self.rng = world.rng(path)
        self.life = 0
        self.is_up = False
        self.crash_in: int | None = None
        self.disk_is_full = False

    def note(self, event: str, detail: Any = "") -> None:
        """Add to the trace what this node does."""
        self.world.note(self.label, event, detail)

    def step(self, effect: str) -> None:
        """An effect is about to be done; the node may crash before it."""
        if self.crash_in is None:
            return
        self.crash_in -= 1
        if self.crash_in < 0:
            self.crash_in = None
            self.note("crash", f"before {effect}")
            raise Crash

    def run(self, action: Callable[..., Any], *arguments: Any) -> Any:
        """Run code of the node."""
        try:
            return action(*arguments)
        except Crash:
            self.crashed()
            return None
        except LocalError as error:
            # Whoever does not expect its own disk to fail ends there, as the process does.
            self.note("crash", f"{error}")
            self.crashed()
            return None

    def later(self, delay: float, action: Callable[..., None], *arguments: Any) -> None:
        """Have this life of the node do something, if it lasts so long."""
        world = self.world
        heappush(world._heap, (world.now + delay, next(world._numbers), self._act, (self.life, action, arguments)))

    def _act(self, life: int, action: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if life == self.life:
            self.run(action, *arguments)

    def crashed(self) -> None:
        """The process is gone; what it had in memory as well."""
        raise NotImplementedError
