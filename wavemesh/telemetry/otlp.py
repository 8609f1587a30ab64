"""Spans as OTLP: encoded once where they were measured, checked at each hop, taken apart only to be shown.

A batch is the bytes of one ``ExportTraceServiceRequest`` with the spans of one node about one trace. What a child
sends is parsed to be judged and then forwarded as the very bytes: whoever reads them in the end sees what was written.
The messages come from the package opentelemetry-proto and are loaded with the first span, not with the agent.

What makes a batch believable: its resource names its source, its spans belong to one trace, and that trace is the one
that follows from their wave and device, the device being the source or below it. So a stolen device can litter its own
traces and nobody else's.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NoReturn

from google.protobuf.message import DecodeError

from wavemesh.errors import PeerError
from wavemesh.identity.nodes import NodeId, Role, is_within
from wavemesh.telemetry.batches import MAX_BATCH_BYTES
from wavemesh.telemetry.spans import SPAN_ID_BYTES, TRACE_ID_BYTES, Span, Trace
from wavemesh.telemetry.units import stamp

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import KeyValue
    from opentelemetry.proto.trace.v1 import trace_pb2

MAX_SPANS_PER_BATCH = 64
MAX_ATTRIBUTES = 32
MAX_LINKS = 16
MAX_EVENTS = 32
MAX_NAME_BYTES = 128
MAX_ERROR_CHARACTERS = 1000
MAX_TIME_NS = 2**63 - 1
SERVICES = {
    Role.CONTROL: "wavemesh-control",
    Role.SUPER_HUB: "wavemesh-superhub",
    Role.STORE_HUB: "wavemesh-storehub",
    Role.DEVICE: "wavemesh-device",
}
NODE, WAVE, DEVICE, GATE = "wavemesh.node", "wavemesh.wave", "wavemesh.device", "wavemesh.gate"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OWN = frozenset({WAVE, DEVICE, GATE})


class BadTelemetryError(PeerError):
    """A telemetry batch is malformed, or says what its source may not say."""

    reason = "BAD_TELEMETRY"


@dataclass(frozen=True, slots=True)
class ShownSpan:
    """A span taken apart; ids in lower-case hex."""

    node: str
    span_id: str
    parent_id: str
    name: str
    began_at: datetime
    ended_at: datetime
    gate: str
    error: str
    attributes: dict[str, str]
    links: tuple[str, ...]


def encode(node: NodeId, spans: Sequence[Span]) -> bytes:
    """One batch; all spans belong to one trace. RuntimeError if they do not."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    if len({span.trace for span in spans}) != 1 or len(spans) > MAX_SPANS_PER_BATCH:
        msg = f"a batch has 1 to {MAX_SPANS_PER_BATCH} spans of one trace"
        raise RuntimeError(msg)
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    _put(group.resource.attributes.add(), "service.name", SERVICES[node.role])
    _put(group.resource.attributes.add(), NODE, node.path)
    scope = group.scope_spans.add()
    scope.scope.name = "wavemesh"
    trace_id = spans[0].trace.trace_id
    for span in spans:
        _fill(scope.spans.add(), span, trace_id)
    data: bytes = request.SerializeToString(deterministic=True)
    return data


def check(body: bytes, fleet: str, source: str) -> bytes:
    """The id of the trace that a batch of ``source`` (a node's path) is about; raises BadTelemetryError."""
    if len(body) > MAX_BATCH_BYTES:
        _refuse(source, f"{len(body)} bytes; at most {MAX_BATCH_BYTES} are accepted")
    traces: set[Trace] = set()
    count = 0
    for node, span in _spans(_parse(body, source)):
        if node != source:
            _refuse(source, f"a resource of node {node[:200]!r}")
        count += 1
        traces.add(_trace_of(span, fleet, source))
    if len(traces) != 1 or count > MAX_SPANS_PER_BATCH:
        _refuse(source, f"{count} spans of {len(traces)} traces; 1 to {MAX_SPANS_PER_BATCH} of one are accepted")
    return traces.pop().trace_id


def show(body: bytes, trace_id: bytes) -> list[ShownSpan]:
    """The spans of that trace in a stored batch; raises BadTelemetryError."""
    return [_shown(node, span) for node, span in _spans(_parse(body, "a stored batch")) if span.trace_id == trace_id]


# -- out ---------------------------------------------------------------------------------------------------------------


