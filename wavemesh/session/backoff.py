"""When a child whose session ended dials again.

Rules. At once after a restart of the log that the child or its parent asked for. Not before the time the parent named,
plus jitter, of which no parent can make more than ``MAX_RETRY_AFTER_S`` and the jitter on it. Else with full jitter
under a ceiling that doubles from ``backoff_base_s``. To a parent that answered and refused it doubles up to
``backoff_cap_s``. To one that does not answer it stays at SOON_S, and after a while at AWAY_SHARE of the time away: a
dial into a dead link costs nobody but the child anything, and coming back is to take no longer than the outage excuses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from wavemesh.session.frames import MAX_RETRY_AFTER_S
from wavemesh.session.liveness import Ending, SessionEnd

if TYPE_CHECKING:
    from collections.abc import Callable

SOON_S = 1.0
AWAY_SHARE = 1 / 60
_UNANSWERED = frozenset({Ending.LOST, Ending.PEER_SILENT})
# After a restart of the log, whoever asked for it.
_AT_ONCE = frozenset({Ending.FENCED, Ending.REPORTS_LOST, Ending.GOODBYE_SENT})


class Patience(Protocol):
    """A child's patience, seconds; see UpstreamOptions."""

    @property
    def backoff_base_s(self) -> float:
        """The first ceiling."""
        ...

    @property
    def backoff_cap_s(self) -> float:
        """The highest ceiling."""
        ...

    @property
    def incompatible_s(self) -> float:
        """At most, where there is no common protocol version."""
        ...

    @property
    def revoked_retry_s(self) -> float:
        """At least, where the certificate was taken back."""
        ...


def delay_s(
    end: SessionEnd, attempt: int, away_s: float, patience: Patience, uniform: Callable[[float, float], float]
) -> float:
    """How long to stay away, seconds, after ``attempt`` earlier failures and ``away_s`` without a session that lasted.

    ``uniform`` draws from a range.
    """
    if end.ending is Ending.INCOMPATIBLE:
        return uniform(patience.incompatible_s / 2, patience.incompatible_s)
    wish_s = patience.revoked_retry_s if end.ending is Ending.REVOKED else min(end.retry_after_s, MAX_RETRY_AFTER_S)
    if wish_s > 0:
        # A parent spreads its wishes; the jitter is for one that says the same to all.
        spread_s = wish_s if end.ending is Ending.REVOKED else wish_s / 8
        return wish_s + uniform(0, max(patience.backoff_base_s, spread_s))
    if end.ending in _AT_ONCE and attempt == 0:
        return 0.0
    cap_s = patience.backoff_cap_s
    if end.ending in _UNANSWERED:
        cap_s = min(cap_s, max(SOON_S, away_s * AWAY_SHARE))
    return full_jitter(cap_s, patience.backoff_base_s, attempt, uniform)


def full_jitter(cap_s: float, base_s: float, attempt: int, uniform: Callable[[float, float], float]) -> float:
    """Back-off before the attempt after ``attempt`` failed ones: uniform over [0, min(cap, base * 2^attempt)], seconds.

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015, "full jitter".
    """
    return uniform(0.0, min(cap_s, base_s * 2.0 ** min(attempt, 32)))
