"""The region's schedule in force: a BlobReader that fetches when and as fast as ``schedule.py`` allows.

What a fetch is for is asked anew before every piece, so one that began ahead of its wave goes at the wave's rate from
the moment the wave runs, and one whose wave was paused falls back to the windows. A shut window ends a fetch with gate
``window``; what arrived stays, and the next who asks in a window goes on at its byte.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

from superhub.schedule import Purpose, Shut
from wavemesh.artifacts.rates import TokenBucket
from wavemesh.errors import GateError
from wavemesh.policy.gates import Gate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable

    from superhub.schedule import Schedule
    from wavemesh.artifacts.download import BlobReader
    from wavemesh.runtime.clock import Clock
    from wavemesh.trust.statements import Digest

WAIT_STEP_S = 1.0
"""A wait for the rate is cut into steps of this: the wave may start meanwhile."""
REFRESH_S = 30.0
"""How old the view of what runs may be: orders expire without anybody saying so."""


class Timetable:
    """When which blob may be fetched into one region."""

    def __init__(self, schedule: Schedule, clock: Clock) -> None:
        """Until ``use`` says what runs, nothing does."""
        self._schedule = schedule
        self._clock = clock
        self._running: Callable[[], Iterable[Digest]] = tuple
        self._for_waves: frozenset[Digest] = frozenset()
        self._fresh_until = float("-inf")
        now = clock.monotonic()
        self._buckets = {purpose: TokenBucket(None, now) for purpose in Purpose}

    def use(self, running: Callable[[], Iterable[Digest]]) -> None:
        """``running`` are the blobs of releases that running orders name."""
        self._running = running
        self.changed()

    def changed(self) -> None:
        """Orders are others now."""
        self._fresh_until = float("-inf")

    def describe(self) -> str:
        """How it stands, for people."""
        return self._schedule.describe(self._clock.now())

    def check(self, digest: Digest) -> None:
        """Raise GateError ``window`` unless that blob may be fetched now."""
        state = self._schedule.decide(self._purpose(digest), self._clock.now())
        if isinstance(state, Shut):
            opens_at = state.opens_at.isoformat(timespec="seconds")
            msg = f"blob {digest.sha256} is fetched into this region from {opens_at} on, when a window opens "
            raise GateError(Gate.WINDOW.value, f"{msg}(origin.schedule of its super hub)", opens_at=opens_at)

    async def read(self, reader: BlobReader, digest: Digest, offset: int) -> AsyncGenerator[memoryview, None]:
        """What ``reader`` reads, in its time; raises GateError ``window`` and as that reader does."""
        self.check(digest)
        async with aclosing(reader.read(digest, offset)) as pieces:
            async for piece in pieces:
                yield piece
                await self._spend(digest, len(piece))

    async def _spend(self, digest: Digest, moved_bytes: int) -> None:
        """Account for a piece, and wait until the next may come; raises GateError ``window``."""
        is_paid = False
        while True:
            self.check(digest)
            now, purpose = self._clock.monotonic(), self._purpose(digest)
            bucket = self._bucket(purpose, now)
            if not is_paid:
                bucket.spend(moved_bytes, now)
                is_paid = True
            delay_s = bucket.delay_s(now)
            if delay_s <= 0:
                return
            await asyncio.sleep(min(delay_s, WAIT_STEP_S))

    def _bucket(self, purpose: Purpose, now: float) -> TokenBucket:
        """The bucket for that purpose, at the rate of now."""
        bucket, state = self._buckets[purpose], self._schedule.decide(purpose, self._clock.now())
        rate = None if isinstance(state, Shut) else state.rate
        if bucket.rate != rate:
            bucket.change(rate, now)
        return bucket

    def _purpose(self, digest: Digest) -> Purpose:
        now = self._clock.monotonic()
        if now >= self._fresh_until:
            self._for_waves, self._fresh_until = frozenset(self._running()), now + REFRESH_S
        return Purpose.WAVE if digest in self._for_waves else Purpose.AHEAD


class TimedReader:
    """The origin as the timetable lets it be read."""

    def __init__(self, reader: BlobReader, timetable: Timetable) -> None:
        """A BlobReader on another."""
        self._reader = reader
        self._timetable = timetable

    def read(self, digest: Digest, offset: int) -> AsyncGenerator[memoryview, None]:
        """The bytes from ``offset`` on; raises GateError ``window``, and as the origin does."""
        return self._timetable.read(self._reader, digest, offset)
