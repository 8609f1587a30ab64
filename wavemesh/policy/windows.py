"""Time windows of a day in a store's local time: "00:30-03:30".

A window is a set of wall clock readings, from its opening inclusive to its closing exclusive; one that closes before
it opens spans midnight. It is open exactly when the clock on the store's wall reads so. Hence, on the days when clocks
change: a window that lies in the hour left out does not open that day; one that covers the hour is that much shorter;
one within the hour that is repeated opens twice. Whoever waits asks ``next_opening`` again after each event.

Every instant in question lies in a stretch of constant UTC offset, and within a stretch wall time is linear in UTC, so
openings and closings are found stretch by stretch, without searching.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING

from wavemesh.errors import PeerError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import tzinfo

WINDOW_PATTERN = r"(?!(.{5})-\1$)([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9]"
"""Form of a window; the look-ahead refuses one that closes when it opens."""

_DAY = timedelta(days=1)
_STEP = timedelta(hours=1)
# A window is missed on one day at most by a change of clocks, on two where a zone left out a calendar day.
_HORIZON = timedelta(days=4)


class BadWindowError(PeerError):
    """A text is no window."""

    reason = "BAD_WINDOW"


@dataclass(frozen=True, slots=True)
class Window:
    """One daily window, in wall clock time."""

    opens: time
    closes: time

    @classmethod
    def parse(cls, text: str) -> Window:
        """Read "HH:MM-HH:MM"; raises BadWindowError."""
        if not re.fullmatch(WINDOW_PATTERN, text):
            raise BadWindowError(
                f"window {text[:50]!r}: use HH:MM-HH:MM between 00:00 and 23:59, as in 00:30-03:30, closing at another "
                "time than it opens"
            )
        opens, closes = text.split("-")
        return cls(time.fromisoformat(opens), time.fromisoformat(closes))

    def __str__(self) -> str:
        """The window as written."""
        return f"{self.opens:%H:%M}-{self.closes:%H:%M}"

    def contains(self, now: datetime, zone: tzinfo) -> bool:
        """Whether the window is open at that instant (aware) in that zone."""
        wall = now.astimezone(zone).time()
        if self.opens < self.closes:
            return self.opens <= wall < self.closes
        return wall >= self.opens or wall < self.closes

    def next_opening(self, now: datetime, zone: tzinfo) -> datetime:
        """The first instant from ``now`` on at which the window is open, in UTC; ``now`` itself if it is open."""
        for start, end in _stretches(now.astimezone(UTC), zone):
            if self.contains(start, zone):
                return start
            opening = start + _until(start, self.opens, zone)
            if opening < end:
                return opening
        raise RuntimeError(f"window {self} does not open within {_HORIZON} of {now} in {zone}")

    def closing(self, now: datetime, zone: tzinfo) -> datetime:
        """The first instant after ``now`` at which the window is shut, in UTC; misuse unless it is open at ``now``."""
        if not self.contains(now, zone):
            raise RuntimeError(f"window {self} is not open at {now} in {zone}")
        for start, end in _stretches(now.astimezone(UTC), zone):
            if not self.contains(start, zone):
                return start
            closing = start + _until(start, self.closes, zone)
            if closing < end:
                return closing
        raise RuntimeError(f"window {self} does not close within {_HORIZON} of {now} in {zone}")


def _until(start: datetime, mark: time, zone: tzinfo) -> timedelta:
    # Wall time left until the mark, at a constant offset; a whole day is never meant, the caller checked the start.
    return (_since_midnight(mark) - _since_midnight(start.astimezone(zone).time())) % _DAY


def _since_midnight(wall: time) -> timedelta:
    return timedelta(hours=wall.hour, minutes=wall.minute, seconds=wall.second, microseconds=wall.microsecond)


def _stretches(start: datetime, zone: tzinfo) -> Iterator[tuple[datetime, datetime]]:
    """Intervals [start, end) of constant UTC offset that cover the horizon from ``start`` (UTC) on."""
    begin, at = start, start
    while at < start + _HORIZON:
        step = at + _STEP
        if _offset(step, zone) != _offset(at, zone):
            change = _change(at, step, zone)
            yield begin, change
            begin = change
        at = step
    yield begin, at


def _change(before: datetime, after: datetime, zone: tzinfo) -> datetime:
    """The instant in (before, after] at which the offset changes; changes fall on whole seconds."""
    low, high = before, after
    while high - low > timedelta(microseconds=1):
        middle = low + (high - low) // 2
        if _offset(middle, zone) == _offset(before, zone):
            low = middle
        else:
            high = middle
    return high


def _offset(at: datetime, zone: tzinfo) -> timedelta:
    return at.astimezone(zone).utcoffset() or timedelta()
