"""The child's machine at the edges of its rules: what it hears when, what fits, what may have been sent."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.session_kit import resource
from tests.unit.session.test_session_child import HELLO, WELCOME, drain, frames, machine
from wavemesh.session.child import ACCEPTS, STATUS_FRAME_BYTES, ApplyResources, ChildMachine, ChildState, ReportRange
from wavemesh.session.frames import (
    MAX_ASK_BYTES,
    MAX_HEARTBEAT_INTERVAL_MS,
    Answer,
    Fenced,
    Goodbye,
    Heartbeat,
    Report,
    ReportAck,
    ResourceUpdate,
    StatusUpdate,
    Welcome,
)

EVERYTHING = {Welcome, Fenced, ResourceUpdate, ReportAck, Answer, Heartbeat, Goodbye}


@pytest.mark.parametrize(
    ("state", "heard"),
    [
        (ChildState.OPENING, set()),
        (ChildState.GREETING, {Welcome, Fenced, Goodbye}),
        (ChildState.OPEN, EVERYTHING - {Welcome, Fenced}),
        (ChildState.CLOSING, EVERYTHING),
        (ChildState.OVER, EVERYTHING),
    ],
)
def test_what_is_heard_in_a_state(state: ChildState, heard: set[type]) -> None:
    """A parent that is full or drains says goodbye in place of a welcome; after its end a stream may bring anything."""
    assert ACCEPTS[state] == heard


def test_an_update_that_only_says_settled_has_no_content() -> None:
    one = resource("x")
    assert ApplyResources(1, (one,), ()).has_content
    assert ApplyResources(1, (), (one.key,)).has_content
    assert not ApplyResources(1, (), ()).has_content


def test_what_may_have_reached_the_parent() -> None:
    """What an earlier stream sent, or this one; never what only stands in the log."""
    fresh = ChildMachine(replace(HELLO, next_report_number=1), first_report_number=1, status={}, now=0.0)
    assert fresh.sent_through == 0
    made = machine()
    assert made.sent_through == HELLO.next_report_number - 1
    made.reports_appended(20)
    assert made.sent_through == HELLO.next_report_number - 1
    made.receive(ReportAck(4), 0.0)
    made.reports_read(5, [Report("event", b"")] * 4)
    frames(made)
    made.receive(ReportAck(8), 0.0)
    made.reports_read(9, [Report("event", b"")] * 4)
    frames(made)
    assert made.sent_through == 12


def test_the_least_and_the_most_that_a_welcome_may_say() -> None:
    for changes in (
        {"heartbeat_interval_ms": 1, "report_window": 1},
        {"heartbeat_interval_ms": MAX_HEARTBEAT_INTERVAL_MS},
    ):
        made = machine(ChildState.GREETING)
        made.receive(replace(WELCOME, **changes), 0.0)  # type: ignore[arg-type]  # fields of a welcome
        assert made.state is ChildState.OPEN


def test_reports_are_wanted_from_the_parents_cursor_on() -> None:
    made = ChildMachine(replace(HELLO, next_report_number=3), first_report_number=1, status={}, now=0.0)
    made.next_frame(0.0)
    assert made.wanted_reports() is None
    made.receive(replace(WELCOME, reports_through=0), 0.0)
    drain(made)
    assert made.wanted_reports() == ReportRange(1, 2)


def test_an_ask_may_be_as_long_as_that() -> None:
    made = machine()
    assert made.ask("echo", bytes(MAX_ASK_BYTES)) == 1
    with pytest.raises(RuntimeError):
        made.ask("echo", bytes(MAX_ASK_BYTES + 1))


@pytest.mark.parametrize(("body", "keys"), [(STATUS_FRAME_BYTES - 2, ["a", "b"]), (STATUS_FRAME_BYTES - 1, ["a"])])
def test_a_status_is_full_when_keys_and_bodies_reach_its_bytes(body: int, keys: list[str]) -> None:
    """The one that reaches them goes with it: a single value may be as large as a frame."""
    made = machine(status={"a": bytes(body), "b": None, "c": b""})
    [first] = frames(made)
    assert isinstance(first, StatusUpdate)
    assert [entry.key for entry in first.entries] == keys
