"""Reads from the super hub at a rate: what comes within a prefetch window, and what comes by day (H3, M6).

All reads of a kind share one token bucket, so several blobs at once are no faster than one. Which kind a blob is, is
asked before each piece: a prefetch that a wave takes over goes on at the wave's rate. A pause of the reader reaches the
sender by flow control; nothing piles up here.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

from storehub.nights import Meter
from wavemesh.artifacts.rates import Rate, TokenBucket

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from storehub.pieces import DeliveryReader
    from wavemesh.artifacts.plan import Method, Offer
    from wavemesh.runtime.clock import Clock
    from wavemesh.trust.statements import Digest

WAIT_STEP_S = 1.0
"""A wait is cut into steps of this: the blob may be of another kind meanwhile."""


class PacedReader:
    """A DeliveryReader on another, at the rates of a store."""

    def __init__(
        self, reader: DeliveryReader, clock: Clock, *, window_bytes_per_s: float, day_bytes_per_s: float
    ) -> None:
        """Rates in bytes a second, 0 for none."""
        now = clock.monotonic()
        self._reader = reader
        self._clock = clock
        self._night, self._day = (
            TokenBucket(Rate.of(rate) if rate else None, now) for rate in (window_bytes_per_s, day_bytes_per_s)
        )
        self.is_windowed: Callable[[Digest], bool] = lambda _: False
        """Whether a blob comes now because a prefetch window is open; the composition root sets it."""
        self.meter = Meter()
        """How fast bytes come, all reads together."""

    async def offer(
        self, target: Digest, bases: Sequence[Digest], methods: Sequence[Method]
    ) -> tuple[Offer, ...] | None:
        """What the reader is offered; a question costs no rate."""
        return await self._reader.offer(target, bases, methods)

    async def read(self, digest: Digest, offset: int = 0, length_bytes: int = 0) -> AsyncGenerator[memoryview, None]:
        """The bytes from ``offset`` on, in their time; raises as the reader does."""
        async with aclosing(self._reader.read(digest, offset, length_bytes)) as pieces:
            async for piece in pieces:
                size_bytes = len(piece)
                self.meter.moved(size_bytes, self._clock.monotonic())
                yield piece
                await self._spend(digest, size_bytes)

    async def _spend(self, digest: Digest, moved_bytes: int) -> None:
        while True:
            bucket, now = self._night if self.is_windowed(digest) else self._day, self._clock.monotonic()
            bucket.spend(moved_bytes, now)
            moved_bytes = 0
            delay_s = bucket.delay_s(now)
            if delay_s <= 0:
                return
            await asyncio.sleep(min(delay_s, WAIT_STEP_S))
