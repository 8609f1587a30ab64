"""The child's end of a session over gRPC: dial, greet, pump, and come back.

Rules.
1. One channel per attempt, closed with it: credentials and address are read anew, and nothing of a dead connection
   piles up. A stream is opened only once the channel is ready.
2. Coming back: as backoff.py says. The attempt counter and the time away start again once a session has lasted
   ``stable_s``. Where there is no common protocol version somebody must be
   updated first: the child comes back after ``incompatible_s``, and says why it stays away. Whom the parent refuses
   because its certificate was taken back stays away for ``revoked_retry_s`` and more: only a new one can help.
3. Whatever the end, unanswered asks fail with LinkDownError; reports, resources and status lose nothing.
4. A session moves to renewed credentials without a gap worth the name: the new channel is ready before the old session
   says goodbye, asks under way are answered first, and those of the moment between wait for the new session.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import grpc

from wavemesh.codec.session import MalformedFrameError, decode_parent, encode_child
from wavemesh.errors import BusyError, LinkDownError, WavemeshError
from wavemesh.identity.revocations import RevokedError
from wavemesh.runtime.grpc import make_channel
from wavemesh.runtime.status import error_from_rpc, error_from_status, status_in
from wavemesh.session.backoff import delay_s
from wavemesh.session.child import (
    AcknowledgeReports,
    Answered,
    ApplyResources,
    ChildEffect,
    ChildMachine,
    RestartLog,
    SessionOpened,
    Settled,
)
from wavemesh.session.faults import AskFailedError, ProtocolVersionError, SessionViolationError
from wavemesh.session.frames import (
    MAX_STATUS_BYTES,
    Answer,
    ChildFrame,
    Goodbye,
    Hello,
    ParentFrame,
)
from wavemesh.session.liveness import Ending, SessionEnd
from wavemesh.session.negotiation import Dialect
from wavemesh.session.pump import WRITE_STALL_S, Pump, StreamOverError
from wavemesh.v1.session_pb2_grpc import SessionServiceStub

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from wavemesh.identity.credentials import Credentials
    from wavemesh.identity.nodes import NodeId
    from wavemesh.runtime.clock import Clock
    from wavemesh.session.seams import ReportLog, ResourceSink, SentMark

_LOG = logging.getLogger(__name__)
MAX_STATUS_KEYS = 131_072
MOVE_PATIENCE_S = 2.0
"""How long a session that moves waits for answers that are under way."""
_FAILED = frozenset({grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN})
_STAYING_AWAY = frozenset({Ending.INCOMPATIBLE, Ending.REVOKED})
_ENDINGS = {ProtocolVersionError.reason: Ending.INCOMPATIBLE, RevokedError.reason: Ending.REVOKED}


@dataclass(frozen=True, slots=True)
class UpstreamOptions:
    """A child's patience, seconds."""

    connect_timeout_s: float = 5.0
    backoff_base_s: float = 0.25
    backoff_cap_s: float = 4.0
    stable_s: float = 5.0
    goodbye_grace_s: float = 2.0
    incompatible_s: float = 60.0
    dialect: Dialect = field(default_factory=Dialect)
    revoked_retry_s: float = 300.0
    write_stall_s: float = WRITE_STALL_S
    channel_options: tuple[tuple[str, Any], ...] = ()


class _Stream:
    """One attempt: a call, its machine and its pump."""

    def __init__(
        self, upstream: SessionUpstream, machine: ChildMachine, incarnation: str, call: Any, clock: Clock
    ) -> None:
        self._upstream = upstream
        self.incarnation = incarnation
        self._call = call
        self._read_over = asyncio.Event()
        self.machine = machine
        self.pump: Pump[ParentFrame, ChildFrame, ChildEffect] = Pump(machine, self, clock, upstream.write_stall_s)
        self.opened_at: float | None = None
        self.answers: dict[int, asyncio.Future[bytes]] = {}

    async def read(self) -> ParentFrame | None:
        try:
            message = await self._call.read()
        except BaseException:
            self._read_over.set()
            raise
        if message is grpc.aio.EOF:
            self._read_over.set()
            return None
        return decode_parent(message)

    async def write(self, frame: ChildFrame) -> None:
        try:
            await self._call.write(encode_child(frame))
            if isinstance(frame, Goodbye):
                # The parent ends the stream when it has read the goodbye; closing earlier could drop it.
                await self._call.done_writing()
                await self._read_over.wait()
        except asyncio.InvalidStateError:
            # The call is finished already; why, the reader is about to learn.
            await self._read_over.wait()
            raise StreamOverError from None

    async def prepare(self) -> None:
        await self._upstream.feed(self)

    def let_go(self) -> None:
        """Give back what gRPC holds for a stream that is over, its connection too; this object is part of a cycle."""
        self._call = None

    async def perform(self, effect: ChildEffect) -> None:
        await self._upstream.perform(self, effect)


