"""The parent's end of one session stream, as a pure machine: frames and times in, frames and effects out.

Theory. The parent knows what a child should hold (``offer``) and what it does hold (Hello, then its verdicts). Nothing
else is remembered of a stream, so one that breaks loses nothing: the next Hello tells the truth again.

    WAITING --hello: Admit--> ADMITTING --cursor below the child's next number--> OPEN
                                  +--cursor not below--> CLOSING --fenced sent--> OVER
    OPEN --close()--> CLOSING --goodbye sent--> OVER
    OPEN --goodbye received, child silent, update unanswered for too long--> OVER

Rules.
1. State is the queue: ``next_frame`` computes the next frame from what differs, in the order welcome, fenced and
   goodbye, urgent resources, report acknowledgement, answers, other resources, heartbeat.
2. Persist, then send: reports are acknowledged only after ``reports_applied``, which the driver calls when effect and
   cursor are durable. A batch must start where the last one ended.
3. Resources are the business of ``lanes.py``.
4. A frame outside ``ACCEPTS`` for the state, a number out of order, a bound exceeded: SessionViolationError.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from wavemesh.session.faults import SessionViolationError
from wavemesh.session.frames import (
    MAX_ASKS_IN_FLIGHT,
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
    ResourceVerdict,
    StatusEntry,
    StatusUpdate,
    Welcome,
)
from wavemesh.session.lanes import ResourceLanes
from wavemesh.session.liveness import Ending, Liveness, SessionEnd
from wavemesh.session.negotiation import Dialect, choose_version, shared_capabilities

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class ParentState(enum.Enum):
    """Where the stream is."""

    WAITING = "waiting"
    ADMITTING = "admitting"
    OPEN = "open"
    CLOSING = "closing"
    OVER = "over"

    __hash__ = object.__hash__  # one of a kind, looked up for each frame: Enum's own is a call in Python


_ALL = frozenset({Hello, ReportBatch, StatusUpdate, ResourceVerdict, Ask, Heartbeat, Goodbye})
ACCEPTS: dict[ParentState, frozenset[type[ChildFrame]]] = {
    ParentState.WAITING: frozenset({Hello, Goodbye}),
    # A child says nothing but goodbye until it is welcomed.
    ParentState.ADMITTING: frozenset({Goodbye}),
    ParentState.OPEN: _ALL - {Hello},
    # What was under way when this side said goodbye is dropped unacknowledged.
    ParentState.CLOSING: _ALL,
    ParentState.OVER: _ALL,
}


@dataclass(frozen=True, slots=True)
class ParentOptions:
    """A parent's terms; times in seconds."""

    software_version: str
    heartbeat_interval_s: float = 10.0
    handshake_s: float = 20.0
    verdict_timeout_s: float = 60.0
    report_window: int = 512
    # Small enough that an urgent resource does not wait long behind an update on a slow link.
    update_bytes: int = 64 * 1024
    dialect: Dialect = field(default_factory=Dialect)


@dataclass(frozen=True, slots=True)
class Admit:
    """Effect: decide whether the child may connect, look its cursor up, then call ``admitted``."""

    hello: Hello


@dataclass(frozen=True, slots=True)
class ApplyReports:
    """Effect: apply the reports and move the cursor in one transaction, then call ``reports_applied``."""

    first_number: int
    reports: tuple[Report, ...]


@dataclass(frozen=True, slots=True)
class NoteVerdict:
    """Effect: the child answered an update."""

    accepted: tuple[Resource, ...]
    rejected: tuple[Rejection, ...]


@dataclass(frozen=True, slots=True)
class NoteStatus:
    """Effect: the child's status changed."""

    entries: tuple[StatusEntry, ...]


@dataclass(frozen=True, slots=True)
class AnswerAsk:
    """Effect: find an answer and call ``answered``. Not waited for: the stream is read on meanwhile."""

    ask: Ask


ParentEffect: TypeAlias = Admit | ApplyReports | NoteVerdict | NoteStatus | AnswerAsk


