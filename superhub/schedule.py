"""When the region may fetch from the origin, and how fast (S4). Pure.

Rules.
1. A fetch is for a wave when an order that runs in the region names a release with the blob; every other is ahead of
   its wave: a prefetch, a wave that is planned or paused, a device that is being replaced.
2. What is ahead waits for a window, if there are any, and ends when it shuts; it goes on at its byte in the next one.
3. What is for a wave waits for no window, unless ``waves = "in-window"``.
4. Ahead, the rate is the window's own where it has one, else the region's; of windows open at once the fastest counts.
   For a wave it is ``wave_bytes_per_s``. Nothing of this is a rate for what the region holds already.
5. Windows are wall clock time in the region's zone (``wavemesh/policy/windows.py`` on days when clocks change).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from wavemesh.artifacts.rates import Rate
from wavemesh.policy.windows import BadWindowError, Window
from wavemesh.runtime.config import bounded

if TYPE_CHECKING:
    from datetime import datetime

_MOST_BYTES_PER_S = 1 << 40


class Waves(enum.Enum):
    """What fetches for running waves do."""

    AT_ONCE = "at-once"
    IN_WINDOW = "in-window"


@dataclass(frozen=True, slots=True)
class WindowConfig:
    """One daily window, "HH:MM-HH:MM", and its own rate; 0 is the region's."""

    open: str
    bytes_per_s: int = field(default=0, metadata=bounded(0, _MOST_BYTES_PER_S))

    def __post_init__(self) -> None:
        """Refuse what is no window."""
        self.parsed  # noqa: B018  # it raises

    @property
    def parsed(self) -> Window:
        """The window; raises ValueError."""
        try:
            return Window.parse(self.open)
        except BadWindowError as error:
            raise ValueError(str(error)) from error


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """``[origin.schedule]``. Without windows it is always open; a rate of 0 is no limit."""

    time_zone: str = "UTC"
    windows: tuple[WindowConfig, ...] = ()
    bytes_per_s: int = field(default=0, metadata=bounded(0, _MOST_BYTES_PER_S))
    waves: Waves = Waves.AT_ONCE
    wave_bytes_per_s: int = field(default=0, metadata=bounded(0, _MOST_BYTES_PER_S))

    def __post_init__(self) -> None:
        """Refuse a zone that is not known on this machine."""
        try:
            ZoneInfo(self.time_zone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            msg = f"time_zone {self.time_zone[:100]!r} is not known here; write one like America/Chicago"
            raise ValueError(msg) from error


class Purpose(enum.Enum):
    """What a fetch is for."""

    WAVE = "wave"
    AHEAD = "ahead"


@dataclass(frozen=True, slots=True)
class Open:
    """It may go on at that rate (None: no limit) until then (None: until something else changes)."""

    rate: Rate | None
    until: datetime | None


@dataclass(frozen=True, slots=True)
class Shut:
    """It has to wait until then."""

    opens_at: datetime


class Schedule:
    """The rules above for one region."""

    def __init__(self, config: ScheduleConfig) -> None:
        """Take the configuration, which was checked when it was read."""
        self._config = config
        self._zone = ZoneInfo(config.time_zone)
        self._windows = [(one.parsed, one.bytes_per_s or config.bytes_per_s) for one in config.windows]

    def decide(self, purpose: Purpose, now: datetime) -> Open | Shut:
        """Whether a fetch may go on now."""
        if purpose is Purpose.WAVE and (self._config.waves is Waves.AT_ONCE or not self._windows):
            return Open(_rate(self._config.wave_bytes_per_s), None)
        if not self._windows:
            return Open(_rate(self._config.bytes_per_s), None)
        opened = [(window, rate) for window, rate in self._windows if window.contains(now, self._zone)]
        if not opened:
            return Shut(min(window.next_opening(now, self._zone) for window, _ in self._windows))
        rates = [rate for _, rate in opened]
        if purpose is Purpose.WAVE:
            rates = [self._config.wave_bytes_per_s]
        fastest = 0 if 0 in rates else max(rates)
        # The first to shut: another may then still be open, at another rate.
        return Open(_rate(fastest), min(window.closing(now, self._zone) for window, _ in opened))

    def describe(self, now: datetime) -> str:
        """How it stands, for people: "windows 00:30-05:00 America/Chicago, shut until 2026-05-01T05:30:00+00:00"."""
        state = self.decide(Purpose.AHEAD, now)
        windows = ", ".join(str(window) for window, _ in self._windows)
        parts = [f"windows {windows} {self._config.time_zone}" if windows else "always open"]
        match state:
            case Shut(opens_at):
                parts.append(f"shut until {opens_at.isoformat(timespec='seconds')}")
            case Open(rate, until):
                parts.append(f"at most {rate.bytes_per_s / 1e6:g} MB/s" if rate else "at any rate")
                if until is not None:
                    parts.append(f"open until {until.isoformat(timespec='seconds')}")
        waves = "waves wait for windows too" if self._config.waves is Waves.IN_WINDOW else ""
        if self._config.wave_bytes_per_s:
            waves = ", ".join(filter(None, (waves, f"waves at most {self._config.wave_bytes_per_s / 1e6:g} MB/s")))
        return ", ".join(filter(None, (*parts, waves)))


def _rate(bytes_per_s: int) -> Rate | None:
    return Rate.of(bytes_per_s) if bytes_per_s else None
