"""What operators are shown of this store: the hub's records as messages of operator.proto."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from storehub.deliveries import held_shown, in_steps
from storehub.ledger import summarise
from storehub.records import Disposition
from storehub.standing import Standing
from wavemesh import __version__
from wavemesh.codec.statements import to_proto
from wavemesh.identity.nodes import NodeId
from wavemesh.listing import pending_entry
from wavemesh.outcomes import ledger_digest
from wavemesh.queueing import place_in_queue
from wavemesh.trust.holds import find_hold
from wavemesh.trust.statements import HubStatus, LedgerView, LocalPause, OutcomeKind, SwapWait, WaveState
from wavemesh.v1 import operator_pb2, report_pb2, rollout_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime

    from storehub.asks import Relay
    from storehub.cache import Cache
    from storehub.hub import Hub
    from storehub.ledger import Entry, Summary
    from storehub.records import IntentRecord, WaveRecord
    from storehub.scheduler import Scheduler
    from wavemesh.trust.cachestats import CacheStatistics
    from wavemesh.trust.statements import WaveOrder

FINAL = frozenset({OutcomeKind.UPDATED, OutcomeKind.ROLLED_BACK, OutcomeKind.FAILED, OutcomeKind.SILENT})
MAX_WAITS = 64
MAX_REASON = 300


class Views:
    """Builds answers from what the hub knows."""

    def __init__(
        self, hub: Hub, cache: Cache, scheduler: Scheduler, link: Relay, statistics: Callable[[], CacheStatistics]
    ) -> None:
        """Show that hub; ``link`` is the session with the super hub, ``statistics`` are of the cache."""
        self._hub = hub
        self._cache = cache
        self._statistics = statistics
        self._scheduler = scheduler
        self._link = link

    # -- waves ------------------------------------------------------------------------------------------------------

    def wave(self, record: WaveRecord) -> operator_pb2.Wave:
        """One wave as known here."""
        hub, order = self._hub, record.order
        summary = self.summary(order)
        state, reason = self._state(record)
        exposure = self._exposure(order)
        counts = ledger_counts(summary)
        store = operator_pb2.WaveStore(
            store=hub.path,
            devices=order.devices,
            counts=counts,
            exposure=exposure,
            connected=True,
            order_delivered=True,
            waits=[to_proto(wait) for wait in self._waits() if wait.wave_id == order.wave_id],
            deliveries=[to_proto(one) for one in self._cache.deliveries.shown() if one.wave_id == order.wave_id],
        )
        pauses = {(pause.origin, pause.reason) for pause in order.pauses}
        pauses |= {(p.origin, p.reason) for p in hub.store.pauses.values() if p.wave_id == order.wave_id}
        return operator_pb2.Wave(
            wave_id=order.wave_id,
            cohort=order.cohort,
            release=order.release,
            state=state,
            state_reason=reason,
            pauses=[rollout_pb2.Pause(origin=origin, reason=why) for origin, why in sorted(pauses)],
            stores=[store],
            counts=counts,
            rollback_ratio=summary.counts.rollback_ratio,
            exposure=exposure,
            planned_at=stamp(record.first_seen_at),
            expires_at=stamp(order.expires_at),
        )

    def _state(self, record: WaveRecord) -> tuple[rollout_pb2.WaveState.ValueType, str]:
        """The state in this hub's eyes: local pauses and halts included, a circumstance told as the reason."""
        if record.closed_state is not None:
            return rollout_pb2.WaveState.ValueType(record.closed_state.value), "control closed the wave"
        found = self._hub.standing(record.order)
        state = {
            Standing.HALTED: WaveState.HALTED,
            Standing.PAUSED: WaveState.PAUSED,
            Standing.CLOSED: WaveState.CLOSED,
        }.get(found.standing, record.order.state)
        reason = f"{found.gate}: {found.detail}" if found.standing is Standing.WAITING and found.gate else found.detail
        troubles = [
            f"{t.gate or 'fetch'}: {t.detail}"
            for blob in record.blobs
            if (t := self._cache.troubles.get(blob)) is not None
        ]
        words = [reason, *(f"cache: {trouble}" for trouble in troubles), self._link.refusal]
        return rollout_pb2.WaveState.ValueType(state.value), "; ".join(word for word in words if word)

    def _exposure(self, order: WaveOrder) -> int:
        """Devices of the wave whose permit is held here and whose outcome is not final."""
        hub, ledger = self._hub, self._hub.store.ledger(order.wave_id)
        return sum(
            held.permit.hub_incarnation == hub.log.incarnation
            and (device not in ledger or ledger[device].outcome.kind not in FINAL)
            for (wave_id, device), held in hub.belief.permits.items()
            if wave_id == order.wave_id
        )

    def summary(self, order: WaveOrder) -> Summary:
        """Sums of a wave at this store."""
        targets = [self._hub.device_path(name) for name in order.devices]
        return summarise(targets, self._hub.store.ledger(order.wave_id))

    def ledger(self, record: WaveRecord) -> operator_pb2.GetLedgerResponse:
        """The ledger of a wave: one entry a target device."""
        hub, order = self._hub, record.order
        known = hub.store.ledger(order.wave_id)
        summary = self.summary(order)
        entries = []
        for path in sorted(hub.device_path(name) for name in order.devices):
            heard = hub.store.devices.get(path)
            pending = pending_entry(path, order.wave_id, heard.status if heard is not None else None)
            entries.append(ledger_entry(known[path]) if path in known else pending)
        return operator_pb2.GetLedgerResponse(
            wave_id=order.wave_id,
            entries=entries,
            counts=ledger_counts(summary),
            gates=dict(summary.gates),
            source=hub.path,
        )

    # -- devices ----------------------------------------------------------------------------------------------------

    def device_paths(self) -> list[str]:
        """Devices known here: heard, or named in an order."""
        hub = self._hub
        named = {hub.device_path(name) for record in hub.store.waves.values() for name in record.order.devices}
        return sorted(named | set(hub.store.devices))

    def device(self, path: str) -> operator_pb2.Device:
        """One device as known here."""
        hub, record = self._hub, self._hub.store.devices.get(path)
        message = operator_pb2.Device(path=path)
        if record is not None:
            message.status.CopyFrom(to_proto(record.status))
            message.status.connected = path in hub.present
            message.device_class = record.status.device_class
            message.hardware_revision = record.status.hardware_revision
        for wave in hub.store.waves.values():
            entry = hub.store.ledger(wave.order.wave_id).get(path)
            if entry is not None and wave.closed_at is None:
                message.outcomes.append(ledger_entry(entry))
        return message

    # -- the rest ---------------------------------------------------------------------------------------------------

    def hub_status(self) -> HubStatus:
        """This hub's status, as it goes up and as operators see it."""
        hub = self._hub
        return HubStatus(
            hub=hub.path,
            at=hub.clock.now(),
            software_version=__version__,
            incarnation=hub.log.incarnation,
            devices_connected=len(hub.present),
            swaps_active=self._scheduler.swaps_active(),
            cache_bytes=self._cache.used_bytes,
            cache_quota_bytes=self._cache.quota_bytes,
            local_pauses=tuple(LocalPause(p.wave_id, p.origin, p.reason) for p in hub.store.pauses.values()),
            waits=self._waits(),
            ledgers=tuple(self._ledgers()),
            cache=self._statistics(),
            deliveries=tuple(map(in_steps, self._cache.deliveries.shown())),
            held=held_shown(self._cache.deliveries.held()),
        )

    def _ledgers(self) -> Iterator[LedgerView]:
        hub = self._hub
        for wave_id, record in sorted(hub.store.waves.items()):
            if record.closed_at is None:
                ranks = {device: entry.rank for device, entry in hub.store.ledger(wave_id).items()}
                yield LedgerView(wave_id, ledger_digest(map(hub.device_path, record.order.devices), ranks))

    def _waits(self) -> tuple[SwapWait, ...]:
        """Whom availability groups hold up; a bounded list, as it travels with each status."""
        waits = self._scheduler.waits[:MAX_WAITS]
        return tuple(SwapWait(w.device.rsplit("/", 1)[1], w.reason[:MAX_REASON], w.wave_id) for w in waits)

    def fleet(self) -> operator_pb2.GetFleetStatusResponse:
        """This store in one page; ``connected`` is the session with the super hub."""
        hub = self._hub
        status = to_proto(self.hub_status())
        status.connected = self._link.is_connected
        versions = Counter(r.status.firmware_version for r in hub.store.devices.values() if r.status.firmware_version)
        waves = [self.wave(record) for record in hub.store.waves.values() if record.closed_at is None]
        return operator_pb2.GetFleetStatusResponse(
            hubs=[status],
            devices=len(self.device_paths()),
            devices_connected=len(hub.present),
            waves=waves,
            firmware_versions=dict(versions),
        )

    def releases(self) -> list[operator_pb2.Release]:
        """Releases by the metadata held here."""
        belief = self._hub.belief
        found: list[operator_pb2.Release] = []
        if belief.trusted is None:
            return found
        for manifest in (*belief.trusted.releases().values(), *belief.trusted.revoked_releases().values()):
            hold = find_hold(manifest, belief.holds) if belief.holds is not None else None
            message = operator_pb2.Release(
                name=manifest.name,
                version=manifest.version,
                device_class=manifest.device_class,
                hardware_revisions=manifest.hardware_revisions,
                regions=manifest.regions,
                signed_at=stamp(manifest.signed_at),
                hold_reason=(hold.reason or "on hold") if hold is not None else "",
                role=belief.trusted.role_of(manifest.name),
                revoked_reason=belief.trusted.revocations().get(manifest.name, ""),
                minimum_version=manifest.minimum_version,
            )
            if manifest.firmware is not None:
                message.firmware.CopyFrom(to_proto(manifest.firmware.digest))
            if manifest.config is not None:
                message.config.CopyFrom(to_proto(manifest.config.digest))
            found.append(message)
        return found


