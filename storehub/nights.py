"""In how many nights a prefetch will be done, and how fast bytes come in: pure.

A forecast lays what is left into the windows to come, at one rate, opening by opening, so nights on which the clocks
change are as long as they are. The rate is what was measured while bytes came, and the cap where nothing was measured
yet or more than it; without either there is no forecast, for a guess would be believed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import tzinfo

    from wavemesh.policy.windows import Window

MOST_NIGHTS = 60
"""A forecast beyond this says no more than that it takes longer."""

MEMORY_S = 120.0
"""How far the meter looks back, in seconds in which bytes came."""

IDLE_S = 5.0
"""A longer pause between pieces is none of the link's: a window shut, a store hub stopped, nobody wanted more."""


class Meter:
    """Bytes a second while bytes come: an exponential average over MEMORY_S of such time. Times are monotonic."""

    __slots__ = ("_at", "_busy_s", "_bytes")

    def __init__(self) -> None:
        """Nothing came yet."""
        self._at: float | None = None
        self._bytes = 0.0
        self._busy_s = 0.0

    def moved(self, size_bytes: int, now: float) -> None:
        """So many bytes have come since the last call."""
        took_s = now - self._at if self._at is not None else math.inf
        self._at = now
        if not 0 <= took_s <= IDLE_S:
            return  # when these bytes began to come is not known
        kept = math.exp(-took_s / MEMORY_S)
        self._bytes = self._bytes * kept + size_bytes
        self._busy_s = self._busy_s * kept + took_s

    @property
    def bytes_per_s(self) -> float | None:
        """The rate; None before a second's worth was seen."""
        return self._bytes / self._busy_s if self._busy_s >= 1.0 else None


@dataclass(frozen=True, slots=True)
class Forecast:
    """When it is done: in that many windows, the open one included; None: not within MOST_NIGHTS of them.

    Without a window ``nights`` is 1 and the bytes come at once.
    """

    nights: int
    done_at: datetime | None

    def words(self, zone: tzinfo) -> str:
        """For people, in the store's time."""
        if self.done_at is None:
            return f"not done within {MOST_NIGHTS} nights: give it a longer window or a higher rate"
        when = f"{self.done_at.astimezone(zone):%Y-%m-%d %H:%M} store time"
        return f"done {when}" if self.nights == 1 else f"done in {self.nights} nights, {when}"


def rate_of(measured: float | None, cap: float) -> float | None:
    """Bytes a second to count on; ``cap`` of 0 is none."""
    if not cap:
        return measured
    return min(measured, cap) if measured is not None else cap


def forecast(left_bytes: int, bytes_per_s: float, window: Window | None, zone: tzinfo, now: datetime) -> Forecast:
    """When so many bytes have come; ``bytes_per_s`` is positive."""
    left_s = left_bytes / bytes_per_s
    if window is None:
        return Forecast(1, _after(now, left_s))
    at = now
    for night in range(1, MOST_NIGHTS + 1):
        opening = window.next_opening(at, zone)
        closing = window.closing(opening, zone)
        lasts_s = (closing - opening).total_seconds()
        if left_s <= lasts_s:
            return Forecast(night, opening + timedelta(seconds=left_s))
        left_s -= lasts_s
        at = closing
    return Forecast(MOST_NIGHTS, None)


def _after(now: datetime, left_s: float) -> datetime | None:
    return now + timedelta(seconds=left_s) if left_s < MOST_NIGHTS * 86_400 else None
