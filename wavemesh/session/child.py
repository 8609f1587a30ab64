"""The child's end of one session stream, as a pure machine: frames and times in, frames and effects out.

Theory. A machine lives as long as one stream. What must survive it is elsewhere: reports in the durable log, resources
in the sink, status in the link. So nothing is lost with a machine, and a new stream starts from Hello alone.

    OPENING --hello sent--> GREETING --welcome--> OPEN --close()--> CLOSING --goodbye sent---> OVER
                               |                    +--goodbye received, parent silent or slow-> OVER
                               +--fenced, or welcome below the log's first number: RestartLog OVER

Rules.
1. State is the queue: ``next_frame`` computes the next frame from what differs, in the order hello and goodbye,
   verdicts, asks, reports, status, heartbeat. The driver pulls when the transport can take one.
2. Persist, then send: a verdict is available only after ``resources_applied``, which the driver calls when the sink
   has made the resources durable.
3. Effects come in the order in which they must be done; the driver does them one at a time and reads no frame
   meanwhile.
4. Updates are answered in the order of arrival. At most ``MAX_UPDATES_IN_FLIGHT`` are unanswered.
5. At most ``report_window`` reports are unacknowledged, and one of them is acknowledged every ``ACK_TIMEOUT_S``;
   reports are contiguous from the parent's cursor on. Hello names the lowest number never sent, by which the parent
   tells a child restored from an older state.
6. A frame outside ``ACCEPTS`` for the state, a number out of order, a bound exceeded: SessionViolationError.
"""

from __future__ import annotations

import enum
import hashlib
import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from wavemesh.errors import BusyError, LinkDownError
from wavemesh.session.faults import SessionViolationError
from wavemesh.session.frames import (
    MAX_ASK_BYTES,
    MAX_ASKS_IN_FLIGHT,
    MAX_BATCH_BYTES,
    MAX_HEARTBEAT_INTERVAL_MS,
    MAX_REPORTS_PER_BATCH,
    MAX_STATUS_ENTRIES,
    MAX_UPDATES_IN_FLIGHT,
    Answer,
    Ask,
    ChildFrame,
    Fenced,
    Goodbye,
    Heartbeat,
    Hello,
    ParentFrame,
    Rejection,
    Report,
    ReportAck,
    ReportBatch,
    Resource,
    ResourceKey,
    ResourceUpdate,
    ResourceVerdict,
    StatusEntry,
    StatusUpdate,
    Welcome,
)
from wavemesh.session.liveness import Ending, Liveness, SessionEnd
from wavemesh.session.negotiation import check_choice, shared_capabilities

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HANDSHAKE_S = 20.0
STATUS_INTERVAL_S = 0.2
STATUS_FRAME_BYTES = 256 * 1024
ASK_RETRY_S = 1.0
ACK_TIMEOUT_S = 120.0
"""Long, because a parent that works through a storm acknowledges late, and coming again would not help it."""
CHECKSUM_GATE = "checksum"


class ChildState(enum.Enum):
    """Where the stream is."""

    OPENING = "opening"
    GREETING = "greeting"
    OPEN = "open"
    CLOSING = "closing"
    OVER = "over"

    __hash__ = object.__hash__  # one of a kind, looked up for each frame: Enum's own is a call in Python


ACCEPTS: dict[ChildState, frozenset[type[ParentFrame]]] = {
    ChildState.OPENING: frozenset(),
    ChildState.GREETING: frozenset({Welcome, Fenced, Goodbye}),
    ChildState.OPEN: frozenset({ResourceUpdate, ReportAck, Answer, Heartbeat, Goodbye}),
    # Frames that were under way when this side said goodbye are dropped: nothing of them is acknowledged.
    ChildState.CLOSING: frozenset({Welcome, Fenced, ResourceUpdate, ReportAck, Answer, Heartbeat, Goodbye}),
    ChildState.OVER: frozenset({Welcome, Fenced, ResourceUpdate, ReportAck, Answer, Heartbeat, Goodbye}),
}


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """Effect: the parent welcomed this session."""

    welcome: Welcome


@dataclass(frozen=True, slots=True)
class ApplyResources:
    """Effect: verify and store, then call ``resources_applied`` with the nonce and what was refused.

    ``refused`` was refused here already, for its digest.
    """

    nonce: int
    changed: tuple[Resource, ...]
    removed: tuple[ResourceKey, ...]
    refused: tuple[Rejection, ...] = ()

    @property
    def has_content(self) -> bool:
        """Whether there is anything to do: an update may be empty, to say that all is settled."""
        return bool(self.changed or self.removed)


