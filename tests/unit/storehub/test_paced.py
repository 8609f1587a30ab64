"""Reads at the rates of a store: by night and by day, all blobs together (H3, M6)."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from storehub import paced
from storehub.paced import PacedReader
from wavemesh.artifacts.plan import Method, Offer
from wavemesh.runtime.clock import SystemClock
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

PIECE = 64 * 1024
BLOBS = [Digest(f"{number:064x}", 40 * PIECE) for number in range(3)]


class Time(SystemClock):
    """A monotonic clock that sleeping moves."""

    def __init__(self) -> None:
        self.at = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at += max(seconds, 1e-6)  # a sleep takes time, however short it was asked for


class Source:
    """Pieces at once, as fast as they are taken."""

    async def read(self, digest: Digest, offset: int = 0, length_bytes: int = 0) -> AsyncGenerator[memoryview, None]:
        for _ in range(offset, offset + length_bytes if length_bytes else digest.size_bytes, PIECE):
            yield memoryview(bytes(PIECE))

    async def offer(
        self, target: Digest, bases: Sequence[Digest], methods: Sequence[Method]
    ) -> tuple[Offer, ...] | None:
        return (Offer(methods[0], tuple(bases), target),)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr("storehub.paced.asyncio.sleep", time.sleep)
    return time


async def take(reader: PacedReader, digest: Digest) -> int:
    async with aclosing(reader.read(digest, 0)) as pieces:
        return sum([len(piece) async for piece in pieces])


@pytest.mark.parametrize(("is_windowed", "rate"), [(True, 4 * PIECE), (False, 20 * PIECE)])
async def test_each_kind_has_its_rate(time: Time, is_windowed: bool, rate: int) -> None:  # noqa: FBT001
    reader = PacedReader(Source(), time, window_bytes_per_s=4 * PIECE, day_bytes_per_s=20 * PIECE)
    reader.is_windowed = lambda _: is_windowed
    assert await take(reader, BLOBS[0]) == BLOBS[0].size_bytes
    # A burst of one second, then the rate.
    assert time.at - 1000.0 == pytest.approx(BLOBS[0].size_bytes / rate - 1, abs=0.1)
    assert max(time.slept) <= paced.WAIT_STEP_S


async def test_several_blobs_share_one_rate(time: Time) -> None:
    reader = PacedReader(Source(), time, window_bytes_per_s=0, day_bytes_per_s=10 * PIECE)
    for blob in BLOBS:
        await take(reader, blob)
    assert time.at - 1000.0 == pytest.approx(len(BLOBS) * 40 / 10 - 1, abs=0.1)


async def test_without_a_rate_nothing_waits(time: Time) -> None:
    reader = PacedReader(Source(), time, window_bytes_per_s=0, day_bytes_per_s=0)
    await take(reader, BLOBS[0])
    assert time.slept == []


async def test_a_blob_that_a_wave_takes_over_goes_on_at_the_days_rate(time: Time) -> None:
    """Asked anew while it waits, so it does not wait to the end of a slow night's debt."""
    reader = PacedReader(Source(), time, window_bytes_per_s=PIECE // 8, day_bytes_per_s=0)
    wanted = [True] * 3
    reader.is_windowed = lambda _: bool(wanted and wanted.pop())
    await take(reader, BLOBS[0])
    assert time.at - 1000.0 <= 3 * paced.WAIT_STEP_S


async def test_parts_count_and_questions_do_not(time: Time) -> None:
    reader = PacedReader(Source(), time, window_bytes_per_s=0, day_bytes_per_s=4 * PIECE)
    assert await reader.offer(BLOBS[0], [BLOBS[1]], [Method.DELTA]) == (Offer(Method.DELTA, (BLOBS[1],), BLOBS[0]),)
    async with aclosing(reader.read(BLOBS[0], PIECE, 12 * PIECE)) as pieces:
        assert sum([len(piece) async for piece in pieces]) == 12 * PIECE
    assert time.at - 1000.0 == pytest.approx(12 / 4 - 1, abs=0.1)


async def test_a_read_that_is_given_up_ends_the_one_below(time: Time) -> None:
    ended = asyncio.Event()

    class Watched(Source):
        async def read(
            self, digest: Digest, offset: int = 0, length_bytes: int = 0
        ) -> AsyncGenerator[memoryview, None]:
            try:
                async with aclosing(super().read(digest, offset, length_bytes)) as pieces:
                    async for piece in pieces:
                        yield piece
            finally:
                ended.set()

    reader = PacedReader(Watched(), time, window_bytes_per_s=0, day_bytes_per_s=0)
    async with aclosing(reader.read(BLOBS[0], 0)) as pieces:
        await anext(pieces)
    assert ended.is_set()
