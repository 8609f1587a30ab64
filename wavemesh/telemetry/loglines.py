"""Log lines of the tiers: time, level, logger, and what the line is about.

A line that is written while a wave is worked on carries the wave's id, and with a device the id of its trace too, so
that a log and a trace find each other. What is worked on is a context variable: set around the work by ``about``, it
follows awaits and tasks, and no function in between has to know.
"""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from wavemesh.telemetry.spans import trace_id_of

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMAT = "%(asctime)s %(levelname)s %(name)s%(about)s %(message)s"
_ABOUT: ContextVar[str] = ContextVar("wavemesh_about", default="")


@contextmanager
def about(fleet: str, wave_id: str, device: str = "") -> Iterator[None]:
    """What is logged in the block is about that wave and, by its path, that device."""
    words = f" wave={wave_id}" if wave_id else ""
    if device:
        words += f" device={device} trace={trace_id_of(fleet, wave_id, device)}"
    token = _ABOUT.set(words)
    try:
        yield
    finally:
        _ABOUT.reset(token)


class Tagging(logging.Filter):
    """Gives each record of a handler its ``about``."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Tag and keep."""
        record.about = _ABOUT.get()
        return True


def log_to_stderr() -> None:
    """Log from INFO on to stderr, one line a record: what every tier does at its start."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(Tagging())
    logging.basicConfig(level=logging.INFO, handlers=[handler], format=FORMAT)
