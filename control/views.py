"""What operators see: rows, ledgers and status as the messages of operator.proto."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple

from control.ledger import count, gate_counts
from control.permits import waiting_for_certificate
from control.rollout import region_of
from control.waves import order_key
from wavemesh.codec.statements import to_proto
from wavemesh.listing import pending_entry
from wavemesh.session.frames import ResourceKey
from wavemesh.trust.statements import OutcomeKind, WaveState
from wavemesh.v1 import envelope_pb2, operator_pb2, report_pb2, rollout_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy import RowMapping

    from control.desired import DesiredState
    from control.fleet import Fleet
    from control.forecast import Forecast
    from control.intent_rows import IntentRow
    from control.ledger import Outcome
    from control.store import WaveView
    from wavemesh.outcomes import Counts
    from wavemesh.trust.metadata import TrustedMetadata
    from wavemesh.trust.releases import ReleaseManifest
    from wavemesh.trust.statements import DeviceStatus, RevocationList

MAX_EFFECT_DEVICES = 1000
_ENDED = frozenset({WaveState.HALTED, WaveState.CLOSED})


def counts_message(counts: Counts) -> operator_pb2.LedgerCounts:
    """Counts, field by field."""
    return operator_pb2.LedgerCounts(**asdict(counts))


def wave_message(view: WaveView, fleet: Fleet, desired: DesiredState) -> operator_pb2.Wave:
    """A wave as known here: ledger, exposure, and who heard of it."""
    row, counts = view.row, view.counts()
    message = operator_pb2.Wave(
        wave_id=row.wave_id,
        cohort=row.cohort,
        release=row.release,
        state=rollout_pb2.WaveState.ValueType(view.state.value),
        counts=counts_message(counts),
        rollback_ratio=counts.rollback_ratio,
    )
    message.planned_at.FromDatetime(row.planned_at)
    message.expires_at.FromDatetime(row.expires_at)
    pauses = {pause.origin: pause.reason for pause in view.pauses}
    for store_path, devices in view.targets.items():
        hub = fleet.hubs.get(store_path)
        delivered = is_told(view, store_path, fleet, desired)
        exposed = exposure(view, store_path, fleet, desired)
        message.stores.add(
            store=store_path,
            devices=[device.rsplit("/", 1)[1] for device in devices],
            counts=counts_message(view.counts([store_path])),
            exposure=exposed,
            connected=fleet.is_connected(store_path),
            order_delivered=delivered,
            waits=[to_proto(wait) for wait in (hub.waits if hub else ()) if wait.wave_id == row.wave_id],
            deliveries=[to_proto(one) for one in (hub.deliveries if hub else ()) if one.wave_id == row.wave_id],
        )
        message.exposure += exposed
        if view.row.state not in _ENDED:
            message.waiting_for_certificate += len(waiting_for_certificate(view.share(store_path)))
        for pause in hub.local_pauses if hub else ():
            if pause.wave_id == row.wave_id:
                pauses.setdefault(pause.origin, pause.reason)
    for origin, reason in pauses.items():
        message.pauses.add(origin=origin, reason=reason)
    message.state_reason = row.state_reason or "; ".join(
        f"paused by {origin}: {reason}" for origin, reason in pauses.items()
    )
    return message


def exposure(view: WaveView, store_path: str, fleet: Fleet, desired: DesiredState) -> int:
    """Devices of a store that may still swap by the permits its hub holds."""
    # Whoever has heard that the wave ended swaps nothing more; the others still may, with what they hold.
    is_over = view.row.state in _ENDED and is_told(view, store_path, fleet, desired)
    return 0 if is_over else view.exposed(store_path)


def effect_message(before: WaveView, after: WaveView) -> operator_pb2.IntentEffect:
    """What an intent does to a wave: the wave before and after it."""
    exposed = sum(map(before.exposed, before.targets))
    is_over = after.row.state in _ENDED
    issued = sum(
        issue.generation - (before.issues[device].generation if device in before.issues else 0)
        for device, issue in after.issues.items()
    )
    return operator_pb2.IntentEffect(
        devices=after.devices[:MAX_EFFECT_DEVICES],
        device_count=len(after.devices),
        stores=list(after.targets),
        state_before=rollout_pb2.WaveState.ValueType(before.state.value),
        state_after=rollout_pb2.WaveState.ValueType(after.state.value),
        exposure_before=exposed,
        exposure_after=0 if is_over else sum(map(after.exposed, after.targets)),
        permits_issued=issued,
        permits_voided=exposed if is_over else 0,
    )


def is_told(view: WaveView, store_path: str, fleet: Fleet, desired: DesiredState) -> bool:
    """Whether a store's hub has heard the latest on the wave, as far as is known."""
    is_over = view.row.closed_at is not None
    key = ResourceKey("closed", view.row.wave_id) if is_over else order_key(view.row.wave_id, store_path)
    resource = desired.get(region_of(store_path), key)
    # A last word that is withdrawn was out long enough for everybody.
    return is_over if resource is None else fleet.is_delivered(store_path, resource)


def ledger_message(
    wave_id: str,
    targets: Iterable[str],
    rows: Mapping[str, RowMapping],
    outcomes: Mapping[str, Outcome],
    *,
    source: str,
    statuses: Mapping[str, DeviceStatus],
) -> operator_pb2.GetLedgerResponse:
    """One entry a target, by path; those unheard are pending."""
    devices = sorted(targets)
    message = operator_pb2.GetLedgerResponse(
        wave_id=wave_id,
        counts=counts_message(count(devices, outcomes)),
        gates=gate_counts(devices, outcomes),
        source=source,
    )
    for device in devices:
        if device in rows:
            message.entries.append(entry_message(rows[device]))
        else:
            message.entries.append(pending_entry(device, wave_id, statuses.get(device)))
    return message


