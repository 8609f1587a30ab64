"""``control/recovery.py`` over the rows in memory: what a hub shows of control's own words is taken up again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from control.permits import Issue
from control.regained import PauseSince, changed_releases, ended_by, holds_after, wave_after
from control.rollout import name_of, region_of, store_of
from tests.simulation.words import decode
from wavemesh.session.frames import ResourceKey
from wavemesh.trust.statements import Envelope, HoldList, Permit, WaveClosed, WaveOrder, WaveState

if TYPE_CHECKING:
    from tests.simulation.controls import Control
    from wavemesh.trust.kept import KeptReport

_ENDED = frozenset({WaveState.HALTED, WaveState.CLOSED})


def take(control: Control, kept: KeptReport) -> None:
    """Take it up, if it is news."""
    payload = decode(Envelope, kept.content).payload if kept.type != "tuf" else b""
    match kept.type:
        case "holds":
            _take_holds(control, decode(HoldList, payload))
        case "order":
            _take_order(control, decode(WaveOrder, payload))
        case "permit":
            _take_permit(control, decode(Permit, payload), kept.content)
        case "closed":
            _take_closed(control, decode(WaveClosed, payload))
        case _:
            pass


def _take_holds(control: Control, shown: HoldList) -> None:
    rows = control.rows
    before = HoldList(rows.hold_epoch, rows.holds, rows.holds_signed_at)
    after = holds_after(before, shown, control.clock.now())
    if after is None:
        return
    control.note("regains", f"holds of epoch {shown.epoch}")
    rows.hold_epoch, rows.holds, rows.holds_signed_at = after.epoch, after.holds, after.issued_at
    control.publish_holds()
    for release in changed_releases(before, after):
        control.holds_changed(release)


def _take_order(control: Control, shown: WaveOrder) -> None:
    wave = control.rows.waves.get(shown.wave_id)
    if wave is None or shown.store not in wave.targets:
        return
    pauses = [PauseSince(origin, why, wave.paused_at[origin]) for origin, why in wave.pauses.items()]
    found = wave_after(wave.generation, wave.state, pauses, shown)
    if found is None:
        return
    control.note("regains", f"{shown.wave_id} of generation {shown.generation}, {shown.state.name}")
    wave.generation = found.generation
    if found.state is WaveState.HALTED:
        control.halt(wave.wave_id, "halted before control was restored")
        return
    wave.state = found.state
    wave.pauses = {one.origin: one.reason for one in found.pauses}
    wave.paused_at = {origin: wave.paused_at.get(origin, shown.issued_at) for origin in wave.pauses}
    control.change(wave)
    control.settle(wave.wave_id)


def _take_permit(control: Control, permit: Permit, content: bytes) -> None:
    wave, store = control.rows.waves.get(permit.wave_id), store_of(permit.device)
    if wave is None or permit.device not in wave.targets.get(store, ()) or wave.state in _ENDED:
        return
    last = wave.issues.get(permit.device)
    if last is not None and last.generation >= permit.generation:
        return
    control.note("regains", f"permit {permit.generation} of {permit.device}")
    wave.issues[permit.device] = Issue(permit.device, permit.generation, permit.hub_incarnation)
    key = ResourceKey("permit", f"{permit.wave_id}/{name_of(store)}/{name_of(permit.device)}")
    control.publish(region_of(store), key, content, (store,))


def _take_closed(control: Control, shown: WaveClosed) -> None:
    wave = control.rows.waves.get(shown.wave_id)
    if wave is None or wave.closed_at is not None:
        return
    control.note("regains", f"the last word on {shown.wave_id}")
    wave.state, wave.reason, wave.ended_at = ended_by(shown.state), "before control was restored", shown.closed_at
    control.close(wave)