def _fill(out: trace_pb2.Span, span: Span, trace_id: bytes) -> None:
    from opentelemetry.proto.trace.v1 import trace_pb2

    out.trace_id, out.span_id, out.parent_span_id = trace_id, span.span_id, span.parent_id
    out.name = span.name
    out.kind = trace_pb2.Span.SPAN_KIND_INTERNAL
    out.start_time_unix_nano = _nanoseconds(span.began_at)
    # A clock that was set back meanwhile must not make a span that collectors refuse.
    out.end_time_unix_nano = max(out.start_time_unix_nano, _nanoseconds(span.ended_at))
    _put(out.attributes.add(), WAVE, span.trace.wave_id)
    _put(out.attributes.add(), DEVICE, span.trace.device)
    if span.gate:
        _put(out.attributes.add(), GATE, span.gate)
    for key, value in span.attributes.items():
        _put(out.attributes.add(), key, value)
    for linked in span.links:
        out.links.add(trace_id=trace_id, span_id=linked)
    if span.error:
        out.status.code = trace_pb2.Status.STATUS_CODE_ERROR
        out.status.message = span.error[:MAX_ERROR_CHARACTERS]


def _put(out: KeyValue, key: str, value: str | int) -> None:
    out.key = key
    if isinstance(value, int):
        out.value.int_value = value
    else:
        out.value.string_value = value


def _nanoseconds(at: datetime) -> int:
    return stamp(at) * 1000


# -- in ----------------------------------------------------------------------------------------------------------------


def _refuse(source: str, why: str) -> NoReturn:
    msg = f"telemetry of {source[:200]}: {why}"
    raise BadTelemetryError(msg)


def _parse(body: bytes, source: str) -> ExportTraceServiceRequest:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    try:
        return ExportTraceServiceRequest.FromString(body)
    except DecodeError as error:
        msg = f"telemetry of {source[:200]}: no ExportTraceServiceRequest: {error}"
        raise BadTelemetryError(msg) from error


def _spans(request: ExportTraceServiceRequest) -> Iterator[tuple[str, trace_pb2.Span]]:
    """Every span with the node that its resource names."""
    for group in request.resource_spans:
        node = _texts(group.resource.attributes).get(NODE, "")
        for scope in group.scope_spans:
            for span in scope.spans:
                yield node, span


def _texts(attributes: Sequence[KeyValue]) -> dict[str, str]:
    return {
        one.key: str(one.value.int_value) if one.value.HasField("int_value") else one.value.string_value
        for one in attributes
    }


def _trace_of(span: trace_pb2.Span, fleet: str, source: str) -> Trace:
    """The trace of a span that this source may tell of."""
    sizes = (len(span.attributes), len(span.links), len(span.events), len(span.name.encode()))
    if any(size > most for size, most in zip(sizes, _MOST, strict=True)) or not span.name:
        _refuse(source, f"a span with {sizes[0]} attributes, {sizes[1]} links, {sizes[2]} events, name {span.name!r}")
    if len(span.span_id) != SPAN_ID_BYTES or len(span.parent_span_id) not in {0, SPAN_ID_BYTES}:
        _refuse(source, "a span id has 8 bytes")
    if any(len(link.span_id) != SPAN_ID_BYTES or len(link.trace_id) != TRACE_ID_BYTES for link in span.links):
        _refuse(source, "a link names 16 bytes of trace and 8 of span")
    if not span.start_time_unix_nano <= span.end_time_unix_nano <= MAX_TIME_NS:
        _refuse(source, "a span ends before it begins, or after the year 2262")
    said = _texts(span.attributes)
    trace = Trace(fleet, said.get(WAVE, ""), said.get(DEVICE, ""))
    if not trace.wave_id or not is_within(trace.device, source) or _role(fleet, trace.device) is not Role.DEVICE:
        _refuse(source, f"a span about {trace.device[:200]!r} in wave {trace.wave_id[:200]!r}")
    if span.trace_id != trace.trace_id:
        _refuse(source, f"trace {span.trace_id.hex()[:64]} is not that of {trace.device} in wave {trace.wave_id[:200]}")
    return trace


_MOST = (MAX_ATTRIBUTES, MAX_LINKS, MAX_EVENTS, MAX_NAME_BYTES)


def _role(fleet: str, path: str) -> Role | None:
    try:
        return NodeId(fleet, path).role
    except PeerError:
        return None


def _shown(node: str, span: trace_pb2.Span) -> ShownSpan:
    said = _texts(span.attributes)
    return ShownSpan(
        node=node,
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        name=span.name,
        began_at=_time(span.start_time_unix_nano),
        ended_at=_time(span.end_time_unix_nano),
        gate=said.get(GATE, ""),
        error=span.status.message,
        attributes={key: value for key, value in said.items() if key not in _OWN},
        links=tuple(link.span_id.hex() for link in span.links),
    )


def _time(nanoseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=nanoseconds // 1000)
