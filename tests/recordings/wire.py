"""A tier served without a network: its real composition root, its real handlers, messages as bytes, peers by name.

TLS is judged by the machine's clock, recordings by the clock of their day. So what is recorded is replayed past TLS:
``make_server`` of the tier is replaced by a server that keeps the handlers, and the peer's SPIFFE id is said by whoever
calls, as TLS would have said it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import grpc

from wavemesh.codec.session import decode_parent, encode_child
from wavemesh.runtime.status import error_from_status, status_in
from wavemesh.session.frames import (
    Answer,
    Ask,
    Fenced,
    Heartbeat,
    Report,
    ReportAck,
    ReportBatch,
    ResourceUpdate,
    ResourceVerdict,
    Welcome,
)
from wavemesh.session.upstream import SessionUpstream
from wavemesh.v1 import session_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from wavemesh.identity.nodes import NodeId
    from wavemesh.runtime.peers import Peers
    from wavemesh.session.frames import ChildFrame, Hello, ParentFrame, Resource, ResourceKey
    from wavemesh.session.seams import ResourceSink

CONNECT = "/wavemesh.v1.SessionService/Connect"
PATIENCE_S = 20.0
_PEM_END = b"-----END CERTIFICATE-----\n"


@dataclass(slots=True)
class SetClock:
    """A wall clock that stands where it was set; the monotonic clock runs."""

    at: datetime

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


class AbortedError(Exception):
    """The handler ended the call with a status."""


@dataclass(frozen=True, slots=True)
class Child:
    """Who dials, and the certificate shown, with its chain."""

    node: NodeId
    certificate: bytes


@dataclass(frozen=True, slots=True)
class _Details:
    method: str
    invocation_metadata: tuple[()] = ()


@dataclass(eq=False, slots=True)
class Call:
    """What a handler sees of one call (what it uses of grpc.aio.ServicerContext), and its caller's end."""

    peer: NodeId
    certificate: bytes
    to_handler: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    from_handler: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)

    def auth_context(self) -> dict[str, list[bytes]]:
        leaf, end, _ = self.certificate.partition(_PEM_END)
        return {
            "peer_spiffe_id": [self.peer.uri.encode()],
            "x509_pem_cert": [leaf + end],
            "x509_pem_cert_chain": [self.certificate],
        }

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def add_done_callback(self, callback: Any) -> None:
        """A recorded call ends with the test."""

    async def read(self) -> Any:
        return await self.to_handler.get()

    async def write(self, message: Any) -> None:
        await self.from_handler.put(message)

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        del details
        raise AbortedError from error_from_status(code, code.name, status_in(trailing_metadata))


class MemoryServer:
    """What a tier takes for its gRPC server; whoever calls is admitted as there."""

    def __init__(self) -> None:
        self._handlers: list[Any] = []
        self.guard: grpc.aio.ServerInterceptor | None = None

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        self._handlers.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """The same handlers as the generic ones."""

    async def start(self) -> None:
        """Nothing listens."""

    async def stop(self, grace: float | None) -> None:
        """Nothing listens."""

    async def handler(self, method: str) -> Any:
        assert self.guard is not None
        return await self.guard.intercept_service(self._find, cast("grpc.HandlerCallDetails", _Details(method)))

    async def _find(self, details: grpc.HandlerCallDetails) -> Any:
        found = (one.service(details) for one in self._handlers)
        return next(one for one in found if one is not None)

    async def ask(self, peer: NodeId, certificate: bytes, method: str, request: bytes) -> bytes:
        """A unary call, as bytes; raises what the handler's status says."""
        handler = await self.handler(method)
        try:
            response = await handler.unary_unary(handler.request_deserializer(request), Call(peer, certificate))
        except AbortedError as aborted:
            if aborted.__cause__ is not None:
                raise aborted.__cause__ from None
            raise
        return bytes(handler.response_serializer(response))


class Tap:
    """Stands in for what a tier makes its ends of the wire with, and keeps them: its server and, of a hub, its sink."""

    def __init__(self) -> None:
        self.server = MemoryServer()
        self.sink: ResourceSink | None = None

    def make_server(self, *_: Any, peers: Peers, **__: Any) -> tuple[MemoryServer, int]:
        self.server.guard = peers.guard()
        return self.server, 1

    def make_upstream(self, **parts: Any) -> SessionUpstream:
        self.sink = parts["sink"]
        return SessionUpstream(**parts)


@dataclass(slots=True)
class Told:
    """What a parent told a child in one session."""

    greeting: Welcome | Fenced | None = None
    resources: dict[ResourceKey, Resource] = field(default_factory=dict)
    settled: bool = False
    acknowledged: int = 0
    answers: list[Answer] = field(default_factory=list)


async def converse(
    server: MemoryServer,
    child: Child,
    hello: Hello,
    reports: Sequence[tuple[int, Report]] = (),
    others: Sequence[ChildFrame] = (),
) -> Told:
    """A whole session as a child that accepts everything: greet, say ``others``, report, hear until settled,
    acknowledged and answered.
    """
    peer, certificate = child.node, child.certificate
    call, told = Call(peer, certificate), Told()
    handler = await server.handler(CONNECT)
    say = _Sayer(call, handler)
    say(hello)
    async with asyncio.TaskGroup() as group, asyncio.timeout(PATIENCE_S):
        serving = group.create_task(handler.stream_stream(None, call))
        first = group.create_task(call.from_handler.get())
        await asyncio.wait([first, serving], return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            first.cancel()
            await serving
        greeting = _frame(await first, handler)
        assert isinstance(greeting, Welcome | Fenced)
        told.greeting = greeting
        if isinstance(told.greeting, Welcome):
            for frame in (*others, *(ReportBatch(number, (report,)) for number, report in reports)):
                say(frame)
            last = reports[-1][0] if reports else told.greeting.reports_through
            asks = sum(isinstance(frame, Ask) for frame in others)
            told.acknowledged = told.greeting.reports_through
            while not told.settled or told.acknowledged < last or len(told.answers) < asks:
                _hear(_frame(await call.from_handler.get(), handler), told, say)
        call.to_handler.put_nowait(grpc.aio.EOF)
        await serving
    return told


class _Sayer:
    """Sends frames as bytes."""

    def __init__(self, call: Call, handler: Any) -> None:
        self._call = call
        self._handler = handler

    def __call__(self, frame: ChildFrame) -> None:
        self._call.to_handler.put_nowait(self._handler.request_deserializer(encode_child(frame).SerializeToString()))


def _frame(message: Any, handler: Any) -> ParentFrame:
    return decode_parent(session_pb2.ConnectResponse.FromString(handler.response_serializer(message)))


def _hear(frame: ParentFrame, told: Told, say: _Sayer) -> None:
    match frame:
        case ResourceUpdate():
            told.resources |= {one.key: one for one in frame.changed}
            for key in frame.removed:
                told.resources.pop(key, None)
            told.settled |= frame.settled
            say(ResourceVerdict(frame.nonce, ()))
        case Answer():
            told.answers.append(frame)
        case ReportAck():
            told.acknowledged = frame.through
        case Heartbeat():
            say(frame)
        case _:
            msg = f"unexpected {frame}"
            raise AssertionError(msg)
