"""The device's log: 24 hours of JSON lines on the device itself, each tagged with the wave it belongs to.

``DIR/state/log/NUMBER.jsonl`` are segments, named by the number of their first line; lines are numbered without gaps.
A segment ends at an eighth of the quota or after an hour; the oldest go once they are too old or the quota is full.
Lines are written through at once but not flushed to the medium: a power cut may cost the last ones, never the format
(a torn last line is skipped and its number used again). Read it with
``python -m device.logs --dir DIR --since "15 min ago"``; the hub gets it by the ask "logs".
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wavemesh.runtime.clock import Clock

MAX_TEXT_CHARACTERS = 2000
SEGMENT_AGE = timedelta(hours=1)
SEGMENTS = 8
TAIL_BYTES = 64 * 1024
_LEVELS = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warning", logging.ERROR: "error"}
_SINCE = re.compile(r"\s*(\d{1,6})\s*(s|sec|seconds?|m|min|minutes?|h|hours?|d|days?)(\s+ago)?\s*")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the log."""

    number: int
    at: datetime
    level: str
    wave_id: str
    text: str


class DeviceLog(logging.Handler):
    """The ring; also a handler for the ``logging`` of the shared modules."""

    def __init__(self, directory: Path, clock: Clock, keep: timedelta, quota_bytes: int) -> None:
        """Continue the numbering of what is there. ``trace_id_of`` makes the trace id of a wave."""
        super().__init__(logging.INFO)
        self._directory = directory
        self._clock = clock
        self._keep = keep
        self._quota_bytes = quota_bytes
        self._file: TextIO | None = None
        self._segment_began = clock.now()
        directory.mkdir(parents=True, exist_ok=True)
        self._next = max((line.number for line in read_lines(directory, _newest_start(directory))), default=0) + 1
        self.wave_id = ""
        self.trace_id_of: Callable[[str], str] = lambda _: ""

    @property
    def next_number(self) -> int:
        """Number of the next line."""
        return self._next

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record of ``logging``."""
        self._write(_LEVELS.get(record.levelno, "info"), record.getMessage())

    def note(self, text: str) -> None:
        """Something that happened."""
        self._write("info", text)

    def alert(self, text: str) -> None:
        """Something an operator should look at."""
        self._write("warning", text)

    def fail(self, text: str) -> None:
        """Something that failed."""
        self._write("error", text)

    def lines(self, first: int, limit: int) -> list[Line]:
        """Up to ``limit`` lines from number ``first`` on; those too old may be gone."""
        found: list[Line] = []
        for line in read_lines(self._directory, first):
            if len(found) >= limit:
                break
            found.append(line)
        return found

    def tail_sha256(self) -> str:
        """SHA-256 of the end of the newest segment, hex: ties the log to an outcome."""
        segments = _segments(self._directory)
        if not segments:
            return hashlib.sha256().hexdigest()
        with segments[-1].open("rb") as file:
            file.seek(max(0, segments[-1].stat().st_size - TAIL_BYTES))
            return hashlib.sha256(file.read(TAIL_BYTES)).hexdigest()

    def close(self) -> None:
        """Close the segment."""
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()

    def _write(self, level: str, text: str) -> None:
        now = self._clock.now()
        entry = {
            "n": self._next,
            "at": now.isoformat(),
            "level": level,
            "wave": self.wave_id,
            "trace": self.trace_id_of(self.wave_id),
            "text": text[:MAX_TEXT_CHARACTERS],
        }
        data = json.dumps(entry, ensure_ascii=False)
        sys.stderr.write(data + "\n")
        try:
            self._segment(now).write(data + "\n")
        except OSError:
            # A full or broken disk must not stop a rollback; the line went to stderr.
            return
        self._next += 1

    def _segment(self, now: datetime) -> TextIO:
        full = self._file is not None and self._file.tell() > self._quota_bytes // SEGMENTS
        if self._file is None or full or now - self._segment_began > SEGMENT_AGE:
            if self._file is not None:
                self._file.close()
            self._prune(now)
            path = self._directory / f"{self._next:012d}.jsonl"
            self._file = path.open("a", encoding="utf-8", buffering=1)
            self._segment_began = now
        return self._file

    def _prune(self, now: datetime) -> None:
        segments = _segments(self._directory)
        total_bytes = sum(path.stat().st_size for path in segments)
        oldest = (now - self._keep).timestamp()
        for path in segments[:-1]:
            status = path.stat()
            if total_bytes <= self._quota_bytes - self._quota_bytes // SEGMENTS and status.st_mtime >= oldest:
                break
            total_bytes -= status.st_size
            path.unlink(missing_ok=True)


def read_lines(directory: Path, first: int) -> Iterator[Line]:
    """Lines from number ``first`` on, in order; what is torn is skipped."""
    segments = _segments(directory)
    starts = [int(path.stem) for path in segments]
    for index, path in enumerate(segments):
        if index + 1 < len(segments) and starts[index + 1] <= first:
            continue
        with path.open(encoding="utf-8", errors="replace") as file:
            for text in file:
                line = _parse(text)
                if line is not None and line.number >= first:
                    yield line


def parse_since(text: str, now: datetime) -> datetime:
    """Read "15 min ago", "2h", or an ISO 8601 time; raises ValueError."""
    match = _SINCE.fullmatch(text)
    if match is not None:
        return now - timedelta(seconds=int(match[1]) * _UNITS_S[match[2][0]])
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        msg = f"{text!r} is neither like '15 min ago' nor an ISO 8601 time"
        raise ValueError(msg) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _segments(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("*.jsonl") if path.stem.isdigit())


def _newest_start(directory: Path) -> int:
    segments = _segments(directory)
    return int(segments[-1].stem) if segments else 0


def _parse(text: str) -> Line | None:
    try:
        entry = json.loads(text)
        at = datetime.fromisoformat(entry["at"])
        return Line(int(entry["n"]), at, str(entry["level"]), str(entry["wave"]), str(entry["text"]))
    except (ValueError, KeyError, TypeError):
        return None


def main() -> int:
    """Print the log of a device; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m device.logs", description="Print the log of a device.")
    parser.add_argument("--dir", type=Path, required=True, help="directory of the device")
    parser.add_argument("--since", default="24 h ago", help="'15 min ago', '2 h ago' or an ISO 8601 time")
    parser.add_argument("--wave", default="", help="only lines of this wave")
    arguments = parser.parse_args()
    try:
        since = parse_since(arguments.since, datetime.now(UTC))
    except ValueError as error:
        parser.error(f"--since: {error}")
    directory: Path = arguments.dir / "state" / "log"
    if not directory.is_dir():
        parser.error(f"--dir: {directory} does not exist")
    for line in read_lines(directory, 0):
        if line.at >= since and arguments.wave in {"", line.wave_id}:
            tag = f" [{line.wave_id}]" if line.wave_id else ""
            sys.stdout.write(f"{line.at.isoformat()} {line.level}{tag} {line.text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
