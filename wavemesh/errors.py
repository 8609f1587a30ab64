"""The two roots of every error, by who is at fault.

``PeerError``: somebody sent us something bad, or refused us. ``LocalError``: our disk, our configuration, our machine.
Misuse of an interface is ``RuntimeError``. Each error class has a ``reason``, a stable word in capitals that travels as
``google.rpc.ErrorInfo.reason`` and is listed in ``docs/reference/errors.md``; data that tells which object was meant
goes into ``details`` and travels as ErrorInfo metadata. ``wavemesh/runtime/status.py`` maps both to gRPC and back.
"""

from __future__ import annotations

from typing import ClassVar


class WavemeshError(Exception):
    """Root of both roots; catch it only where an error becomes an answer to somebody."""

    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, **details: str) -> None:
        """Take a sentence that says what, where and what to do, and the data behind it."""
        super().__init__(message)
        self.details = details


class PeerError(WavemeshError):
    """The other side is at fault: bad data, bad signature, a refusal."""

    reason: ClassVar[str] = "BAD_REQUEST"


class LocalError(WavemeshError):
    """This side is at fault: disk, configuration, environment."""

    reason: ClassVar[str] = "LOCAL_FAULT"


class GateError(PeerError):
    """A gate of wavemesh/policy/gates.py refused; the gate is the reason's data."""

    reason: ClassVar[str] = "GATE"

    def __init__(self, gate: str, message: str, **details: str) -> None:
        """Name the gate, in its wire form ("peripheral:scanner")."""
        super().__init__(message, gate=gate, **details)
        self.gate = gate

    @property
    def observed(self) -> str:
        """What the gate found, of the details; empty where it compares nothing."""
        return self.details.get("observed", "")

    @property
    def required(self) -> str:
        """What it wanted."""
        return self.details.get("required", "")


class NotFoundError(PeerError):
    """The object asked for does not exist here."""

    reason: ClassVar[str] = "NOT_FOUND"


class ConflictError(PeerError):
    """What is asked contradicts the state the object is in."""

    reason: ClassVar[str] = "CONFLICT"


class ForbiddenError(PeerError):
    """The peer's identity does not allow what it asks."""

    reason: ClassVar[str] = "FORBIDDEN"


class BusyError(PeerError):
    """Too much at once; come back after ``retry_after_s``."""

    reason: ClassVar[str] = "BUSY"

    def __init__(self, message: str, retry_after_s: float, **details: str) -> None:
        """Say when to come back, seconds."""
        super().__init__(message, **details)
        self.retry_after_s = retry_after_s


class LinkDownError(PeerError):
    """The peer cannot be reached now: no session, connection lost, deadline passed."""

    reason: ClassVar[str] = "LINK_DOWN"