def intent(record: IntentRecord, others: Iterable[IntentRecord]) -> operator_pb2.IntentRecord:
    """An intent, its fate, and its place among the others that wait for the same node; a cancelled one has none."""
    is_cancelled = record.disposition is Disposition.CANCELLED
    waiting = (other for other in others if other.disposition is not Disposition.CANCELLED)
    disposition = {
        Disposition.APPLIED: operator_pb2.DISPOSITION_APPLIED,
        Disposition.QUEUED: operator_pb2.DISPOSITION_QUEUED,
        Disposition.REFUSED: operator_pb2.DISPOSITION_REFUSED,
        Disposition.CANCELLED: operator_pb2.DISPOSITION_CANCELLED,
    }[record.disposition]
    return operator_pb2.IntentRecord(
        intent_id=record.intent.intent_id,
        kind=rollout_pb2.IntentKind.ValueType(record.intent.kind.value),
        wave_id=record.intent.wave_id,
        device=record.device_path or record.intent.device,
        operator=NodeId.parse(record.operator).name,
        reason=record.intent.reason,
        disposition=disposition,
        waiting_for=record.waiting_for,
        detail=record.detail,
        received_at=stamp(record.received_at),
        queue_place=0 if is_cancelled else place_in_queue(record, waiting),
    )


def ledger_counts(summary: Summary) -> operator_pb2.LedgerCounts:
    """Sums as a message."""
    return operator_pb2.LedgerCounts(**asdict(summary.counts))


def ledger_entry(entry: Entry) -> operator_pb2.LedgerEntry:
    """An outcome as a line of a ledger."""
    outcome = entry.outcome
    return operator_pb2.LedgerEntry(
        device=outcome.device,
        kind=report_pb2.OutcomeKind.ValueType(outcome.kind.value),
        gate=outcome.gate,
        attempt=outcome.attempt,
        sequence=outcome.sequence,
        evidence=outcome.evidence,
        slot=outcome.slot,
        firmware_sha256=outcome.firmware_sha256,
        firmware_version=outcome.firmware_version,
        signed_by=entry.signed_by,
        at=stamp(outcome.at),
        observed=outcome.observed,
        required=outcome.required,
        slots=[to_proto(slot) for slot in outcome.slots],
        boot_id=outcome.boot_id,
        log_sha256=outcome.log_sha256,
    )


def stamp(at: datetime) -> Timestamp:
    """A time as a message."""
    message = Timestamp()
    message.FromDatetime(at)
    return message
