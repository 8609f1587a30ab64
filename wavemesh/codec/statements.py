"""Statements as bytes: the dataclasses of wavemesh/trust/statements.py to and from their protobuf messages.

The dataclass is the schema. Its fields carry the names of the message's fields, and each field's type says how it is
converted and what is mandatory, so there is one rule a type and not one function a message:

    str, bytes, int, bool, float   as they are; a str without default must not be empty, unless MAY_BE_EMPTY names it
    datetime                       Timestamp, mandatory, aware; travels as UTC with microseconds
    enum                           its value, which must be a known one and never 0
    dataclass                      its message, mandatory
    X | None                       absent is None
    tuple[X, ...], dict[K, X]      repeated, map with keys of text or unsigned integers

Every text, byte string and list has a bound, by field name; SHA-256 digests are 64 lower-case hex digits. Unknown
fields are ignored, so that a newer peer may say more. Whatever breaks a rule, in either direction, raises
MalformedStatementError with the path of the field. Encoding is deterministic, but what was signed is the bytes: never
decode and encode again what a signature must still fit.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import re
import types
import typing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from wavemesh.artifacts import signedurls as u
from wavemesh.errors import PeerError
from wavemesh.telemetry import batches as t
from wavemesh.telemetry import uploads
from wavemesh.trust import cachestats as c
from wavemesh.trust import delivered as d
from wavemesh.trust import enrolments as e
from wavemesh.trust import kept
from wavemesh.trust import quotes as q
from wavemesh.trust import statements as s
from wavemesh.v1 import artifact_pb2, enrolment_pb2, envelope_pb2, origin_pb2, report_pb2, rollout_pb2, telemetry_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

S = TypeVar("S")

MAX_STATEMENT_BYTES = 1024 * 1024
MAX_REPORT_BYTES = 256 * 1024
MAX_LOG_BYTES = 60 * 1024
MAX_ASK_BYTES = 64 * 1024

_MESSAGES: Mapping[type, type[Message]] = {
    s.Digest: artifact_pb2.Digest,
    s.Signature: envelope_pb2.Signature,
    s.Envelope: envelope_pb2.Envelope,
    s.Pause: rollout_pb2.Pause,
    s.WaveOrder: rollout_pb2.WaveOrder,
    s.Permit: rollout_pb2.Permit,
    s.Hold: rollout_pb2.Hold,
    s.HoldList: rollout_pb2.HoldList,
    s.Revocation: rollout_pb2.Revocation,
    s.RevocationList: rollout_pb2.RevocationList,
    s.WaveClosed: rollout_pb2.WaveClosed,
    s.Lease: rollout_pb2.Lease,
    s.LeaseGrant: rollout_pb2.LeaseGrant,
    s.OperatorIntent: rollout_pb2.OperatorIntent,
    s.IntentCancellation: rollout_pb2.IntentCancellation,
    s.TrustMetadata: rollout_pb2.TrustMetadata,
    s.HealthPing: rollout_pb2.HealthPing,
    q.Quote: rollout_pb2.Quote,
    q.AttestationAnswer: rollout_pb2.AttestationAnswer,
    s.HealthAck: rollout_pb2.HealthAck,
    s.AuthorityDown: rollout_pb2.AuthorityDown,
    s.HealthPingAnswer: rollout_pb2.HealthPingAnswer,
    s.SlotContent: report_pb2.SlotContent,
    s.DeviceOutcome: report_pb2.DeviceOutcome,
    s.OutcomeReport: report_pb2.OutcomeReport,
    s.SnapshotReport: report_pb2.SnapshotReport,
    s.IntentReport: report_pb2.IntentReport,
    s.EventReport: report_pb2.EventReport,
    kept.KeptReport: report_pb2.KeptReport,
    s.DeviceStatus: report_pb2.DeviceStatus,
    s.LocalPause: report_pb2.HubStatus.Pause,
    s.SwapWait: report_pb2.HubStatus.Wait,
    s.LedgerView: report_pb2.HubStatus.Ledger,
    c.CacheStatistics: report_pb2.CacheStatistics,
    d.DeliveryView: report_pb2.DeliveryView,
    d.DerivedSize: report_pb2.DerivedSize,
    d.SeededBytes: report_pb2.SeededBytes,
    s.HubStatus: report_pb2.HubStatus,
    uploads.LogLine: report_pb2.LogLine,
    uploads.LogUpload: report_pb2.LogUpload,
    uploads.LogUploadAnswer: report_pb2.LogUploadAnswer,
    t.TelemetryBatch: telemetry_pb2.TelemetryBatch,
    t.TelemetryUpload: telemetry_pb2.TelemetryUpload,
    t.TelemetryUploadAnswer: telemetry_pb2.TelemetryUploadAnswer,
    e.Enrolment: enrolment_pb2.Enrolment,
    e.JoinRequest: enrolment_pb2.JoinRequest,
    e.TpmEvidence: enrolment_pb2.TpmEvidence,
    e.IssuedCertificate: enrolment_pb2.IssuedCertificate,
    e.JoinResponse: enrolment_pb2.JoinResponse,
    e.RenewalRequest: enrolment_pb2.RenewalRequest,
    e.IssueAnswer: enrolment_pb2.IssueAnswer,
    e.CertificateReport: enrolment_pb2.CertificateReport,
    u.OriginUrl: origin_pb2.OriginUrl,
    u.OriginRefusal: origin_pb2.OriginRefusal,
    u.OriginUrlsRequest: origin_pb2.OriginUrlsRequest,
    u.OriginUrlsAnswer: origin_pb2.OriginUrlsAnswer,
}
_MAX_BYTES: Mapping[type, int] = {
    s.OutcomeReport: MAX_REPORT_BYTES,
    s.SnapshotReport: MAX_REPORT_BYTES,
    s.IntentReport: MAX_REPORT_BYTES,
    s.EventReport: MAX_REPORT_BYTES,
    kept.KeptReport: MAX_REPORT_BYTES,
    uploads.LogUpload: MAX_LOG_BYTES,
    t.TelemetryUpload: MAX_ASK_BYTES,
    u.OriginUrlsRequest: MAX_ASK_BYTES,
    u.OriginUrlsAnswer: MAX_ASK_BYTES,
}
# Mandatory by lack of a default, yet empty where there is nothing to say.
_MAY_BE_EMPTY: Mapping[type, frozenset[str]] = {
    s.Pause: frozenset({"reason"}),
    s.LocalPause: frozenset({"reason"}),
    s.Hold: frozenset({"firmware_sha256", "reason"}),
    s.DeviceOutcome: frozenset(
        {"gate", "evidence", "boot_id", "slot", "firmware_sha256", "firmware_version", "log_sha256"}
    ),
    s.IntentCancellation: frozenset({"reason"}),
    s.EventReport: frozenset({"gate", "wave_id", "subject", "detail"}),
    uploads.LogLine: frozenset({"wave_id", "text"}),
}
_MAX_TEXT_BYTES = 512
_MAX_LENGTH_BYTES: Mapping[str, int] = {
    "reason": 1000,
    "refused": 1000,
    "evidence": 4096,
    "detail": 4096,
    "text": 8192,
    "sig": 8192,
    "certificate": 16 * 1024,
    "intermediates": 16 * 1024,
    "csr": 4096,
    "trust_root": 48 * 1024,
    "policy_yaml": 256 * 1024,
    "payload": MAX_STATEMENT_BYTES,
    "content": kept.MAX_KEPT_BYTES,
    "roots": 256 * 1024,
    "timestamp": 64 * 1024,
    "snapshot": 256 * 1024,
    "targets": MAX_STATEMENT_BYTES,
    "delegated": MAX_STATEMENT_BYTES,
    "otlp_traces": t.MAX_BATCH_BYTES,
    "url": u.MAX_URL_BYTES,
}
_MAX_COUNT = 1024
_MAX_COUNTS: Mapping[str, int] = {
    "signatures": 16,
    "intermediates": 2,
    "slots": 4,
    "devices": 10_000,
    "stores": 10_000,
    "holds": 10_000,
    "revocations": 8192,
    "pauses": 256,
    "pauses_taken": 64,
    "local_pauses": 1024,
    "roots": 64,
    "delegated": 64,
    "pcrs": 24,
    "lines": 500,
    "deliveries": 64,
    "held": 64,
    "derived": 256,
    "base_sha256s": 64,
    "batches": t.MAX_BATCHES,
    "urls": u.MAX_URLS,
    "refused": u.MAX_URLS,
    "digests": u.MAX_URLS,
}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGEST_FIELDS = frozenset(
    {
        "sha256",
        "firmware_sha256",
        "log_sha256",
        "ping_sha256",
        "policy_digest",
        "secret_sha256",
        "trust_root_sha256",
        "target_sha256",
        "base_sha256s",
    }
)


class MalformedStatementError(PeerError):
    """A statement breaks a rule of its form; the message names the field."""

    reason = "MALFORMED_STATEMENT"


def encode(statement: object) -> bytes:
    """The statement's bytes; raises MalformedStatementError, RuntimeError for what is no statement."""
    data: bytes = to_proto(statement).SerializeToString(deterministic=True)
    _check_size(type(statement), data)
    return data


