"""A device's log on its way to its store hub, as values: what report.proto says. Not signed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime  # noqa: TC003  # the codec resolves the hints at run time


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a device's log; ``level`` is "debug", "info", "warning" or "error"."""

    at: datetime
    level: str
    wave_id: str
    text: str


@dataclass(frozen=True, slots=True)
class LogUpload:
    """A run of a device's log, numbered from ``first_number``."""

    first_number: int
    lines: tuple[LogLine, ...]


@dataclass(frozen=True, slots=True)
class LogUploadAnswer:
    """Lines up to ``through`` are durable at the hub."""

    through: int
