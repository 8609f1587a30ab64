"""The hub's clock floor: durable, only rising, and what confirms a clock that no hardware backs."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from storehub.clockguard import FLOOR_STEP, ClockGuard
from storehub.store import HubStore
from wavemesh.trust.freshness import CLOCK_SKEW, ClockSource

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@asynccontextmanager
async def started(path: Path, source: ClockSource) -> AsyncIterator[tuple[ClockGuard, HubStore]]:
    store = await HubStore.open(path / "hub.sqlite3")
    try:
        yield ClockGuard(store, source), store
    finally:
        await store.close()


async def test_the_floor_survives_a_restart(tmp_path: Path) -> None:
    """A clock set back by a dead battery is noticed, though the hub's clock counts as hardware-backed."""
    async with started(tmp_path, ClockSource.HARDWARE) as (guard, store), store.database.transaction() as tx:
        await guard.tick(tx, NOW)
    async with started(tmp_path, ClockSource.HARDWARE) as (guard, store):
        assert "which is known to have passed" in guard.distrust(NOW - timedelta(days=365))
        assert guard.distrust(NOW) == ""
        async with store.database.transaction() as tx:
            await guard.tick(tx, NOW - timedelta(days=365))
        assert guard.distrust(NOW - MINUTE) != ""


@pytest.mark.parametrize(("apart", "trusted"), [(timedelta(), True), (CLOCK_SKEW, True), (CLOCK_SKEW + MINUTE, False)])
async def test_control_s_time_confirms_a_clock_that_agrees(tmp_path: Path, apart: timedelta, trusted: bool) -> None:  # noqa: FBT001
    async with started(tmp_path, ClockSource.UNCONFIRMED) as (guard, store):
        assert guard.distrust(NOW) != ""
        async with store.database.transaction() as tx:
            await guard.confirm(tx, NOW + apart, NOW)
        assert (guard.distrust(NOW) == "") is trusted


async def test_a_later_word_of_control_raises_the_floor(tmp_path: Path) -> None:
    async with started(tmp_path, ClockSource.HARDWARE) as (guard, store):
        async with store.database.transaction() as tx:
            await guard.confirm(tx, NOW, NOW)
            await guard.confirm(tx, NOW - timedelta(days=9), NOW)
        assert guard.distrust(NOW - CLOCK_SKEW) == ""
        assert guard.distrust(NOW - CLOCK_SKEW - MINUTE) != ""


async def test_the_floor_is_not_written_at_every_look(tmp_path: Path) -> None:
    async with started(tmp_path, ClockSource.HARDWARE) as (guard, store):
        for at in (NOW, NOW + FLOOR_STEP / 2, NOW + FLOOR_STEP):
            async with store.database.transaction() as tx:
                await guard.tick(tx, at)
            held = store.fact("clock_floor")
            assert (held == str(int(NOW.timestamp() * 1e6))) == (at < NOW + FLOOR_STEP), held
