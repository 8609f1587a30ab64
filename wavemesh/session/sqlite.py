"""A hub's session tables: its report log, its children's cursors, and the resources it holds from its parent.

Rules: a report is appended in the transaction of what it reports; a cursor moves in the transaction of the effects it
stands for; resources are served to children under versions of this hub's own (epoch, counter), because versions of
another parent mean nothing to them. Memory mirrors the tables after each commit, so that reading costs no I/O.
"""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, TypeAlias

from wavemesh.session.frames import HeldResource, Report, Resource, ResourceKey, ResourceVersion

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from wavemesh.runtime.sqlite import Database, Transaction

    # Makes the full snapshot of outcomes for a new incarnation; called inside the transaction that starts it.
    Snapshot: TypeAlias = Callable[[Transaction, str], Awaitable[Sequence[Report]]]

SNAPSHOT_KIND = "snapshot"
OUTCOME_KIND = "outcome"
# Incarnations remembered per child. An older one that came back would count as unknown, and its snapshot as news.
MAX_INCARNATIONS = 16

SESSION_SCHEMA = """
CREATE TABLE session_log (
    one INTEGER PRIMARY KEY CHECK (one = 1), incarnation TEXT NOT NULL, next_number INTEGER NOT NULL,
    sent_through INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE session_reports (number INTEGER PRIMARY KEY, kind TEXT NOT NULL, body BLOB NOT NULL);
CREATE TABLE session_cursors (
    id INTEGER PRIMARY KEY, child_path TEXT NOT NULL, incarnation TEXT NOT NULL, through INTEGER NOT NULL,
    UNIQUE (child_path, incarnation)
);
CREATE TABLE session_epoch (
    one INTEGER PRIMARY KEY CHECK (one = 1), epoch TEXT NOT NULL, counter INTEGER NOT NULL
);
CREATE TABLE session_resources (
    type TEXT NOT NULL, name TEXT NOT NULL, digest TEXT NOT NULL, content BLOB NOT NULL, audience TEXT NOT NULL,
    urgent INTEGER NOT NULL, parent_epoch TEXT NOT NULL, parent_counter INTEGER NOT NULL, epoch TEXT NOT NULL,
    counter INTEGER NOT NULL, PRIMARY KEY (type, name)
)
"""


