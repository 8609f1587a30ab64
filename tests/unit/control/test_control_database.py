"""Control's database (C3): migrations, durability of decisions, what a failed or cancelled transaction leaves."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import TYPE_CHECKING

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, select
from sqlalchemy.engine import make_url
from sqlalchemy.schema import CreateTable

from control import schema
from control.database import Database, DatabaseError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await Database.open(tmp_path / "state" / "control.sqlite")
    yield database
    await database.aclose()


async def names(database: Database) -> list[str]:
    async with database.reading() as tx:
        return [row["name"] for row in await tx.all(select(schema.meta).order_by(schema.meta.c.name))]


async def test_migrations_make_the_schema(tmp_path: Path, database: Database) -> None:
    """What migrations build is what schema.py says; SQLite runs as the rules have it."""
    path = tmp_path / "state" / "control.sqlite"
    with create_engine(f"sqlite:///{path}").connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        connection.engine.dispose()
    async with database.reading() as tx:
        assert await tx.scalar(select(1)) == 1


def test_the_schema_fits_postgresql() -> None:
    """C3: no table needs SQLite."""
    dialect = make_url("postgresql+psycopg://").get_dialect()()
    for table in schema.metadata.tables.values():
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=dialect))


async def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    """Q2: an older program must not touch it, and says why."""
    path = tmp_path / "control.sqlite"
    await (await Database.open(path)).aclose()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0999'")
    connection.close()
    with pytest.raises(DatabaseError, match="schema 0999, written by a newer control"):
        await Database.open(path)


async def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "control.sqlite"
    path.write_bytes(b"this is no database, and was none " * 100)
    with pytest.raises(DatabaseError, match=r"control\.sqlite"):
        await Database.open(path)


async def test_memory_follows_the_disk(database: Database) -> None:
    """Callbacks run after the commit and only then; a failure takes back what memory knew early."""
    seen: list[str] = []
    async with database.transaction() as tx:
        await tx.put(schema.meta, {"name": "kept", "value": "1"})
        tx.after_commit(lambda: seen.append("kept"))
        tx.after_rollback(lambda: seen.append("never"))
        assert not seen

    async def fail() -> None:
        async with database.transaction() as tx:
            await tx.put(schema.meta, {"name": "lost", "value": "1"})
            tx.after_commit(lambda: seen.append("never"))
            tx.after_rollback(lambda: seen.append("taken back"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert seen == ["kept", "taken back"]
    assert await names(database) == ["kept"]


async def test_a_cancelled_caller_does_not_tear_a_commit(database: Database) -> None:
    """Cancelled while it commits, a transaction is on the disk and memory knows; cancelled before, it never was."""
    seen: list[str] = []
    at_commit = asyncio.Event()

    async def write(name: str, goes_on: asyncio.Event) -> None:
        async with database.transaction() as tx:
            await tx.put(schema.meta, {"name": name, "value": ""})
            tx.after_commit(lambda: seen.append(name))
            at_commit.set()
            await goes_on.wait()

    for name, is_committing in (("kept", True), ("lost", False)):
        at_commit.clear()
        goes_on = asyncio.Event()
        if is_committing:
            goes_on.set()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(write(name, goes_on))
            await at_commit.wait()
            task.cancel()
        assert task.cancelled()
    assert seen == await names(database) == ["kept"]


async def test_a_cancelled_reader_leaves_the_connection_whole(database: Database) -> None:
    """Cancelled at any moment of its queries, a caller ends, and the next one reads as if nothing had been."""
    for steps in range(60):
        async with asyncio.TaskGroup() as group:
            task = group.create_task(names(database))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
        assert await names(database) == []


async def test_writers_take_turns(database: Database) -> None:
    """A decision and the state it rests on are one: no update is lost between reading and writing."""

    async def add() -> None:
        async with database.transaction() as tx:
            value = await tx.scalar(select(schema.meta.c.value).where(schema.meta.c.name == "n")) or "0"
            await tx.put(schema.meta, {"name": "n", "value": str(int(value) + 1)})

    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(add())
    async with database.reading() as tx:
        assert await tx.scalar(select(schema.meta.c.value)) == "20"


async def test_add_new_keeps_the_first(database: Database) -> None:
    async with database.transaction() as tx:
        assert await tx.add_new(schema.meta, {"name": "a", "value": "1"}, "name")
        assert not await tx.add_new(schema.meta, {"name": "a", "value": "2"}, "name")
        assert await tx.scalar(select(schema.meta.c.value)) == "1"


async def test_closing_waits_for_those_who_are_at_it(tmp_path: Path) -> None:
    """A call that is still reading while control drains ends well; nobody begins after that."""
    database = await Database.open(tmp_path / "control.sqlite")
    inside, leave = asyncio.Event(), asyncio.Event()

    async def read() -> object:
        async with database.reading() as tx:
            inside.set()
            await leave.wait()
            return await tx.scalar(select(1))

    async with asyncio.TaskGroup() as group:
        reader = group.create_task(read())
        await inside.wait()
        closing = group.create_task(database.aclose())
        await asyncio.sleep(0)
        assert not closing.done()
        with pytest.raises(DatabaseError, match="stopping"):
            await names(database)
        leave.set()
    assert reader.result() == 1