@dataclass(frozen=True, slots=True)
class Settled:
    """Effect: for the first time in this session the child holds what the parent wants."""


@dataclass(frozen=True, slots=True)
class AcknowledgeReports:
    """Effect: reports up to ``through`` are durable at the parent."""

    through: int


@dataclass(frozen=True, slots=True)
class RestartLog:
    """Effect: take a new incarnation with a full snapshot of outcomes."""


@dataclass(frozen=True, slots=True)
class Answered:
    """Effect: an Ask got its answer."""

    answer: Answer


ChildEffect: TypeAlias = SessionOpened | ApplyResources | Settled | AcknowledgeReports | RestartLog | Answered


@dataclass(frozen=True, slots=True)
class ReportRange:
    """Reports the machine wants to send next: up to ``limit`` from number ``first`` on."""

    first: int
    limit: int


class ChildMachine:
    """One stream to the parent. ``now`` is monotonic seconds throughout."""

    def __init__(
        self, hello: Hello, *, first_report_number: int, status: Mapping[str, bytes | None], now: float
    ) -> None:
        """Start a stream from the log's numbers, the resources held and all status values."""
        self._hello = hello
        self._state = ChildState.OPENING
        self._end: SessionEnd | None = None
        self._deadline = now + HANDSHAKE_S
        self._liveness: Liveness | None = None
        self._effects: list[ChildEffect] = []
        self._goodbye: Goodbye | None = None
        self._last_nonce = 0
        self._updates: deque[ResourceUpdate] = deque(maxlen=MAX_UPDATES_IN_FLIGHT)
        self._verdicts: deque[ResourceVerdict] = deque(maxlen=MAX_UPDATES_IN_FLIGHT)
        self._is_settled = False
        self._refused: dict[int, tuple[Rejection, ...]] = {}
        self._first_number = first_report_number
        self._next_number = hello.next_report_number
        self._sent_through = self._acknowledged_through = 0
        self._ack_deadline = math.inf
        self._report_window = 0
        self._capabilities: frozenset[str] = frozenset()
        self._batch: ReportBatch | None = None
        self._status = dict(status)
        self._status_at = now
        self._asks: deque[Ask] = deque(maxlen=MAX_ASKS_IN_FLIGHT)
        self._asked: set[int] = set()
        self._last_ask_id = 0

    @property
    def state(self) -> ChildState:
        """Where the stream is."""
        return self._state

    @property
    def sent_through(self) -> int:
        """The highest report number that may have reached the parent, as far as this stream knows."""
        return max(self._sent_through, self._hello.next_report_number - 1)

    @property
    def end(self) -> SessionEnd | None:
        """How the session ended; the driver does the effects that are left, then closes the stream."""
        return self._end

    @property
    def capabilities(self) -> frozenset[str]:
        """What both sides know; empty before Welcome."""
        return self._capabilities

    # -- from the parent ---------------------------------------------------------------------------------------------

    def receive(self, frame: ParentFrame, now: float) -> None:
        """Take a frame in. Raises SessionViolationError or ProtocolVersionError; then the stream must be closed."""
        if type(frame) not in ACCEPTS[self._state]:
            raise SessionViolationError(f"a parent may not send {type(frame).__name__} in state {self._state.value}")
        if self._state in {ChildState.CLOSING, ChildState.OVER}:
            return
        if self._liveness is not None:
            self._liveness.heard(now)
        self._handle(frame, now)

    def _handle(self, frame: ParentFrame, now: float) -> None:
        match frame:
            case Welcome():
                self._welcomed(frame, now)
            case Fenced():
                self._restart(Ending.FENCED, f"parent is at report {frame.reports_through} of this incarnation")
            case ResourceUpdate():
                self._update(frame)
            case ReportAck():
                self._report_ack(frame.through, now)
            case Answer():
                self._answer(frame)
            case Heartbeat():
                self._heartbeat(frame)
            case Goodbye():
                self._finish(SessionEnd(Ending.GOODBYE_RECEIVED, frame.reason, frame.retry_after_ms / 1000))

    def _welcomed(self, welcome: Welcome, now: float) -> None:
        through = welcome.reports_through
        check_choice(self._hello, welcome)
        if through >= self._hello.next_report_number:
            raise SessionViolationError(f"parent welcomes with report {through}, which was never sent")
        if welcome.heartbeat_interval_ms <= 0 or welcome.report_window <= 0:
            raise SessionViolationError("parent welcomes with a heartbeat interval or report window of 0")
        if welcome.heartbeat_interval_ms > MAX_HEARTBEAT_INTERVAL_MS:
            raise SessionViolationError(
                f"parent welcomes with a heartbeat every {welcome.heartbeat_interval_ms} ms, at most"
                f" {MAX_HEARTBEAT_INTERVAL_MS} are accepted: a silent one could hold this child for ever"
            )
        if through + 1 < self._first_number:
            self._restart(
                Ending.REPORTS_LOST, f"parent is at report {through}, had acknowledged {self._first_number - 1}"
            )
            return
        self._state = ChildState.OPEN
        self._liveness = Liveness(welcome.heartbeat_interval_ms / 1000, now)
        self._sent_through = self._acknowledged_through = through
        self._report_window = welcome.report_window
        self._capabilities = shared_capabilities(frozenset(self._hello.capabilities), welcome.capabilities)
        if through >= self._first_number:
            self._effects.append(AcknowledgeReports(through))
        self._effects.append(SessionOpened(welcome))

    def _restart(self, ending: Ending, reason: str) -> None:
        self._effects.append(RestartLog())
        self._finish(SessionEnd(ending, reason))

    def _update(self, update: ResourceUpdate) -> None:
        if update.nonce <= self._last_nonce:
            raise SessionViolationError(f"update {update.nonce} came after {self._last_nonce}")
        if len(self._updates) + len(self._verdicts) == MAX_UPDATES_IN_FLIGHT:
            raise SessionViolationError(f"more than {MAX_UPDATES_IN_FLIGHT} updates are unanswered")
        self._last_nonce = update.nonce
        self._updates.append(update)
        genuine, refused = [], []
        for resource in update.changed:
            if hashlib.sha256(resource.content).hexdigest() == resource.digest:
                genuine.append(resource)
            else:
                reason = "content does not match its digest"
                refused.append(Rejection(resource.key, resource.digest, CHECKSUM_GATE, reason))
        self._refused[update.nonce] = tuple(refused)
        self._effects.append(ApplyResources(update.nonce, tuple(genuine), update.removed, tuple(refused)))

    def _report_ack(self, through: int, now: float) -> None:
        if not self._acknowledged_through <= through <= self._sent_through:
            raise SessionViolationError(
                f"report {through} acknowledged, sent are {self._acknowledged_through + 1} to {self._sent_through}"
            )
        if through > self._acknowledged_through:
            self._acknowledged_through = through
            self._ack_deadline = math.inf if through == self._sent_through else now + ACK_TIMEOUT_S
            self._effects.append(AcknowledgeReports(through))

    def _answer(self, answer: Answer) -> None:
        if answer.ask_id not in self._asked:
            raise SessionViolationError(f"answer to ask {answer.ask_id}, which is not open")
        self._asked.remove(answer.ask_id)
        self._effects.append(Answered(answer))

    def _heartbeat(self, frame: Heartbeat) -> None:
        if self._liveness is not None and not self._liveness.accept(frame.sequence):
            raise SessionViolationError(f"heartbeat {frame.sequence} does not count up")

    def _finish(self, end: SessionEnd) -> None:
        self._state, self._end = ChildState.OVER, end

    # -- from this side ----------------------------------------------------------------------------------------------

    def resources_applied(self, nonce: int, rejected: Sequence[Rejection]) -> None:
        """The oldest unanswered update is durable here but for what is rejected."""
        update = self._updates.popleft()
        if update.nonce != nonce:
            msg = f"update {nonce} applied, {update.nonce} is the oldest"
            raise RuntimeError(msg)
        self._verdicts.append(ResourceVerdict(nonce, (*self._refused.pop(nonce), *rejected)))
        if update.settled and not self._is_settled:
            self._is_settled = True
            self._effects.append(Settled())

    def reports_appended(self, next_number: int) -> None:
        """The log has grown to just below ``next_number``."""
        self._next_number = max(self._next_number, next_number)

    def wanted_reports(self) -> ReportRange | None:
        """What to read from the log for the next batch, None when there is nothing to send or no room in the window."""
        if self._state is not ChildState.OPEN or self._batch is not None:
            return None
        room = self._acknowledged_through + self._report_window - self._sent_through
        limit = min(room, MAX_REPORTS_PER_BATCH, self._next_number - 1 - self._sent_through)
        return ReportRange(self._sent_through + 1, limit) if limit > 0 else None

    def reports_read(self, first: int, reports: Sequence[Report]) -> None:
        """What the log had for ``wanted_reports``; as many as fit one frame make the next batch."""
        size, count = 0, 0
        for report in reports:
            size += len(report.body)
            if size > MAX_BATCH_BYTES:
                break
            count += 1
        if count:
            self._batch = ReportBatch(first, tuple(reports[:count]))

    def set_status(self, key: str, body: bytes | None) -> None:
        """Send this value next time, in place of an older one not sent yet."""
        self._status[key] = body

    def ask(self, kind: str, body: bytes) -> int:
        """Queue a question; its number names the answer. Raises LinkDownError, BusyError."""
        if self._state is not ChildState.OPEN:
            raise LinkDownError("no session with the parent")
        if len(body) > MAX_ASK_BYTES:
            msg = f"an ask has {len(body)} bytes, at most {MAX_ASK_BYTES} travel"
            raise RuntimeError(msg)
        if len(self._asked) >= MAX_ASKS_IN_FLIGHT:
            raise BusyError(f"{MAX_ASKS_IN_FLIGHT} asks are unanswered", ASK_RETRY_S)
        self._last_ask_id += 1
        self._asked.add(self._last_ask_id)
        self._asks.append(Ask(self._last_ask_id, kind, body))
        return self._last_ask_id

    def close(self, reason: str) -> None:
        """Say goodbye next."""
        if self._state is ChildState.OPEN:
            self._state = ChildState.CLOSING
            self._goodbye = Goodbye(reason)
        elif self._state is not ChildState.OVER:
            self._finish(SessionEnd(Ending.GOODBYE_SENT, reason))

    # -- to the driver -----------------------------------------------------------------------------------------------

    def take_effects(self) -> Sequence[ChildEffect]:
        """Effects to do now, in order. Call ``work_done`` after them and take again, until there are none."""
        effects, self._effects = self._effects, []
        if effects and self._liveness is not None:
            self._liveness.work()
        return effects

    def work_done(self, now: float) -> None:
        """The effects taken are done; the stream is read again."""
        if self._liveness is not None:
            self._liveness.rest(now)

    def get_timer(self) -> float:
        """When to call ``handle_timer``; infinity when never."""
        if self._state is ChildState.OVER:
            return math.inf
        if self._liveness is None:
            return self._deadline
        timer = min(self._liveness.heartbeat_at, self._slow_at(self._liveness))
        return min(timer, self._status_at) if self._status else timer

    def handle_timer(self, now: float) -> None:
        """Notice silence. What else time brings (heartbeat, status) ``next_frame`` tells."""
        if self._state is ChildState.OVER:
            return
        dead_at = self._deadline if self._liveness is None else self._liveness.dead_at
        if now >= dead_at:
            self._finish(SessionEnd(Ending.PEER_SILENT, "nothing heard from the parent"))
        elif self._liveness is not None and now >= self._slow_at(self._liveness):
            self._finish(SessionEnd(Ending.PEER_SLOW, "reports were not acknowledged in time"))

    def _slow_at(self, liveness: Liveness) -> float:
        """When the parent is given up; never while this side works and reads no acknowledgement either."""
        return min(liveness.dead_at, self._ack_deadline) if liveness.dead_at < math.inf else math.inf

    def next_frame(self, now: float) -> ChildFrame | None:
        """The most urgent frame there is, None when nothing is to be sent at ``now``."""
        if self._state is ChildState.OPENING:
            self._state = ChildState.GREETING
            return self._hello
        if self._liveness is None or self._state is ChildState.OVER:
            return None
        frame = self._most_urgent(self._liveness, now)
        if frame is not None:
            self._liveness.sent(now)
        return frame

    def _most_urgent(self, liveness: Liveness, now: float) -> ChildFrame | None:
        if self._goodbye is not None:
            self._finish(SessionEnd(Ending.GOODBYE_SENT, self._goodbye.reason))
            return self._goodbye
        if self._verdicts:
            return self._verdicts.popleft()
        if self._asks:
            return self._asks.popleft()
        if self._batch is not None:
            batch, self._batch = self._batch, None
            self._sent_through = batch.first_number + len(batch.reports) - 1
            self._ack_deadline = min(self._ack_deadline, now + ACK_TIMEOUT_S)
            return batch
        if self._status and now >= self._status_at:
            self._status_at = now + STATUS_INTERVAL_S
            return self._status_update()
        return Heartbeat(liveness.next_sequence()) if now >= liveness.heartbeat_at else None

    def _status_update(self) -> StatusUpdate:
        """As many of the changed values as fit; the rest goes with the next update."""
        entries: list[StatusEntry] = []
        size = 0
        while self._status and len(entries) < MAX_STATUS_ENTRIES and size < STATUS_FRAME_BYTES:
            key = next(iter(self._status))
            body = self._status.pop(key)
            entries.append(StatusEntry(key, body))
            size += len(key) + len(body or b"")
        return StatusUpdate(tuple(entries))
