"""The outbox on SQLite: atomic with the work, once each, bounded, what is dropped is counted."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from wavemesh.codec.statements import decode, encode
from wavemesh.errors import NotFoundError
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.sqlite import Database
from wavemesh.telemetry import otlp
from wavemesh.telemetry.batches import TelemetryBatch, TelemetryUpload
from wavemesh.telemetry.config import TelemetryConfig
from wavemesh.telemetry.outbox import TABLES, Outbox
from wavemesh.telemetry.spans import Span, Trace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

FLEET = "test.example"
STORE = NodeId(FLEET, "region/midwest/store/store-209")
DEVICE = NodeId(FLEET, f"{STORE.path}/device/pos-17")
NOW = datetime(2026, 11, 26, 22, 0, tzinfo=UTC)


@dataclass
class HandClock:
    at: datetime = NOW

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()


def span(name: str, device: NodeId = DEVICE, wave: str = "142", at: datetime = NOW) -> Span:
    trace = Trace(FLEET, wave, device.path)
    return Span(trace, trace.unit(name), trace.root(), name, at, at + timedelta(seconds=1))


def batch(number: int, incarnation: str = "a" * 32, source: NodeId = DEVICE, name: str = "") -> TelemetryBatch:
    body = otlp.encode(source, [span(name or f"{incarnation[:1]}{number}", source)])
    return TelemetryBatch(source.path, incarnation, number, body)


class Opened:
    def __init__(self, database: Database, outbox: Outbox, clock: HandClock) -> None:
        self.database, self.outbox, self.clock = database, outbox, clock

    async def record(self, *spans: Span, fails: bool = False) -> None:
        """Spans in the transaction of their work, which may fail."""
        async with self.database.transaction() as tx:
            await self.outbox.record(tx, spans)
            if fails:
                await tx.execute("INSERT INTO telemetry_drops VALUES (NULL, NULL)")

    async def unsent(self) -> list[str]:
        """Names of the spans that would go up next."""
        pending = await self.outbox.pending(64)
        bodies = [] if pending is None else [one.otlp_traces for one in pending.batches]
        return [found.name for body in bodies for found in _all(body)]

    async def until(self, names: list[str]) -> None:
        while await self.held() != names:  # noqa: ASYNC110  # a database has no event
            await asyncio.sleep(0.01)

    async def held(self) -> list[str]:
        return [found.name for found in await self.outbox.trace(Trace(FLEET, "142", DEVICE.path).trace_id)]


def _all(body: bytes) -> list[otlp.ShownSpan]:
    trace_id = otlp.check(body, FLEET, DEVICE.path if b"device/pos-17" in body[:120] else STORE.path)
    return otlp.show(body, trace_id)


@asynccontextmanager
async def opened(path: Path, config: TelemetryConfig | None = None) -> AsyncIterator[Opened]:
    database, clock = await Database.open(path / "hub.sqlite3", (TABLES,)), HandClock()
    outbox = Outbox(STORE, database, clock, config or TelemetryConfig())
    await outbox.load()
    try:
        yield Opened(database, outbox, clock)
    finally:
        await database.close()


async def test_a_span_exists_if_and_only_if_its_work_does(tmp_path: Path) -> None:
    async with opened(tmp_path) as one:
        with pytest.raises(sqlite3.IntegrityError):
            await one.record(span("storehub.lost"), fails=True)
        await one.record(span("storehub.kept"))
        assert await one.held() == ["storehub.kept"]
    async with opened(tmp_path) as again:
        assert await again.held() == ["storehub.kept"]
        assert await again.unsent() == ["storehub.kept"]


async def test_each_batch_is_stored_once_however_often_it_comes(tmp_path: Path) -> None:
    first, second = batch(1), batch(2)
    async with opened(tmp_path) as one:
        assert (await one.outbox.take(DEVICE, TelemetryUpload((first,)))).settled == 1
    async with opened(tmp_path) as one:  # killed before the answer left
        assert (await one.outbox.take(DEVICE, TelemetryUpload((first, second)))).settled == 2
        assert await one.unsent() == ["a1", "a2"]
        await one.outbox.take(DEVICE, TelemetryUpload((first, batch(1, "b" * 32))))
        assert await one.unsent() == ["a1", "a2", "b1"]


async def test_the_very_bytes_go_on(tmp_path: Path) -> None:
    sent = batch(1)
    async with opened(tmp_path) as one:
        await one.outbox.take(DEVICE, TelemetryUpload((sent,)))
        pending = await one.outbox.pending(64)
        assert pending is not None
        assert pending.batches == (sent,)
        assert decode(TelemetryUpload, encode(TelemetryUpload(pending.batches))).batches == (sent,)


async def test_what_a_child_may_not_say_is_refused_and_the_rest_is_kept(tmp_path: Path) -> None:
    other = NodeId(FLEET, f"{STORE.path}/device/pos-18")
    bad = [
        replace(batch(1), otlp_traces=b"\xff\xff"),
        batch(1, source=other),
        replace(batch(1), source=other.path),
        replace(batch(1), number=0),
        replace(batch(1), number=2**63),
    ]
    async with opened(tmp_path) as one:
        answer = await one.outbox.take(DEVICE, TelemetryUpload((*bad, batch(7))))
        assert (answer.settled, answer.refused) == (6, 5)
        assert "pos-17" in answer.reason
        assert await one.unsent() == ["a7"]


async def test_sent_ones_stay_to_be_shown_until_room_is_needed(tmp_path: Path) -> None:
    async with opened(tmp_path, TelemetryConfig(max_batches=16)) as one:
        for number in range(1, 9):
            await one.outbox.take(DEVICE, TelemetryUpload((batch(number),)))
        pending = await one.outbox.pending(4)
        assert pending is not None
        await one.outbox.sent(pending.numbers[-1])
        assert len(await one.held()) == 8
        assert await one.unsent() == ["a5", "a6", "a7", "a8"]
        for number in range(9, 18):
            await one.outbox.take(DEVICE, TelemetryUpload((batch(number),)))
        # 17 are too many for 16: 14 stay, and those that were sent go before those that were not.
        assert sorted(await one.held(), key=lambda name: int(name[1:])) == [f"a{n}" for n in range(4, 18)]
        assert one.outbox.dropped == 0


async def test_a_full_outbox_drops_the_oldest_and_says_how_many(tmp_path: Path) -> None:
    size = len(batch(1).otlp_traces)
    config = TelemetryConfig(max_bytes=size * 10 + size // 2)
    async with opened(tmp_path, config) as one:
        for number in range(1, 10):
            await one.outbox.take(DEVICE, TelemetryUpload((batch(number),)))
        assert one.outbox.dropped == 0
        for number in range(10, 12):
            await one.outbox.take(DEVICE, TelemetryUpload((batch(number),), dropped=3))
        assert (await one.unsent())[0] == "a3"
        assert one.outbox.dropped == 2 + 3
        pending = await one.outbox.pending(64)
        assert pending is not None
        assert pending.dropped == 5
    async with opened(tmp_path, config) as one:
        assert one.outbox.dropped == 5
        await one.outbox.take(DEVICE, TelemetryUpload((batch(12),), dropped=1))  # a child that forgot its count
        assert one.outbox.dropped == 5


async def test_what_is_older_than_its_time_goes(tmp_path: Path) -> None:
    async with opened(tmp_path, TelemetryConfig(keep_s=60)) as one:
        await one.record(span("storehub.old"))
        one.clock.at = NOW + timedelta(seconds=61)
        await one.record(span("storehub.new"))
        async with asyncio.TaskGroup() as group:
            keeping = group.create_task(one.outbox.keep_bounded())
            async with asyncio.timeout(10):
                await one.until(["storehub.new"])
            keeping.cancel()
        assert one.outbox.dropped == 1


async def test_a_trace_is_shown_by_begin_and_each_span_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as one:
        await one.record(span("b", at=NOW + timedelta(seconds=5)), span("other", wave="143"))
        await one.record(span("a"), span("b", at=NOW + timedelta(seconds=5)))
        assert await one.held() == ["a", "b"]


async def test_thousands_of_spans_at_once_are_kept_each_in_its_trace(tmp_path: Path) -> None:
    devices = [NodeId(FLEET, f"{STORE.path}/device/pos-{number}") for number in range(1000)]
    async with opened(tmp_path) as one:
        await one.record(*(span("storehub.order", device) for device in devices))
        for device in devices[::250]:
            [found] = await one.outbox.trace(Trace(FLEET, "142", device.path).trace_id)
            assert found.name == "storehub.order"


async def test_off_means_off(tmp_path: Path) -> None:
    async with opened(tmp_path, TelemetryConfig(enabled=False)) as one:
        await one.record(span("x"))
        assert await one.held() == []
        with pytest.raises(NotFoundError, match="off"):
            await one.outbox.take(DEVICE, TelemetryUpload((batch(1),)))
