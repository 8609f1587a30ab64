"""Session frames ↔ protobuf: the bounds of session.proto are enforced here, on what comes in.

Encoding trusts this program's values; decoding trusts nothing and raises MalformedFrameError for a frame that is empty
or exceeds a bound. Unknown fields are ignored, as protobuf has it, so that a newer peer can add some.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wavemesh.errors import PeerError
from wavemesh.session import frames as f
from wavemesh.v1 import session_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence, Sized

MAX_AUDIENCE = 16_384
_SHA256_CHARACTERS = 64
_NO_MESSAGE = "the frame is no protobuf message of the session"


class MalformedFrameError(PeerError):
    """A session frame is empty or breaks a bound of session.proto."""

    reason = "MALFORMED_FRAME"


def encode_child(frame: f.ChildFrame) -> pb.ConnectRequest:
    """A frame from child to parent."""
    match frame:
        case f.Hello():
            held = [pb.HeldResource(key=_key(h.key), version=_version(h.version), digest=h.digest) for h in frame.held]
            hello = pb.Hello(
                protocol_version=frame.protocol_version,
                software_version=frame.software_version,
                incarnation=frame.incarnation,
                next_report_number=frame.next_report_number,
                held=held,
                minimum_protocol_version=frame.minimum_protocol_version,
                capabilities=frame.capabilities,
            )
            message = pb.ConnectRequest(hello=hello)
        case f.ReportBatch():
            reports = [pb.Report(kind=report.kind, body=report.body) for report in frame.reports]
            message = pb.ConnectRequest(reports=pb.ReportBatch(first_number=frame.first_number, reports=reports))
        case f.StatusUpdate():
            entries = [pb.StatusEntry(key=entry.key, body=entry.body) for entry in frame.entries]
            message = pb.ConnectRequest(status=pb.StatusUpdate(entries=entries))
        case f.ResourceVerdict():
            rejected = [
                pb.ResourceRejection(key=_key(r.key), digest=r.digest, gate=r.gate, reason=_cut(r.reason))
                for r in frame.rejected
            ]
            message = pb.ConnectRequest(verdict=pb.ResourceVerdict(nonce=frame.nonce, rejected=rejected))
        case f.Ask():
            message = pb.ConnectRequest(ask=pb.Ask(ask_id=frame.ask_id, kind=frame.kind, body=frame.body))
        case f.Heartbeat():
            message = pb.ConnectRequest(heartbeat=pb.Heartbeat(sequence=frame.sequence))
        case f.Goodbye():
            message = pb.ConnectRequest(goodbye=_goodbye(frame))
    return message


def encode_parent(frame: f.ParentFrame) -> pb.ConnectResponse:
    """A frame from parent to child."""
    match frame:
        case f.Welcome():
            welcome = pb.Welcome(
                protocol_version=frame.protocol_version,
                software_version=frame.software_version,
                session_id=frame.session_id,
                reports_through=frame.reports_through,
                heartbeat_interval_ms=frame.heartbeat_interval_ms,
                report_window=frame.report_window,
                epoch=frame.epoch,
                capabilities=frame.capabilities,
            )
            message = pb.ConnectResponse(welcome=welcome)
        case f.Fenced():
            message = pb.ConnectResponse(fenced=pb.Fenced(reports_through=frame.reports_through))
        case f.ResourceUpdate():
            update = pb.ResourceUpdate(
                nonce=frame.nonce,
                changed=[_resource(resource) for resource in frame.changed],
                removed=[_key(key) for key in frame.removed],
                settled=frame.settled,
            )
            message = pb.ConnectResponse(resources=update)
        case f.ReportAck():
            message = pb.ConnectResponse(report_ack=pb.ReportAck(through=frame.through))
        case f.Answer():
            answer = pb.Answer(ask_id=frame.ask_id, body=frame.body)
            if frame.error:
                answer.error = _cut(frame.error)
            message = pb.ConnectResponse(answer=answer)
        case f.Heartbeat():
            message = pb.ConnectResponse(heartbeat=pb.Heartbeat(sequence=frame.sequence))
        case f.Goodbye():
            message = pb.ConnectResponse(goodbye=_goodbye(frame))
    return message


def decode_child(message: pb.ConnectRequest | None) -> f.ChildFrame:
    """A frame from child to parent; None is gRPC's word for bytes that are no message. Raises MalformedFrameError."""
    if message is None:
        raise MalformedFrameError(_NO_MESSAGE)
    decode = _FROM_CHILD.get(message.WhichOneof("frame") or "")
    if decode is None:
        raise MalformedFrameError("the frame is empty or of a kind this version does not know")
    return decode(message)


