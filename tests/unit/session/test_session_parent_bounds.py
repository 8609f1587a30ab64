"""The parent's machine at the edges of its rules: what ends it, what it waits for, what it leaves unsaid."""

from __future__ import annotations

import math

import pytest

from tests.unit.session.test_session_parent import HELLO, OPTIONS, REPORT, drain, ending, frames, machine
from wavemesh.session.faults import SessionViolationError
from wavemesh.session.frames import MAX_ASKS_IN_FLIGHT, Answer, Ask, Goodbye, Heartbeat, Hello, ReportBatch
from wavemesh.session.liveness import Ending
from wavemesh.session.parent import ACCEPTS, ParentMachine, ParentState


def test_which_states_hear_hello_and_goodbye() -> None:
    """Nothing is expected of a stream that ends, so all may still come."""
    closing = {ParentState.CLOSING, ParentState.OVER}
    assert {state for state in ParentState if Hello in ACCEPTS[state]} == {ParentState.WAITING, *closing}
    assert {state for state in ParentState if Goodbye in ACCEPTS[state]} == set(ParentState)


def test_a_child_that_says_goodbye_is_gone() -> None:
    made = machine()
    made.receive(Goodbye("draining"), 0.0)
    assert (ending(made), made.state, made.get_timer()) == (Ending.GOODBYE_RECEIVED, ParentState.OVER, math.inf)
    made.close("late")
    assert ending(made) is Ending.GOODBYE_RECEIVED


def test_heartbeats_must_count_up() -> None:
    made = machine()
    made.receive(Heartbeat(1), 0.0)
    with pytest.raises(SessionViolationError, match="count up"):
        made.receive(Heartbeat(1), 0.0)


def test_answers_not_sent_yet_count_as_open_asks() -> None:
    made = machine()
    for number in range(1, MAX_ASKS_IN_FLIGHT + 1):
        made.receive(Ask(number, "echo", b""), 0.0)
        made.answered(Answer(number, b""))
    with pytest.raises(SessionViolationError, match="unanswered"):
        made.receive(Ask(99, "echo", b""), 0.0)


def test_a_fenced_child_is_not_listened_to() -> None:
    made = machine(ParentState.ADMITTING)
    made.admitted(11, 0.0)
    assert made.state is ParentState.CLOSING
    made.receive(ReportBatch(1, (REPORT,)), 0.0)
    assert drain(made) == []
    made.close("stopping")
    assert [type(frame).__name__ for frame in frames(made)] == ["Fenced"]


def test_goodbye_without_a_wish_to_see_the_child_again() -> None:
    made = machine()
    made.close("stopping")
    assert frames(made) == [Goodbye("stopping", 0)]


def test_silence_does_not_count_while_effects_are_done() -> None:
    made = machine()
    made.receive(ReportBatch(5, (REPORT,)), 1.0)
    assert made.take_effects()
    made.handle_timer(1000.0)
    assert ending(made) is None
    made.work_done(1000.0)
    made.handle_timer(1002.4)
    assert ending(made) is None
    made.handle_timer(1002.5)
    assert ending(made) is Ending.PEER_SILENT


def test_nothing_is_due_while_a_child_is_admitted() -> None:
    assert machine(ParentState.ADMITTING).get_timer() == math.inf
    assert machine(ParentState.OVER).get_timer() == math.inf


def test_reports_are_counted_from_the_cursor() -> None:
    made = ParentMachine(OPTIONS, session_id="s", epoch="e", now=0.0)
    made.receive(HELLO, 0.0)
    drain(made)
    made.admitted(0, 0.0)
    frames(made)
    made.receive(ReportBatch(1, (REPORT,)), 0.0)
    made.reports_applied(1)
    assert len(frames(made)) == 1
