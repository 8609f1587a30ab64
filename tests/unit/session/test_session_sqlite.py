"""A hub's session tables: durable, in the caller's transaction, mirrored after the commit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.session_kit import resource
from wavemesh.runtime.sqlite import Database
from wavemesh.session.frames import HeldResource, Report, ResourceKey
from wavemesh.session.seams import SentMark
from wavemesh.session.sqlite import (
    MAX_INCARNATIONS,
    SESSION_SCHEMA,
    SqliteCursors,
    SqliteReportLog,
    SqliteResources,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from wavemesh.runtime.sqlite import Transaction

SNAPSHOT = Report("snapshot", b"everything")


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path / "hub.db", [SESSION_SCHEMA])
    yield opened
    await opened.close()


async def snapshot(tx: Transaction, incarnation: str) -> Sequence[Report]:
    assert incarnation
    assert await tx.fetch_all("SELECT * FROM session_log") is not None
    return [SNAPSHOT]


async def append(database: Database, log: SqliteReportLog, *bodies: bytes, kind: str = "event") -> None:
    async with database.transaction() as tx:
        for body in bodies:
            await log.append(tx, Report(kind, body))


async def test_a_log_begins_with_a_snapshot_and_survives(database: Database) -> None:
    log = await SqliteReportLog.open(database, snapshot)
    assert (log.first_number, log.next_number, len(log.incarnation)) == (1, 2, 32)
    await append(database, log, b"a", b"b", b"c")
    await log.acknowledge(2)
    await log.acknowledge(1)
    await log.mark_sent(3)
    again = await SqliteReportLog.open(database, snapshot)
    for each in (log, again):
        assert isinstance(each, SentMark)
        assert (each.first_number, each.next_number, each.sent_through) == (3, 5, 3)
        assert each.incarnation == log.incarnation
        assert await each.read(3, 1) == [Report("event", b"b")]
        assert await each.read(3, 9) == [Report("event", b"b"), Report("event", b"c")]
    await log.acknowledge(4)
    empty = await SqliteReportLog.open(database, snapshot)
    assert (empty.first_number, empty.next_number) == (5, 5)


async def test_an_append_belongs_to_its_transaction(database: Database) -> None:
    """M3: a report is durable with what it reports, or not at all."""
    log = await SqliteReportLog.open(database, snapshot)

    async def fails() -> None:
        async with database.transaction() as tx:
            assert await log.append(tx, Report("event", b"x")) == 2
            assert log.next_number == 2
            raise KeyError

    with pytest.raises(KeyError):
        await fails()
    assert log.next_number == 2
    assert await log.read(2, 9) == []


async def test_restart_keeps_what_no_snapshot_covers(database: Database) -> None:
    log = await SqliteReportLog.open(database, snapshot)
    await append(database, log, b"acknowledged")
    await log.acknowledge(2)
    await append(database, log, b"outcome", kind="outcome")
    await append(database, log, b"intent", kind="intent")
    before = log.incarnation
    await log.restart()
    assert log.incarnation != before
    assert (log.first_number, log.next_number, log.sent_through) == (1, 3, 0)
    assert await log.read(1, 9) == [SNAPSHOT, Report("intent", b"intent")]
    assert (await SqliteReportLog.open(database, snapshot)).incarnation == log.incarnation


async def test_cursors_move_in_the_transaction_and_never_back(database: Database) -> None:
    cursors = SqliteCursors(database)
    assert await cursors.admission("store", "i", 1) == 0

    async def move(incarnation: str, through: int) -> None:
        async with database.transaction() as tx:
            await cursors.advance(tx, "store", incarnation, through)

    await move("i", 5)
    await move("i", 3)
    assert await cursors.admission("store", "i", 1) == 5
    assert await cursors.admission("other", "i", 1) == 0
    for number in range(MAX_INCARNATIONS):
        await move(f"j{number}", 1)
    assert await cursors.admission("store", "i", 1) == 0
    assert await cursors.admission("store", f"j{MAX_INCARNATIONS - 1}", 1) == 1


async def test_an_incarnation_that_gave_way_is_fenced_whatever_its_numbers(database: Database) -> None:
    """M3, P6: permits are bound to the newest incarnation; one that came before it, from a copy, must not stay."""
    cursors = SqliteCursors(database)
    async with database.transaction() as tx:
        await cursors.advance(tx, "store", "first", 7)
        await cursors.advance(tx, "other", "first", 7)
    assert await cursors.admission("store", "first", 8) == 7
    async with database.transaction() as tx:
        await cursors.advance(tx, "store", "copy", 2)
    assert await cursors.admission("store", "first", 8) == 8
    assert await cursors.admission("store", "first", 3) == 7
    assert await cursors.admission("store", "copy", 3) == 2
    assert await cursors.admission("other", "first", 8) == 7


async def test_resources_are_served_under_versions_of_this_hub(database: Database) -> None:
    held = await SqliteResources.open(database)
    order, policy = resource("142", b"order", kind="order", urgent=True, counter=9), resource("p", b"policy")
    async with database.transaction() as tx:
        await held.store(tx, [order, policy], [])
        assert held.get(order.key) is None
    kept = held.get(order.key)
    assert kept is not None
    assert (kept.digest, kept.content, kept.urgent) == (order.digest, order.content, True)
    assert kept.version.epoch == held.epoch != order.version.epoch
    assert held.held() == [HeldResource(each.key, each.version, each.digest) for each in (order, policy)]
    assert list(held.all("order")) == [order.key]
    assert len(held.all()) == 2
    async with database.transaction() as tx:
        assert (await held.next_version(tx)).counter == 3
        await held.store(tx, [], [policy.key, ResourceKey("policy", "absent")])
    again = await SqliteResources.open(database)
    assert again.epoch == held.epoch
    assert again.all() == held.all() == {order.key: kept}
    assert again.held() == held.held()


async def test_a_rolled_back_store_leaves_memory_as_it_was(database: Database) -> None:
    held = await SqliteResources.open(database)

    async def fails() -> None:
        async with database.transaction() as tx:
            await held.store(tx, [resource("p")], [])
            raise KeyError

    with pytest.raises(KeyError):
        await fails()
    assert held.all() == {}
