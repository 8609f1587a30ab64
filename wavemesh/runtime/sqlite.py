"""A hub's database: one SQLite file, one writer, schema migrated forward only.

Rules: WAL with ``synchronous=FULL``, so a transaction that returned is on disk; transactions are serialised by a lock,
all or nothing, rolled back by any exception; reads outside a transaction go to a second, read-only connection and see
committed data only. ``PRAGMA user_version`` counts the migrations applied; a file with more of them than the program
knows is refused, because an older program must not touch a newer schema.

A commit that began is waited for even when its task is cancelled: whoever mirrors tables in memory must know its end.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import aiosqlite

from wavemesh.errors import LocalError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    Parameters = Sequence[object] | Mapping[str, object]

_BUSY_TIMEOUT_S = 5.0


class DatabaseFaultError(LocalError):
    """SQLite refused: disk full, file broken, statement wrong."""

    reason = "DATABASE_FAULT"


class DatabaseTooNewError(LocalError):
    """The file was written by a newer version of the program."""

    reason = "DATABASE_TOO_NEW"


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    """Name the file in SQLite's errors; constraint violations pass as they are, they are the caller's to handle."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.Error as error:
        msg = f"{path}: {error}"
        raise DatabaseFaultError(msg, path=str(path)) from error


async def _fetch(connection: aiosqlite.Connection, sql: str, parameters: Parameters) -> list[sqlite3.Row]:
    return list(await connection.execute_fetchall(sql, parameters))


class Transaction:
    """An open transaction; valid inside ``async with database.transaction()`` only."""

    def __init__(self, connection: aiosqlite.Connection, path: Path) -> None:
        """Only Database makes these."""
        self._connection = connection
        self._path = path
        self._hooks: list[Callable[[], None]] = []

    async def execute(self, sql: str, parameters: Parameters = ()) -> int:
        """Run a statement; returns how many rows it changed. Raises DatabaseFaultError, sqlite3.IntegrityError."""
        with _faults(self._path):
            async with self._connection.execute(sql, parameters) as cursor:
                return cursor.rowcount

    async def execute_many(self, sql: str, rows: Sequence[Parameters]) -> None:
        """Run a statement once per row of parameters."""
        with _faults(self._path):
            await self._connection.executemany(sql, rows)

    async def fetch_all(self, sql: str, parameters: Parameters = ()) -> list[sqlite3.Row]:
        """All rows of a query, this transaction's own changes included."""
        with _faults(self._path):
            return await _fetch(self._connection, sql, parameters)

    async def fetch_one(self, sql: str, parameters: Parameters = ()) -> sqlite3.Row | None:
        """The first row of a query, or None."""
        rows = await self.fetch_all(sql, parameters)
        return rows[0] if rows else None

    def on_commit(self, hook: Callable[[], None]) -> None:
        """Call ``hook`` once this transaction is on disk, in the order given; it must not raise."""
        self._hooks.append(hook)

    def committed(self) -> None:
        """Run the hooks. Only Database calls this."""
        for hook in self._hooks:
            hook()


class Database:
    """One SQLite file."""

    def __init__(self, path: Path, writer: aiosqlite.Connection, reader: aiosqlite.Connection) -> None:
        """Use ``open``."""
        self.path = path
        self._writer = writer
        self._reader = reader
        self._lock = asyncio.Lock()

    @classmethod
    async def open(cls, path: Path, migrations: Sequence[str]) -> Database:
        """Open or create the file and apply the migrations it lacks, each in a transaction of its own.

        Raises DatabaseTooNewError, DatabaseFaultError.
        """
        with _faults(path):
            writer = await aiosqlite.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
        try:
            with _faults(path):
                writer.row_factory = sqlite3.Row
                for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                    await writer.execute_fetchall(f"PRAGMA {pragma}")
                await _migrate(path, writer, migrations)
                reader = await aiosqlite.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
                reader.row_factory = sqlite3.Row
                await reader.execute_fetchall("PRAGMA query_only=ON")
        except BaseException:
            await writer.close()
            raise
        return cls(path, writer, reader)

    async def close(self) -> None:
        """Finish the open transaction, then close the file."""
        async with self._lock:
            await self._reader.close()
            await self._writer.close()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Run the block as one transaction: on disk when it ends well, undone when it raises."""
        async with self._lock:
            await self._begin()
            transaction = Transaction(self._writer, self.path)
            try:
                yield transaction
            except BaseException:
                await self._finish("ROLLBACK")
                raise
            cancelled = await self._finish("COMMIT")
            transaction.committed()
            if cancelled is not None:
                raise cancelled

    @asynccontextmanager
    async def rehearsal(self) -> AsyncIterator[Transaction]:
        """Run the block as one transaction and undo it, however it ends; no hook is run."""
        async with self._lock:
            await self._begin()
            try:
                yield Transaction(self._writer, self.path)
            finally:
                await self._finish("ROLLBACK")

    async def fetch_all(self, sql: str, parameters: Parameters = ()) -> list[sqlite3.Row]:
        """All rows of a query over committed data."""
        with _faults(self.path):
            return await _fetch(self._reader, sql, parameters)

    async def fetch_one(self, sql: str, parameters: Parameters = ()) -> sqlite3.Row | None:
        """The first row of a query over committed data, or None."""
        rows = await self.fetch_all(sql, parameters)
        return rows[0] if rows else None

    async def _begin(self) -> None:
        """Open a transaction; one whose caller was cancelled meanwhile is closed again, lest the next one find it."""
        try:
            with _faults(self.path):
                await self._writer.execute_fetchall("BEGIN IMMEDIATE")
        except asyncio.CancelledError:
            # The database's thread may not even have begun yet: the rollback queues behind the BEGIN and waits for it.
            await self._finish("ROLLBACK")
            raise

    async def _finish(self, statement: str) -> asyncio.CancelledError | None:
        """End the transaction and wait for it, cancelled or not; returns the cancellation that came meanwhile."""
        cancelled: asyncio.CancelledError | None = None
        # The statement runs in the database's thread whether awaited or not; the task only lets us wait on.
        async with asyncio.TaskGroup() as group:
            work = group.create_task(self._end(statement))
            while not work.done():
                try:
                    await asyncio.shield(work)
                except asyncio.CancelledError as error:
                    cancelled = error
        fault = work.result()
        if fault is not None:
            raise fault
        return cancelled

    async def _end(self, statement: str) -> DatabaseFaultError | None:
        """COMMIT or ROLLBACK; a COMMIT that fails (disk full) is rolled back, so that the next one can begin."""
        try:
            with _faults(self.path):
                await self._writer.execute_fetchall("SELECT 1")  # whatever was asked before is done once this is
                if self._writer.in_transaction:
                    await self._writer.execute_fetchall(statement)
        except DatabaseFaultError as error:
            if self._writer.in_transaction:
                with _faults(self.path):
                    await self._writer.execute_fetchall("ROLLBACK")
            return error
        return None


async def _migrate(path: Path, connection: aiosqlite.Connection, migrations: Sequence[str]) -> None:
    """Bring the schema up to date."""
    [row] = await connection.execute_fetchall("PRAGMA user_version")
    found = int(row[0])
    if found > len(migrations):
        msg = (
            f"{path}: schema version {found} is newer than {len(migrations)}, the last this program knows; "
            "install the program that wrote it"
        )
        raise DatabaseTooNewError(msg, path=str(path))
    for number, script in enumerate(migrations[found:], start=found + 1):
        await connection.executescript(f"BEGIN IMMEDIATE;\n{script};\nPRAGMA user_version = {number};\nCOMMIT;")