class SqliteReportLog:
    """The hub's report log; see seams.ReportLog."""

    def __init__(self, database: Database, snapshot: Snapshot) -> None:
        """Use ``open``."""
        self._database = database
        self._snapshot = snapshot
        self._incarnation = ""
        self._next_number = self._first_number = 1
        self._sent_through = 0

    @classmethod
    async def open(cls, database: Database, snapshot: Snapshot) -> SqliteReportLog:
        """Read the log's state; a new database takes its first incarnation, snapshot included."""
        log = cls(database, snapshot)
        row = await database.fetch_one("SELECT * FROM session_log")
        if row is None:
            await log.restart()
            return log
        first = await database.fetch_one("SELECT min(number) AS first FROM session_reports")
        log._remember(row["incarnation"], row["next_number"], first["first"] if first is not None else None)
        log._sent_through = row["sent_through"]
        return log

    @property
    def incarnation(self) -> str:
        """128 random bits in hex, durable."""
        return self._incarnation

    @property
    def next_number(self) -> int:
        """Number the next appended report will get."""
        return self._next_number

    @property
    def first_number(self) -> int:
        """Lowest number that can still be read; ``next_number`` when the log is empty."""
        return self._first_number

    @property
    def sent_through(self) -> int:
        """Highest number of this incarnation that may have been sent."""
        return self._sent_through

    async def mark_sent(self, through: int) -> None:
        """Reports up to ``through`` are about to be sent; durable before it returns."""
        async with self._database.transaction() as tx:
            await tx.execute("UPDATE session_log SET sent_through = max(sent_through, ?)", (through,))
            tx.on_commit(lambda: self._marked(through))

    async def append(self, tx: Transaction, report: Report) -> int:
        """Append in the caller's transaction; returns the report's number. Wake the upstream after the commit."""
        row = await tx.fetch_one("UPDATE session_log SET next_number = next_number + 1 RETURNING next_number")
        if row is None:
            msg = "the report log was not opened"
            raise RuntimeError(msg)
        number = int(row["next_number"]) - 1
        await tx.execute("INSERT INTO session_reports VALUES (?, ?, ?)", (number, report.kind, report.body))
        tx.on_commit(lambda: self._appended(number))
        return number

    async def replace(self, tx: Transaction, old: Report, new: Report) -> None:
        """Say ``new`` in the place of ``old`` where that is not acknowledged yet; the number stays.

        It may have been sent as it was: who must be sure that the new word arrives appends it as well.
        """
        await tx.execute(
            "UPDATE session_reports SET kind = ?, body = ? WHERE kind = ? AND body = ?",
            (new.kind, new.body, old.kind, old.body),
        )

    async def read(self, first: int, limit: int) -> Sequence[Report]:
        """Up to ``limit`` reports from number ``first`` on, in order."""
        rows = await self._database.fetch_all(
            "SELECT kind, body FROM session_reports WHERE number >= ? ORDER BY number LIMIT ?", (first, limit)
        )
        return [Report(row["kind"], row["body"]) for row in rows]

    async def acknowledge(self, through: int) -> None:
        """Forget reports up to ``through``; durable before it returns."""
        if through < self._first_number:
            return
        async with self._database.transaction() as tx:
            await tx.execute("DELETE FROM session_reports WHERE number <= ?", (through,))
            tx.on_commit(lambda: self._acknowledged(through))

    async def restart(self) -> None:
        """Take a new incarnation: the snapshot, then what was not acknowledged and the snapshot does not cover."""
        incarnation = secrets.token_hex(16)
        async with self._database.transaction() as tx:
            kept = await tx.fetch_all(
                "SELECT kind, body FROM session_reports WHERE kind NOT IN (?, ?) ORDER BY number",
                (SNAPSHOT_KIND, OUTCOME_KIND),
            )
            reports = [*await self._snapshot(tx, incarnation), *(Report(row["kind"], row["body"]) for row in kept)]
            await tx.execute("DELETE FROM session_reports")
            await tx.execute_many(
                "INSERT INTO session_reports VALUES (?, ?, ?)",
                [(number, report.kind, report.body) for number, report in enumerate(reports, start=1)],
            )
            await tx.execute(
                "INSERT OR REPLACE INTO session_log (one, incarnation, next_number) VALUES (1, ?, ?)",
                (incarnation, len(reports) + 1),
            )
            tx.on_commit(lambda: self._remember(incarnation, len(reports) + 1, 1))

    def _remember(self, incarnation: str, next_number: int, first_number: int | None) -> None:
        self._incarnation = incarnation
        self._next_number = next_number
        self._first_number = next_number if first_number is None else first_number
        self._sent_through = 0

    def _appended(self, number: int) -> None:
        self._next_number = number + 1

    def _marked(self, through: int) -> None:
        self._sent_through = max(self._sent_through, through)

    def _acknowledged(self, through: int) -> None:
        self._first_number = min(through + 1, self._next_number)


class SqliteCursors:
    """How far the reports of each child's incarnations have taken effect here."""

    def __init__(self, database: Database) -> None:
        """Read and move cursors in that database."""
        self._database = database

    async def admission(self, child_path: str, incarnation: str, next_number: int) -> int:
        """The cursor to admit a child by that will next send ``next_number``; 0 for an unknown incarnation.

        An incarnation that gave way to a newer one has nothing more to say, whatever its numbers: it is the disk of an
        earlier day, or a copy. Its cursor is not below its next number, so it is fenced, and tells all it holds.
        """
        row = await self._database.fetch_one(
            "SELECT through, EXISTS (SELECT 1 FROM session_cursors AS newer "
            "WHERE newer.child_path = heard.child_path AND newer.id > heard.id) AS gave_way "
            "FROM session_cursors AS heard WHERE child_path = ? AND incarnation = ?",
            (child_path, incarnation),
        )
        if row is None:
            return 0
        return max(int(row["through"]), next_number) if row["gave_way"] else int(row["through"])

    async def advance(self, tx: Transaction, child_path: str, incarnation: str, through: int) -> None:
        """Move the cursor in the caller's transaction; it never goes back."""
        known = await tx.execute(
            "UPDATE session_cursors SET through = max(through, ?) WHERE child_path = ? AND incarnation = ?",
            (through, child_path, incarnation),
        )
        if known:
            return
        await tx.execute(
            "INSERT INTO session_cursors (child_path, incarnation, through) VALUES (?, ?, ?)",
            (child_path, incarnation, through),
        )
        await tx.execute(
            "DELETE FROM session_cursors WHERE child_path = :child AND id NOT IN "
            "(SELECT id FROM session_cursors WHERE child_path = :child ORDER BY id DESC LIMIT :limit)",
            {"child": child_path, "limit": MAX_INCARNATIONS},
        )


