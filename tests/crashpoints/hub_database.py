"""A hub's database without a thread, whose every commit is a durable step of the disk under test.

A commit is one step and never torn: that SQLite keeps this promise on a medium that loses and tears what was not
flushed is shown byte by byte in ``database_bytes.py``. What the medium holds of the file is the content after the last
commit; the file of the running boot is real, and thrown away with it.
"""

from __future__ import annotations

import sqlite3
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from tests.crashpoints.medium import File

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractContextManager

    from tests.crashpoints.cut_disk import CutDisk


class InlineConnection:
    """The part of ``aiosqlite.Connection`` that ``wavemesh.runtime.sqlite`` uses, done at once."""

    def __init__(self, path: Path, disk: CutDisk, **options: Any) -> None:
        self._path = path
        self._disk = disk
        if not path.exists():
            with disk.step("create", path):
                path.touch()
                disk.medium.add(path, File())
        self._connection: sqlite3.Connection = sqlite3.connect(path, **options)
        self._changes = 0

    def __await__(self) -> Any:
        """As ``aiosqlite.connect`` is awaited."""
        yield from ()
        return self

    @property
    def in_transaction(self) -> bool:
        is_open: bool = self._connection.in_transaction
        return is_open

    @property
    def row_factory(self) -> Any:
        return self._connection.row_factory

    @row_factory.setter
    def row_factory(self, factory: Any) -> None:
        self._connection.row_factory = factory

    async def execute_fetchall(self, sql: str, parameters: Any = ()) -> list[Any]:
        if sql != "COMMIT":
            if sql.startswith("BEGIN"):
                self._changes = self._connection.total_changes
            found: list[Any] = self._connection.execute(sql, parameters).fetchall()
            return found
        if self._connection.total_changes == self._changes:
            self._connection.execute(sql)  # nothing was written, so nothing is
        else:
            with self._disk.step("commit", self._path):
                self._connection.execute(sql)
                self._reached()
        return []

    @asynccontextmanager
    async def execute(self, sql: str, parameters: Any = ()) -> AsyncIterator[sqlite3.Cursor]:
        yield self._connection.execute(sql, parameters)

    async def executemany(self, sql: str, rows: Sequence[Any]) -> None:
        self._connection.executemany(sql, rows)

    async def executescript(self, script: str) -> None:
        """A migration, which ends with its own COMMIT."""
        with self._disk.step("commit", self._path):
            self._connection.executescript(script)
            self._reached()

    async def close(self) -> None:
        self._connection.close()

    def _reached(self) -> None:
        medium = self._disk.medium
        file = medium.file(self._path)
        file.present = self._connection.serialize()
        file.sync()
        # SQLite flushes the directory when it has made the write-ahead log, before the first commit returns.
        medium.directory(self._path.parent).sync()


def inline_databases(disk: CutDisk) -> AbstractContextManager[object]:
    """Databases that are opened in this block are on that disk."""

    def connect(path: Path, **options: Any) -> InlineConnection:
        return InlineConnection(Path(path), disk, **options)

    return patch("wavemesh.runtime.sqlite.aiosqlite", SimpleNamespace(connect=connect))
