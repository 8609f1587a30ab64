"""What lists show: filters of operator.proto on messages that tiers answer with, and lines without an outcome. Pure.

Rules: an empty filter is no filter, several of one request must all hold, several values of one filter are
alternatives. A name stands for its path's last segment, a path for itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wavemesh.trust.statements import UpdateState
from wavemesh.v1 import operator_pb2, report_pb2

if TYPE_CHECKING:
    from wavemesh.trust.statements import DeviceStatus

MAX_ALTERNATIVES = 16


def is_named(path: str, wanted: str) -> bool:
    """Whether a path, or a SPIFFE id, is meant by a name or path; everything is by an empty one."""
    return wanted in {"", path} or path.endswith(f"/{wanted}")


def is_wanted_device(device: operator_pb2.Device, request: operator_pb2.ListDevicesRequest) -> bool:
    """Whether a list of devices shows that one; labels are the server's to judge."""
    region = "/".join(device.path.split("/")[:2])
    outcomes = {entry.kind for entry in device.outcomes}
    gates = {device.status.gate, *(entry.gate for entry in device.outcomes)} - {""}
    # "peripheral" means every peripheral, "peripheral:scanner" that one.
    gates |= {gate.partition(":")[0] for gate in gates}
    return (
        request.device_class in {"", device.device_class}
        and is_named(region, request.region)
        and (not request.states or device.status.state in request.states)
        and (not request.outcomes or not outcomes.isdisjoint(request.outcomes))
        and (not request.gate or request.gate in gates)
        and request.firmware_version in {"", device.status.firmware_version}
    )


def is_wanted_intent(record: operator_pb2.IntentRecord, request: operator_pb2.ListIntentsRequest) -> bool:
    """Whether a list of intents shows that one."""
    return (
        request.wave_id in {"", record.wave_id}
        and request.disposition in {0, record.disposition}
        and request.kind in {0, record.kind}
        and (is_named(record.operator, request.operator) or is_named(request.operator, record.operator))
        and (
            is_named(record.device, request.device) or (bool(record.device) and is_named(request.device, record.device))
        )
        and (not request.HasField("since") or record.received_at.ToNanoseconds() >= request.since.ToNanoseconds())
    )


def pending_entry(device: str, wave_id: str, status: DeviceStatus | None) -> operator_pb2.LedgerEntry:
    """The ledger's line of a device without an outcome; one that waits for a sign-off says so, and why."""
    entry = operator_pb2.LedgerEntry(device=device, kind=report_pb2.OUTCOME_KIND_PENDING)
    if status is not None and status.state is UpdateState.AWAITING_SIGNOFF and status.wave_id == wave_id:
        entry.gate, entry.attempt, entry.slot = status.gate, status.attempt, status.slot
        entry.firmware_sha256, entry.firmware_version = status.firmware_sha256, status.firmware_version
        entry.evidence = "supervised: the trial failed and waits for `edgectl device approve-rollback`"
    return entry
