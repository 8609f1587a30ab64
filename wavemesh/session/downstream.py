"""The parent's end of all sessions over gRPC: the SessionService servicer.

Rules.
1. Who calls is told by the TLS certificate; only direct children are served.
2. The newest session of a child wins. After its Hello the older one is cut and waited for, until its handler is done
   with the registry and ``child_disconnected`` was called; only then the new one is admitted.
3. ``apply_reports`` and the other calls of a child's stream come one at a time; asks alone run beside it, bounded by
   the machine.
4. Load is shed, not queued: sessions open at a rate (``admission.py``), and whoever is turned away gets BusyError with
   a time of his own to come back. So do those who are told that this parent stops.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc

from wavemesh import __version__
from wavemesh.codec.session import decode_child, encode_parent
from wavemesh.errors import BusyError, ForbiddenError, WavemeshError
from wavemesh.runtime.status import answers
from wavemesh.session.admission import Admission
from wavemesh.session.faults import SupersededError
from wavemesh.session.frames import MAX_ASK_BYTES, Answer, Ask, ChildFrame, Hello, ParentFrame
from wavemesh.session.parent import (
    Admit,
    AnswerAsk,
    ApplyReports,
    NoteStatus,
    NoteVerdict,
    ParentEffect,
    ParentMachine,
    ParentOptions,
    ParentState,
)
from wavemesh.session.pump import WRITE_STALL_S, Pump, StreamOverError
from wavemesh.v1 import session_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from wavemesh.identity.certificates import Proof
    from wavemesh.identity.nodes import NodeId
    from wavemesh.runtime.clock import Clock
    from wavemesh.runtime.peers import Peers
    from wavemesh.session.seams import ChildRegistry

_LOG = logging.getLogger(__name__)
SERVICE_NAME: str = session_pb2.DESCRIPTOR.services_by_name["SessionService"].full_name


@dataclass(frozen=True, slots=True)
class DownstreamOptions:
    """A parent's bounds; times in seconds. A child that ``is_pressing`` goes before the others in a storm."""

    terms: ParentOptions = field(default_factory=lambda: ParentOptions(__version__))
    max_sessions: int = 4096
    opens_per_s: float = 200.0
    opens_at_once: int = 200
    max_handshakes: int = 1024
    shed_retry_s: float = 1.0
    drain_grace_s: float = 2.0
    write_stall_s: float = WRITE_STALL_S
    is_pressing: Callable[[NodeId], bool] = lambda _: False


class _Session:
    """One child's stream."""

    __slots__ = (
        "_clock",
        "_context",
        "_downstream",
        "child",
        "closed",
        "hello",
        "is_stale",
        "machine",
        "proof",
        "pump",
    )

    def __init__(self, downstream: SessionDownstream, proof: Proof, context: Any, machine: ParentMachine) -> None:
        self._downstream = downstream
        self._context = context
        self.proof = proof
        self.child = proof.node_id
        self.machine = machine
        self.pump: Pump[ChildFrame, ParentFrame, ParentEffect] = Pump(
            machine, self, downstream.clock, downstream.options.write_stall_s
        )
        self.hello: Hello | None = None
        self.is_stale = False
        self.closed = asyncio.Event()

    async def read(self) -> ChildFrame | None:
        message = await self._context.read()
        return None if message is grpc.aio.EOF else decode_child(message)

    async def write(self, frame: ParentFrame) -> None:
        try:
            await self._context.write(encode_parent(frame))
        except (grpc.aio.UsageError, grpc.aio.InternalError) as error:
            raise StreamOverError from error

    async def prepare(self) -> None:
        """Take changed desired state over; many changes between two frames cost one look."""
        if self.is_stale:
            self.is_stale = False
            self.machine.offer(self._downstream.registry.desired(self.child))

    async def perform(self, effect: ParentEffect) -> None:
        registry = self._downstream.registry
        match effect:
            case Admit():
                await self._downstream.seat(self, effect.hello)
            case ApplyReports():
                incarnation = self.hello.incarnation if self.hello is not None else ""
                await registry.apply_reports(self.child, incarnation, effect.first_number, effect.reports)
                self.machine.reports_applied(effect.first_number + len(effect.reports) - 1)
            case NoteVerdict():
                if effect.accepted or effect.rejected:
                    await registry.verdict(self.child, effect.accepted, effect.rejected)
            case NoteStatus():
                await registry.status(self.child, effect.entries)
            case AnswerAsk():
                self.pump.spawn(self._answer(effect.ask))

    async def _answer(self, ask: Ask) -> None:
        try:
            body = await self._downstream.registry.answer(self.child, ask.kind, ask.body)
            answer = Answer(ask.ask_id, body)
            if len(body) > MAX_ASK_BYTES:
                answer = Answer(ask.ask_id, b"", f"the answer has {len(body)} bytes, at most {MAX_ASK_BYTES} travel")
        except WavemeshError as error:
            answer = Answer(ask.ask_id, b"", f"{error.reason}: {error}")
        self.machine.answered(answer)
        self.pump.wake()


