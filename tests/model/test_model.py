"""The explorer in its reduced form: nothing is broken, the counts are those published, and faults put in are found."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

from control import permits as control_permits
from storehub import swaps
from tests.model.explorer import CONVERGES, Explorer
from tests.model.permits import PermitWorld
from tests.model.scenarios import explore
from tests.model.session import SessionWorld
from tests.model.streams import ACKED, ALONE, DESIRED, LOST, OUTCOME, Change, Plot
from tests.model.swapping import BURNED_FIRST, Device
from tests.model.wave import EXPOSED, ONE_SWAP, WRITTEN_OFF, PermitPlot
from wavemesh.session.child import ChildMachine
from wavemesh.session.frames import Report
from wavemesh.session.lanes import ResourceLanes
from wavemesh.session.parent import ParentMachine

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

# hub-clone is left to the command: its smallest form takes as long as all others together.
COUNTS = {
    "cut": 2858,
    "urgent": 2336,
    "parent-crash": 790,
    "two-children": 4804,
    "shared-crash": 5003,
    "child-restore": 1059,
    "parent-restore": 839,
    "child-clone": 2688,
    "permits": 640,
    "halt": 1439,
    "hub-crash": 1726,
    "hub-restore": 1131,
    "control-restore": 205,
    "power": 308,
}
A = (("A", (Report(OUTCOME, b"a1"),)),)
A_TWO = (("A", (Report(OUTCOME, b"a1"), Report(OUTCOME, b"a2"))),)
GIVE, TAKE = Change("A", "x", b"1"), Change("A", "x", None)


def plot(*faults: str, reports: Any = A, changes: tuple[Change, ...] = ()) -> SessionWorld:
    return SessionWorld.of(Plot(reports, changes, frozenset(faults)))


def wave(*faults: str, ticks: int = 0, batch: int | None = None) -> PermitWorld:
    return PermitWorld.of(PermitPlot(batch, frozenset(faults), ticks))


@pytest.mark.parametrize("name", COUNTS)
def test_every_state_is_good(name: str) -> None:
    """M3, M5, P6, H6, H7, the semantics of sessions and permits; a new count says that a machine has other states."""
    found = explore(name, is_full=False)
    assert found.violations == []
    assert found.states == COUNTS[name]


def acknowledged_before_persisted() -> AbstractContextManager[Any]:
    reports = ParentMachine._reports

    def early(self: ParentMachine, batch: Any) -> None:
        reports(self, batch)
        self._applied_through = self._received_through

    def late(self: ParentMachine, through: int) -> None:
        return

    return _patched(ParentMachine, _reports=early, reports_applied=late)


def removals_dropped() -> AbstractContextManager[Any]:
    remaining = ResourceLanes._remaining

    def without(self: ResourceLanes) -> Any:
        return dataclasses.replace(remaining(self), removed=())

    return _patched(ResourceLanes, _remaining=without)


def older_session_left_open() -> AbstractContextManager[Any]:
    return _patched(SessionWorld, end_older=lambda *_: None)


def fence_ignored() -> AbstractContextManager[Any]:
    """The child that is fenced comes back as it was."""
    return _patched(SessionWorld, restart_log=lambda *_: None)


def never_fenced() -> AbstractContextManager[Any]:
    """The parent welcomes a child that was restored from an older state, and the child believes it."""
    admitted, welcomed = ParentMachine.admitted, ChildMachine._welcomed

    def welcome(self: ParentMachine, cursor: int, now: float) -> None:
        self._next_report_number = max(self._next_report_number, cursor + 1)
        admitted(self, cursor, now)

    def believe(self: ChildMachine, welcome: Any, now: float) -> None:
        self._hello = dataclasses.replace(self._hello, next_report_number=welcome.reports_through + 1)
        welcomed(self, welcome, now)

    stack = ExitStack()
    stack.enter_context(patch.object(ParentMachine, "admitted", welcome))
    stack.enter_context(patch.object(ChildMachine, "_welcomed", believe))
    return stack


def reissued_without_write_off() -> AbstractContextManager[Any]:
    """What is bound to an earlier incarnation is forgotten instead of written off."""
    to_issue = control_permits.to_issue

    def forgetful(share: Any, *, hub_incarnation: str, batch: int | None) -> Any:
        known = {device: one for device, one in share.issues.items() if one.hub_incarnation == hub_incarnation}
        return to_issue(dataclasses.replace(share, issues=known), hub_incarnation=hub_incarnation, batch=batch)

    return _patched(control_permits, to_issue=forgetful)


def slot_freed_early() -> AbstractContextManager[Any]:
    """A slot ends when its device says that it is in trial."""
    is_over = swaps._is_over

    def early(slot: Any, view: Any) -> bool:
        return is_over(slot, view) or view.devices[slot.device].state.name == "TRIAL"

    return _patched(swaps, _is_over=early, _self_declared=lambda *_: set())


def armed_before_burned() -> AbstractContextManager[Any]:
    hears = Device.hears

    def swapped(self: Device, event: Any) -> Device:
        device = hears(self, event)
        names = [type(effect).__name__ for effect in device.todo]
        if names[-3:] == ["Persist", "Arm", "Reboot"]:
            persist, arm, reboot = device.todo[-3:]
            return dataclasses.replace(device, todo=(*device.todo[:-3], arm, persist, reboot))
        return device

    return _patched(Device, hears=swapped)


def silent_is_spent() -> AbstractContextManager[Any]:
    return _patched(control_permits, is_spent=control_permits._is_done)


def _patched(where: Any, **names: Any) -> AbstractContextManager[Any]:
    patched: AbstractContextManager[Any] = patch.multiple(where, **names)
    return patched


MUTANTS: dict[str, tuple[Callable[[], AbstractContextManager[Any]], Callable[[], Any], str, int]] = {
    "acknowledged-before-persisted": (acknowledged_before_persisted, plot, ACKED, 9),
    "removals-dropped": (removals_dropped, lambda: plot(changes=(GIVE, TAKE)), DESIRED, 16),
    "older-session-left-open": (older_session_left_open, lambda: plot("cut"), ALONE, 13),
    "fence-ignored": (fence_ignored, lambda: plot("restore-child"), CONVERGES, 9),
    "never-fenced": (never_fenced, lambda: plot("restore-child", reports=A_TWO), LOST, 21),
    "reissued-without-write-off": (
        reissued_without_write_off,
        lambda: wave("restore-hub"),
        WRITTEN_OFF,
        15,
    ),
    "slot-freed-early": (slot_freed_early, wave, ONE_SWAP, 14),
    "armed-before-burned": (armed_before_burned, wave, BURNED_FIRST, 6),
    "silent-is-spent": (silent_is_spent, lambda: wave("power", ticks=2, batch=1), EXPOSED, 12),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_fault_put_in_is_found(name: str) -> None:
    """With a shortest trace, by the invariant that it breaks."""
    mutant, world, invariant, length = MUTANTS[name]
    with mutant():
        explorer: Explorer[Any] = Explorer(world())
        found = explorer.run()
    assert invariant in {violation.invariant for violation in found.violations}
    assert len(found.violations[0].trace) == length
