"""Decides what the scrub reads next, and how far its round is.

A round goes through all complete blobs by name, which is as good as by chance, and ends when none is left behind the
last one read. A blob that comes meanwhile is read in this round or in the next. Where the scrub stands is the name of
the last blob it has read to the end: the state of a SHA-256 cannot be kept, so a restart begins the blob it was in
anew.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_LINE = re.compile(r"(?P<began>[0-9]{1,11}) (?P<ended>[0-9]{1,11}) (?P<after>[0-9a-f]{64}-[0-9]{1,13}|-)\n")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Round:
    """Where the scrub stands: ``after`` is the name of the last blob read, empty at the begin of a round.

    ``ended_at`` is when the last round before this one came to its end; None if none did yet.
    """

    began_at: datetime
    after: str = ""
    ended_at: datetime | None = None

    def next_of(self, names: Iterable[str]) -> str | None:
        """The blob to read next; None at the end of the round."""
        return min((name for name in names if name > self.after), default=None)

    def read(self, name: str) -> Round:
        """The same once that blob was read."""
        return replace(self, after=name)

    def done_bytes(self, sizes: Iterable[tuple[str, int]]) -> int:
        """Bytes of the given blobs (name and size) that lie behind."""
        return sum(size for name, size in sizes if name <= self.after)

    def to_text(self) -> str:
        """As it is kept: when the round began, when the last one ended (seconds since the epoch), last name read."""
        ended = int(self.ended_at.timestamp()) if self.ended_at is not None else 0
        return f"{int(self.began_at.timestamp())} {ended} {self.after or '-'}\n"


def round_of(text: str, now: datetime) -> Round:
    """Where the scrub stood by what was kept; a new round at ``now`` when that is unreadable."""
    match = _LINE.fullmatch(text)
    if match is None:
        return Round(now)
    began, ended = (datetime.fromtimestamp(int(match[key]), UTC) for key in ("began", "ended"))
    after = "" if match["after"] == "-" else match["after"]
    return Round(min(began, now), after, ended if ended > _EPOCH else None)


def pause_s(step_bytes: int, bytes_per_s: int) -> float:
    """How long the scrub waits after a step, so that it never reads faster than that."""
    return step_bytes / bytes_per_s
