"""Hand-written mutants of the mesh: ``python -m tests.simulation.mutants --json -``.

Each breaks one rule of the product, or the order in which a node persists, acts and says, for a whole night. The
simulation must find every one of them within ``--most`` seeds, in a night that holds without it; of those the most
promising are tried first. Exit code 1 when one is
not found, 2 when the input is bad.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import control.ledger
import control.permits
import device.clearance
import device.orders
import device.trial
import device.update
import storehub.standing
import storehub.swaps
import tests.simulation.controls
from control.ledger import Decision, Move
from device.belief import Verifier
from device.bootenv import ResetReason
from device.progress import Arm, Cleared, CommitBoot, Halted, Persist, Reboot, Step
from device.recovery import STARTS, Position
from device.sink import DeviceSink
from device.store import DeviceStore
from device.transitions import stay, to
from device.trial import Trial
from device.update import TRANSITIONS
from storehub.belief import Belief as StoreBelief
from storehub.reportlog import HubReportLog
from storehub.scheduler import Scheduler
from storehub.service import DeviceRegistry
from storehub.store import HubStore
from storehub.swaps import SlotUse
from tests.simulation.controls import Control
from tests.simulation.faults import Chaos, Fault
from tests.simulation.links import Stream
from tests.simulation.region import Region
from tests.simulation.run import run_seed
from tests.simulation.words import decode
from wavemesh.outcomes import Counts
from wavemesh.session.child import ChildMachine
from wavemesh.session.frames import ReportAck, ReportBatch
from wavemesh.session.parent import ParentMachine
from wavemesh.session.sqlite import SqliteCursors, SqliteReportLog, SqliteResources
from wavemesh.trust.statements import DeviceOutcome, UpdateState, WaveState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from device.progress import Progress

S = UpdateState
MOST_SEEDS = 500
MAX_JOBS = 64
_OUTSIDE = frozenset({S.IDLE, S.PREFLIGHT, S.STAGING, S.PAUSED, S.VERIFIED, S.REFUSED})


@dataclass(frozen=True, slots=True)
class Mutant:
    """``broken`` says in one sentence what; ``patches`` makes the patches of one night.

    ``shows_by`` are the faults without which it hardly matters: nights with most of them are tried first.
    """

    name: str
    broken: str
    shows_by: tuple[Fault, ...]
    patches: Callable[[], Sequence[AbstractContextManager[Any]]]


@dataclass(frozen=True, slots=True)
class Catch:
    """The seed that found a mutant, 0 when none did, and by which checker."""

    name: str
    seed: int
    checker: str
    seconds: float


MUTANTS: list[Mutant] = []
_OTHER_DISK = (Fault.RESTORE_STORE_HUB, Fault.REPLACE_HUB, Fault.CLONE_HUB)
_DARK = (Fault.CLOSING_TIME, Fault.STORE_POWER_CUT, Fault.DEAD_SWITCH)
Patch = Any


def _mutant(name: str, broken: str, *shows_by: Fault) -> Callable[[Callable[[], Patch | Sequence[Patch]]], None]:
    def add(make: Callable[[], Any]) -> None:
        def patches() -> Sequence[AbstractContextManager[Any]]:
            made = make()
            return made if isinstance(made, list) else [made]

        MUTANTS.append(Mutant(name, broken, shows_by, patches))

    return add


def _instead(owner: Any, name: str, make: Callable[[Any], Any]) -> Patch:
    """Patch ``owner.name`` with what ``make`` makes of the original."""
    return patch.object(owner, name, make(getattr(owner, name)))


def _passing(*_: object, **__: object) -> None:
    """A check that finds nothing."""


async def _doing_nothing(*_: object, **__: object) -> None:
    """An effect that is left out."""


# --- leases and slots ------------------------------------------------------------------------------------------------


@_mutant("one-lease-more", "The hub lets one device more inside than the policy's limit.")
def _() -> Patch:
    return _instead(storehub.swaps, "_limit", lambda limit: lambda view: limit(view) + 1)


@_mutant("lease-freed-early", "A status outside any swap frees the slot although the lease may still reach the device.")
def _() -> Patch:
    def make(is_over: Any) -> Any:
        def mutated(slot: Any, view: Any) -> bool:
            seen = view.devices.get(slot.device)
            left = seen is not None and seen.state in _OUTSIDE and seen.seen_at > slot.granted_at
            return is_over(slot, view) or (slot.use is SlotUse.SWAP and left)

        return mutated

    return _instead(storehub.swaps, "_is_over", make)


@_mutant(
    "swap-unseen", "A device that says it is inside a swap of which the hub knows nothing takes no slot.", *_OTHER_DISK
)
def _() -> Patch:
    return patch.object(storehub.swaps, "_self_declared", lambda *_: set())


@_mutant("floor-skipped", "The hub forgets the availability groups of the policy.")
def _() -> Patch:
    return patch.object(Scheduler, "_groups", lambda *_: ())


@_mutant(
    "silent-without-witness", "A device that is not heard is SILENT although nobody else of its store is heard.", *_DARK
)
def _() -> Patch:
    return patch.object(storehub.swaps, "_has_witness", lambda *_: True)


@_mutant("witness-at-once", "A device that has just come back convicts those that have not.", *_DARK)
def _() -> Patch:
    def make(has_witness: Any) -> Any:
        def mutated(view: Any, path: str) -> bool:
            return bool(has_witness(replace(view, timing=replace(view.timing, witness_s=0.0)), path))

        return mutated

    return _instead(storehub.swaps, "_has_witness", make)


@_mutant(
    "restored-hub-grants",
    "A hub with a new incarnation grants before its devices have said where they are.",
    *_OTHER_DISK,
)
def _() -> Patch:
    return patch.object(storehub.swaps, "_has_settled", lambda *_: True)


@_mutant("permit-of-another-hub", "A hub spends permits that are bound to an earlier incarnation.", *_OTHER_DISK)
def _() -> Patch:
    def make(view: Any) -> Any:
        def mutated(self: Any) -> Any:
            seen = view(self)
            permits = {key: replace(one, hub_incarnation=seen.incarnation) for key, one in seen.permits.items()}
            return replace(seen, permits=permits)

        return mutated

    return _instead(Scheduler, "view", make)


@_mutant(
    "slot-not-persisted",
    "A lease leaves the hub although its slot was not made durable.",
    Fault.CRASH_STORE_HUB,
    Fault.HOST_DOWN,
)
def _() -> Patch:
    def make(put_slot: Any) -> Any:
        async def mutated(self: Any, tx: Any, record: Any) -> None:
            await put_slot(self, tx, record)
            await tx.execute("DELETE FROM slots WHERE device = ?", (record.slot.device,))

        return mutated

    return _instead(HubStore, "put_slot", make)


# --- permits ---------------------------------------------------------------------------------------------------------


@_mutant(
    "no-write-off",
    "Control writes nothing off for a new incarnation, and gives it permits at once.",
    *_OTHER_DISK,
    Fault.HALT,
)
def _() -> Patch:
    return patch.object(control.permits, "to_write_off", lambda *_: ())


@_mutant(
    "permits-at-once",
    "Control gives a new incarnation permits before its snapshot says what was spent.",
    *_OTHER_DISK,
    Fault.HALT,
)
def _() -> Patch:
    def make(to_issue: Any) -> Any:
        def mutated(share: Any, *, hub_incarnation: str, batch: int | None) -> Any:
            held = {device: replace(one, hub_incarnation=hub_incarnation) for device, one in share.issues.items()}
            again = [d for d, one in share.issues.items() if one.hub_incarnation != hub_incarnation and hub_incarnation]
            fresh = to_issue(replace(share, issues=held), hub_incarnation=hub_incarnation, batch=batch)
            return (*fresh, *(device for device in again if device in control.permits.outstanding(share)))

        return mutated

    return _instead(control.permits, "to_issue", make)


@_mutant(
    "permits-after-halt",
    "Control goes on signing permits for a wave that it halted.",
    Fault.HALT,
    Fault.HALT_AT_HUB,
    Fault.REVOKE,
)
def _() -> Patch:
    def make(settle: Any) -> Any:
        def mutated(self: Control, wave_id: str) -> None:
            settle(self, wave_id)
            wave = self.rows.waves[wave_id]
            if wave.state is WaveState.HALTED and wave.closed_at is None:
                self._issue(wave)

        return mutated

    return _instead(Control, "settle", make)


@_mutant("resumed-after-halt", "A resume lifts a halt.", Fault.HALT, Fault.HALT_AT_HUB, Fault.PAUSE, Fault.PAUSE_AT_HUB)
def _() -> Patch:
    def make(resume: Any) -> Any:
        def mutated(self: Control, wave_id: str, origin: str) -> None:
            wave = self.rows.waves.get(wave_id)
            if wave is not None and wave.state is WaveState.HALTED and wave.closed_at is None:
                wave.state = WaveState.RUNNING
                wave.pauses.setdefault(origin, "")
            resume(self, wave_id, origin)

        return mutated

    return _instead(Control, "resume", make)


# --- attempts and trials ---------------------------------------------------------------------------------------------


@_mutant("attempt-burned-twice", "An attempt is not counted when it is burned.", Fault.POWER_CUT_IN_SWAP)
def _() -> Patch:
    def mutated(progress: Progress, event: Cleared) -> Step:
        step = device.update._arm(progress, event)
        return Step(replace(step.progress, attempt=progress.attempt), step.effects)

    return patch.dict(TRANSITIONS[S.VERIFIED], {Cleared: mutated})


@_mutant(
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


@_mutant("committed-before-health", "A trial is committed before anybody looked at its health.")
def _() -> Patch:
    def mutated(progress: Progress, _event: object) -> Step:
        return to(progress, S.COMMITTING, CommitBoot())

    return patch.dict(STARTS[Position.ON_TRIAL], {S.ARMED: mutated})


@_mutant(
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
    return [halted, _instead(Trial, "heard", make)]


@_mutant(
    "trial-of-a-lapsed-lease",
    "A trial that began after its lease had ended commits.",
    Fault.CLOCK_JUMP,
    Fault.CLOCK_SKEW,
)
def _() -> Patch:
    return [patch.object(Trial, "judge_lease", _passing), patch.object(device.clearance, "check_not_expired", _passing)]


@_mutant(
    "power-loss-blamed",
    "A trial that a power cut ended is told as the release's fault.",
    Fault.POWER_CUT_IN_SWAP,
    Fault.STORE_POWER_CUT,
)
def _() -> Patch:
    return patch("device.recovery._ended_by", lambda _event: ResetReason.WATCHDOG)


# --- orders, holds, expiry -------------------------------------------------------------------------------------------


@_mutant(
    "older-order",
    "Hubs and devices take an order of a lower generation for a newer one.",
    Fault.RESTORE_CONTROL,
    Fault.RESTORE_SUPER_HUB,
    Fault.PAUSE,
)
def _() -> Patch:
    return [
        patch.object(StoreBelief, "_newer_order", lambda _self, _name, order: order),
        patch.object(Verifier, "_verify_order", lambda _self, _key, order, _held: order),
        patch.object(DeviceSink, "_check_floors", _passing),
    ]


@_mutant("expiry-ignored", "Nobody minds that an order, a lease or a permit has expired.")
def _() -> Patch:
    return [
        patch.object(module, "check_not_expired", _passing)
        for module in (storehub.standing, device.clearance, device.trial)
    ]


@_mutant("hold-ignored", "Hub and device go on with a release that they know to be held.", Fault.HOLD)
def _() -> Patch:
    return [patch.object(module, "check_not_held", _passing) for module in (storehub.standing, device.orders)]


@_mutant("hold-view-of-any-age", "Hub and device go by a view of holds however old.", Fault.DARK_STORE, Fault.PARTITION)
def _() -> Patch:
    return [patch.object(module, "check_hold_view", _passing) for module in (storehub.standing, device.clearance)]


@_mutant("older-image", "A device puts the same or an older image over the one that runs.")
def _() -> Patch:
    return patch.object(device.orders, "check_rollback_floor", _passing)


# --- sessions --------------------------------------------------------------------------------------------------------


@_mutant("removals-dropped", "A hub keeps the resources that its parent removes.")
def _() -> Patch:
    def make(store: Any) -> Any:
        return lambda self, tx, changed, _removed: store(self, tx, changed, ())

    return _instead(SqliteResources, "store", make)


@_mutant(
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

    return _instead(Stream, "_read_parent", make)


@_mutant("cursor-forgotten", "A hub does not move the cursor with the effect of its children's reports.")
def _() -> Patch:
    return patch.object(SqliteCursors, "advance", _doing_nothing)


@_mutant(
    "cursor-before-effect",
    "A store hub moves the cursor in a transaction before that of the effect.",
    Fault.CRASH_STORE_HUB,
)
def _() -> Patch:
    def make(apply: Any) -> Any:
        async def mutated(self: Any, child: Any, incarnation: str, first: int, reports: Any) -> None:
            async with self._hub.store.database.transaction() as tx:
                await self._hub.cursors.advance(tx, child.path, incarnation, first + len(reports) - 1)
            await apply(self, child, incarnation, first, reports)

        return mutated

    return _instead(DeviceRegistry, "apply_reports", make)


@_mutant(
    "restored-child-not-fenced",
    "A parent welcomes a child whose numbers are behind its cursor.",
    *_OTHER_DISK,
    Fault.RESTORE_SUPER_HUB,
)
def _() -> Patch:
    def make(admitted: Any) -> Any:
        return lambda self, cursor, now: admitted(self, min(cursor, self._next_report_number - 1), now)

    return _instead(ParentMachine, "admitted", make)


@_mutant("resent-from-the-wrong-number", "A child goes on one report after the one that its parent wants.")
def _() -> Patch:
    def make(welcomed: Any) -> Any:
        def mutated(self: Any, welcome: Any, now: float) -> None:
            welcomed(self, welcome, now)
            if self._sent_through + 1 < self._next_number:
                self._sent_through += 1

        return mutated

    return _instead(ChildMachine, "_welcomed", make)


@_mutant(
    "incarnation-kept", "A restored hub keeps its incarnation and counts on from its parent's cursor.", *_OTHER_DISK
)
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


@_mutant(
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


# --- ledgers and waves -----------------------------------------------------------------------------------------------


@_mutant(
    "last-word-wins",
    "Control's ledger goes by the order of arrival.",
    Fault.LOSE_SUPER_HUB_DISK,
    Fault.RESTORE_SUPER_HUB,
    *_OTHER_DISK,
)
def _() -> Patch:
    return patch.object(tests.simulation.controls, "beats", lambda *_: True)


@_mutant(
    "foreign-device-counted",
    "Control counts the outcome of a device under every path that it ever had.",
    Fault.MOVE_DEVICE,
)
def _() -> Patch:
    def make(keep: Any) -> Any:
        def mutated(self: Control, envelope: Any, touched: set[str]) -> None:
            outcome = decode(DeviceOutcome, envelope.payload)
            wave = self.rows.waves.get(outcome.wave_id)
            if wave is not None and outcome.device not in wave.devices:
                ranked = control.ledger.Outcome(
                    outcome.device, outcome.attempt, outcome.sequence, outcome.kind, outcome.gate, by_device=True
                )
                wave.outcomes[outcome.device] = ranked
            keep(self, envelope, touched)

        return mutated

    return _instead(Control, "_keep", make)


@_mutant(
    "forgotten-when-acknowledged",
    "A store hub forgets outcomes when its super hub has acknowledged them.",
    Fault.LOSE_SUPER_HUB_DISK,
    Fault.RESTORE_SUPER_HUB,
    Fault.RESTORE_CONTROL,
)
def _() -> Patch:
    def make(acknowledge: Any) -> Any:
        async def mutated(self: Any, through: int) -> None:
            await acknowledge(self, through)
            async with self._database.transaction() as tx:
                await tx.execute("DELETE FROM ledger")

        return mutated

    return _instead(HubReportLog, "acknowledge", make)


@_mutant("closed-with-pending", "A wave closes although targets have no outcome yet.")
def _() -> Patch:
    def make(is_final: Any) -> Any:
        return lambda outcome, attempts: outcome is None or is_final(outcome, attempts)

    return _instead(control.ledger, "is_final", make)


@_mutant("halt-on-unknown", "Devices of dark stores count for the rollback ratio.", *_DARK)
def _() -> Patch:
    return patch.object(
        Counts, "bad", property(lambda self: self.rolled_back + self.failed + self.silent + self.unknown)
    )


@_mutant(
    "halt-on-inconclusive", "Power cuts count for the rollback ratio.", Fault.POWER_CUT_IN_SWAP, Fault.STORE_POWER_CUT
)
def _() -> Patch:
    def mutated(self: Counts) -> int:
        return self.rolled_back + self.failed + self.silent + self.inconclusive

    return patch.object(Counts, "bad", property(mutated))


@_mutant("never-closed", "A wave stays open although every device has its outcome or it expired.")
def _() -> Patch:
    def make(decide: Any) -> Any:
        def mutated(**named: Any) -> Decision:
            decision: Decision = decide(**named)
            return Decision(Move.STAY) if decision.move is Move.CLOSE else decision

        return mutated

    return _instead(tests.simulation.controls, "decide", make)


# --- running them ----------------------------------------------------------------------------------------------------


@cache
def _faults(seed: int) -> Counter[Fault]:
    """How often each fault is planned for that night."""
    region = Region(seed)
    Chaos(region).plan()
    return Counter(arguments[0] for *_, arguments in region.world._heap)


def catch(name: str, first: int, most: int, tries: int = MOST_SEEDS) -> Catch:
    """A seed that finds that mutant; one that fails without it as well does not count.

    Of equally promising seeds the first is tried first.
    """
    mutant = next(one for one in MUTANTS if one.name == name)
    began_s = time.perf_counter()
    seeds: Sequence[int] = range(first, first + most)
    if mutant.shows_by:
        seeds = sorted(seeds, key=lambda seed: -sum(_faults(seed)[fault] for fault in mutant.shows_by))
    for seed in seeds[:tries]:
        failures = run_seed(seed, patches=mutant.patches(), keeps_trace=False).failures
        if failures and not run_seed(seed, keeps_trace=False).failures:
            return Catch(name, seed, failures[0], round(time.perf_counter() - began_s, 1))
    return Catch(name, 0, "", round(time.perf_counter() - began_s, 1))


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants", description=__doc__)
    parser.add_argument("--mutant", action="append", metavar="NAME", help="only this one; may be given more than once")
    parser.add_argument("--from", type=int, default=1, dest="first", metavar="SEED", help="the first seed")
    parser.add_argument("--most", type=int, default=MOST_SEEDS, metavar="N", help="seeds to try with each")
    parser.add_argument("--tries", type=int, default=MOST_SEEDS, metavar="N", help="of these seeds, the most promising")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument(
        "--json", metavar="FILE", help="write the report as JSON; - is stdout, the table goes to stderr"
    )
    arguments = parser.parse_args(argv)
    names = arguments.mutant or [mutant.name for mutant in MUTANTS]
    unknown = set(names) - {mutant.name for mutant in MUTANTS}
    if unknown or not 1 <= arguments.jobs <= MAX_JOBS or arguments.most < 1:
        parser.error(f"no mutant {', '.join(sorted(unknown))}" if unknown else "--jobs, --most: 1 or more")
    table = sys.stderr if arguments.json == "-" else sys.stdout
    caught: list[Catch] = []
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        running = [pool.submit(catch, name, arguments.first, arguments.most, arguments.tries) for name in names]
        for done in as_completed(running):
            found = done.result()
            caught.append(found)
            table.write(f"{found.name:32} {found.seed or '-':>5} {found.seconds:7.1f} s  {found.checker[:90]}\n")
            table.flush()
    caught.sort(key=lambda found: names.index(found.name))
    missed = [found.name for found in caught if not found.seed]
    report = {"mutants": len(caught), "caught": len(caught) - len(missed), "missed": missed, "most": arguments.most}
    if arguments.json is not None:
        rows = {mutant.name: mutant.broken for mutant in MUTANTS}
        details = [{**asdict(found), "broken": rows[found.name]} for found in caught]
        text = json.dumps({**report, "each": details}, indent=2, ensure_ascii=False) + "\n"
        sys.stdout.write(text) if arguments.json == "-" else Path(arguments.json).write_text(text)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
