"""An OTLP gRPC receiver: the trace service of opentelemetry.proto as any collector serves it, on a port of its own.

It keeps what it is sent, and can be told to refuse. It runs on a loop in a thread of its own, so that tests of real
processes, which are not coroutines, have one too.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from wavemesh.telemetry.otlp import show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wavemesh.telemetry.otlp import ShownSpan

SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"


@dataclass
class Receiver:
    """What arrived, as bytes; ``refuses`` may answer a request with an error."""

    port: int = 0
    bodies: list[bytes] = field(default_factory=list)
    refused: int = 0
    refuses: Callable[[bytes], tuple[grpc.StatusCode, str] | None] = lambda _: None
    answer: ExportTraceServiceResponse = field(default_factory=ExportTraceServiceResponse)
    trailing: tuple[tuple[str, bytes], ...] = ()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def export(self, request: bytes, context: Any) -> ExportTraceServiceResponse:
        refusal = self.refuses(request)
        if refusal is not None:
            self.refused += 1
            await context.abort(*refusal, self.trailing)
        ExportTraceServiceRequest.FromString(request)  # a receiver that cannot read it fails the call
        self.bodies.append(request)
        return self.answer

    def spans(self, trace_id: bytes) -> dict[str, ShownSpan]:
        """The spans of a trace by id, each once."""
        return {span.span_id: span for body in self.bodies for span in show(body, trace_id)}

    def nodes(self) -> set[str]:
        """The nodes whose spans arrived."""
        return {
            value.value.string_value
            for body in self.bodies
            for group in ExportTraceServiceRequest.FromString(body).resource_spans
            for value in group.resource.attributes
            if value.key == "wavemesh.node"
        }


@contextmanager
def receiving(
    receiver: Receiver | None = None, credentials: grpc.ServerCredentials | None = None
) -> Iterator[Receiver]:
    """A receiver that serves inside the block, at its old port if it had one."""
    receiver = receiver or Receiver()
    up, down = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handler: Any = grpc.unary_unary_rpc_method_handler(
            receiver.export, response_serializer=ExportTraceServiceResponse.SerializeToString
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Export": handler}),))
        address = f"127.0.0.1:{receiver.port}"
        receiver.port = (
            server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
        )
        await server.start()
        up.set()
        await down.wait()
        await server.stop(0)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert up.wait(10)
        yield receiver
    finally:
        loop.call_soon_threadsafe(down.set)
        thread.join(10)
        loop.close()