def decode(cls: type[S], data: bytes) -> S:
    """Read a statement of that class; raises MalformedStatementError."""
    _check_size(cls, data)
    message = _message_class(cls)()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        msg = f"{cls.__name__}: not a protobuf message: {error}"
        raise MalformedStatementError(msg) from error
    return from_proto(cls, message)


def to_proto(statement: object) -> Any:
    """The statement's message, to be embedded in another; raises MalformedStatementError."""
    message = _message_class(type(statement))()
    for field in _FIELDS[type(statement)]:
        value = getattr(statement, field.name)
        try:
            field.put(message, value)
        except (ValueError, TypeError) as error:
            raise _malformed(type(statement), field.name, error) from error
    return message


def from_proto(cls: type[S], message: Message) -> S:
    """The statement in a message that was embedded in another; raises MalformedStatementError."""
    values: dict[str, Any] = {}
    for field in _FIELDS[cls]:
        try:
            values[field.name] = field.get(message)
        except (ValueError, TypeError, OverflowError) as error:
            raise _malformed(cls, field.name, error) from error
    return cls(**values)


def _check_size(cls: type, data: bytes) -> None:
    limit = _MAX_BYTES.get(cls, MAX_STATEMENT_BYTES)
    if len(data) > limit:
        msg = f"{cls.__name__} of {len(data)} bytes; at most {limit} are accepted"
        raise MalformedStatementError(msg)