def decode_parent(message: pb.ConnectResponse | None) -> f.ParentFrame:
    """A frame from parent to child, as ``decode_child``; raises MalformedFrameError."""
    if message is None:
        raise MalformedFrameError(_NO_MESSAGE)
    decode = _FROM_PARENT.get(message.WhichOneof("frame") or "")
    if decode is None:
        raise MalformedFrameError("the frame is empty or of a kind this version does not know")
    return decode(message)


# -- parts out ---------------------------------------------------------------------------------------------------------


def _key(key: f.ResourceKey) -> pb.ResourceKey:
    return pb.ResourceKey(type=key.type, name=key.name)


def _version(version: f.ResourceVersion) -> pb.ResourceVersion:
    return pb.ResourceVersion(epoch=version.epoch, counter=version.counter)


def _resource(resource: f.Resource) -> pb.Resource:
    return pb.Resource(
        key=_key(resource.key),
        version=_version(resource.version),
        digest=resource.digest,
        content=resource.content,
        audience=resource.audience,
        urgent=resource.urgent,
    )


def _goodbye(goodbye: f.Goodbye) -> pb.Goodbye:
    return pb.Goodbye(reason=_cut(goodbye.reason), retry_after_ms=goodbye.retry_after_ms)


def _cut(text: str) -> str:
    """The text within MAX_REASON_BYTES; a character cut in two is dropped."""
    return text.encode()[: f.MAX_REASON_BYTES].decode(errors="ignore")


# -- parts in ----------------------------------------------------------------------------------------------------------


def _bound(value: Sized, limit: int, what: str) -> None:
    if len(value) > limit:
        raise MalformedFrameError(f"{what}: {len(value)} exceeds {limit}")


def _name(text: str, what: str) -> str:
    _bound(text.encode(), f.MAX_NAME_BYTES, what)
    return text


def _reason(text: str) -> str:
    _bound(text.encode(), f.MAX_REASON_BYTES, "reason in bytes")
    return text


def _capabilities(names: Sequence[str]) -> tuple[str, ...]:
    _bound(names, f.MAX_CAPABILITIES, "capabilities")
    for name in names:
        _bound(name, f.MAX_CAPABILITY_CHARACTERS, "capability in characters")
    return tuple(names)


def _digest(text: str) -> str:
    if len(text) != _SHA256_CHARACTERS or not set(text) <= set("0123456789abcdef"):
        raise MalformedFrameError(f"digest {text[:80]!r} is not SHA-256 in lower-case hex")
    return text


def _key_in(key: pb.ResourceKey) -> f.ResourceKey:
    if not key.type or not key.name:
        raise MalformedFrameError("resource key without type or name")
    return f.ResourceKey(_name(key.type, "resource type in bytes"), _name(key.name, "resource name in bytes"))


def _version_in(version: pb.ResourceVersion) -> f.ResourceVersion:
    return f.ResourceVersion(_name(version.epoch, "epoch in bytes"), version.counter)


def _resource_in(resource: pb.Resource) -> f.Resource:
    _bound(resource.content, f.MAX_RESOURCE_BYTES, "resource content in bytes")
    _bound(resource.audience, MAX_AUDIENCE, "audience entries")
    return f.Resource(
        _key_in(resource.key),
        _version_in(resource.version),
        _digest(resource.digest),
        resource.content,
        tuple(_name(path, "audience path in bytes") for path in resource.audience),
        resource.urgent,
    )


def _hello_in(message: pb.ConnectRequest) -> f.Hello:
    hello = message.hello
    _bound(hello.held, f.MAX_HELD, "held resources")
    return f.Hello(
        hello.protocol_version,
        _name(hello.software_version, "software version in bytes"),
        _name(hello.incarnation, "incarnation in bytes"),
        hello.next_report_number,
        tuple(f.HeldResource(_key_in(h.key), _version_in(h.version), _digest(h.digest)) for h in hello.held),
        hello.minimum_protocol_version,
        _capabilities(hello.capabilities),
    )


