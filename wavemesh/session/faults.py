"""What can go wrong between the two ends of a session."""

from __future__ import annotations

from wavemesh.errors import ConflictError, LocalError, PeerError


class SessionViolationError(PeerError):
    """The peer broke the session protocol: a frame out of place, a number out of order, a bound exceeded."""

    reason = "SESSION_VIOLATION"


class ProtocolVersionError(ConflictError):
    """The two ends share no protocol version; one of them must be upgraded."""

    reason = "PROTOCOL_VERSION"


class SupersededError(ConflictError):
    """A newer session of the same child won."""

    reason = "SUPERSEDED"


class AskFailedError(PeerError):
    """The parent answered an Ask with an error."""

    reason = "ASK_FAILED"


class TooManyResourcesError(LocalError):
    """The desired state of one child has more resources than a session carries."""

    reason = "TOO_MANY_RESOURCES"
