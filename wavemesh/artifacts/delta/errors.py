"""What can be wrong with a delta."""

from __future__ import annotations

from wavemesh.errors import PeerError


class BadDeltaError(PeerError):
    """A delta is malformed, is for other bases, or does not rebuild what it should."""

    reason = "BAD_DELTA"
