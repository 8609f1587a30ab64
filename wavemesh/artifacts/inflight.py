"""How many bytes of bulk may be on the way, so that a halt on the same link does not wait behind them. Pure.

Theory. What is on the way and has not arrived stands in some queue between the two ends, and whatever is sent later on
the link waits until it has passed. By Little's law the time in flight is the bytes on the way by the rate at which they
arrive; less the time that an empty link needs, it is the queue. So the window is held at what fills the link and queues
``TARGET_S``, as LEDBAT (RFC 6817) and rLEDBAT (RFC 9840) do; as in the latter, the receiver alone decides.

Rules.
1. The rate is taken over ``LOOK_S`` while bytes arrive. One look below ``ROOM_S`` of queue doubles the window;
   ``PATIENCE`` looks in a row above ``LIMIT_S`` set it to what would have queued ``TARGET_S``, because one alone may be
   a disk or a processor that was busy.
2. A source or a disk slower than the link looks like a queue. The window then shrinks to what that rate needs and a
   little more, which costs nothing, and grows again when they are fast.
3. The window is never below ``MIN_BYTES``: a link on which that queues longer than ``TARGET_S`` is left to crawl.
"""

from __future__ import annotations

import math

MIN_BYTES = 64 * 1024
MAX_BYTES = 4 * 1024 * 1024
LOOK_S = 0.5
ROOM_S = 0.01
TARGET_S = 0.05
LIMIT_S = 0.08
PATIENCE = 3


class InFlight:
    """The window of each of some reads that share a link. Times are monotonic seconds."""

    __slots__ = ("_arrived", "_looks", "_since", "_trip_s", "window_bytes")

    def __init__(self) -> None:
        """Begin with a window that queues for 64 ms at 1 MB/s."""
        self.window_bytes = MIN_BYTES
        self._trip_s = math.inf
        self._arrived = 0
        self._since = 0.0
        self._looks = 0

    def trip(self, lasted_s: float) -> None:
        """A question of no size was answered after this time; the shortest of all stands for the empty link."""
        self._trip_s = min(self._trip_s, lasted_s)

    def begin(self, now: float) -> None:
        """Bytes begin to arrive, or do so again after a pause that says nothing about the link."""
        self._since, self._arrived = now, 0

    def arrived(self, count: int, reads: int, now: float) -> bool:
        """``count`` bytes came for one of so many ``reads``; whether the window is another now."""
        self._arrived += count
        lasted_s = now - self._since
        if lasted_s < LOOK_S or not self._arrived:
            return False
        rate = self._arrived / lasted_s
        self.begin(now)
        before = self.window_bytes
        self.window_bytes = self._look(rate, reads)
        return self.window_bytes != before

    def _look(self, rate: float, reads: int) -> int:
        """The window by this rate, bytes a second."""
        queued_s = self.window_bytes * reads / rate - self._trip_s
        self._looks = self._looks + 1 if queued_s > LIMIT_S else 0
        if queued_s < ROOM_S:
            return min(2 * self.window_bytes, MAX_BYTES)
        if self._looks < PATIENCE:
            return self.window_bytes
        self._looks = 0
        wanted = int(rate * (self._trip_s + TARGET_S) / reads)
        return min(max(wanted, MIN_BYTES), MAX_BYTES, self.window_bytes)
