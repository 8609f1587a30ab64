"""When a client tries again: never sooner than told, never past its deadline, never what it must not repeat."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wavemesh.client.retrying import REPEATABLE, Backoff, delay_s
from wavemesh.errors import (
    BusyError,
    ConflictError,
    ForbiddenError,
    GateError,
    LinkDownError,
    LocalError,
    NotFoundError,
)
from wavemesh.v1 import operator_pb2

BACKOFF = Backoff(base_s=0.2, cap_s=5.0)


def highest(low: float, high: float) -> float:
    del low
    return high


def test_every_call_is_repeatable_but_those_that_are_not() -> None:
    """A new RPC is thought of here before a client repeats it."""
    calls = {method.name for method in operator_pb2.DESCRIPTOR.services_by_name["OperatorService"].methods}
    assert calls - REPEATABLE == {"CreateEnrolment", "RevokeNode", "SetHold"}
    assert calls >= REPEATABLE


def test_requests_are_named_after_their_calls() -> None:
    """The client tells the call from the request."""
    for method in operator_pb2.DESCRIPTOR.services_by_name["OperatorService"].methods:
        assert method.input_type.name == f"{method.name}Request"


@pytest.mark.parametrize(
    "error",
    [NotFoundError("x"), ConflictError("x"), ForbiddenError("x"), GateError("hold", "x"), LocalError("x")],
    ids=lambda error: type(error).__name__,
)
def test_a_refusal_is_an_answer(error: ConflictError) -> None:
    assert delay_s(error, failures=0, remaining_s=1e9, backoff=BACKOFF, uniform=highest) is None


def test_the_wait_doubles_up_to_its_cap() -> None:
    waits = [
        delay_s(LinkDownError("x"), failures=n, remaining_s=1e9, backoff=BACKOFF, uniform=highest) for n in range(7)
    ]
    assert waits == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])


@given(hint_s=st.floats(0, 100), failures=st.integers(0, 1000), share=st.floats(0, 1), remaining_s=st.floats(-10, 200))
def test_never_before_the_hint_never_after_the_deadline(
    hint_s: float, failures: int, share: float, remaining_s: float
) -> None:
    """The server's hint is a floor, the jitter lies above it."""
    error = BusyError("x", hint_s)
    wait = delay_s(
        error,
        failures=failures,
        remaining_s=remaining_s,
        backoff=BACKOFF,
        uniform=lambda low, high: low + share * (high - low),
    )
    if wait is None:
        assert remaining_s <= hint_s + BACKOFF.cap_s
    else:
        assert hint_s <= wait < remaining_s
