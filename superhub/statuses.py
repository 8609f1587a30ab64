"""Status on its way up: latest wins, and a key goes up at most once a second however often it changes (S3)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wavemesh.session.seams import Upstream

INTERVAL_S = 1.0
MAX_KEYS = 100_000


class StatusRelay:
    """Holds status back for up to INTERVAL_S and passes on the last value of each key."""

    def __init__(self, upstream: Upstream, interval_s: float = INTERVAL_S) -> None:
        """Start with nothing to pass on."""
        self._upstream = upstream
        self._interval_s = interval_s
        self._pending: dict[str, bytes | None] = {}
        self._known: set[str] = set()
        self._has_news = asyncio.Event()

    def set(self, key: str, body: bytes | None) -> None:
        """The latest value of a key; None removes it. Beyond MAX_KEYS new keys are dropped: status is best effort."""
        if key in self._known or len(self._known) < MAX_KEYS:
            self._known.add(key)
            self._pending[key] = body
            self._has_news.set()

    async def run(self) -> None:
        """Pass on until cancelled."""
        while True:
            await self._has_news.wait()
            self._has_news.clear()
            pending, self._pending = self._pending, {}
            for key, body in pending.items():
                self._upstream.set_status(key, body)
            await asyncio.sleep(self._interval_s)
