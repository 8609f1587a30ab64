"""Filters of lists: all of a request hold, values of one filter are alternatives."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from wavemesh.listing import is_named, is_wanted_device, is_wanted_intent, pending_entry
from wavemesh.trust.statements import DeviceStatus, UpdateState
from wavemesh.v1 import operator_pb2 as pb
from wavemesh.v1 import report_pb2 as rpb
from wavemesh.v1 import rollout_pb2

PATH = "region/midwest/store/store-209/device/pos-17"
DEVICE = pb.Device(
    path=PATH,
    device_class="pos",
    status=rpb.DeviceStatus(state=rpb.UPDATE_STATE_REFUSED, gate="peripheral:scanner", firmware_version="3.8.1"),
    outcomes=[pb.LedgerEntry(kind=rpb.OUTCOME_KIND_REFUSED, gate="battery")],
)


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        ({}, True),
        ({"device_class": "pos", "region": "midwest", "firmware_version": "3.8.1"}, True),
        ({"device_class": "pos", "region": "south"}, False),
        ({"device_class": "tablet"}, False),
        ({"region": "region/midwest"}, True),
        ({"region": "west"}, False),
        ({"states": [rpb.UPDATE_STATE_IDLE, rpb.UPDATE_STATE_REFUSED]}, True),
        ({"states": [rpb.UPDATE_STATE_IDLE]}, False),
        ({"outcomes": [rpb.OUTCOME_KIND_REFUSED]}, True),
        ({"outcomes": [rpb.OUTCOME_KIND_UPDATED]}, False),
        ({"gate": "battery"}, True),
        ({"gate": "peripheral"}, True),
        ({"gate": "peripheral:scanner"}, True),
        ({"gate": "peripheral:printer"}, False),
        ({"firmware_version": "3.8.2"}, False),
    ],
)
def test_devices(wanted: dict[str, Any], shown: bool) -> None:  # noqa: FBT001
    assert is_wanted_device(DEVICE, pb.ListDevicesRequest(**wanted)) is shown


RECORD = pb.IntentRecord(
    intent_id="i",
    kind=rollout_pb2.INTENT_KIND_ROLLBACK_DEVICE,
    wave_id="142",
    device=PATH,
    operator="alice",
    disposition=pb.DISPOSITION_QUEUED,
)
RECORD.received_at.FromSeconds(1000)


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        ({}, True),
        ({"operator": "alice"}, True),
        ({"operator": "spiffe://f/operator/alice"}, True),
        ({"operator": "bob"}, False),
        ({"operator": "lice"}, False),
        ({"device": "pos-17"}, True),
        ({"device": PATH}, True),
        ({"device": "pos-1"}, False),
        ({"kind": rollout_pb2.INTENT_KIND_PREFETCH}, False),
        ({"disposition": pb.DISPOSITION_QUEUED, "wave_id": "142"}, True),
        ({"disposition": pb.DISPOSITION_CANCELLED}, False),
        ({"wave_id": "143"}, False),
    ],
)
def test_intents(wanted: dict[str, Any], shown: bool) -> None:  # noqa: FBT001
    assert is_wanted_intent(RECORD, pb.ListIntentsRequest(**wanted)) is shown


def test_since() -> None:
    for seconds, shown in ((999, True), (1000, True), (1001, False)):
        request = pb.ListIntentsRequest()
        request.since.FromSeconds(seconds)
        assert is_wanted_intent(RECORD, request) is shown


def test_a_wave_without_a_device_is_about_none() -> None:
    bare = pb.IntentRecord(intent_id="i", wave_id="142")
    assert not is_wanted_intent(bare, pb.ListIntentsRequest(device="pos-17"))


@pytest.mark.parametrize(
    ("wanted", "meant"), [("", True), ("pos-17", True), (PATH, True), ("17", False), ("store-209", False)]
)
def test_names(wanted: str, meant: bool) -> None:  # noqa: FBT001
    assert is_named(PATH, wanted) is meant


def test_a_device_that_waits_for_a_sign_off_is_pending_by_the_gate_it_failed() -> None:
    """D5, D7: the ledger names what a human is asked to sign."""
    now = datetime(2026, 5, 1, tzinfo=UTC)
    status = DeviceStatus(PATH, UpdateState.AWAITING_SIGNOFF, now, "142", 2, "peripheral:scanner", slot="B")
    entry = pending_entry(PATH, "142", status)
    assert (entry.kind, entry.gate, entry.attempt, entry.slot) == (
        rpb.OUTCOME_KIND_PENDING,
        "peripheral:scanner",
        2,
        "B",
    )
    for other in (None, replace(status, wave_id="143"), replace(status, state=UpdateState.TRIAL)):
        assert pending_entry(PATH, "142", other) == pb.LedgerEntry(device=PATH, kind=rpb.OUTCOME_KIND_PENDING)
