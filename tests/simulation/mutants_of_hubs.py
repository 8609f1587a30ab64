"""Mutants of store hubs, control and their ledgers."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import control.ledger
import control.permits
import storehub.reportlog
import storehub.standing
import storehub.swaps
import superhub.intake
import tests.simulation.controls
from device.store import DeviceStore
from storehub.hub import Hub
from storehub.reportlog import HubReportLog
from storehub.scheduler import Scheduler
from storehub.swaps import SlotUse
from storehub.upstream import HubSink
from tests.simulation.controls import Control
from tests.simulation.faults import Fault
from tests.simulation.mutant import DARK, OTHER_DISK, Patch, doing_nothing, instead, mutant, passing
from tests.simulation.words import decode
from wavemesh.outcomes import Counts
from wavemesh.trust.statements import DeviceOutcome, UpdateState, WaveState

S = UpdateState
_NOTHING_HELD = SimpleNamespace(entries=dict, waves={})
_OUTSIDE = frozenset({S.IDLE, S.PREFLIGHT, S.STAGING, S.PAUSED, S.VERIFIED, S.REFUSED})


@mutant("one-lease-more", "The hub lets one device more inside than the policy's limit.")
def _() -> Patch:
    return instead(storehub.swaps, "_limit", lambda limit: lambda view: limit(view) + 1)


@mutant("lease-freed-early", "A status outside any swap frees the slot although the lease may still reach the device.")
def _() -> Patch:
    def make(is_over: Any) -> Any:
        def mutated(slot: Any, view: Any) -> bool:
            seen = view.devices.get(slot.device)
            left = seen is not None and seen.state in _OUTSIDE and seen.seen_at > slot.granted_at
            return is_over(slot, view) or (slot.use is SlotUse.SWAP and left)

        return mutated

    return instead(storehub.swaps, "_is_over", make)


@mutant("own-disk-believed", "A hub goes by its disk alone, although that may be an older one.", *OTHER_DISK)
def _() -> Patch:
    return [
        patch.object(storehub.swaps, "_has_settled", lambda *_: True),
        patch.object(storehub.swaps, "_unaccounted", lambda *_: set()),
        patch.object(storehub.swaps, "_self_declared", lambda *_: set()),
    ]


@mutant("floor-skipped", "The hub forgets the availability groups of the policy.")
def _() -> Patch:
    return patch.object(Scheduler, "_groups", lambda *_: ())


@mutant(
    "silent-without-witness", "A device that is not heard is SILENT although nobody else of its store is heard.", *DARK
)
def _() -> Patch:
    return patch.object(storehub.swaps, "has_witness", lambda *_: True)


@mutant("witness-at-once", "A device that has just come back convicts those that have not.", *DARK)
def _() -> Patch:
    def make(has_witness: Any) -> Any:
        def mutated(view: Any, path: str, granted_at: Any) -> bool:
            return bool(has_witness(replace(view, timing=replace(view.timing, witness_s=0.0)), path, granted_at))

        return mutated

    return instead(storehub.swaps, "has_witness", make)


@mutant(
    "maxima-forgotten",
    "A slot without a word ends with its lease, whatever a trial that follows it takes.",
    tale="armed-in-the-last-minute",
)
def _() -> Patch:
    def make(slot: Any) -> Any:
        def mutated(view: Any, wave: Any, one: Any) -> Any:
            made = slot(view, wave, one)
            return replace(made, until=made.expires_at)

        return mutated

    return instead(storehub.swaps, "_slot", make)


@mutant(
    "no-write-off",
    "Control writes nothing off for a new incarnation, and gives it permits at once.",
    *OTHER_DISK,
    Fault.HALT,
)
def _() -> Patch:
    return patch.object(control.permits, "to_write_off", lambda *_: ())


@mutant(
    "permits-at-once",
    "Control gives a new incarnation permits before its snapshot says what was spent.",
    *OTHER_DISK,
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

    return instead(control.permits, "to_issue", make)


@mutant(
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

    return instead(Control, "settle", make)


@mutant("resumed-after-halt", "A resume lifts a halt.", Fault.HALT, Fault.HALT_AT_HUB, Fault.PAUSE, Fault.PAUSE_AT_HUB)
def _() -> Patch:
    def make(resume: Any) -> Any:
        def mutated(self: Control, wave_id: str, origin: str) -> None:
            wave = self.rows.waves.get(wave_id)
            if wave is not None and wave.state is WaveState.HALTED and wave.closed_at is None:
                wave.state = WaveState.RUNNING
                wave.pauses.setdefault(origin, "")
            resume(self, wave_id, origin)

        return mutated

    return instead(Control, "resume", make)


@mutant(
    "last-word-wins",
    "Control's ledger goes by the order of arrival.",
    Fault.LOSE_SUPER_HUB_DISK,
    Fault.RESTORE_SUPER_HUB,
    *OTHER_DISK,
)
def _() -> Patch:
    return patch.object(tests.simulation.controls, "beats", lambda *_: True)


@mutant("stores-mixed-up", "Control counts what a device says for its namesake at another store as well.")
def _() -> Patch:
    def make(keep: Any) -> Any:
        def mutated(self: Control, envelope: Any, touched: set[str]) -> None:
            keep(self, envelope, touched)
            outcome = decode(DeviceOutcome, envelope.payload)
            wave = self.rows.waves.get(outcome.wave_id)
            ranked = wave.outcomes.get(outcome.device) if wave is not None else None
            if wave is None or ranked is None:
                return
            for path in wave.devices:
                if path.rsplit("/", 1)[1] == outcome.device.rsplit("/", 1)[1]:
                    wave.outcomes.setdefault(path, replace(ranked, device=path))

        return mutated

    return instead(Control, "_keep", make)


@mutant(
    "forgotten-when-acknowledged",
    "A store hub forgets outcomes when its super hub has acknowledged them.",
    Fault.LOSE_SUPER_HUB_DISK,
    Fault.RESTORE_SUPER_HUB,
    Fault.RESTORE_CONTROL,
    tale="lost-behind-a-partition",
)
def _() -> Patch:
    def make(acknowledge: Any) -> Any:
        async def mutated(self: Any, through: int) -> None:
            await acknowledge(self, through)
            async with self._database.transaction() as tx:
                await tx.execute("DELETE FROM outcomes")

        return mutated

    return instead(HubReportLog, "acknowledge", make)


@mutant("closed-with-pending", "A wave closes although targets have no outcome yet.")
def _() -> Patch:
    def make(is_final: Any) -> Any:
        return lambda outcome, attempts: outcome is None or is_final(outcome, attempts)

    return instead(control.ledger, "is_final", make)


@mutant("halt-on-unknown", "Devices of dark stores count for the rollback ratio.", *DARK, tale="closed-in-the-middle")
def _() -> Patch:
    return patch.object(
        Counts, "bad", property(lambda self: self.rolled_back + self.failed + self.silent + self.unknown)
    )


@mutant(
    "halt-on-inconclusive",
    "Power cuts count for the rollback ratio.",
    Fault.POWER_CUT_IN_SWAP,
    Fault.STORE_POWER_CUT,
    tale="power-that-flickers",
)
def _() -> Patch:
    def mutated(self: Counts) -> int:
        return self.rolled_back + self.failed + self.silent + self.inconclusive

    return patch.object(Counts, "bad", property(mutated))


@mutant(
    "snapshot-without-outcomes",
    "The snapshot of a hub's new incarnation has no outcomes.",
    *OTHER_DISK,
    tale="lost-behind-a-partition",
)
def _() -> Patch:
    def make(snapshot_reports: Any) -> Any:
        return lambda _store, path, incarnation: snapshot_reports(_NOTHING_HELD, path, incarnation)

    return instead(storehub.reportlog, "snapshot_reports", make)


@mutant(
    "device-forgets-when-acknowledged",
    "A device forgets its outcome when its hub has it.",
    *OTHER_DISK,
    tale="hub-lost-in-the-dark",
)
def _() -> Patch:
    def make(acknowledge: Any) -> Any:
        async def mutated(self: DeviceStore, through: int) -> None:
            await acknowledge(self, through)
            waves = {wave_id: replace(record, envelope=b"") for wave_id, record in self.document.waves.items()}
            self._commit(replace(self.document, waves=waves))

        return mutated

    return instead(DeviceStore, "acknowledge", make)


@mutant("halt-not-told", "Control halts a wave and tells nobody.", Fault.HALT, Fault.REVOKE)
def _() -> Patch:
    def make(change: Any) -> Any:
        return lambda self, wave: None if wave.state is WaveState.HALTED else change(self, wave)

    return instead(Control, "change", make)


@mutant("orders-kept", "Control closes a wave and leaves its orders in force.")
def _() -> Patch:
    return patch.object(Control, "withdraw", passing)


@mutant("restart-forgets", "A store hub that starts again does not believe what it holds.", Fault.CRASH_STORE_HUB)
def _() -> Patch:
    return patch.object(HubSink, "restore", passing)


@mutant("permits-withheld", "Control signs no permit.")
def _() -> Patch:
    return patch.object(control.permits, "to_issue", lambda *_, **__: ())


@mutant("roll-up-drops", "A super hub keeps the outcomes of its stores to itself.")
def _() -> Patch:
    return patch.object(superhub.intake, "news", lambda *_: [])


@mutant("outcomes-kept-at-hub", "A store hub keeps the outcomes of its devices to itself.")
def _() -> Patch:
    return patch.object(Hub, "report_outcomes", doing_nothing)