def entry_message(row: RowMapping) -> operator_pb2.LedgerEntry:
    """An outcome as kept."""
    entry = operator_pb2.LedgerEntry(
        device=row["device"],
        kind=report_pb2.OutcomeKind.ValueType(OutcomeKind[row["kind"]].value),
        gate=row["gate"],
        attempt=row["attempt"],
        sequence=row["sequence"],
        evidence=row["evidence"],
        slot=row["slot"],
        firmware_sha256=row["firmware_sha256"],
        firmware_version=row["firmware_version"],
        signed_by=row["signed_by"],
    )
    entry.at.FromDatetime(row["at"])
    # What nobody asks the tables for is in the outcome itself, as it was signed and verified.
    signed = report_pb2.DeviceOutcome.FromString(envelope_pb2.Envelope.FromString(row["envelope"]).payload)
    entry.slots.extend(signed.slots)
    for name in ("observed", "required", "boot_id", "log_sha256"):
        setattr(entry, name, getattr(signed, name))
    return entry


def intent_message(row: IntentRow, queue_place: int = 0) -> operator_pb2.IntentRecord:
    """An intent, its fate, and its place in the queue of whom it waits for."""
    record = operator_pb2.IntentRecord(
        intent_id=row.intent_id,
        kind=rollout_pb2.IntentKind.ValueType(row.kind.value),
        wave_id=row.wave_id,
        device=row.device,
        operator=row.operator,
        reason=row.reason,
        disposition=operator_pb2.Disposition.ValueType(row.disposition.value),
        waiting_for=row.waiting_for,
        detail=row.detail,
        queue_place=queue_place,
    )
    record.received_at.FromDatetime(row.received_at)
    return record


def forecast_message(one: Forecast) -> operator_pb2.TransferForecast:
    """What a place will move."""
    return operator_pb2.TransferForecast(
        place=one.place,
        bytes=one.expected_bytes,
        full_bytes=one.full_bytes,
        unknown_bytes=one.unknown_bytes,
        methods=one.methods,
        over_budget=one.over_budget,
    )


def device_message(row: RowMapping, fleet: Fleet, outcomes: Iterable[RowMapping]) -> operator_pb2.Device:
    """A device as registered and last heard."""
    message = operator_pb2.Device(
        path=row["path"],
        labels=row["labels"],
        device_class=row["device_class"],
        hardware_revision=row["hardware_revision"],
        outcomes=[entry_message(outcome) for outcome in outcomes],
    )
    status = fleet.devices.get(row["path"])
    if status is not None:
        message.status.CopyFrom(to_proto(status))
        message.status.connected = fleet.is_connected(row["path"])
    return message


class NodeRows(NamedTuple):
    """What is kept of one node; None for what is not known."""

    certificate: RowMapping | None
    enrolment: RowMapping | None
    device: RowMapping | None


def node_message(path: str, rows: NodeRows, fleet: Fleet) -> operator_pb2.Node:
    """A node's certificate and enrolment."""
    message = operator_pb2.Node(path=path, connected=fleet.is_connected(path))
    certificate, enrolment, device = rows
    hub = fleet.hubs.get(path)
    seen_at = hub.at if hub is not None else device["last_seen_at"] if device is not None else None
    times = {"last_seen_at": seen_at}
    if certificate is not None:
        message.serial = certificate["serial"]
        message.device_class = certificate["device_class"]
        message.hardware_revision = certificate["hardware_revision"]
        times |= {"issued_at": certificate["issued_at"], "expires_at": certificate["expires_at"]}
    if enrolment is not None:
        times |= {"token_expires_at": enrolment["expires_at"], "token_used_at": enrolment["used_at"]}
    for name, at in times.items():
        if at is not None:
            getattr(message, name).FromDatetime(at)
    return message


def release_message(manifest: ReleaseManifest, trusted: TrustedMetadata, hold_reason: str) -> operator_pb2.Release:
    """A release as published, revoked or not, and its hold."""
    message = operator_pb2.Release(
        name=manifest.name,
        version=manifest.version,
        device_class=manifest.device_class,
        hardware_revisions=manifest.hardware_revisions,
        regions=manifest.regions,
        hold_reason=hold_reason,
        role=trusted.role_of(manifest.name),
        revoked_reason=trusted.revocations().get(manifest.name, ""),
        minimum_version=manifest.minimum_version,
    )
    message.signed_at.FromDatetime(manifest.signed_at)
    if manifest.firmware:
        message.firmware.CopyFrom(to_proto(manifest.firmware.digest))
    if manifest.config:
        message.config.CopyFrom(to_proto(manifest.config.digest))
    return message


def audit_message(row: RowMapping) -> operator_pb2.AuditEntry:
    """Who did what."""
    entry = operator_pb2.AuditEntry(
        actor=row["actor"], action=row["action"], subject=row["subject"], detail=row["detail"]
    )
    entry.at.FromDatetime(row["at"])
    return entry


def revocations_page(listed: RevocationList | None, start: int, size: int) -> operator_pb2.ListRevocationsResponse:
    """A page of a list of revocations, from the entry numbered ``start`` on."""
    if listed is None:
        return operator_pb2.ListRevocationsResponse()
    end = start + size
    page = operator_pb2.ListRevocationsResponse(
        revocations=[to_proto(one) for one in listed.revocations[start:end]],
        epoch=listed.epoch,
        next_page_token=str(end) if end < len(listed.revocations) else "",
    )
    page.issued_at.FromDatetime(listed.issued_at)
    return page
