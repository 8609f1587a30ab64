"""What this hub does with what its super hub sends, and what it tells when its report log starts anew.

A resource is verified (``belief.py``), made durable with its consequences in one transaction, then believed and served.
What does not verify is refused by gate, reported as an event once, and changes nothing; what is held in the place of an
older word of control is shown to it. Revocations are in force once
they are durable, and a parent that takes them back again is passed over: only a later list replaces them.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from storehub.belief import HeldIntent, HeldPolicy
from storehub.records import WaveRecord
from storehub.unsettled import SETTLED_FACT
from wavemesh.codec.statements import encode
from wavemesh.errors import GateError
from wavemesh.policy.gates import Gate
from wavemesh.session.frames import MAX_REASON_BYTES, MAX_REPORT_BYTES, Rejection, Report
from wavemesh.session.showing import Showing
from wavemesh.trust.metadata import TrustedMetadata
from wavemesh.trust.statements import HoldList, RevocationList, SnapshotReport, WaveClosed, WaveOrder, WaveState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storehub.belief import Finding
    from storehub.hub import Hub
    from storehub.intents import Intents
    from storehub.store import HubStore
    from wavemesh.runtime.sqlite import Transaction
    from wavemesh.session.frames import HeldResource, Resource, ResourceKey
    from wavemesh.trust.statements import Envelope

_LOG = logging.getLogger(__name__)
HOLD_EPOCH_FACT = "hold_epoch"
_ENVELOPE_OVERHEAD_BYTES = 64


class HubSink:
    """Implements ``wavemesh.session.seams.ResourceSink``."""

    def __init__(self, hub: Hub, intents: Intents) -> None:
        """Take resources for that hub."""
        self._hub = hub
        self._intents = intents
        self._showing = Showing(hub.report)

    def restore(self) -> None:
        """Believe again what was durable before a restart."""
        hub = self._hub
        waves = hub.store.waves
        generations = {wave_id: record.order.generation for wave_id, record in waves.items()}
        over = {wave_id: state for wave_id, record in waves.items() if (state := _ended_as(record)) is not None}
        hub.belief.remember(generations, over, int(hub.store.fact(HOLD_EPOCH_FACT) or "0"))
        for error in hub.belief.restore(hub.resources.all().values(), hub.clock.now()):
            _LOG.warning("held resource is not believed any more: %s", error)
        hub.belief.enforce()

    def held(self) -> Sequence[HeldResource]:
        """Everything durable here from the super hub."""
        return self._hub.resources.held()

    async def apply(self, changed: Sequence[Resource], removed: Sequence[ResourceKey]) -> Sequence[Rejection]:
        """Verify, store, act; trust metadata first, as the rest is verified by it."""
        hub, rejections = self._hub, list[Rejection]()
        removed = [key for key in removed if key.type != "revocations"]
        accepted: list[Resource] = []
        async with hub.store.database.transaction() as tx:
            for resource in sorted(changed, key=lambda one: one.key.type != "tuf"):
                try:
                    finding = hub.belief.judge(resource, hub.clock.now())
                except GateError as error:
                    rejections.append(await self._refuse(tx, resource, error))
                else:
                    # Believed at once, since what follows in this update may lean on it. If the transaction fails the
                    # session ends, and the parent sends the same again.
                    hub.belief.accept(resource.key, finding)
                    accepted.append(resource)
                    await self._follow(tx, finding)
            for key in removed:
                if key.type == "intent":
                    await self._intents.withdraw(tx, key.name)
            await hub.resources.store(tx, accepted, removed)
        for key in removed:
            hub.belief.forget(key)
        hub.resources_changed += 1
        if any(key.type != "permit" for key in (*(resource.key for resource in accepted), *removed)):
            hub.changed(None)  # a store has a permit for each device, and none is served before a lease carries it
        hub.bell.ring()
        return rejections

    async def _refuse(self, tx: Transaction, resource: Resource, error: GateError) -> Rejection:
        subject = f"{resource.key.type}/{resource.key.name}"
        _LOG.warning("refused %s: %s", subject, error)
        await self._hub.report_event(tx, "resource-refused", gate=error.gate, subject=subject, detail=str(error))
        if error.gate == Gate.REPLAY.value:
            await self._showing.show_held(tx, self._hub.resources, resource.key)
        reason = str(error).encode()[:MAX_REASON_BYTES].decode(errors="ignore")
        return Rejection(resource.key, resource.digest, error.gate, reason)

    async def _follow(self, tx: Transaction, finding: Finding) -> None:
        """What follows from a verified resource."""
        hub = self._hub
        match finding:
            case TrustedMetadata():
                await self._refresh_blobs(tx)
                for key, found in hub.belief.reconsider(hub.clock.now()):
                    if isinstance(found, GateError):
                        _LOG.warning("%s/%s waited for trust and is refused: %s", key.type, key.name, found)
                    else:
                        await self._follow(tx, found)
                await self._intents.resolve_prefetches(tx)
            case HoldList():
                await hub.store.put_fact(tx, HOLD_EPOCH_FACT, str(finding.epoch))
                await hub.clock_guard.confirm(tx, finding.issued_at, hub.clock.now())
            case RevocationList():
                tx.on_commit(hub.belief.enforce)
            case WaveOrder():
                await self._take_order(tx, finding)
            case WaveClosed():
                await self._close(tx, finding)
            case HeldIntent():
                await self._intents.take(tx, finding)
            case HeldPolicy():
                pass
            case _:
                pass

    async def _take_order(self, tx: Transaction, order: WaveOrder) -> None:
        known = self._hub.store.waves.get(order.wave_id)
        first_seen_at = known.first_seen_at if known is not None else self._hub.clock.now()
        blobs = self._hub.belief.blobs_of_release(order.release) or (known.blobs if known is not None else ())
        await self._hub.store.put_wave(tx, WaveRecord(order, first_seen_at, blobs))
        if known is None or order.generation > known.order.generation:
            await self._hub.tracing.ordered(tx, order)
        await self._intents.order_arrived(tx, order)

    async def _refresh_blobs(self, tx: Transaction) -> None:
        """A wave whose release was not known may be now."""
        for record in list(self._hub.store.waves.values()):
            blobs = self._hub.belief.blobs_of_release(record.order.release)
            if record.closed_at is None and blobs and blobs != record.blobs:
                await self._hub.store.put_wave(tx, WaveRecord(record.order, record.first_seen_at, blobs))

    async def _close(self, tx: Transaction, closed: WaveClosed) -> None:
        store = self._hub.store
        record = store.waves.get(closed.wave_id)
        if record is not None and record.closed_at is None:
            closing = WaveRecord(record.order, record.first_seen_at, record.blobs, closed.state, closed.closed_at)
            await store.put_wave(tx, closing)
        for wave_id, origin in list(store.pauses):
            if wave_id == closed.wave_id:
                await store.drop_pause(tx, wave_id, origin)

    async def connected(self) -> None:
        """The super hub is there."""
        self._showing.begin()
        self._hub.bell.ring()

    async def settled(self) -> None:
        """This hub holds what the super hub wants."""
        hub = self._hub
        if not hub.has_settled:
            async with hub.store.database.transaction() as tx:
                await hub.store.put_fact(tx, SETTLED_FACT, hub.log.incarnation)
            hub.unsettled.end()
            hub.changed(None)
        hub.bell.ring()

    async def disconnected(self, reason: str) -> None:
        """The WAN, or the super hub, is gone: everything goes on."""
        _LOG.info("going on without the super hub: %s", reason)
        self._hub.bell.ring()


def _ended_as(record: WaveRecord) -> WaveState | None:
    """How a wave ended for ever; None while it has not."""
    if record.closed_state is not None:
        return record.closed_state
    return WaveState.HALTED if record.order.state is WaveState.HALTED else None


def snapshot_reports(store: HubStore, path: str, incarnation: str) -> list[Report]:
    """All outcomes of waves that control has not closed, in reports within their bound; at least one report."""
    parts: list[list[Envelope]] = [[]]
    size = 0
    for (wave_id, _), entry in sorted(store.entries().items()):
        record = store.waves.get(wave_id)
        if record is not None and record.closed_at is not None:
            continue
        weight = len(encode(entry.envelope)) + _ENVELOPE_OVERHEAD_BYTES
        if size + weight > MAX_REPORT_BYTES // 2:
            parts.append([])
            size = 0
        parts[-1].append(entry.envelope)
        size += weight
    last = len(parts) - 1
    return [
        Report("snapshot", encode(SnapshotReport(path, incarnation, tuple(part), number == last)))
        for number, part in enumerate(parts)
    ]
