"""What a hostile peer puts into a call's status becomes an error of ours, never a crash and never a gate (Q2, D7)."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships no types

from wavemesh.errors import BusyError, ConflictError, GateError, WavemeshError
from wavemesh.runtime.status import DEFAULT_RETRY_S, error_from_status

BROKEN = b"\xff\xff\xff"


def read(code: grpc.StatusCode, metadata: dict[str, str], *broken: str) -> WavemeshError:
    status = status_pb2.Status()
    status.details.extend(
        any_pb2.Any(type_url=f"type.googleapis.com/google.rpc.{kind}", value=BROKEN) for kind in broken
    )
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="GATE", metadata=metadata))
    return error_from_status(code, "no", status)


@pytest.mark.parametrize("gate", ["nonsense", "disk\n", "disk:x", "peripheral", "x" * 5000, ""])
def test_a_word_that_is_no_gate_refuses_nothing(gate: str) -> None:
    """The update machine persists gates and looks them up again at each recheck."""
    error = read(grpc.StatusCode.FAILED_PRECONDITION, {"gate": gate})
    assert type(error) is ConflictError
    assert "gate" not in error.details


def test_details_never_take_the_place_of_an_error_s_own_fields() -> None:
    names = {"message": "a", "self": "b", "gate": "disk", "retry_after_s": "c", "release": "r"}
    error = read(grpc.StatusCode.FAILED_PRECONDITION, names)
    assert isinstance(error, GateError)
    assert (error.gate, str(error), error.details) == ("disk", "no", {"gate": "disk", "release": "r"})
    busy = read(grpc.StatusCode.RESOURCE_EXHAUSTED, names)
    assert isinstance(busy, BusyError)
    assert busy.retry_after_s == DEFAULT_RETRY_S


@pytest.mark.parametrize("kind", ["ErrorInfo", "RetryInfo"])
def test_details_that_cannot_be_read_are_passed_over(kind: str) -> None:
    assert isinstance(read(grpc.StatusCode.RESOURCE_EXHAUSTED, {}, kind), BusyError)
