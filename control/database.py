"""Control's database: one engine, one writer, migrations at start (ADR 4).

Rules: writing transactions are serialised by a lock, so that a decision and the state it rests on are one; a
transaction's ``after_commit`` callbacks run once its rows are on the disk and never otherwise, which is how mirrors in
memory follow; ``after_rollback`` takes back what memory had to know before. A cancelled caller leaves between two steps
of the driver, never in one. SQLite runs in WAL with ``synchronous=FULL``. What is particular to a database stands here.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from wavemesh.errors import LocalError
from wavemesh.runtime.durable import Disk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence

    from sqlalchemy import Connection, CursorResult, Executable, RowMapping, Table
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

T = TypeVar("T")

_MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_TIMEOUT_MS = 10_000
_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}",
)


class DatabaseError(LocalError):
    """The database cannot be opened, or is of a version this program does not know."""

    reason = "DATABASE"


class Transaction:
    """One transaction: rows in, rows out, and what happens once it is durable."""

    def __init__(self, connection: AsyncConnection) -> None:
        """Wrap a connection inside a transaction."""
        self._connection = connection
        self._after_commit: list[Callable[[], None]] = []
        self._after_rollback: list[Callable[[], None]] = []

    async def run(self, statement: Executable, rows: Sequence[Mapping[str, Any]] | None = None) -> int:
        """Execute, once for each of ``rows`` if given; the number of rows it touched."""
        if rows is not None and not rows:
            return 0
        return int(getattr(await self._execute(statement, rows), "rowcount", 0))

    async def all(self, statement: Executable) -> Sequence[RowMapping]:
        """Every row."""
        return (await self._execute(statement)).mappings().all()

    async def first(self, statement: Executable) -> RowMapping | None:
        """The first row, or None."""
        return (await self._execute(statement)).mappings().first()

    async def scalar(self, statement: Executable) -> Any:
        """The first column of the first row, or None."""
        return (await self._execute(statement)).scalar()

    async def put(self, table: Table, *rows: Mapping[str, Any]) -> None:
        """Insert rows, or replace the given columns of those that exist. All rows name the same columns."""
        if not rows:
            return
        keys = [column.name for column in table.primary_key]
        values = [name for name in rows[0] if name not in keys]
        insert = self._insert(table)
        if values:
            updated = {name: insert.excluded[name] for name in values}
            insert = insert.on_conflict_do_update(index_elements=keys, set_=updated)
        else:
            insert = insert.on_conflict_do_nothing(index_elements=keys)
        await self._execute(insert, rows)

    async def add_new(self, table: Table, row: Mapping[str, Any], unique: str) -> bool:
        """Insert a row unless one with the same ``unique`` column exists; whether it was inserted."""
        statement = self._insert(table).values(**row).on_conflict_do_nothing(index_elements=[unique])
        return await self.run(statement) > 0

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Call back, in the order given, once the transaction is durable; not at all if it is not."""
        self._after_commit.append(callback)

    def after_rollback(self, callback: Callable[[], None]) -> None:
        """Call back, latest first, if the transaction fails."""
        self._after_rollback.append(callback)

    def committed(self) -> None:
        """It is durable."""
        for callback in self._after_commit:
            callback()

    def rolled_back(self) -> None:
        """It failed."""
        for callback in reversed(self._after_rollback):
            callback()

    async def _execute(
        self, statement: Executable, rows: Sequence[Mapping[str, Any]] | None = None
    ) -> CursorResult[Any]:
        result: CursorResult[Any] = await _whole(self._connection.execute(statement, rows))
        return result

    def _insert(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        # Both dialects have the same upsert under two names.
        if self._connection.dialect.name == "postgresql":
            return postgresql.insert(table)
        return sqlite.insert(table)


class Database:
    """The engine and its writer's lock."""

    def __init__(self, engine: AsyncEngine) -> None:
        """Use ``open``."""
        self._engine = engine
        self._writer = asyncio.Lock()
        self._in_use = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_closed = False

    @classmethod
    async def open(cls, path: Path) -> Database:
        """Open or create the SQLite database and bring its schema up to date; raises DatabaseError."""
        Disk().make_dir(path.parent)
        engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        try:
            async with engine.begin() as connection:
                await connection.run_sync(_migrate, path)
        except DBAPIError as error:
            await engine.dispose()
            msg = f"cannot use {path}: {error.orig}; restore it from its backup or move it away"
            raise DatabaseError(msg) from error
        except DatabaseError:
            await engine.dispose()
            raise
        return cls(engine)

    async def aclose(self) -> None:
        """Let those finish who are at it, then close every connection; from now on nobody else begins."""
        self._is_closed = True
        await self._idle.wait()
        await _whole(self._engine.dispose())

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """A writing transaction; one at a time. Durable when the block has been left without an error.

        A commit that began is waited for even when its task is cancelled: the mirrors in memory must know its end.
        """
        async with self._writer, self._connected() as connection:
            transaction = Transaction(connection)
            await _whole(connection.begin().start())
            try:
                yield transaction
                _, cancelled = await _to_end(connection.commit())
            except BaseException as error:
                transaction.rolled_back()
                await _whole(connection.rollback())
                if isinstance(error, DBAPIError):
                    raise _fault(error) from error
                raise
            transaction.committed()
            if cancelled is not None:
                raise cancelled

    @asynccontextmanager
    async def rehearsal(self) -> AsyncIterator[Transaction]:
        """A writing transaction that is undone at the end: what would happen, seen from inside, and nothing does."""
        async with self._writer, self._connected() as connection:
            transaction = Transaction(connection)
            await _whole(connection.begin().start())
            try:
                yield transaction
            except DBAPIError as error:
                raise _fault(error) from error
            finally:
                transaction.rolled_back()
                await _whole(connection.rollback())

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Transaction]:
        """A consistent view for reading, beside the writer."""
        async with self._connected() as connection:
            yield Transaction(connection)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[AsyncConnection]:
        if self._is_closed:
            msg = "the database is closed: control is stopping"
            raise DatabaseError(msg)
        self._in_use += 1
        self._idle.clear()
        try:
            connection = self._engine.connect()
            _, cancelled = await _to_end(connection.start())
            try:
                if cancelled is not None:
                    raise cancelled
                yield connection
            finally:
                await _whole(connection.close())
        finally:
            self._in_use -= 1
            if not self._in_use:
                self._idle.set()


