"""The schedule in force: what a fetch is for is asked before every piece, and rates are kept (S4)."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from superhub.schedule import Schedule, ScheduleConfig, WindowConfig
from superhub.timetable import REFRESH_S, TimedReader, Timetable
from wavemesh.artifacts.digests import digest_of
from wavemesh.errors import GateError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from wavemesh.trust.statements import Digest

NIGHT = (WindowConfig("00:30-05:00"),)
DIGEST = digest_of(b"image")
PIECE = 100_000


class Clock:
    """Stands until somebody sleeps."""

    def __init__(self, text: str) -> None:
        self.at, self.seconds = datetime.fromisoformat(text).replace(tzinfo=UTC), 1000.0

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)
        self.seconds += seconds


class Origin:
    """An endless origin that says from which byte it was read."""

    def __init__(self) -> None:
        self.offsets: list[int] = []

    async def read(self, digest: Digest, offset: int) -> AsyncGenerator[memoryview, None]:
        self.offsets.append(offset)
        while True:
            yield memoryview(bytes(PIECE))


class Bench:
    """A timed reader and what runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, config: ScheduleConfig, began: str) -> None:
        self.clock, self.origin, self.running = Clock(began), Origin(), {DIGEST}
        self.timetable = Timetable(Schedule(config), self.clock)
        self.timetable.use(lambda: self.running)
        self.reader = TimedReader(self.origin, self.timetable)
        monkeypatch.setattr("superhub.timetable.asyncio.sleep", self.clock.sleep)

    def pause(self) -> None:
        self.running = set()
        self.timetable.changed()

    async def take(self, pieces: AsyncGenerator[memoryview, None], count: int) -> float:
        """Seconds that so many pieces took."""
        began = self.clock.seconds
        for _ in range(count):
            await anext(pieces)
        return self.clock.seconds - began


async def test_ahead_of_a_wave_nothing_is_asked_while_the_window_is_shut(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, ScheduleConfig(windows=NIGHT), "2026-05-01T12:00")
    bench.pause()
    with pytest.raises(GateError, match="from 2026-05-02T00:30:00") as caught:
        await anext(bench.reader.read(DIGEST, 7))
    assert (caught.value.gate, bench.origin.offsets) == ("window", [])
    bench.clock.at = datetime(2026, 5, 2, 0, 30, tzinfo=UTC)
    async with aclosing(bench.reader.read(DIGEST, 7)) as pieces:
        await anext(pieces)
    assert bench.origin.offsets == [7]


async def test_a_window_that_shuts_ends_the_fetch_at_the_next_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, ScheduleConfig(windows=NIGHT), "2026-05-01T04:59:59")
    bench.pause()
    async with aclosing(bench.reader.read(DIGEST, 0)) as pieces:
        await anext(pieces)
        await bench.clock.sleep(1)
        with pytest.raises(GateError, match="from 2026-05-02T00:30:00"):
            await anext(pieces)


async def test_a_wave_that_is_paused_falls_back_to_the_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, ScheduleConfig(windows=NIGHT), "2026-05-01T12:00")
    async with aclosing(bench.reader.read(DIGEST, 0)) as pieces:
        await bench.take(pieces, 3)
        bench.pause()
        with pytest.raises(GateError):
            await anext(pieces)


async def test_the_rate_is_kept_ahead_and_not_for_a_wave(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetch that began ahead of its wave goes at the wave's rate from the moment it runs."""
    bench = Bench(monkeypatch, ScheduleConfig(bytes_per_s=PIECE), "2026-05-01T12:00")
    bench.pause()
    async with aclosing(bench.reader.read(DIGEST, 0)) as pieces:
        await anext(pieces)
        assert await bench.take(pieces, 20) == pytest.approx(20, rel=0.06)
        bench.running = {DIGEST}
        bench.timetable.changed()
        await anext(pieces)
        assert await bench.take(pieces, 20) == 0


async def test_a_wave_has_its_own_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, ScheduleConfig(wave_bytes_per_s=10 * PIECE), "2026-05-01T12:00")
    async with aclosing(bench.reader.read(DIGEST, 0)) as pieces:
        await bench.take(pieces, 11)
        assert await bench.take(pieces, 50) == pytest.approx(5, rel=0.05)


async def test_two_fetches_share_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, ScheduleConfig(bytes_per_s=PIECE), "2026-05-01T12:00")
    bench.pause()
    one, other = bench.reader.read(DIGEST, 0), bench.reader.read(digest_of(b"other"), 0)
    async with aclosing(one), aclosing(other):
        await bench.take(one, 2)
        await bench.take(other, 2)
        took = await bench.take(one, 5) + await bench.take(other, 5)
    assert took == pytest.approx(10, rel=0.15)


async def test_a_wait_looks_up_when_the_wave_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, ScheduleConfig(bytes_per_s=1000), "2026-05-01T12:00")
    bench.pause()
    sleeps: list[float] = []

    async def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        await bench.clock.sleep(seconds)
        if len(sleeps) == 3:
            bench.running = {DIGEST}
            bench.timetable.changed()

    monkeypatch.setattr("superhub.timetable.asyncio.sleep", sleep)
    async with aclosing(bench.reader.read(DIGEST, 0)) as pieces:
        async with asyncio.timeout(5):
            await bench.take(pieces, 3)
    assert len(sleeps) == 3


async def test_orders_that_expire_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, ScheduleConfig(windows=NIGHT), "2026-05-01T12:00")
    async with aclosing(bench.reader.read(DIGEST, 0)) as pieces:
        await anext(pieces)
        bench.running = set()
        await anext(pieces)
        await bench.clock.sleep(REFRESH_S)
        with pytest.raises(GateError):
            await anext(pieces)
