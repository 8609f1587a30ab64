"""The scenarios by name, each in its full form and in a reduced one for the tests.

That they are split is sound. Sessions and permits meet in what ``permits.py`` takes for granted, and that is what the
session scenarios find. Children share nothing in the machines, and each invariant speaks of one child: what one child
does at a moment says nothing about another's, so one child is explored with everything and two with what they share,
the parent and its crash. Faults are single, so each kind has a scenario of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tests.model import streams, wave
from tests.model.explorer import CONVERGES, Explorer, Findings
from tests.model.permits import PermitWorld
from tests.model.session import SessionWorld
from tests.model.streams import CLONE, EVENT, OUTCOME, Change, Plot
from tests.model.swapping import BURNED_FIRST, LIVE_PERMIT
from tests.model.wave import PermitPlot
from wavemesh.session.frames import Report

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.model.explorer import World

_A = ("A", (Report(OUTCOME, b"a1"), Report(EVENT, b"a2")))
_A_ONE = ("A", (Report(OUTCOME, b"a1"),))
_B = ("B", (Report(OUTCOME, b"b1"),))
_CLONED = (_A_ONE, (CLONE, (Report(OUTCOME, b"c1"),)))
_GIVE, _TAKE = Change("A", "x", b"1"), Change("A", "x", None)
_URGENT = Change("A", "y", b"2", urgent=True)
_GIVE_B = Change("B", "x", b"1")

INVARIANTS = (*streams.INVARIANTS, BURNED_FIRST, LIVE_PERMIT, *wave.INVARIANTS, CONVERGES)


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is explored, in both forms."""

    full: Callable[[], World]
    reduced: Callable[[], World]


def _session(full: Plot, reduced: Plot) -> Scenario:
    return Scenario(lambda: SessionWorld.of(full), lambda: SessionWorld.of(reduced))


def _permits(full: PermitPlot, reduced: PermitPlot) -> Scenario:
    return Scenario(lambda: PermitWorld.of(full), lambda: PermitWorld.of(reduced))


def _one(fault: str) -> PermitPlot:
    """One device, to be small."""
    return PermitPlot(1, _kinds(fault), 0, devices=("d1",))


def _kinds(*kinds: str) -> frozenset[str]:
    return frozenset(kinds)


SCENARIOS: Mapping[str, Scenario] = {
    "cut": _session(Plot((_A,), (_GIVE, _TAKE), _kinds("cut")), Plot((_A_ONE,), (_GIVE,), _kinds("cut"))),
    "urgent": _session(
        Plot((_A,), (_GIVE, _URGENT, _TAKE), _kinds()), Plot((_A_ONE,), (_GIVE, _URGENT, _TAKE), _kinds())
    ),
    "parent-crash": _session(
        Plot((_A,), (_GIVE, _TAKE), _kinds("crash-parent")), Plot((_A_ONE,), (_GIVE,), _kinds("crash-parent"))
    ),
    "two-children": _session(Plot((_A, _B), (_GIVE, _GIVE_B), _kinds()), Plot((_A_ONE, _B), (), _kinds())),
    "shared-crash": _session(
        Plot((_A_ONE, _B), (_GIVE,), _kinds("crash-parent")), Plot((_A_ONE, ("B", ())), (), _kinds("crash-parent"))
    ),
    "child-restore": _session(
        Plot((_A,), (_GIVE,), _kinds("restore-child")), Plot((_A_ONE,), (), _kinds("restore-child"))
    ),
    "parent-restore": _session(
        Plot((_A,), (_GIVE,), _kinds("restore-parent", "lose-parent")),
        Plot((_A_ONE,), (), _kinds("restore-parent", "lose-parent")),
    ),
    "child-clone": _session(
        Plot(_CLONED, (), _kinds("clone"), redials=1, promises_all=False),
        Plot((("A", ()), _CLONED[1]), (), _kinds("clone"), redials=1, promises_all=False),
    ),
    "permits": _permits(PermitPlot(1, _kinds(), 2), PermitPlot(None, _kinds(), 0)),
    "halt": _permits(PermitPlot(1, _kinds(), 1, halts=True), PermitPlot(1, _kinds(), 0, halts=True)),
    "hub-crash": _permits(PermitPlot(1, _kinds("hub"), 1), PermitPlot(1, _kinds("hub"), 0)),
    "hub-restore": _permits(PermitPlot(1, _kinds("restore-hub"), 0), _one("restore-hub")),
    "hub-clone": _permits(_one("clone-hub"), replace(_one("clone-hub"), shows=1)),
    "control-restore": _permits(PermitPlot(1, _kinds("restore-control"), 1), _one("restore-control")),
    "power": _permits(PermitPlot(1, _kinds("power"), 1), _one("power")),
}


def explore(name: str, *, is_full: bool) -> Findings:
    """Explore a scenario by name; raises KeyError."""
    scenario = SCENARIOS[name]
    explorer: Explorer[Any] = Explorer(scenario.full() if is_full else scenario.reduced())
    return explorer.run()
