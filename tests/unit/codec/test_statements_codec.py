"""Statements survive the wire, and what breaks a rule does not pass (Q2)."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from wavemesh.artifacts import signedurls
from wavemesh.codec import statements as codec
from wavemesh.codec.statements import MalformedStatementError, decode, encode, from_proto, to_proto
from wavemesh.telemetry import batches, uploads
from wavemesh.trust import enrolments as e
from wavemesh.trust import kept
from wavemesh.trust import statements as s
from wavemesh.v1 import report_pb2, rollout_pb2

NOW = datetime(2026, 5, 1, 12, 30, 15, 123456, tzinfo=UTC)
HEX = "ab" * 32
ALL = sorted(codec._MESSAGES, key=lambda cls: cls.__name__)
# Follows from the other fields; who shows the statement to an operator sets it.
SHOWN_ONLY: dict[type, set[str]] = {uploads.LogLine: {"trace_id"}}


def strategy_of(hint: Any, name: str) -> st.SearchStrategy[Any]:  # noqa: PLR0911 - one return a kind of field
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return st.lists(strategy_of(arguments[0], name), max_size=2).map(tuple)
    if origin is dict:
        keys = st.integers(0, 2**32 - 1) if arguments[0] is int else st.text(min_size=1, max_size=8)
        return st.dictionaries(keys, strategy_of(arguments[1], name), max_size=3)
    if origin is types.UnionType:
        return st.none() | strategy_of(arguments[0], name)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return strategy_for(hint)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return st.sampled_from(list(hint))
    if name in codec._DIGEST_FIELDS:
        return st.binary(min_size=32, max_size=32).map(bytes.hex)
    plain: dict[Any, st.SearchStrategy[Any]] = {
        str: st.text(min_size=1, max_size=40),
        bytes: st.binary(min_size=1, max_size=64),
        int: st.integers(0, 2**32 - 1),
        bool: st.booleans(),
        float: st.floats(allow_nan=False, allow_infinity=False),
        datetime: st.datetimes(timezones=st.just(UTC)),
    }
    return plain[hint]


def strategy_for(cls: Any) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls, localns={"datetime": datetime})
    return st.builds(cls, **{f.name: strategy_of(hints[f.name], f.name) for f in dataclasses.fields(cls)})


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_statement_round_trips(cls: Any) -> None:
    @settings(max_examples=20, deadline=None)
    @given(strategy_for(cls))
    def round_trip(value: Any) -> None:
        assert decode(cls, encode(value)) == value
        assert from_proto(cls, to_proto(value)) == value
        assert encode(value) == encode(decode(cls, encode(value)))

    round_trip()


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_dataclass_and_message_have_the_same_fields(cls: type) -> None:
    descriptor = codec._MESSAGES[cls].DESCRIPTOR
    fields = {field.name for field in dataclasses.fields(cls)}
    assert fields == {field.name for field in descriptor.fields} - SHOWN_ONLY.get(cls, set())


def test_every_statement_class_is_known_to_the_codec() -> None:
    modules = (s, e, uploads, signedurls, kept)
    declared = {item for module in modules for item in vars(module).values() if dataclasses.is_dataclass(item)}
    declared |= {batches.TelemetryBatch, batches.TelemetryUpload, batches.TelemetryUploadAnswer}
    assert declared == set(ALL)


@pytest.mark.parametrize(
    ("values", "message", "prefix"),
    [
        (s.WaveState, rollout_pb2.WaveState.DESCRIPTOR, "WAVE_STATE_"),
        (s.IntentKind, rollout_pb2.IntentKind.DESCRIPTOR, "INTENT_KIND_"),
        (s.OutcomeKind, report_pb2.OutcomeKind.DESCRIPTOR, "OUTCOME_KIND_"),
        (s.UpdateState, report_pb2.UpdateState.DESCRIPTOR, "UPDATE_STATE_"),
    ],
)
def test_enums_mean_the_same_on_both_sides(values: type[enum.Enum], message: Any, prefix: str) -> None:
    wire = {v.name.removeprefix(prefix): v.number for v in message.values if v.number}
    assert wire == {member.name: member.value for member in values}


def permit(**changes: Any) -> s.Permit:
    later = NOW + timedelta(hours=1)
    base = s.Permit("142", "region/r/store/s/device/d", 3, 1, s.Digest(HEX, 5), NOW, later, "0f" * 16)
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"wave_id": ""}, r"Permit\.wave_id: missing"),
        ({"wave_id": "w" * 600}, r"Permit\.wave_id: 600 bytes; at most 512"),
        ({"attempts": -1}, r"Permit\.attempts: "),
        ({"attempts": 2**32}, r"Permit\.attempts: "),
        ({"issued_at": NOW.replace(tzinfo=None)}, r"Permit\.issued_at: .* has no time zone"),
        ({"firmware": s.Digest("AB" * 32, 1)}, r"Digest\.sha256: .* is not a SHA-256"),
        ({"firmware": s.Digest("", 1)}, r"Digest\.sha256: missing"),
    ],
)
def test_what_breaks_a_rule_is_not_encoded(change: dict[str, Any], match: str) -> None:
    with pytest.raises(MalformedStatementError, match=match):
        encode(permit(**change))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.ClearField("wave_id"), r"Permit\.wave_id: missing"),
        (lambda m: m.ClearField("expires_at"), r"Permit\.expires_at: missing"),
        (lambda m: m.expires_at.CopyFrom(Timestamp(seconds=2**60)), r"Permit\.expires_at"),
        (lambda m: setattr(m, "hub_incarnation", "é" * 300), r"Permit\.hub_incarnation: 600 bytes"),
        (lambda m: setattr(m.firmware, "sha256", "no"), r"Digest\.sha256"),
    ],
)
def test_what_breaks_a_rule_is_not_decoded(change: Any, match: str) -> None:
    message = to_proto(permit())
    change(message)
    with pytest.raises(MalformedStatementError, match=match):
        decode(s.Permit, message.SerializeToString())


@pytest.mark.parametrize("number", [0, 6, -1])
def test_an_unknown_enum_value_is_refused(number: int) -> None:
    message = to_proto(s.WaveClosed("142", s.WaveState.CLOSED, NOW))
    message.state = number
    with pytest.raises(MalformedStatementError, match=r"WaveClosed\.state"):
        decode(s.WaveClosed, message.SerializeToString())


def test_lists_and_statements_have_bounds() -> None:
    signature = s.Signature("k", b"s")
    with pytest.raises(MalformedStatementError, match=r"Envelope\.signatures: 17 entries; at most 16"):
        encode(s.Envelope("t", b"p", (signature,) * 17))
    message = to_proto(s.Envelope("t", b"p", (signature,) * 16))
    message.signatures.add(keyid="k", sig=b"s")
    with pytest.raises(MalformedStatementError, match="17 entries"):
        decode(s.Envelope, message.SerializeToString())
    with pytest.raises(MalformedStatementError, match="at most 262144"):
        decode(s.OutcomeReport, b"\0" * (256 * 1024 + 1))
    with pytest.raises(MalformedStatementError, match="not a protobuf"):
        decode(s.Permit, b"\xff\xff\xff")


def test_a_number_that_is_none_is_refused() -> None:
    status = s.DeviceStatus("d", s.UpdateState.IDLE, NOW, temperature_celsius=float("nan"))
    with pytest.raises(MalformedStatementError, match="not a number"):
        encode(status)


def test_times_travel_as_utc() -> None:
    local = NOW.astimezone(timezone(timedelta(hours=2)))
    assert decode(s.WaveClosed, encode(s.WaveClosed("1", s.WaveState.CLOSED, local))).closed_at == NOW


def test_a_newer_peer_may_say_more() -> None:
    """Compatibility: unknown fields are ignored."""
    assert decode(s.Permit, encode(permit()) + b"\xfa\x3e\x01x") == permit()


def test_only_statements_are_encoded() -> None:
    with pytest.raises(RuntimeError, match="not a statement"):
        encode("text")