def _log_breach(subject: str, gate: str, why: str) -> None:
    _LOG.warning("refused %s: %s: %s", subject, gate, why)


class SessionUpstream:
    """Keeps a session with the parent; see seams.Upstream for what each method promises."""

    def __init__(
        self,
        *,
        credentials: Credentials,
        parent: NodeId,
        address: str | Callable[[], str],
        log: ReportLog,
        sink: ResourceSink,
        clock: Clock,
        rng: Random,
        software_version: str,
        options: UpstreamOptions = UpstreamOptions(),
        breached: Callable[[str, str, str], None] = _log_breach,
    ) -> None:
        """Dial ``address`` ("host:port"; a callable is asked before each attempt) and accept ``parent`` there alone.

        ``breached`` is told what the parent did against the protocol: subject, gate ("" if it has none), sentence.
        """
        self._breached = breached
        self._credentials = credentials
        self._parent = parent
        self._address = address
        self._log = log
        # By name: to look a protocol up in a class takes as long as a device's whole greeting.
        self._mark = cast("SentMark", log) if hasattr(log, "mark_sent") else None
        # For a log without a mark: (incarnation, highest number that may have been sent).
        self._sent = (log.incarnation, log.next_number - 1)
        self._sink = sink
        self._clock = clock
        self._rng = rng
        self._software_version = software_version
        self._options = options
        self.write_stall_s = options.write_stall_s
        self._status: dict[str, bytes | None] = {}
        self._stream: _Stream | None = None
        self._next: grpc.aio.Channel | None = None
        self._at_rest = asyncio.Event()
        self._at_rest.set()
        self._answered = asyncio.Event()
        self._refusal = ""
        self._is_draining = False
        self._drain_asked = asyncio.Event()
        self._over = asyncio.Event()
        self._over.set()

    # -- what tiers see ----------------------------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        """Whether a session is welcomed now, or just moves to another channel."""
        return self._is_open or not self._at_rest.is_set()

    @property
    def _is_open(self) -> bool:
        return self._stream is not None and self._stream.opened_at is not None

    @property
    def capabilities(self) -> frozenset[str]:
        """What this side and the parent know, of the session that is open; empty when none is."""
        return self._stream.machine.capabilities if self._stream is not None else frozenset()

    @property
    def refusal(self) -> str:
        """Why there can be no session before somebody is updated or enrolled anew; empty when nothing is in the way."""
        return self._refusal

    def wake(self) -> None:
        """Reports were appended."""
        if self._stream is not None:
            self._stream.pump.wake()

    def set_status(self, key: str, body: bytes | None) -> None:
        """Set or remove a latest-wins value; sent again after each reconnect, removals too."""
        if len(body or b"") > MAX_STATUS_BYTES or (key not in self._status and len(self._status) >= MAX_STATUS_KEYS):
            msg = f"status {key!r}: at most {MAX_STATUS_BYTES} bytes and {MAX_STATUS_KEYS} keys travel"
            raise RuntimeError(msg)
        if key in self._status and self._status[key] == body:
            return
        self._status[key] = body
        if self._stream is not None:
            self._stream.machine.set_status(key, body)
            self._stream.pump.wake()

    async def ask(self, kind: str, body: bytes, timeout_s: float) -> bytes:
        """Ask the parent; raises LinkDownError, AskFailedError, BusyError or TimeoutError."""
        async with asyncio.timeout(timeout_s):
            await self._at_rest.wait()
            stream = self._stream
            if stream is None or stream.opened_at is None:
                raise LinkDownError(f"no session with {self._parent.path}")
            ask_id = stream.machine.ask(kind, body)
            future = asyncio.get_running_loop().create_future()
            stream.answers[ask_id] = future
            stream.pump.wake()
            try:
                answer: bytes = await future
            finally:
                stream.answers.pop(ask_id, None)
                self._answered.set()
        return answer

    async def move(self) -> None:
        """Take the session over to a channel with the credentials in use now; returns once the new one is welcomed.

        Without a session there is nothing to move: the next attempt takes them anyway. Raises LinkDownError, and the
        old session goes on, when the parent cannot be reached with them.
        """
        if not self._is_open or self._next is not None:
            return
        channel, address = self._channel()
        try:
            await self._connect(channel, address)
        except BaseException:
            await channel.close()
            raise
        began_s = self._clock.monotonic()
        self._next = channel
        self._at_rest.clear()
        if (stream := self._stream) is not None:
            await self._wait_for_answers(stream)
            stream.machine.close("moving to a renewed certificate")
            stream.pump.wake()
        await self._at_rest.wait()
        if not self._is_open:
            raise LinkDownError(f"{self._parent.path} did not welcome the session that moved")
        _LOG.info("session with %s moved in %.0f ms", self._parent.path, (self._clock.monotonic() - began_s) * 1e3)

    async def _wait_for_answers(self, stream: _Stream) -> None:
        try:
            async with asyncio.timeout(MOVE_PATIENCE_S):
                while stream.answers:
                    self._answered.clear()
                    await self._answered.wait()
        except TimeoutError:
            return

    async def drain(self) -> None:
        """Say goodbye and end run(); returns when it has ended."""
        self._is_draining = True
        self._drain_asked.set()
        if self._stream is not None:
            self._stream.machine.close("draining")
            self._stream.pump.wake()
        try:
            async with asyncio.timeout(self._options.goodbye_grace_s):
                await self._over.wait()
        except TimeoutError:
            if self._stream is not None:
                self._stream.pump.cut()
            await self._over.wait()

    async def run(self) -> None:
        """Keep a session with the parent until cancelled or drained."""
        attempt, since_s = 0, self._clock.monotonic()
        self._over.clear()
        try:
            while not self._is_draining:
                end, lasted_s = await self._attempt()
                if self._next is not None:
                    attempt = 0
                    continue
                now_s = self._clock.monotonic()
                if lasted_s >= self._options.stable_s:
                    attempt, since_s = 0, now_s
                pause_s = delay_s(end, attempt, now_s - since_s, self._options, self._rng.uniform)
                attempt += 1
                level = logging.INFO
                if end.ending in _STAYING_AWAY:
                    self._refusal, level = end.reason, logging.WARNING
                parent = self._parent.path
                _LOG.log(level, "no session with %s: %s; next attempt in %.2f s", parent, end.reason, pause_s)
                await self._pause(pause_s)
        finally:
            if self._next is not None:
                await self._next.close()
                self._next = None
            self._at_rest.set()
            self._over.set()

    # -- one attempt -------------------------------------------------------------------------------------------------

    async def _attempt(self) -> tuple[SessionEnd, float]:
        """Dial and hold one session; how it ended, and for how many seconds it was open."""
        ready, self._next = self._next, None
        channel, address = self._channel() if ready is None else (ready, "")
        try:
            if ready is None:
                await self._connect(channel, address)
            return await self._session(channel)
        except WavemeshError as error:
            return _end_by(error), 0.0
        finally:
            if self._next is None:
                self._at_rest.set()
            await channel.close()

    def _channel(self) -> tuple[grpc.aio.Channel, str]:
        """A channel with the credentials and the address of now, not yet connected."""
        address = self._address if isinstance(self._address, str) else self._address()
        return make_channel(self._credentials, address, self._parent, self._options.channel_options), address

    async def _connect(self, channel: grpc.aio.Channel, address: str) -> None:
        """Wait for the channel to be ready: streams opened on a dead one pile up in gRPC core. Raises LinkDownError."""
        try:
            async with asyncio.timeout(self._options.connect_timeout_s):
                state = channel.get_state(try_to_connect=True)
                while state is not grpc.ChannelConnectivity.READY:
                    if state in _FAILED:
                        raise LinkDownError(
                            f"{address} refuses the connection, or TLS with {self._parent.dns_name} failed"
                        )
                    await channel.wait_for_state_change(state)
                    state = channel.get_state(try_to_connect=True)
        except TimeoutError:
            raise LinkDownError(f"{address} did not answer in {self._options.connect_timeout_s} s") from None

    async def _session(self, channel: grpc.aio.Channel) -> tuple[SessionEnd, float]:
        log = self._log
        dialect = self._options.dialect
        hello = Hello(
            dialect.highest,
            self._software_version,
            log.incarnation,
            self._sent_through() + 1,
            tuple(self._sink.held()),
            dialect.lowest,
            tuple(sorted(dialect.capabilities)),
        )
        machine = ChildMachine(
            hello, first_report_number=log.first_number, status=self._status, now=self._clock.monotonic()
        )
        call = SessionServiceStub(channel).Connect()
        stream = self._stream = _Stream(self, machine, hello.incarnation, call, self._clock)
        end = SessionEnd(Ending.LOST, "the stream ended")
        try:
            await stream.pump.run()
            end = machine.end or await _end_of(call)
        except grpc.aio.AioRpcError as error:
            end = _end_by(error_from_rpc(error))
        except (SessionViolationError, MalformedFrameError) as error:
            end = _end_by(error)
            self._breached("session", "", end.reason)
        except WavemeshError as error:
            end = _end_by(error)
        finally:
            self._stream = None
            self._sent = (hello.incarnation, machine.sent_through)
            call.cancel()
            stream.let_go()
            for future in stream.answers.values():
                if not future.done():
                    future.set_exception(LinkDownError("the session ended"))
            if stream.opened_at is not None:
                await self._sink.disconnected(end.reason)
        lasted_s = 0.0 if stream.opened_at is None else self._clock.monotonic() - stream.opened_at
        return end, lasted_s

    def _sent_through(self) -> int:
        """Highest number of the log's incarnation that may have been sent."""
        if self._mark is not None:
            return self._mark.sent_through
        incarnation, through = self._sent
        return through if incarnation == self._log.incarnation else 0

    async def feed(self, stream: _Stream) -> None:
        """Give the machine the reports it wants next."""
        log, machine = self._log, stream.machine
        if log.incarnation != stream.incarnation:
            machine.close("a new incarnation of the report log")
            return
        machine.reports_appended(log.next_number)
        wanted = machine.wanted_reports()
        if wanted is None:
            return
        reports = await log.read(wanted.first, wanted.limit)
        through = wanted.first + len(reports) - 1
        if self._mark is not None and through > self._mark.sent_through:
            await self._mark.mark_sent(through)
        if log.incarnation == stream.incarnation:
            machine.reports_read(wanted.first, reports)

    async def perform(self, stream: _Stream, effect: ChildEffect) -> None:
        """Do one effect of the machine."""
        match effect:
            case SessionOpened():
                stream.opened_at = self._clock.monotonic()
                self._at_rest.set()
                self._refusal = ""
                _LOG.info("session %s with %s", effect.welcome.session_id, self._parent.path)
                await self._sink.connected()
            case ApplyResources():
                for one in effect.refused:
                    self._breached(f"{one.key.type}/{one.key.name}", one.gate, one.reason)
                rejected = await self._sink.apply(effect.changed, effect.removed) if effect.has_content else ()
                stream.machine.resources_applied(effect.nonce, rejected)
            case Settled():
                await self._sink.settled()
            case AcknowledgeReports():
                # A log that restarted by itself meanwhile has other reports under these numbers.
                if self._log.incarnation == stream.incarnation:
                    await self._log.acknowledge(effect.through)
            case RestartLog():
                await self._log.restart()
            case Answered():
                _resolve(stream.answers.pop(effect.answer.ask_id, None), effect.answer)

    async def _pause(self, pause_s: float) -> None:
        """Wait, unless drained meanwhile."""
        try:
            async with asyncio.timeout(pause_s):
                await self._drain_asked.wait()
        except TimeoutError:
            return


def _resolve(future: asyncio.Future[bytes] | None, answer: Answer) -> None:
    """Hand an answer to whoever still waits for it."""
    if future is None or future.done():
        return
    if answer.error:
        future.set_exception(AskFailedError(answer.error))
    else:
        future.set_result(answer.body)


async def _end_of(call: Any) -> SessionEnd:
    """What the parent's status says about a stream that it ended without a goodbye."""
    code = await call.code()
    if code is grpc.StatusCode.OK:
        return SessionEnd(Ending.LOST, "the parent ended the stream")
    trailing = await call.trailing_metadata()
    return _end_by(error_from_status(code, await call.details() or "", status_in(trailing)))


def _end_by(error: WavemeshError) -> SessionEnd:
    retry_after_s = error.retry_after_s if isinstance(error, BusyError) else 0.0
    reason = error.details.get("reason", error.reason)
    ending = _ENDINGS.get(reason, Ending.LOST if isinstance(error, LinkDownError) else Ending.REFUSED)
    return SessionEnd(ending, f"{reason}: {error}", retry_after_s)
