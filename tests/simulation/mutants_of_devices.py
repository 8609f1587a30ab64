"""Mutants of devices, of what binds them, and of sessions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import device.clearance
import device.orders
import device.trial
import device.update
import storehub.reportlog
import storehub.standing
import storehub.swaps
from device.belief import Verifier
from device.progress import Arm, Cleared, CommitBoot, Halted, Persist, Reboot, RecheckDue, Step, Unhealthy
from device.recovery import STARTS, Position
from device.sink import DeviceSink
from device.store import DeviceStore
from device.transitions import stay, to
from device.trial import Trial
from device.update import TRANSITIONS
from storehub.belief import Belief as StoreBelief
from storehub.service import DeviceRegistry
from tests.simulation.faults import Fault
from tests.simulation.links import Stream
from tests.simulation.mutant import OTHER_DISK, Patch, doing_nothing, instead, mutant, passing
from wavemesh.session.child import ChildMachine
from wavemesh.session.frames import ReportAck, ReportBatch
from wavemesh.session.parent import ParentMachine
from wavemesh.session.sqlite import SqliteCursors, SqliteReportLog, SqliteResources
from wavemesh.trust.statements import UpdateState

if TYPE_CHECKING:
    from device.progress import Progress

S = UpdateState
_LATE = (Fault.PARTITION, Fault.DARK_STORE, Fault.DELAY, Fault.SLOW_LINK)


@mutant("attempt-burned-twice", "An attempt is not counted when it is burned.", Fault.POWER_CUT_IN_SWAP)
def _() -> Patch:
    def mutated(progress: Progress, event: Cleared) -> Step:
        step = device.update._arm(progress, event)
        return Step(replace(step.progress, attempt=progress.attempt), step.effects)

    return patch.dict(TRANSITIONS[S.VERIFIED], {Cleared: mutated})


@mutant(
    "try-once-first",
    "Try-once is set before the burned attempt is durable.",
    Fault.CRASH_DEVICE,
    Fault.FULL_DISK_DEVICE,
)
def _() -> Patch:
    def mutated(progress: Progress, event: Cleared) -> Step:
        step = device.update._arm(progress, event)
        order = {Arm: 0, Persist: 1, Reboot: 2}
        return Step(step.progress, tuple(sorted(step.effects, key=lambda effect: order[type(effect)])))

    return patch.dict(TRANSITIONS[S.VERIFIED], {Cleared: mutated})


@mutant("committed-before-health", "A trial is committed before anybody looked at its health.")
def _() -> Patch:
    def mutated(progress: Progress, _event: object) -> Step:
        return to(progress, S.COMMITTING, CommitBoot())

    return patch.dict(STARTS[Position.ON_TRIAL], {S.ARMED: mutated})


@mutant(
    "trial-ignores-halt",
    "A trial that hears of a halt goes on and commits.",
    Fault.HALT,
    Fault.HALT_AT_HUB,
    Fault.REVOKE,
)
def _() -> Patch:
    def make(heard: Any) -> Any:
        return lambda self, result: heard(self, replace(result, lease_state=""))

    halted = patch.dict(TRANSITIONS[S.TRIAL], {Halted: stay})
    return [halted, instead(Trial, "heard", make)]


@mutant(
    "trial-of-a-lapsed-lease",
    "A trial that began after its lease had ended commits.",
    Fault.CLOCK_JUMP,
    Fault.CLOCK_SKEW,
)
def _() -> Patch:
    return [patch.object(Trial, "judge_lease", passing), patch.object(device.clearance, "check_not_expired", passing)]


@mutant(
    "older-order",
    "Hubs and devices take an order of a lower generation for a newer one.",
    Fault.RESTORE_CONTROL,
    Fault.RESTORE_SUPER_HUB,
    Fault.PAUSE,
    tale="older-disk-above",
)
def _() -> Patch:
    return [
        patch.object(StoreBelief, "_newer_order", lambda _self, _name, order: order),
        patch.object(Verifier, "_verify_order", lambda _self, _key, order, _held: order),
        patch.object(DeviceSink, "_check_floors", passing),
    ]


@mutant("expiry-ignored", "Nobody minds that an order, a lease or a permit has expired.", *_LATE)
def _() -> Patch:
    return [
        patch.object(module, "check_not_expired", passing)
        for module in (storehub.standing, device.clearance, device.trial)
    ]


@mutant("hold-ignored", "Hub and device go on with a release that they know to be held.", Fault.HOLD)
def _() -> Patch:
    return [patch.object(module, "check_not_held", passing) for module in (storehub.standing, device.orders)]


@mutant(
    "hold-view-of-any-age",
    "Hub and device go by a view of holds however old.",
    Fault.DARK_STORE,
    Fault.PARTITION,
    tale="dark-beyond-the-holds",
)
def _() -> Patch:
    return [patch.object(module, "check_hold_view", passing) for module in (storehub.standing, device.clearance)]


@mutant("removals-dropped", "A hub keeps the resources that its parent removes.")
def _() -> Patch:
    def make(store: Any) -> Any:
        return lambda self, tx, changed, _removed: store(self, tx, changed, ())

    return instead(SqliteResources, "store", make)


@mutant(
    "acknowledged-before-persisted",
    "A parent acknowledges reports before their effect is durable.",
    Fault.CRASH_STORE_HUB,
    Fault.CRASH_SUPER_HUB,
    Fault.CRASH_CONTROL,
)
def _() -> Patch:
    def make(read: Any) -> Any:
        def mutated(self: Stream, frame: Any) -> None:
            if isinstance(frame, ReportBatch):
                through = frame.first_number + len(frame.reports) - 1
                self.link.send(self, ReportAck(through), is_up=False)
            read(self, frame)

        return mutated

    return instead(Stream, "_read_parent", make)


@mutant("cursor-forgotten", "A hub does not move the cursor with the effect of its children's reports.")
def _() -> Patch:
    return patch.object(SqliteCursors, "advance", doing_nothing)


@mutant(
    "cursor-before-effect",
    "A store hub moves the cursor in a transaction before that of the effect.",
    Fault.CRASH_STORE_HUB,
    tale="hub-that-crashes",
)
def _() -> Patch:
    def make(apply: Any) -> Any:
        async def mutated(self: Any, child: Any, incarnation: str, first: int, reports: Any) -> None:
            async with self._hub.store.database.transaction() as tx:
                await self._hub.cursors.advance(tx, child.path, incarnation, first + len(reports) - 1)
            await apply(self, child, incarnation, first, reports)

        return mutated

    return instead(DeviceRegistry, "apply_reports", make)


@mutant(
    "restored-child-not-fenced",
    "A parent welcomes a child whose numbers are behind its cursor.",
    *OTHER_DISK,
    Fault.RESTORE_SUPER_HUB,
)
def _() -> Patch:
    def make(admitted: Any) -> Any:
        return lambda self, cursor, now: admitted(self, min(cursor, self._next_report_number - 1), now)

    return instead(ParentMachine, "admitted", make)


@mutant("resent-from-the-wrong-number", "A child goes on one report after the one that its parent wants.")
def _() -> Patch:
    def make(welcomed: Any) -> Any:
        def mutated(self: Any, welcome: Any, now: float) -> None:
            welcomed(self, welcome, now)
            if self._sent_through < self._next_number - 1:
                self._sent_through += 1

        return mutated

    return instead(ChildMachine, "_welcomed", make)


@mutant("incarnation-kept", "A restored hub keeps its incarnation and counts on from its parent's cursor.", *OTHER_DISK)
def _() -> Patch:
    return patch.object(SqliteReportLog, "restart", _restart_in_place)


async def _restart_in_place(log: Any) -> None:
    """A new database takes an incarnation; a restored one only jumps over the numbers that were used."""
    if not log.incarnation:
        await _RESTART(log)
        return
    async with log._database.transaction() as tx:
        await tx.execute("UPDATE session_log SET next_number = next_number + 1000")
        await tx.execute("UPDATE session_reports SET number = number + 1000")
        tx.on_commit(lambda: log._remember(log._incarnation, log._next_number + 1000, log._first_number + 1000))


_RESTART = SqliteReportLog.restart


@mutant(
    "oldest-report-dropped",
    "A device whose log holds three reports drops the oldest for the next.",
    Fault.CUT_LAN,
    Fault.DEAD_SWITCH,
    Fault.STORE_POWER_CUT,
)
def _() -> Patch:
    def mutated(_self: Any, document: Any, report: Any) -> Any:
        return replace(document, reports=(*document.reports, report)[-3:])

    return patch.object(DeviceStore, "_with_report", mutated)


@mutant("failed-trial-committed", "A trial that failed is committed.")
def _() -> Patch:
    return patch.dict(TRANSITIONS[S.TRIAL], {Unhealthy: device.update._commit})


@mutant("never-rechecked", "What a transient gate refused is not looked at again.", Fault.GATE_CLOSED)
def _() -> Patch:
    return patch.dict(TRANSITIONS[S.REFUSED], {RecheckDue: stay})


@mutant("outcome-forgotten", "A device ends its swap and says nothing of it.")
def _() -> Patch:
    return patch.object(DeviceStore, "_with_outcome", lambda _self, document, *_: document)


@mutant("acknowledgement-forgotten", "A parent applies reports and does not acknowledge them.")
def _() -> Patch:
    return patch.object(ParentMachine, "reports_applied", passing)


@mutant("updates-dropped", "A hub answers an update and does not keep what it brought.")
def _() -> Patch:
    def make(store: Any) -> Any:
        return lambda self, tx, _changed, removed: store(self, tx, (), removed)

    return instead(SqliteResources, "store", make)


@mutant("status-withheld", "A child says nothing of where it is after its first status.")
def _() -> Patch:
    return patch.object(ChildMachine, "set_status", passing)
