"""The child's machine: its table, its order of frames, its bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.session_kit import resource
from wavemesh.errors import BusyError, LinkDownError
from wavemesh.session.child import (
    ACCEPTS,
    ACK_TIMEOUT_S,
    HANDSHAKE_S,
    STATUS_INTERVAL_S,
    AcknowledgeReports,
    Answered,
    ApplyResources,
    ChildMachine,
    ChildState,
    ReportRange,
    RestartLog,
    SessionOpened,
    Settled,
)
from wavemesh.session.faults import SessionViolationError
from wavemesh.session.frames import (
    MAX_ASKS_IN_FLIGHT,
    MAX_BATCH_BYTES,
    MAX_HEARTBEAT_INTERVAL_MS,
    MAX_REPORT_BYTES,
    MAX_STATUS_ENTRIES,
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
    ResourceUpdate,
    ResourceVerdict,
    StatusEntry,
    StatusUpdate,
    Welcome,
)
from wavemesh.session.liveness import DEAD_AFTER_INTERVALS, Ending

if TYPE_CHECKING:
    from collections.abc import Mapping

HELLO = Hello(1, "child/1", "i", 11, ())
WELCOME = Welcome(1, "parent/1", "s", 4, 1000, 4, "e")
FRAMES: tuple[ParentFrame, ...] = (
    WELCOME,
    Fenced(11),
    ResourceUpdate(1, (), (), settled=True),
    ReportAck(4),
    Answer(1, b""),
    Heartbeat(1),
    Goodbye("stopping", 1500),
)


def machine(
    state: ChildState = ChildState.OPEN, *, first: int = 1, status: Mapping[str, bytes | None] | None = None
) -> ChildMachine:
    """A machine in that state at time 0, with no effects left."""
    made = ChildMachine(HELLO, first_report_number=first, status=status or {}, now=0.0)
    if state is ChildState.OPENING:
        return made
    assert made.next_frame(0.0) == HELLO
    if state is ChildState.GREETING:
        return made
    made.receive(WELCOME, 0.0)
    drain(made)
    if state in {ChildState.CLOSING, ChildState.OVER}:
        made.close("draining")
    if state is ChildState.OVER:
        made.next_frame(0.0)
    assert made.state is state
    return made


def drain(made: ChildMachine) -> list[object]:
    effects: list[object] = []
    while taken := made.take_effects():
        effects += taken
    made.work_done(0.0)
    return effects


def ending(made: ChildMachine) -> Ending | None:
    return made.end.ending if made.end is not None else None


def frames(made: ChildMachine, now: float = 0.0) -> list[ChildFrame]:
    found = []
    while (frame := made.next_frame(now)) is not None:
        found.append(frame)
    return found


@pytest.mark.parametrize("state", list(ChildState))
@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: type(frame).__name__)
def test_table_of_states_and_frames(state: ChildState, frame: ParentFrame) -> None:
    """Every frame in every state is accepted or a violation, exactly as the table says."""
    made = machine(state)
    made.ask("x", b"") if state is ChildState.OPEN else None
    if type(frame) in ACCEPTS[state]:
        made.receive(frame, 1.0)
        if state in {ChildState.CLOSING, ChildState.OVER}:
            assert drain(made) == []
            assert made.state is state
    else:
        with pytest.raises(SessionViolationError):
            made.receive(frame, 1.0)


def test_hello_is_the_first_frame_and_nothing_follows_before_welcome() -> None:
    made = machine(ChildState.OPENING, status={"device": b"x"})
    assert frames(made, 100.0) == [HELLO]
    with pytest.raises(LinkDownError):
        made.ask("echo", b"")


def test_welcome_acknowledges_and_opens_in_this_order() -> None:
    made = machine(ChildState.GREETING, first=2)
    made.receive(WELCOME, 0.0)
    assert drain(made) == [AcknowledgeReports(4), SessionOpened(WELCOME)]
    assert made.wanted_reports() == ReportRange(5, 4)


@pytest.mark.parametrize(
    "welcome",
    [
        replace(WELCOME, reports_through=11),
        replace(WELCOME, heartbeat_interval_ms=0),
        replace(WELCOME, heartbeat_interval_ms=MAX_HEARTBEAT_INTERVAL_MS + 1),
        replace(WELCOME, report_window=0),
    ],
)
def test_impossible_welcomes_are_violations(welcome: Welcome) -> None:
    made = machine(ChildState.GREETING)
    with pytest.raises(SessionViolationError):
        made.receive(welcome, 0.0)


@pytest.mark.parametrize(
    ("frame", "first", "ending"), [(Fenced(11), 1, Ending.FENCED), (WELCOME, 6, Ending.REPORTS_LOST)]
)
def test_what_restarts_the_log(frame: ParentFrame, first: int, ending: Ending) -> None:
    """Fenced, or a parent whose cursor is below what was acknowledged and forgotten here."""
    made = machine(ChildState.GREETING, first=first)
    made.receive(frame, 0.0)
    assert drain(made) == [RestartLog()]
    assert made.end is not None
    assert made.end.ending is ending


def test_a_verdict_waits_for_the_sink_and_settled_is_said_once() -> None:
    """Persist, then send."""
    made = machine()
    good, forged = resource("good", b"x"), replace(resource("forged", b"y"), content=b"z")
    made.receive(ResourceUpdate(1, (good, forged), (), settled=False), 0.0)
    made.receive(ResourceUpdate(2, (), (good.key,), settled=True), 0.0)
    unlike = Rejection(forged.key, forged.digest, "checksum", "content does not match its digest")
    assert drain(made) == [ApplyResources(1, (good,), (), (unlike,)), ApplyResources(2, (), (good.key,))]
    assert frames(made) == []
    refused = Rejection(good.key, good.digest, "signature", "no")
    made.resources_applied(1, (refused,))
    assert drain(made) == []
    [verdict] = frames(made)
    assert isinstance(verdict, ResourceVerdict)
    assert verdict.nonce == 1
    assert [rejection.gate for rejection in verdict.rejected] == ["checksum", "signature"]
    made.resources_applied(2, ())
    assert drain(made) == [Settled()]
    assert frames(made) == [ResourceVerdict(2, ())]
    made.receive(ResourceUpdate(3, (), (), settled=True), 0.0)
    drain(made)
    made.resources_applied(3, ())
    assert drain(made) == []


def test_updates_out_of_bounds_are_violations() -> None:
    made = machine()
    made.receive(ResourceUpdate(5, (), (), settled=False), 0.0)
    for nonce in (5, 4):
        with pytest.raises(SessionViolationError, match="came after"):
            made.receive(ResourceUpdate(nonce, (), (), settled=False), 0.0)
    made.receive(ResourceUpdate(6, (), (), settled=False), 0.0)
    made.resources_applied(5, ())
    with pytest.raises(SessionViolationError, match="more than 2"):
        made.receive(ResourceUpdate(7, (), (), settled=False), 0.0)
    with pytest.raises(RuntimeError):
        made.resources_applied(7, ())


def test_reports_flow_within_the_window() -> None:
    made = machine()
    made.reports_read(5, [Report("event", bytes([n])) for n in range(5, 9)])
    assert made.wanted_reports() is None
    [batch] = frames(made)
    assert isinstance(batch, ReportBatch)
    assert (batch.first_number, len(batch.reports)) == (5, 4)
    assert made.wanted_reports() is None
    made.receive(ReportAck(6), 0.0)
    assert drain(made) == [AcknowledgeReports(6)]
    assert made.wanted_reports() == ReportRange(9, 2)
    made.receive(ReportAck(6), 0.0)
    assert drain(made) == []
    for through in (5, 9):
        with pytest.raises(SessionViolationError, match="acknowledged"):
            made.receive(ReportAck(through), 0.0)
    made.reports_appended(20)
    made.receive(ReportAck(8), 0.0)
    assert made.wanted_reports() == ReportRange(9, 4)
    made.reports_read(9, [])
    assert frames(made) == []


def test_a_batch_keeps_within_its_bytes() -> None:
    made = machine()
    reports = [Report("event", bytes(MAX_REPORT_BYTES))] * (MAX_BATCH_BYTES // MAX_REPORT_BYTES + 1)
    made.reports_read(5, reports)
    [batch] = frames(made)
    assert isinstance(batch, ReportBatch)
    assert len(batch.reports) == len(reports) - 1


def test_order_of_frames() -> None:
    """Verdicts, asks, reports, status, heartbeat; goodbye before all."""
    made = machine(status={"device": b"IDLE"})
    made.receive(ResourceUpdate(1, (), (), settled=True), 0.0)
    made.take_effects()
    made.resources_applied(1, ())
    made.ask("echo", b"")
    made.reports_read(5, [Report("event", b"")])
    order = [type(made.next_frame(5.0)) for _ in range(4)]
    assert order == [ResourceVerdict, Ask, ReportBatch, StatusUpdate]
    assert made.next_frame(5.0) is None
    assert made.next_frame(6.0) == Heartbeat(1)
    made.ask("echo", b"")
    made.close("draining")
    assert frames(made) == [Goodbye("draining")]
    assert ending(made) is Ending.GOODBYE_SENT


def test_status_is_coalesced_and_paced() -> None:
    """M6: latest wins; what was not sent yet is dropped."""
    made = machine(status={"a": b"1", "b": None})
    assert frames(made) == [StatusUpdate((StatusEntry("a", b"1"), StatusEntry("b", None)))]
    made.set_status("a", b"2")
    made.set_status("a", b"3")
    assert frames(made, STATUS_INTERVAL_S / 2) == []
    assert made.get_timer() == STATUS_INTERVAL_S
    assert frames(made, STATUS_INTERVAL_S) == [StatusUpdate((StatusEntry("a", b"3"),))]


def test_status_keeps_within_a_frame() -> None:
    made = machine(status={f"k{n}": b"" for n in range(MAX_STATUS_ENTRIES + 1)} | {"big": bytes(60_000)})
    [first] = frames(made)
    assert isinstance(first, StatusUpdate)
    assert len(first.entries) == MAX_STATUS_ENTRIES
    [second] = frames(made, 1.0)
    assert isinstance(second, StatusUpdate)
    assert [entry.key for entry in second.entries] == [f"k{MAX_STATUS_ENTRIES}", "big"]


def test_asks_are_bounded_and_answered_once() -> None:
    made = machine()
    for number in range(1, MAX_ASKS_IN_FLIGHT + 1):
        assert made.ask("echo", b"") == number
    with pytest.raises(BusyError):
        made.ask("echo", b"")
    made.receive(Answer(1, b"x"), 0.0)
    assert drain(made) == [Answered(Answer(1, b"x"))]
    for ask_id in (1, 99):
        with pytest.raises(SessionViolationError, match="not open"):
            made.receive(Answer(ask_id, b""), 0.0)
    assert made.ask("echo", b"") == MAX_ASKS_IN_FLIGHT + 1
    with pytest.raises(RuntimeError):
        machine().ask("echo", bytes(100_000))


def test_silence_ends_the_session_but_not_while_working() -> None:
    dead_s = DEAD_AFTER_INTERVALS * 1.0
    made = machine()
    made.receive(Heartbeat(1), 1.0)
    made.handle_timer(1.0 + dead_s - 0.01)
    assert ending(made) is None
    made.receive(ResourceUpdate(1, (), (), settled=True), 2.0)
    assert made.take_effects()
    made.handle_timer(100.0)
    assert ending(made) is None
    made.work_done(100.0)
    made.next_frame(100.0)
    assert made.get_timer() == 101.0
    made.handle_timer(100.0 + dead_s)
    assert ending(made) is Ending.PEER_SILENT
    with pytest.raises(SessionViolationError):
        machine().receive(Heartbeat(0), 0.0)


def test_the_first_report_is_waited_for_no_longer_than_the_others() -> None:
    made = machine()
    made.reports_appended(20)
    made.reports_read(5, [Report("event", b"x")])
    assert frames(made, 1.0)
    made.receive(Heartbeat(1), ACK_TIMEOUT_S)
    made.handle_timer(ACK_TIMEOUT_S)
    assert made.end is None
    made.handle_timer(ACK_TIMEOUT_S + 1.0)
    assert ending(made) is Ending.PEER_SLOW


def test_a_parent_that_acknowledges_nothing_is_left() -> None:
    """Although it beats: what it reads or does not read, it makes nothing durable."""
    made = machine()
    made.reports_appended(20)
    for first in (5, 7):
        made.reports_read(first, [Report("event", b"x")] * 2)
        assert frames(made, first - 5.0)
    made.receive(ReportAck(6), 100.0)
    drain(made)
    made.work_done(100.0)
    for beat, now in enumerate(range(101, 100 + int(ACK_TIMEOUT_S)), start=1):
        made.receive(Heartbeat(beat), float(now))
        made.handle_timer(float(now))
    assert made.get_timer() <= 100 + ACK_TIMEOUT_S
    assert made.end is None
    made.receive(Heartbeat(1000), 100 + ACK_TIMEOUT_S)
    made.handle_timer(100 + ACK_TIMEOUT_S)
    assert ending(made) is Ending.PEER_SLOW


def test_a_parent_owes_nothing_while_nothing_is_read_and_once_all_is_acknowledged() -> None:
    made, late = machine(), 10 * ACK_TIMEOUT_S
    made.reports_appended(20)
    for first in (5, 6):
        made.reports_read(first, [Report("event", b"x")])
        assert frames(made)
    made.receive(ReportAck(5), 1.0)
    assert made.take_effects()
    made.handle_timer(late)
    assert made.end is None
    made.work_done(late)
    made.receive(ReportAck(6), late)
    drain(made)
    made.work_done(2 * late)
    made.handle_timer(2 * late)
    assert made.end is None


def test_no_welcome_in_time() -> None:
    made = machine(ChildState.GREETING)
    assert made.get_timer() == HANDSHAKE_S
    made.handle_timer(HANDSHAKE_S)
    assert ending(made) is Ending.PEER_SILENT


def test_goodbye_carries_when_to_come_back() -> None:
    made = machine()
    made.receive(Goodbye("stopping", 1500), 0.0)
    assert made.end is not None
    assert (made.end.ending, made.end.retry_after_s) == (Ending.GOODBYE_RECEIVED, 1.5)
    assert made.get_timer() == float("inf")
    assert frames(made, 1000.0) == []


def test_closing_before_welcome_ends_at_once() -> None:
    made = machine(ChildState.GREETING)
    made.close("draining")
    assert made.state is ChildState.OVER
