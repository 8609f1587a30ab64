"""The parent's machine: its table, its order of frames, its bounds."""

from __future__ import annotations

import pytest

from tests.session_kit import by_key, resource
from wavemesh.session.faults import ProtocolVersionError, SessionViolationError
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
    Report,
    ReportAck,
    ReportBatch,
    ResourceUpdate,
    ResourceVerdict,
    StatusEntry,
    StatusUpdate,
    Welcome,
)
from wavemesh.session.liveness import Ending
from wavemesh.session.parent import (
    ACCEPTS,
    Admit,
    AnswerAsk,
    ApplyReports,
    NoteStatus,
    NoteVerdict,
    ParentMachine,
    ParentOptions,
    ParentState,
)

OPTIONS = ParentOptions("parent/1", heartbeat_interval_s=1.0, handshake_s=5.0, verdict_timeout_s=9.0, report_window=4)
HELLO = Hello(1, "child/1", "i", 11, ())
REPORT = Report("event", b"x")
FRAMES: tuple[ChildFrame, ...] = (
    HELLO,
    ReportBatch(5, (REPORT,)),
    StatusUpdate((StatusEntry("a", b""),)),
    ResourceVerdict(1, ()),
    Ask(1, "echo", b""),
    Heartbeat(1),
    Goodbye("draining"),
)


def machine(state: ParentState = ParentState.OPEN) -> ParentMachine:
    """A machine in that state at time 0; when open, it welcomed with cursor 4 and offers nothing yet."""
    made = ParentMachine(OPTIONS, session_id="s", epoch="e", now=0.0)
    if state is ParentState.WAITING:
        return made
    made.receive(HELLO, 0.0)
    assert drain(made) == [Admit(HELLO)]
    if state is ParentState.ADMITTING:
        return made
    made.admitted(4, 0.0)
    assert frames(made) == [Welcome(1, "parent/1", "s", 4, 1000, 4, "e")]
    if state in {ParentState.CLOSING, ParentState.OVER}:
        made.close("stopping", 1.5)
    if state is ParentState.OVER:
        made.next_frame(0.0)
    assert made.state is state
    return made


def drain(made: ParentMachine) -> list[object]:
    effects: list[object] = []
    while taken := made.take_effects():
        effects += taken
    made.work_done(0.0)
    return effects


def ending(made: ParentMachine) -> Ending | None:
    return made.end.ending if made.end is not None else None


def frames(made: ParentMachine, now: float = 0.0) -> list[ParentFrame]:
    found = []
    while (frame := made.next_frame(now)) is not None:
        found.append(frame)
    return found


@pytest.mark.parametrize("state", list(ParentState))
@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: type(frame).__name__)
def test_table_of_states_and_frames(state: ParentState, frame: ChildFrame) -> None:
    """Every frame in every state is accepted or a violation, exactly as the table says."""
    made = machine(state)
    if state is ParentState.OPEN:
        made.offer({})
        made.next_frame(0.0)
    if type(frame) in ACCEPTS[state]:
        made.receive(frame, 1.0)
        if state in {ParentState.CLOSING, ParentState.OVER}:
            assert drain(made) == []
            assert made.state is state
    else:
        with pytest.raises(SessionViolationError):
            made.receive(frame, 1.0)


@pytest.mark.parametrize(("cursor", "fenced"), [(0, False), (10, False), (11, True), (12, True)])
def test_fencing(cursor: int, fenced: bool) -> None:  # noqa: FBT001  # a table's column
    """Semantics: fenced when the cursor is not below the child's next number."""
    made = machine(ParentState.ADMITTING)
    assert frames(made) == []
    made.admitted(cursor, 0.0)
    [frame] = frames(made)
    assert isinstance(frame, Fenced if fenced else Welcome)
    assert frame.reports_through == cursor
    assert (ending(made) is Ending.FENCED) == fenced


def test_hello_is_checked() -> None:
    for hello, error in (
        (Hello(0, "", "i", 1, ()), ProtocolVersionError),
        (Hello(1, "", "", 1, ()), SessionViolationError),
        (Hello(1, "", "i", 0, ()), SessionViolationError),
    ):
        with pytest.raises(error):
            machine(ParentState.WAITING).receive(hello, 0.0)
    newer = ParentMachine(OPTIONS, session_id="s", epoch="e", now=0.0)
    newer.receive(Hello(7, "", "i", 1, (), 1), 0.0)
    newer.admitted(0, 0.0)
    [welcome] = frames(newer)
    assert isinstance(welcome, Welcome)
    assert welcome.protocol_version == 1


