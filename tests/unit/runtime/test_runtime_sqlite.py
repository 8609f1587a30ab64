"""Database: all or nothing, durable hooks, forward-only schema."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from wavemesh.runtime.sqlite import Database, DatabaseFaultError, DatabaseTooNewError

SCHEMA = ("CREATE TABLE a (x INTEGER PRIMARY KEY)", "CREATE TABLE b (y TEXT); CREATE TABLE c (z TEXT)")


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    db = await Database.open(tmp_path / "hub.db", SCHEMA)
    yield db
    await db.close()


async def test_settings_are_the_durable_ones(database: Database) -> None:
    async with database.transaction() as tx:
        assert [tuple(row) for row in await tx.fetch_all("PRAGMA synchronous")] == [(2,)]
        assert [tuple(row) for row in await tx.fetch_all("PRAGMA journal_mode")] == [("wal",)]
        assert [tuple(row) for row in await tx.fetch_all("PRAGMA foreign_keys")] == [(1,)]


async def test_commit_is_seen_by_readers_and_rollback_is_not(database: Database) -> None:
    async with database.transaction() as tx:
        assert await tx.execute("INSERT INTO a VALUES (?)", (1,)) == 1
        assert await database.fetch_all("SELECT x FROM a") == []
    row = await database.fetch_one("SELECT x FROM a WHERE x = :x", {"x": 1})
    assert row is not None
    assert row["x"] == 1

    async def fails() -> None:
        async with database.transaction() as tx:
            await tx.execute("INSERT INTO a VALUES (2)")
            raise KeyError

    with pytest.raises(KeyError):
        await fails()
    assert len(await database.fetch_all("SELECT x FROM a")) == 1
    async with database.transaction() as tx:
        await tx.execute_many("INSERT INTO a VALUES (?)", [(3,), (4,)])
    assert len(await database.fetch_all("SELECT x FROM a")) == 3


async def test_hooks_run_after_commit_only(database: Database) -> None:
    seen: list[int] = []

    async def once(value: int, fault: Exception | None) -> None:
        async with database.transaction() as tx:
            tx.on_commit(lambda: seen.append(value))
            await tx.execute("INSERT INTO a VALUES (?)", (value,))
            assert seen == []
            if fault:
                raise fault

    with pytest.raises(KeyError):
        await once(1, KeyError())
    await once(2, None)
    assert seen == [2]


async def test_a_cancelled_commit_is_waited_for_and_its_hooks_run(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever mirrors tables in memory must not lose track of a commit that happened (M3)."""
    seen: list[int] = []
    committing = asyncio.Event()
    end = database._end

    async def slow_end(statement: str) -> DatabaseFaultError | None:
        committing.set()
        return await end(statement)

    monkeypatch.setattr(database, "_end", slow_end)

    async def writer() -> None:
        async with database.transaction() as tx:
            await tx.execute("INSERT INTO a VALUES (7)")
            tx.on_commit(lambda: seen.append(7))

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(writer())
        await committing.wait()
        task.cancel()
    assert task.cancelled()
    rows = await database.fetch_all("SELECT x FROM a")
    assert [row["x"] for row in rows] == seen == [7]


async def test_transactions_are_serialised(database: Database) -> None:
    async def increment() -> None:
        async with database.transaction() as tx:
            row = await tx.fetch_one("SELECT coalesce(max(x), 0) AS top FROM a")
            assert row is not None
            await tx.execute("INSERT INTO a VALUES (?)", (row["top"] + 1,))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(increment())
    row = await database.fetch_one("SELECT count(*) AS n, max(x) AS top FROM a")
    assert row is not None
    assert (row["n"], row["top"]) == (20, 20)


async def test_errors_name_the_file_and_integrity_passes(database: Database, tmp_path: Path) -> None:
    async def run(sql: str) -> None:
        async with database.transaction() as tx:
            await tx.execute(sql)

    with pytest.raises(DatabaseFaultError, match=r"hub\.db"):
        await run("SELECT nonsense")
    await run("INSERT INTO a VALUES (1)")
    with pytest.raises(sqlite3.IntegrityError):
        await run("INSERT INTO a VALUES (1)")
    (tmp_path / "text.db").write_bytes(b"this is no database at all, and never was one" * 40)
    with pytest.raises(DatabaseFaultError, match=r"text\.db"):
        await Database.open(tmp_path / "text.db", SCHEMA)


async def test_migrations_go_forward_and_a_newer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    await (await Database.open(path, SCHEMA[:1])).close()
    db = await Database.open(path, SCHEMA)
    assert await db.fetch_all("SELECT * FROM c") == []
    await db.close()
    with pytest.raises(DatabaseTooNewError, match="newer"):
        await Database.open(path, SCHEMA[:1])


async def test_a_failing_migration_leaves_the_version_before(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    with pytest.raises(DatabaseFaultError):
        await Database.open(path, (SCHEMA[0], "CREATE TABLE d (x); CREATE TABEL e (y)"))
    db = await Database.open(path, SCHEMA[:1])
    assert await db.fetch_all("SELECT name FROM sqlite_master WHERE name = 'd'") == []
    await db.close()


async def test_a_transaction_cancelled_while_it_begins_leaves_nothing_open(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "hub.sqlite3", ["CREATE TABLE t (x INTEGER)"])

    async def write() -> None:
        async with database.transaction() as tx:
            await tx.execute("INSERT INTO t VALUES (1)")

    try:
        for _ in range(20):
            async with asyncio.TaskGroup() as group:
                task = group.create_task(write())
                await asyncio.sleep(0)  # the task has asked for BEGIN and waits
                task.cancel()
            await write()
        [row] = await database.fetch_all("SELECT count(*) AS n FROM t")
        assert row["n"] == 20
    finally:
        await database.close()
