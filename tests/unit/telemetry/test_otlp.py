"""What is encoded can be checked and shown; what a source may not say is refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from wavemesh.identity.nodes import NodeId
from wavemesh.telemetry import otlp
from wavemesh.telemetry.otlp import BadTelemetryError, check, encode, show
from wavemesh.telemetry.spans import Span, Trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.proto.trace.v1 import trace_pb2

FLEET = "test.example"
STORE = NodeId(FLEET, "region/midwest/store/store-209")
DEVICE = NodeId(FLEET, f"{STORE.path}/device/pos-17")
TRACE = Trace(FLEET, "142", DEVICE.path)
NOW = datetime(2026, 11, 26, 22, 0, 0, 123456, tzinfo=UTC)


def span(**changes: object) -> Span:
    made = Span(TRACE, TRACE.unit("x"), TRACE.root(), "device.trial", NOW, NOW + timedelta(seconds=3))
    return replace(made, **changes)  # type: ignore[arg-type]  # what the tests change


def _first(request: ExportTraceServiceRequest) -> trace_pb2.Span:
    return request.resource_spans[0].scope_spans[0].spans[0]


def _set(request: ExportTraceServiceRequest, **values: object) -> None:
    for name, value in values.items():
        setattr(_first(request), name, value)


def _double(request: ExportTraceServiceRequest, times: int) -> None:
    for _ in range(times):
        request.resource_spans[0].scope_spans[0].spans.add().CopyFrom(_first(request))


def changed(change: Callable[[ExportTraceServiceRequest], object]) -> bytes:
    request = ExportTraceServiceRequest.FromString(encode(DEVICE, [span()]))
    change(request)
    return request.SerializeToString()


def test_what_was_measured_is_what_is_shown() -> None:
    made = span(
        gate="peripheral:scanner", error="no answer", attributes={"slot": "B", "attempt": 2}, links=(TRACE.permit(1),)
    )
    body = encode(DEVICE, [made, span(span_id=TRACE.unit("y"))])
    assert check(body, FLEET, DEVICE.path) == TRACE.trace_id
    shown, other = show(body, TRACE.trace_id)
    assert shown == otlp.ShownSpan(
        node=DEVICE.path,
        span_id=made.span_id.hex(),
        parent_id=TRACE.root().hex(),
        name="device.trial",
        began_at=NOW,
        ended_at=NOW + timedelta(seconds=3),
        gate="peripheral:scanner",
        error="no answer",
        attributes={"slot": "B", "attempt": "2"},
        links=(TRACE.permit(1).hex(),),
    )
    assert (other.gate, other.error, other.links) == ("", "", ())


def test_otlp_says_who_and_what_failed() -> None:
    request = ExportTraceServiceRequest.FromString(encode(DEVICE, [span(error="no answer"), span()]))
    [group] = request.resource_spans
    said = {one.key: one.value.string_value for one in group.resource.attributes}
    assert said == {"service.name": "wavemesh-device", "wavemesh.node": DEVICE.path}
    failed, fine = group.scope_spans[0].spans
    assert (failed.status.code, failed.status.message) == (2, "no answer")
    assert fine.status.code == 0


def test_a_clock_set_back_makes_no_span_that_ends_before_it_begins() -> None:
    body = encode(DEVICE, [span(ended_at=NOW - timedelta(hours=1))])
    [shown] = show(body, TRACE.trace_id)
    assert shown.ended_at == shown.began_at == NOW


def test_a_hub_may_tell_of_its_devices() -> None:
    assert check(encode(STORE, [span()]), FLEET, STORE.path) == TRACE.trace_id


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"\xff\xff", "no ExportTraceServiceRequest"),
        (b"", "0 spans of 0 traces"),
        (b"\0" * (48 * 1024 + 1), "at most 49152"),
        (encode(STORE, [span()]), "a resource of node 'region/midwest/store/store-209'"),
        (changed(lambda r: r.resource_spans.add().scope_spans.add().spans.add()), "a resource of node ''"),
        (changed(lambda r: _first(r).attributes.pop()), "a span about ''"),
        (changed(lambda r: _set(r, trace_id=b"\1" * 16)), "is not that of"),
        (changed(lambda r: _set(r, trace_id=b"")), "is not that of"),
        (changed(lambda r: _set(r, span_id=b"\1" * 7)), "8 bytes"),
        (changed(lambda r: _set(r, parent_span_id=b"\1")), "8 bytes"),
        (changed(lambda r: _set(r, name="")), "a span with"),
        (changed(lambda r: _set(r, name="é" * 65)), "a span with"),
        (changed(lambda r: _set(r, start_time_unix_nano=2**63)), "a span ends before"),
        (changed(lambda r: _set(r, end_time_unix_nano=2**63)), "a span ends before"),
        (changed(lambda r: _first(r).links.add(trace_id=b"\1" * 16)), "a link names"),
        (changed(lambda r: [_first(r).links.add() for _ in range(17)]), "17 links"),
        (changed(lambda r: [_first(r).events.add() for _ in range(33)]), "33 events"),
        (changed(lambda r: [_first(r).attributes.add() for _ in range(31)]), "33 attributes"),
        (changed(lambda r: _double(r, 64)), "65 spans of 1 traces"),
    ],
)
def test_what_a_device_may_not_say_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(BadTelemetryError, match=why):
        check(body, FLEET, DEVICE.path)


@pytest.mark.parametrize(
    "trace",
    [
        replace(TRACE, device=f"{STORE.path}/device/pos-18"),
        replace(TRACE, device=f"{STORE.path}/device/pos-170"),
        replace(TRACE, device=STORE.path),
        replace(TRACE, device=f"{DEVICE.path}/device/x"),
        replace(TRACE, wave_id=""),
        replace(TRACE, fleet="other.example"),
    ],
)
def test_a_device_litters_its_own_traces_alone(trace: Trace) -> None:
    with pytest.raises(BadTelemetryError):
        check(encode(DEVICE, [span(trace=trace)]), FLEET, DEVICE.path)


def test_two_traces_make_two_batches() -> None:
    with pytest.raises(RuntimeError):
        encode(DEVICE, [span(), span(trace=replace(TRACE, wave_id="143"))])
    both = encode(DEVICE, [span()]) + encode(DEVICE, [span(trace=replace(TRACE, wave_id="143"))])
    with pytest.raises(BadTelemetryError, match="2 spans of 2 traces"):
        check(both, FLEET, DEVICE.path)
