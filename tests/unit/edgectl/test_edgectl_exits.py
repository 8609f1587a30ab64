"""A script tells errors apart by the exit code; a person is told what to type next."""

from __future__ import annotations

import pytest

from edgectl import exits
from edgectl.exits import WITHOUT_HINT, Exit, exit_of_error, hint_for
from edgectl.words import error_meanings
from wavemesh.errors import (
    BusyError,
    ConflictError,
    ForbiddenError,
    GateError,
    LinkDownError,
    LocalError,
    NotFoundError,
    PeerError,
    WavemeshError,
)
from wavemesh.queueing import IntentAppliedError
from wavemesh.runtime.status import RemoteFaultError


def test_every_reason_has_a_hint_or_is_listed_with_why_not() -> None:
    reasons, hinted = set(error_meanings()), set(exits._HINTS)
    assert reasons - hinted - set(WITHOUT_HINT) == set()
    assert hinted & set(WITHOUT_HINT) == set()
    # No hint for what does not exist.
    assert (hinted | set(WITHOUT_HINT)) - reasons == set()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PeerError("x"), Exit.BAD_INPUT),
        (NotFoundError("x"), Exit.NOT_FOUND),
        (GateError("battery", "x"), Exit.REFUSED),
        (ConflictError("x"), Exit.REFUSED),
        (IntentAppliedError("x"), Exit.REFUSED),
        (ForbiddenError("x"), Exit.FORBIDDEN),
        (BusyError("x", 1.0), Exit.UNREACHABLE),
        (LinkDownError("x"), Exit.UNREACHABLE),
        (LocalError("x"), Exit.LOCAL_FAULT),
        (RemoteFaultError("x"), Exit.LOCAL_FAULT),
    ],
)
def test_exit_codes(error: WavemeshError, code: Exit) -> None:
    assert exit_of_error(error) is code


def test_a_gates_hint_names_the_gate() -> None:
    assert hint_for("GATE", "peripheral:scanner") == "`edgectl explain peripheral:scanner` says what to do"


def test_every_exit_code_is_documented() -> None:
    assert all(code.meaning for code in Exit)
    assert [code.value for code in Exit] == list(range(8))