def _message_class(cls: type) -> type[Message]:
    if cls not in _MESSAGES:
        msg = f"{cls.__name__} is not a statement"
        raise RuntimeError(msg)
    return _MESSAGES[cls]


def _malformed(cls: type, name: str, error: Exception) -> MalformedStatementError:
    return MalformedStatementError(f"{cls.__name__}.{name}: {error}")


@dataclasses.dataclass(frozen=True, slots=True)
class _Kind:
    """How one value travels; both directions check, and raise ValueError."""

    to_wire: Callable[[Any], Any]
    from_wire: Callable[[Any], Any]
    is_message: bool = False


class _Shape(enum.Enum):
    """How many values a field holds."""

    ONE = enum.auto()
    OPTIONAL = enum.auto()
    MANY = enum.auto()
    MAP = enum.auto()


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    """One field of a statement and the rule for it."""

    name: str
    shape: _Shape
    kind: _Kind
    max_count: int

    def put(self, message: Message, value: Any) -> None:
        """Set the field of the message."""
        if self.shape is _Shape.MANY:
            self._check_count(len(value))
            getattr(message, self.name).extend([self.kind.to_wire(item) for item in value])
        elif self.shape is _Shape.MAP:
            self._check_count(len(value))
            getattr(message, self.name).update({key: self.kind.to_wire(item) for key, item in value.items()})
        elif value is None and self.shape is _Shape.OPTIONAL:
            return
        elif self.kind.is_message:
            getattr(message, self.name).CopyFrom(self.kind.to_wire(value))
        else:
            setattr(message, self.name, self.kind.to_wire(value))

    def get(self, message: Message) -> Any:
        """Read the field of the message."""
        wire = getattr(message, self.name)
        if self.shape is _Shape.MANY:
            self._check_count(len(wire))
            return tuple(self.kind.from_wire(item) for item in wire)
        if self.shape is _Shape.MAP:
            self._check_count(len(wire))
            return {key: self.kind.from_wire(item) for key, item in wire.items()}
        if (self.kind.is_message or self.shape is _Shape.OPTIONAL) and not message.HasField(self.name):
            if self.shape is _Shape.OPTIONAL:
                return None
            msg = "missing"
            raise ValueError(msg)
        return self.kind.from_wire(wire)

    def _check_count(self, count: int) -> None:
        if count > self.max_count:
            msg = f"{count} entries; at most {self.max_count} are accepted"
            raise ValueError(msg)