async def _whole(work: Coroutine[Any, Any, T]) -> T:
    """Await one step of the driver to its end; a cancellation that came meanwhile is raised after it.

    A step that was torn would leave the connection in an unknown state, and its thread waiting for ever.
    """
    result, cancelled = await _to_end(work)
    if cancelled is not None:
        raise cancelled
    return result


async def _to_end(work: Coroutine[Any, Any, T]) -> tuple[T, asyncio.CancelledError | None]:
    """The result, and the cancellation that came meanwhile. Raises SQLAlchemyError."""

    async def attempt() -> tuple[T | None, SQLAlchemyError | None]:
        try:
            return await work, None
        except SQLAlchemyError as error:
            return None, error

    cancelled: asyncio.CancelledError | None = None
    async with asyncio.TaskGroup() as group:
        task = group.create_task(attempt())
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError as error:
                cancelled = error
    result, fault = task.result()
    if fault is not None:
        raise fault
    return cast("T", result), cancelled


def _fault(error: DBAPIError) -> DatabaseError:
    msg = f"the database failed: {error.orig}; look at the disk"
    return DatabaseError(msg)


def _prepare_sqlite(connection: Any, record: object) -> None:
    del record
    # The driver shall not open transactions by itself: it would not for reads, and reads belong to a consistent view.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(pragma)
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _migrate(connection: Connection, path: Path) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in known:
        msg = f"{path} has schema {current}, written by a newer control; start that version, or restore a backup"
        raise DatabaseError(msg, schema=current)
    command.upgrade(config, "head")
