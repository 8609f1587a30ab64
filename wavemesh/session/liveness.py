"""When to send a heartbeat and when to give the peer up. Pure; times are monotonic seconds.

A side that has sent nothing for one interval sends a heartbeat; a peer not heard for ``DEAD_AFTER_INTERVALS`` intervals
is dead. While this side is busy with what the peer sent, it does not read, so silence then proves nothing: ``work``
stops the clock and ``rest`` starts it anew.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

DEAD_AFTER_INTERVALS = 2.5


class Ending(enum.Enum):
    """How a session came to its end."""

    GOODBYE_SENT = "goodbye sent"
    GOODBYE_RECEIVED = "goodbye received"
    FENCED = "fenced"
    REPORTS_LOST = "parent lost acknowledged reports"
    PEER_SILENT = "peer silent"
    PEER_SLOW = "peer too slow"
    REFUSED = "refused"
    INCOMPATIBLE = "no common protocol version"
    LOST = "stream lost"


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """The end of a session, with the peer's wish when to come back (0: none)."""

    ending: Ending
    reason: str
    retry_after_s: float = 0.0


class Liveness:
    """One side's view of both directions of a stream."""

    __slots__ = ("_heard_at", "_interval_s", "_is_working", "_received", "_sent", "_sent_at")

    def __init__(self, interval_s: float, now: float) -> None:
        """Both directions count as used at ``now``."""
        self._interval_s = interval_s
        self._heard_at = self._sent_at = now
        self._sent = self._received = 0
        self._is_working = False

    def heard(self, now: float) -> None:
        """A frame came."""
        self._heard_at = now

    def sent(self, now: float) -> None:
        """A frame left."""
        self._sent_at = now

    def work(self) -> None:
        """This side stops reading to work on what came."""
        self._is_working = True

    def rest(self, now: float) -> None:
        """The work is done, reading goes on."""
        self._is_working = False
        self._heard_at = now

    @property
    def heartbeat_at(self) -> float:
        """When a heartbeat is due."""
        return self._sent_at + self._interval_s

    @property
    def dead_at(self) -> float:
        """When the peer is to be given up."""
        return math.inf if self._is_working else self._heard_at + DEAD_AFTER_INTERVALS * self._interval_s

    def next_sequence(self) -> int:
        """Number of the heartbeat about to be sent."""
        self._sent += 1
        return self._sent

    def accept(self, sequence: int) -> bool:
        """Whether a received heartbeat counts up, as it must."""
        counts_up = sequence > self._received
        self._received = sequence
        return counts_up
