"""A trace as operators get it: GetTrace of operator.proto, the same at control and at a store hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wavemesh.errors import NotFoundError
from wavemesh.telemetry.spans import Trace
from wavemesh.v1 import operator_pb2

if TYPE_CHECKING:
    from wavemesh.telemetry.otlp import ShownSpan
    from wavemesh.telemetry.outbox import Outbox


async def trace_response(outbox: Outbox, source: str, wave_id: str, device: str) -> operator_pb2.GetTraceResponse:
    """The trace of a device (its path) in a wave, as the node at path ``source`` holds it; raises NotFoundError."""
    trace = Trace(outbox.fleet, wave_id, device)
    spans = await outbox.trace(trace.trace_id)
    if not spans:
        msg = (
            f"{source} holds no span of {device} in wave {wave_id!r}: "
            "it is not in that wave, its telemetry is still on its way or past its time, or telemetry is off"
        )
        raise NotFoundError(msg, device=device, wave=wave_id)
    return operator_pb2.GetTraceResponse(
        trace_id=trace.trace_id.hex(),
        device=device,
        spans=[_message(span) for span in spans],
        dropped=outbox.dropped,
        source=source,
    )


def _message(span: ShownSpan) -> operator_pb2.TraceSpan:
    message = operator_pb2.TraceSpan(
        span_id=span.span_id,
        parent_span_id=span.parent_id,
        name=span.name,
        node=span.node,
        gate=span.gate,
        error=span.error,
        attributes=span.attributes,
        links=span.links,
    )
    message.began_at.FromDatetime(span.began_at)
    message.ended_at.FromDatetime(span.ended_at)
    return message
