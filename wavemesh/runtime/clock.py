"""The only place that reads the machine's clocks; everything else takes ``now`` as an argument or a ``Clock``."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Wall time for statements and schedules, monotonic time for timers."""

    def now(self) -> datetime:
        """The wall clock, aware UTC. It may jump, in both directions."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment in the past; never goes back, means nothing to another process."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> datetime:
        """The wall clock, aware UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds of the monotonic clock."""
        return time.monotonic()