class SqliteResources:
    """The resources held from the parent, mirrored in memory, under this hub's versions."""

    def __init__(self, database: Database, epoch: str) -> None:
        """Use ``open``."""
        self._database = database
        self._epoch = epoch
        self._resources: dict[ResourceKey, Resource] = {}
        self._parent_versions: dict[ResourceKey, ResourceVersion] = {}

    @classmethod
    async def open(cls, database: Database) -> SqliteResources:
        """Read everything held; a new database gets this hub's first epoch."""
        async with database.transaction() as tx:
            await tx.execute("INSERT OR IGNORE INTO session_epoch VALUES (1, ?, 0)", (secrets.token_hex(16),))
            row = await tx.fetch_one("SELECT epoch FROM session_epoch")
            rows = await tx.fetch_all("SELECT * FROM session_resources")
        held = cls(database, row["epoch"] if row is not None else "")
        for found in rows:
            resource = _resource(found)
            held._resources[resource.key] = resource
            held._parent_versions[resource.key] = ResourceVersion(found["parent_epoch"], found["parent_counter"])
        return held

    @property
    def epoch(self) -> str:
        """This hub's epoch."""
        return self._epoch

    def held(self) -> Sequence[HeldResource]:
        """Everything held, under the parent's versions, for Hello."""
        return [
            HeldResource(key, self._parent_versions[key], resource.digest) for key, resource in self._resources.items()
        ]

    def get(self, key: ResourceKey) -> Resource | None:
        """A resource under this hub's version."""
        return self._resources.get(key)

    def all(self, type: str | None = None) -> Mapping[ResourceKey, Resource]:  # noqa: A002  # it is the wire's word
        """All resources (of a type), under this hub's versions."""
        if type is None:
            return dict(self._resources)
        return {key: resource for key, resource in self._resources.items() if key.type == type}

    async def next_version(self, tx: Transaction) -> ResourceVersion:
        """A version for a resource that this hub makes or serves."""
        row = await tx.fetch_one("UPDATE session_epoch SET counter = counter + 1 RETURNING epoch, counter")
        if row is None:
            msg = "the resources were not opened"
            raise RuntimeError(msg)
        return ResourceVersion(row["epoch"], row["counter"])

    async def store(self, tx: Transaction, changed: Iterable[Resource], removed: Iterable[ResourceKey]) -> None:
        """Keep and drop resources in the caller's transaction; what memory shows changes with the commit."""
        kept = [(resource, await self._keep(tx, resource)) for resource in changed]
        gone = tuple(removed)
        await tx.execute_many(
            "DELETE FROM session_resources WHERE type = ? AND name = ?", [(key.type, key.name) for key in gone]
        )
        tx.on_commit(lambda: self._stored(kept, gone))

    async def _keep(self, tx: Transaction, resource: Resource) -> ResourceVersion:
        own = await self.next_version(tx)
        await tx.execute(
            "INSERT OR REPLACE INTO session_resources VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                resource.key.type,
                resource.key.name,
                resource.digest,
                resource.content,
                json.dumps(resource.audience),
                resource.urgent,
                resource.version.epoch,
                resource.version.counter,
                own.epoch,
                own.counter,
            ),
        )
        return own

    def _stored(self, kept: Sequence[tuple[Resource, ResourceVersion]], gone: Sequence[ResourceKey]) -> None:
        for resource, own in kept:
            self._parent_versions[resource.key] = resource.version
            self._resources[resource.key] = Resource(
                resource.key, own, resource.digest, resource.content, resource.audience, resource.urgent
            )
        for key in gone:
            self._resources.pop(key, None)
            self._parent_versions.pop(key, None)


def _resource(row: sqlite3.Row) -> Resource:
    return Resource(
        ResourceKey(row["type"], row["name"]),
        ResourceVersion(row["epoch"], row["counter"]),
        row["digest"],
        row["content"],
        tuple(json.loads(row["audience"])),
        bool(row["urgent"]),
    )