def _compile(cls: type) -> Iterator[_Field]:
    hints = typing.get_type_hints(cls, localns={"datetime": datetime})
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        shape, inner = _shape_of(hint)
        has_default = field.default is not dataclasses.MISSING
        mandatory = not has_default and field.name not in _MAY_BE_EMPTY.get(cls, frozenset())
        count = _MAX_COUNTS.get(field.name, _MAX_COUNT)
        yield _Field(field.name, shape, _kind_of(inner, field.name, mandatory=mandatory), count)


def _shape_of(hint: Any) -> tuple[_Shape, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return _Shape.MANY, arguments[0]
    if origin is dict:
        return _Shape.MAP, arguments[1]
    if origin is types.UnionType:
        return _Shape.OPTIONAL, arguments[0]
    return _Shape.ONE, hint


def _kind_of(hint: Any, name: str, *, mandatory: bool) -> _Kind:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _Kind(to_proto, lambda message: from_proto(hint, message), is_message=True)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _Kind(lambda value: hint(value).value, hint)
    if hint is datetime:
        return _Kind(_to_timestamp, _from_timestamp, is_message=True)
    if hint in {str, bytes}:
        check = _text_check(name, mandatory=mandatory)
        return _Kind(check, check)
    if hint is float:
        return _Kind(_finite, _finite)
    return _Kind(hint, hint)


def _text_check(name: str, *, mandatory: bool) -> Callable[[Any], Any]:
    limit = _MAX_LENGTH_BYTES.get(name, _MAX_TEXT_BYTES)

    def check(value: str | bytes) -> str | bytes:
        size = len(value.encode() if isinstance(value, str) else value)
        if size > limit:
            msg = f"{size} bytes; at most {limit} are accepted"
            raise ValueError(msg)
        if mandatory and not size:
            msg = "missing"
            raise ValueError(msg)
        if name in _DIGEST_FIELDS and size and not _SHA256.fullmatch(str(value)):
            msg = f"{value!r} is not a SHA-256 in lower-case hex"
            raise ValueError(msg)
        return value

    return check


def _finite(value: float) -> float:
    if not math.isfinite(value):
        msg = f"{value} is not a number"
        raise ValueError(msg)
    return value


def _to_timestamp(value: datetime) -> Timestamp:
    if value.tzinfo is None:
        msg = f"{value.isoformat()} has no time zone"
        raise ValueError(msg)
    timestamp = Timestamp()
    timestamp.FromDatetime(value)
    return timestamp


def _from_timestamp(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(tzinfo=UTC)


_FIELDS: Mapping[type, tuple[_Field, ...]] = {cls: tuple(_compile(cls)) for cls in _MESSAGES}
