"""Tells waiting calls that something changed, without saying what: they look for themselves (level-triggered)."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Changes:
    """Who waits for a change. One event a waiter, so a slow one misses nothing and holds up nobody."""

    def __init__(self) -> None:
        """Nobody waits yet."""
        self._waiting: set[asyncio.Event] = set()
        self.is_over = False

    def end(self) -> None:
        """No more changes: whoever listens should leave."""
        self.is_over = True
        self.notify()

    def notify(self) -> None:
        """Something changed."""
        for event in self._waiting:
            event.set()

    @contextmanager
    def listening(self) -> Iterator[asyncio.Event]:
        """An event that is set by every change from now on; clear it before you look."""
        event = asyncio.Event()
        self._waiting.add(event)
        try:
            yield event
        finally:
            self._waiting.discard(event)