def test_reports_are_acknowledged_after_they_are_applied_and_no_further() -> None:
    """Persist, then send; M3."""
    made = machine()
    made.receive(ReportBatch(5, (REPORT, REPORT)), 0.0)
    made.receive(ReportBatch(7, (REPORT,)), 0.0)
    assert drain(made) == [ApplyReports(5, (REPORT, REPORT)), ApplyReports(7, (REPORT,))]
    assert frames(made) == []
    made.reports_applied(6)
    assert frames(made) == [ReportAck(6)]
    made.reports_applied(7)
    assert frames(made) == [ReportAck(7)]
    for through in (7, 8):
        with pytest.raises(RuntimeError):
            made.reports_applied(through)


@pytest.mark.parametrize(
    "batch", [ReportBatch(4, (REPORT,)), ReportBatch(6, (REPORT,)), ReportBatch(5, ()), ReportBatch(5, (REPORT,) * 5)]
)
def test_gaps_repeats_and_overflow_are_violations(batch: ReportBatch) -> None:
    with pytest.raises(SessionViolationError):
        machine().receive(batch, 0.0)


def test_order_of_frames() -> None:
    """Urgent resources, acknowledgement, answers, other resources, heartbeat; goodbye before all."""
    made = machine()
    made.offer(by_key(resource("slow"), resource("halt", urgent=True)))
    made.receive(ReportBatch(5, (REPORT,)), 0.0)
    made.receive(Ask(1, "echo", b""), 0.0)
    assert drain(made) == [ApplyReports(5, (REPORT,)), AnswerAsk(Ask(1, "echo", b""))]
    made.reports_applied(5)
    made.answered(Answer(1, b"x"))
    made.answered(Answer(1, b"again"))
    urgent, ack, answer, other = frames(made, 0.5)
    assert isinstance(urgent, ResourceUpdate)
    assert [r.key.name for r in urgent.changed] == ["halt"]
    assert ack == ReportAck(5)
    assert answer == Answer(1, b"x")
    assert isinstance(other, ResourceUpdate)
    assert [r.key.name for r in other.changed] == ["slow"]
    assert frames(made, 1.4) == []
    assert frames(made, 1.5) == [Heartbeat(1)]
    made.close("stopping", 2.0)
    assert frames(made, 9.0) == [Goodbye("stopping", 2000)]


def test_verdicts_and_status_become_effects() -> None:
    made = machine()
    good = resource("good")
    made.offer(by_key(good))
    [update] = frames(made)
    assert isinstance(update, ResourceUpdate)
    made.receive(ResourceVerdict(update.nonce, ()), 0.0)
    made.receive(StatusUpdate((StatusEntry("a", None),)), 0.0)
    assert drain(made) == [NoteVerdict((good,), ()), NoteStatus((StatusEntry("a", None),))]


def test_asks_are_bounded_and_count_up() -> None:
    made = machine()
    for number in range(1, MAX_ASKS_IN_FLIGHT + 1):
        made.receive(Ask(number, "echo", b""), 0.0)
    with pytest.raises(SessionViolationError, match="unanswered"):
        made.receive(Ask(99, "echo", b""), 0.0)
    made.answered(Answer(1, b""))
    frames(made)
    with pytest.raises(SessionViolationError, match="came after"):
        made.receive(Ask(MAX_ASKS_IN_FLIGHT, "echo", b""), 0.0)
    made.receive(Ask(99, "echo", b""), 0.0)


def test_silent_and_slow_children_are_given_up() -> None:
    """M6."""
    waiting = machine(ParentState.WAITING)
    assert waiting.get_timer() == 5.0
    waiting.handle_timer(5.0)
    assert ending(waiting) is Ending.PEER_SILENT
    admitting = machine(ParentState.ADMITTING)
    admitting.handle_timer(1000.0)
    assert ending(admitting) is None
    silent = machine()
    silent.handle_timer(2.49)
    assert ending(silent) is None
    silent.handle_timer(2.5)
    assert ending(silent) is Ending.PEER_SILENT
    slow = machine()
    slow.offer({})
    frames(slow)
    for second in range(1, 9):
        slow.receive(Heartbeat(second), float(second))
        frames(slow, float(second))
    slow.handle_timer(8.9)
    assert ending(slow) is None
    assert slow.get_timer() == 9.0
    slow.handle_timer(9.0)
    assert ending(slow) is Ending.PEER_SLOW


def test_closing_before_welcome_ends_at_once() -> None:
    made = machine(ParentState.ADMITTING)
    made.close("stopping")
    made.admitted(0, 0.0)
    assert frames(made) == []
    assert made.state is ParentState.OVER


def test_a_welcome_not_sent_yet_goes_before_goodbye() -> None:
    made = machine(ParentState.ADMITTING)
    made.admitted(4, 0.0)
    made.close("stopping")
    assert [type(frame) for frame in frames(made)] == [Welcome, Goodbye]
