"""What survives a crash: a hub's SQLite database in memory, a device's state document. A full disk refuses writes."""

from __future__ import annotations

import sqlite3
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from storehub.schema import MIGRATIONS as STORE_TABLES
from superhub.store import MIGRATIONS as REGION_TABLES
from wavemesh.runtime.durable import DiskFullError
from wavemesh.runtime.sqlite import DatabaseFaultError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from device.state import Document
    from tests.simulation.engine import Node

_PATH = Path("/simulated")


@cache
def _empty(tables: tuple[str, ...]) -> bytes:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for script in tables:
        connection.executescript(script)
    return connection.serialize()


def _opened(content: bytes) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None, cached_statements=256)
    connection.deserialize(content)
    connection.row_factory = sqlite3.Row
    return connection


class HubDisk:
    """A hub's disk. ``copy`` is a backup of it, ``restore`` puts one in its place, ``lose`` a new disk."""

    def __init__(self, tables: tuple[str, ...]) -> None:
        self._tables = tables
        self.connection = _opened(_empty(tables))

    @classmethod
    def of_store(cls) -> HubDisk:
        return cls(STORE_TABLES)

    @classmethod
    def of_region(cls) -> HubDisk:
        return cls(REGION_TABLES)

    def copy(self) -> bytes:
        return self.connection.serialize()

    def restore(self, content: bytes) -> None:
        self.connection.close()
        self.connection = _opened(content)

    def lose(self) -> None:
        self.restore(_empty(self._tables))


class HubDatabase:
    """Stands in for ``wavemesh.runtime.sqlite.Database``: the same promises, without threads."""

    path = _PATH

    def __init__(self, disk: HubDisk, node: Node) -> None:
        self.disk = disk
        self.node = node

    def transaction(self) -> HubTransaction:
        return HubTransaction(self)

    async def fetch_all(self, sql: str, parameters: Any = ()) -> list[sqlite3.Row]:
        return self.disk.connection.execute(sql, parameters).fetchall()

    async def fetch_one(self, sql: str, parameters: Any = ()) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self.disk.connection.execute(sql, parameters).fetchone()
        return row

    async def close(self) -> None:
        return


class HubTransaction:
    """All or nothing; the node may crash before the commit and after it."""

    def __init__(self, database: HubDatabase) -> None:
        self._database = database
        self._connection = database.disk.connection
        self._hooks: list[Callable[[], None]] = []
        self._before = 0
        self._has_begun = False

    async def __aenter__(self) -> Self:
        self._before = self._connection.total_changes
        return self

    def _begin(self) -> None:
        """With the first write: until then there is nothing to undo, and nobody else writes meanwhile."""
        if not self._has_begun:
            self._has_begun = True
            self._connection.execute("BEGIN")

    def _end(self, how: str) -> None:
        if self._has_begun:
            self._connection.execute(how)

    async def __aexit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        node = self._database.node
        if kind is not None:
            self._end("ROLLBACK")
            return
        if self._connection.total_changes != self._before:
            try:
                node.step("commit")
            except BaseException:
                self._end("ROLLBACK")
                raise
            if node.disk_is_full:
                self._end("ROLLBACK")
                node.note("disk-full")
                raise DatabaseFaultError("the disk is full", path=node.path)
        self._end("COMMIT")
        for hook in self._hooks:
            hook()
        if self._connection.total_changes != self._before:
            node.step("what follows the commit")

    async def execute(self, sql: str, parameters: Any = ()) -> int:
        self._begin()
        return self._connection.execute(sql, parameters).rowcount

    async def execute_many(self, sql: str, rows: Sequence[Any]) -> None:
        if rows:
            self._begin()
            self._connection.executemany(sql, rows)

    async def fetch_all(self, sql: str, parameters: Any = ()) -> list[sqlite3.Row]:
        if not sql.startswith("SELECT"):
            self._begin()
        return self._connection.execute(sql, parameters).fetchall()

    async def fetch_one(self, sql: str, parameters: Any = ()) -> sqlite3.Row | None:
        if not sql.startswith("SELECT"):  # UPDATE ... RETURNING
            self._begin()
        row: sqlite3.Row | None = self._connection.execute(sql, parameters).fetchone()
        return row

    def on_commit(self, hook: Callable[[], None]) -> None:
        self._hooks.append(hook)


class DeviceFile:
    """Stands in for ``device.state.StateFile``: the document as it is durable, and the contents of what is held."""

    recovered = False

    def __init__(self, document: Document) -> None:
        self.document = document
        self.contents: dict[str, bytes] = {}
        self.has_reserve = True
        self.node: Node | None = None

    def copy(self) -> tuple[Document, dict[str, bytes]]:
        return self.document, dict(self.contents)

    def restore(self, content: tuple[Document, dict[str, bytes]]) -> None:
        self.document, self.contents = content[0], dict(content[1])

    def commit(self, document: Document, *, copies: int = 1, may_cost_reserve: bool = True) -> None:
        """One write; a full disk costs the reserve first, as in the product."""
        if self.node is not None:
            self.node.step("persist")
            if self.node.disk_is_full:
                if not self.has_reserve or not may_cost_reserve:
                    raise DiskFullError("the disk is full")
                self.has_reserve = False
            if self.node.world.facts.words is not None:
                self.node.world.facts.words.wrote(self.node, self.document, document)
        self.document = document
        if self.node is not None:
            self.node.step("what follows the write")

    def store_content(self, digest: str, content: bytes) -> None:
        if self.node is not None and self.node.disk_is_full and not self.has_reserve:
            raise DiskFullError("the disk is full")
        self.contents[digest] = content

    def content(self, digest: str) -> bytes | None:
        return self.contents.get(digest)

    def forget_contents(self) -> None:
        named = {held.digest for held in self.document.held}
        for digest in [digest for digest in self.contents if digest not in named]:
            del self.contents[digest]
