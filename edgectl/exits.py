"""Exit codes by error class, and what to type next.

A script tells errors apart by the exit code alone. A refusal by a server arrives as the error class of its gRPC status,
so a reason added to a server later still lands in the right code; the hint follows the reason, where one is known.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from wavemesh.errors import (
    BusyError,
    ConflictError,
    ForbiddenError,
    GateError,
    LinkDownError,
    LocalError,
    NotFoundError,
    PeerError,
)

if TYPE_CHECKING:
    from wavemesh.errors import WavemeshError


class Exit(enum.IntEnum):
    """Exit codes of edgectl."""

    OK = 0
    CHECK_FAILED = 1
    BAD_INPUT = 2
    NOT_FOUND = 3
    REFUSED = 4
    FORBIDDEN = 5
    UNREACHABLE = 6
    LOCAL_FAULT = 7

    @property
    def meaning(self) -> str:
        """One line for the reference page."""
        return _MEANING[self]


_MEANING = {
    Exit.OK: "Done, or queued; what is queued says so and names whom it waits for.",
    Exit.CHECK_FAILED: "The command ran and what it checked is not so (`lab demo`, `lab status`).",
    Exit.BAD_INPUT: "Bad flags, a bad file or bad data; nothing was done.",
    Exit.NOT_FOUND: "No such wave, device, release, store, context or gate.",
    Exit.REFUSED: "Refused by a gate or by the state things are in; the message names it.",
    Exit.FORBIDDEN: "Your certificate does not allow it.",
    Exit.UNREACHABLE: "The node asked cannot be reached, timed out or is shedding load; try again.",
    Exit.LOCAL_FAULT: "This machine's disk, configuration or environment, or a fault inside the node asked.",
}


class UsageError(PeerError):
    """What was typed, or a file that was named, cannot be used."""

    reason = "BAD_INPUT"


# wavemesh/runtime/status.py says it of a peer that failed; importing that module would import gRPC.
_REMOTE_FAULT = "REMOTE_FAULT"

_BY_CLASS: tuple[tuple[type[WavemeshError], Exit], ...] = (
    (NotFoundError, Exit.NOT_FOUND),
    (GateError, Exit.REFUSED),
    (ConflictError, Exit.REFUSED),
    (ForbiddenError, Exit.FORBIDDEN),
    (BusyError, Exit.UNREACHABLE),
    (LinkDownError, Exit.UNREACHABLE),
    (LocalError, Exit.LOCAL_FAULT),
    (PeerError, Exit.BAD_INPUT),
)

_HINTS = {
    "ASK_CONTROL": "ask control: add --context control",
    "ASK_HUB": "ask a store's hub: add --context STORE; `edgectl context list` shows them",
    "LINK_DOWN": "is it up? `edgectl lab status`, `edgectl context list`",
    "BUSY": "it sheds load; try again",
    "FORBIDDEN": "use an operator's identity: `edgectl context list` shows which one is used",
    "NOT_FOUND": "list what there is: `edgectl wave list`, `device list`, `release list`",
    "GATE": "`edgectl explain GATE` says what to do",
    "KEY_TOKEN": "PYKCS11LIB, WAVEMESH_PIN_FILE: docs/guide/key-ceremonies.md",
    "NO_CONTEXT": "`edgectl lab up` writes contexts; or set EDGECTL_CONFIG",
}


def exit_of_error(error: WavemeshError) -> Exit:
    """The exit code of an error, raised here or at the node asked."""
    if error.reason == _REMOTE_FAULT:
        return Exit.LOCAL_FAULT
    return next((code for kind, code in _BY_CLASS if isinstance(error, kind)), Exit.LOCAL_FAULT)


def hint_for(reason: str) -> str:
    """What to type next; empty where the message says it all."""
    return _HINTS.get(reason, "")