class SessionDownstream:
    """Serves all children; see seams.Downstream for what each method promises."""

    def __init__(
        self,
        node_id: NodeId,
        registry: ChildRegistry,
        clock: Clock,
        peers: Peers,
        options: DownstreamOptions = DownstreamOptions(),
    ) -> None:
        """Serve the children of ``node_id``."""
        self.registry = registry
        self.clock = clock
        self._node_id = node_id
        self._peers = peers
        self.options = options
        self._admission = Admission(options.opens_per_s, options.opens_at_once)
        self._streams: set[_Session] = set()
        self._seats: dict[str, _Session] = {}
        self._is_draining = False

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the SessionService."""
        connect = grpc.stream_stream_rpc_method_handler(
            self._connect,
            request_deserializer=session_pb2.ConnectRequest.FromString,
            response_serializer=session_pb2.ConnectResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, {"Connect": connect}),))

    # -- what tiers see ----------------------------------------------------------------------------------------------

    def changed(self, child_path: str | None = None) -> None:
        """The desired state of one child (None: of all) may have changed."""
        if child_path is None:
            sessions: Sequence[_Session] = list(self._seats.values())
        else:
            sessions = [session] if (session := self._seats.get(child_path)) is not None else []
        for session in sessions:
            session.is_stale = True
            session.pump.wake()

    def connected(self) -> Sequence[NodeId]:
        """Children with an open session."""
        return [session.child for session in self._seats.values() if session.machine.state is ParentState.OPEN]

    def capabilities(self, child_path: str) -> frozenset[str]:
        """What this side and that child know; empty when it has no open session."""
        session = self._seats.get(child_path)
        return session.machine.capabilities if session is not None else frozenset()

    def disconnect(self, child_path: str, reason: str) -> None:
        """End a child's session (revoked, replaced)."""
        session = self._seats.get(child_path)
        if session is not None:
            session.machine.close(reason)
            session.pump.wake()

    async def drain(self, retry_after_s: float) -> None:
        """Say goodbye to all children and wait until their handlers ended; new ones are refused from now on."""
        self._is_draining = True
        for session, later_s in zip(self._streams, self._admission.spread(len(self._streams)), strict=True):
            session.machine.close("the parent is stopping", retry_after_s + later_s)
            session.pump.wake()
        try:
            async with asyncio.timeout(self.options.drain_grace_s):
                await self._all_closed()
        except TimeoutError:
            for session in self._streams:
                session.pump.cut()
            await self._all_closed()

    async def _all_closed(self) -> None:
        for session in list(self._streams):
            await session.closed.wait()

    # -- one stream --------------------------------------------------------------------------------------------------

    @answers
    async def _connect(self, _: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Serve one child's stream to its end."""
        proof = self._peers.proof(context)
        child = proof.node_id
        if not child.is_child_of(self._node_id):
            raise ForbiddenError(f"{child.path} is not a child of {self._node_id.path}", child=child.path)
        self._shed(child)
        machine = ParentMachine(
            self.options.terms,
            session_id=secrets.token_hex(8),
            epoch=self.registry.epoch,
            now=self.clock.monotonic(),
        )
        session = _Session(self, proof, context, machine)
        self._streams.add(session)
        reason = "the stream ended"
        try:
            await session.pump.run()
        except WavemeshError as error:
            reason = str(error)
            raise
        finally:
            if machine.end is not None:
                reason = machine.end.reason
            await self._leave(session, reason)

    def _shed(self, child: NodeId) -> None:
        """Refuse what would be too much at once."""
        handshakes = len(self._streams) - len(self._seats)
        if self._is_draining or len(self._streams) >= self.options.max_sessions:
            raise BusyError("this parent takes no more sessions", self.options.shed_retry_s)
        if handshakes >= self.options.max_handshakes:
            raise BusyError(f"{handshakes} children are connecting at once", self.options.shed_retry_s)
        wait_s = self._admission.ask(child.path, self.clock.monotonic(), pressing=self.options.is_pressing(child))
        if wait_s:
            raise BusyError(f"many children are connecting: your turn is in {wait_s:.1f} s", wait_s)

    async def seat(self, session: _Session, hello: Hello) -> None:
        """Make this session the child's only one, then admit it."""
        path = session.child.path
        while (older := self._seats.get(path)) is not None:
            older.pump.cut(SupersededError(f"a newer session of {path} won"))
            await older.closed.wait()
        self._seats[path] = session
        cursor = await self.registry.admit(session.child, hello)
        session.machine.admitted(cursor, self.clock.monotonic())
        if session.machine.state is not ParentState.OPEN:
            return
        await self._peers.used(session.proof)
        await self.registry.child_connected(session.child, hello)
        session.hello = hello
        session.is_stale = True
        _LOG.info("session with %s, reports through %d", path, cursor)

    async def _leave(self, session: _Session, reason: str) -> None:
        """Give the seat up and tell the registry; the next session of the child waits for the end of this."""
        path = session.child.path
        try:
            if session.hello is not None:
                _LOG.info("no session with %s: %s", path, reason)
                await self.registry.child_disconnected(session.child, reason)
        finally:
            if self._seats.get(path) is session:
                del self._seats[path]
            self._streams.discard(session)
            session.closed.set()