def _reports_in(message: pb.ConnectRequest) -> f.ReportBatch:
    batch = message.reports
    _bound(batch.reports, f.MAX_REPORTS_PER_BATCH, "reports in a batch")
    for report in batch.reports:
        _bound(report.body, f.MAX_REPORT_BYTES, "report body in bytes")
    if sum(len(report.body) for report in batch.reports) > f.MAX_BATCH_BYTES:
        raise MalformedFrameError(f"the bodies of a batch exceed {f.MAX_BATCH_BYTES} bytes")
    reports = tuple(f.Report(_name(report.kind, "report kind in bytes"), report.body) for report in batch.reports)
    return f.ReportBatch(batch.first_number, reports)


def _status_in(message: pb.ConnectRequest) -> f.StatusUpdate:
    entries = message.status.entries
    _bound(entries, f.MAX_STATUS_ENTRIES, "status entries")
    for entry in entries:
        _bound(entry.body, f.MAX_STATUS_BYTES, "status body in bytes")
    return f.StatusUpdate(
        tuple(
            f.StatusEntry(_name(entry.key, "status key in bytes"), entry.body if entry.HasField("body") else None)
            for entry in entries
        )
    )


def _verdict_in(message: pb.ConnectRequest) -> f.ResourceVerdict:
    verdict = message.verdict
    _bound(verdict.rejected, f.MAX_HELD, "rejections")
    rejected = tuple(
        f.Rejection(_key_in(r.key), _digest(r.digest), _name(r.gate, "gate in bytes"), _reason(r.reason))
        for r in verdict.rejected
    )
    return f.ResourceVerdict(verdict.nonce, rejected)


def _ask_in(message: pb.ConnectRequest) -> f.Ask:
    ask = message.ask
    _bound(ask.body, f.MAX_ASK_BYTES, "ask body in bytes")
    return f.Ask(ask.ask_id, _name(ask.kind, "ask kind in bytes"), ask.body)


def _goodbye_in(message: pb.ConnectRequest | pb.ConnectResponse) -> f.Goodbye:
    return f.Goodbye(_reason(message.goodbye.reason), message.goodbye.retry_after_ms)


def _heartbeat_in(message: pb.ConnectRequest | pb.ConnectResponse) -> f.Heartbeat:
    return f.Heartbeat(message.heartbeat.sequence)


def _welcome_in(message: pb.ConnectResponse) -> f.Welcome:
    welcome = message.welcome
    return f.Welcome(
        welcome.protocol_version,
        _name(welcome.software_version, "software version in bytes"),
        _name(welcome.session_id, "session id in bytes"),
        welcome.reports_through,
        welcome.heartbeat_interval_ms,
        welcome.report_window,
        _name(welcome.epoch, "epoch in bytes"),
        _capabilities(welcome.capabilities),
    )


def _update_in(message: pb.ConnectResponse) -> f.ResourceUpdate:
    update = message.resources
    _bound(update.changed, f.MAX_HELD, "changed resources")
    _bound(update.removed, f.MAX_HELD, "removed resources")
    changed = tuple(_resource_in(resource) for resource in update.changed)
    return f.ResourceUpdate(update.nonce, changed, tuple(_key_in(key) for key in update.removed), update.settled)


def _answer_in(message: pb.ConnectResponse) -> f.Answer:
    answer = message.answer
    _bound(answer.body, f.MAX_ASK_BYTES, "answer body in bytes")
    if answer.WhichOneof("result") == "error":
        return f.Answer(answer.ask_id, b"", _reason(answer.error) or "refused without a reason")
    return f.Answer(answer.ask_id, answer.body)


_FROM_CHILD: dict[str, Callable[[pb.ConnectRequest], f.ChildFrame]] = {
    "hello": _hello_in,
    "reports": _reports_in,
    "status": _status_in,
    "verdict": _verdict_in,
    "ask": _ask_in,
    "heartbeat": _heartbeat_in,
    "goodbye": _goodbye_in,
}
_FROM_PARENT: dict[str, Callable[[pb.ConnectResponse], f.ParentFrame]] = {
    "welcome": _welcome_in,
    "fenced": lambda message: f.Fenced(message.fenced.reports_through),
    "resources": _update_in,
    "report_ack": lambda message: f.ReportAck(message.report_ack.through),
    "answer": _answer_in,
    "heartbeat": _heartbeat_in,
    "goodbye": _goodbye_in,
}
