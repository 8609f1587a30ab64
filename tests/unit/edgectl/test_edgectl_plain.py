"""Messages as plain data: every field is there, words instead of numbers."""

from __future__ import annotations

import json

from edgectl.plain import plain
from wavemesh.v1 import operator_pb2, report_pb2


def test_enums_are_words_and_times_are_rfc_3339() -> None:
    record = operator_pb2.IntentRecord(intent_id="1", disposition=operator_pb2.DISPOSITION_QUEUED)
    record.received_at.FromJsonString("2026-03-01T10:00:00Z")
    data = plain(record)
    assert (data["disposition"], data["received_at"], data["waiting_for"]) == ("queued", "2026-03-01T10:00:00Z", [])


def test_an_enum_value_of_a_later_version_is_shown_as_its_number() -> None:
    later = operator_pb2.IntentRecord.FromString(b"\x38\x4d")  # field 7, varint 77
    assert plain(later)["disposition"] == "77"


def test_absent_differs_from_zero() -> None:
    status = report_pb2.DeviceStatus(battery_percent=0)
    data = plain(operator_pb2.Device(path="p", status=status, labels={"b": "2", "a": "1"}))
    assert isinstance(data["status"], dict)
    assert (data["status"]["battery_percent"], data["status"]["temperature_celsius"]) == (0, None)
    assert data["labels"] == {"a": "1", "b": "2"}
    assert plain(operator_pb2.Device())["status"] is None


def test_large_numbers_and_bytes_survive_json() -> None:
    answer = operator_pb2.ListCacheResponse(bytes=2**60)
    releases = operator_pb2.ListReleasesResponse(targets=b"\xff\x00")
    assert json.loads(json.dumps(plain(answer)))["bytes"] == 2**60
    assert plain(releases)["targets"] == "/wA="