class ParentMachine:
    """One stream from a child. ``now`` is monotonic seconds throughout."""

    def __init__(self, options: ParentOptions, *, session_id: str, epoch: str, now: float) -> None:
        """Wait for a Hello."""
        self._options = options
        self._session_id = session_id
        self._epoch = epoch
        self._state = ParentState.WAITING
        self._end: SessionEnd | None = None
        self._liveness: Liveness | None = None
        self._deadline = now + options.handshake_s
        self._effects: list[ParentEffect] = []
        self._greeting: Welcome | Fenced | None = None
        self._goodbye: Goodbye | None = None
        self._version = 0
        self._capabilities: frozenset[str] = frozenset()
        self._next_report_number = 0
        self._received_through = self._applied_through = self._told_through = 0
        self._lanes = ResourceLanes((), update_bytes=0, verdict_timeout_s=0)
        self._asked: set[int] = set()
        self._last_ask_id = 0
        self._answers: deque[Answer] = deque(maxlen=MAX_ASKS_IN_FLIGHT)

    @property
    def state(self) -> ParentState:
        """Where the stream is."""
        return self._state

    @property
    def end(self) -> SessionEnd | None:
        """How the session ended; the driver does the effects that are left, then closes the stream."""
        return self._end

    @property
    def capabilities(self) -> frozenset[str]:
        """What both sides know; empty before Hello."""
        return self._capabilities

    # -- from the child ----------------------------------------------------------------------------------------------

    def receive(self, frame: ChildFrame, now: float) -> None:
        """Take a frame in. Raises SessionViolationError or ProtocolVersionError; then the stream must be closed."""
        if type(frame) not in ACCEPTS[self._state]:
            raise SessionViolationError(f"a child may not send {type(frame).__name__} in state {self._state.value}")
        if self._state in {ParentState.CLOSING, ParentState.OVER}:
            return
        if self._liveness is not None:
            self._liveness.heard(now)
        self._handle(frame)

    def _handle(self, frame: ChildFrame) -> None:
        match frame:
            case Hello():
                self._hello(frame)
            case ReportBatch():
                self._reports(frame)
            case StatusUpdate():
                self._effects.append(NoteStatus(frame.entries))
            case ResourceVerdict():
                self._effects.append(NoteVerdict(self._lanes.verdict(frame), frame.rejected))
            case Ask():
                self._ask(frame)
            case Heartbeat():
                if self._liveness is not None and not self._liveness.accept(frame.sequence):
                    raise SessionViolationError(f"heartbeat {frame.sequence} does not count up")
            case Goodbye():
                self._finish(SessionEnd(Ending.GOODBYE_RECEIVED, frame.reason))

    def _hello(self, hello: Hello) -> None:
        dialect = self._options.dialect
        self._version = choose_version(dialect, hello)
        if hello.next_report_number < 1 or not hello.incarnation:
            raise SessionViolationError("hello without incarnation or with report number 0")
        self._capabilities = shared_capabilities(dialect.capabilities, hello.capabilities)
        self._next_report_number = hello.next_report_number
        options = self._options
        self._lanes = ResourceLanes(
            hello.held, update_bytes=options.update_bytes, verdict_timeout_s=options.verdict_timeout_s
        )
        self._state = ParentState.ADMITTING
        self._effects.append(Admit(hello))

    def _reports(self, batch: ReportBatch) -> None:
        if batch.first_number != self._received_through + 1 or not batch.reports:
            raise SessionViolationError(f"reports from {batch.first_number} on came after {self._received_through}")
        self._received_through += len(batch.reports)
        if self._received_through - self._applied_through > self._options.report_window:
            raise SessionViolationError(f"more than {self._options.report_window} reports are unacknowledged")
        self._effects.append(ApplyReports(batch.first_number, batch.reports))

    def _ask(self, ask: Ask) -> None:
        if ask.ask_id <= self._last_ask_id:
            raise SessionViolationError(f"ask {ask.ask_id} came after {self._last_ask_id}")
        if len(self._asked) + len(self._answers) >= MAX_ASKS_IN_FLIGHT:
            raise SessionViolationError(f"more than {MAX_ASKS_IN_FLIGHT} asks are unanswered")
        self._last_ask_id = ask.ask_id
        self._asked.add(ask.ask_id)
        self._effects.append(AnswerAsk(ask))

    def _finish(self, end: SessionEnd) -> None:
        self._state, self._end = ParentState.OVER, end

    # -- from this side ----------------------------------------------------------------------------------------------

    def admitted(self, cursor: int, now: float) -> None:
        """The child may connect; ``cursor`` is the highest report of its incarnation whose effect is durable here."""
        if self._state is not ParentState.ADMITTING:
            return
        self._liveness = Liveness(self._options.heartbeat_interval_s, now)
        if cursor >= self._next_report_number:
            self._greeting = Fenced(cursor)
            self._state = ParentState.CLOSING
            return
        self._received_through = self._applied_through = self._told_through = cursor
        self._state = ParentState.OPEN
        self._greeting = Welcome(
            protocol_version=self._version,
            software_version=self._options.software_version,
            session_id=self._session_id,
            reports_through=cursor,
            heartbeat_interval_ms=round(self._options.heartbeat_interval_s * 1000),
            report_window=self._options.report_window,
            epoch=self._epoch,
            capabilities=tuple(sorted(self._capabilities)),
        )

    def reports_applied(self, through: int) -> None:
        """Effect and cursor of all reports up to ``through`` are durable."""
        if not self._applied_through < through <= self._received_through:
            msg = f"reports applied through {through}, received {self._received_through}"
            raise RuntimeError(msg)
        self._applied_through = through

    def offer(self, desired: Mapping[ResourceKey, Resource]) -> None:
        """The whole desired state of the child from now on, in the order to send it. Raises TooManyResourcesError."""
        self._lanes.offer(desired)

    def answered(self, answer: Answer) -> None:
        """The answer to an Ask was found, or why there is none."""
        if answer.ask_id in self._asked:
            self._asked.remove(answer.ask_id)
            self._answers.append(answer)

    def close(self, reason: str, retry_after_s: float = 0.0) -> None:
        """Say goodbye next."""
        if self._state is ParentState.OPEN:
            self._state = ParentState.CLOSING
            self._goodbye = Goodbye(reason, round(retry_after_s * 1000))
        elif self._state not in {ParentState.CLOSING, ParentState.OVER}:
            self._finish(SessionEnd(Ending.GOODBYE_SENT, reason))

    # -- to the driver -----------------------------------------------------------------------------------------------

    def take_effects(self) -> Sequence[ParentEffect]:
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
        if self._state is ParentState.OVER:
            return math.inf
        if self._liveness is None:
            return self._deadline if self._state is ParentState.WAITING else math.inf
        return min(self._liveness.heartbeat_at, self._liveness.dead_at, self._lanes.deadline)

    def handle_timer(self, now: float) -> None:
        """Notice a silent or slow child. That a heartbeat is due ``next_frame`` tells."""
        if self._state is ParentState.OVER:
            return
        dead_at = self._liveness.dead_at if self._liveness is not None else self._deadline
        if now >= dead_at and self._state is not ParentState.ADMITTING:
            self._finish(SessionEnd(Ending.PEER_SILENT, "nothing heard from the child"))
        elif now >= self._lanes.deadline:
            self._finish(SessionEnd(Ending.PEER_SLOW, "a resource update was not answered in time"))

    def next_frame(self, now: float) -> ParentFrame | None:
        """The most urgent frame there is, None when nothing is to be sent at ``now``."""
        if self._liveness is None or self._state is ParentState.OVER:
            return None
        frame = self._greet_or_part() or self._most_urgent(self._liveness, now)
        if frame is not None:
            self._liveness.sent(now)
        return frame

    def _greet_or_part(self) -> ParentFrame | None:
        if self._greeting is not None:
            greeting, self._greeting = self._greeting, None
            if isinstance(greeting, Fenced):
                self._finish(SessionEnd(Ending.FENCED, "the child's report numbers are behind"))
            return greeting
        if self._goodbye is not None:
            self._finish(SessionEnd(Ending.GOODBYE_SENT, self._goodbye.reason))
        return self._goodbye

    def _most_urgent(self, liveness: Liveness, now: float) -> ParentFrame | None:
        urgent = self._lanes.next_urgent(now)
        if urgent is not None:
            return urgent
        if self._applied_through > self._told_through:
            self._told_through = self._applied_through
            return ReportAck(self._told_through)
        if self._answers:
            return self._answers.popleft()
        other = self._lanes.next_other(now)
        if other is not None:
            return other
        return Heartbeat(liveness.next_sequence()) if now >= liveness.heartbeat_at else None
