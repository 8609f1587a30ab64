"""Which certificates of its children a hub has seen in use, in its SQLite file; mirrored in memory: each call asks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wavemesh.runtime.sqlite import Database

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
RETIREMENTS_SCHEMA = """
CREATE TABLE newest_certificates (path TEXT PRIMARY KEY, issued_at INTEGER NOT NULL) STRICT
"""


class SqliteRetirements:
    """Implements ``wavemesh.identity.retirement.Retirements``; bounded by the children that a hub admits."""

    def __init__(self, database: Database) -> None:
        """Use ``open``."""
        self._database = database
        self._newest: dict[str, datetime] = {}

    @classmethod
    async def open(cls, database: Database) -> SqliteRetirements:
        """Read what was remembered."""
        retirements = cls(database)
        for row in await database.fetch_all("SELECT path, issued_at FROM newest_certificates"):
            retirements._newest[row["path"]] = _EPOCH + row["issued_at"] * _MICROSECOND
        return retirements

    def newest(self, path: str) -> datetime | None:
        """When the newest certificate that child has used here was issued."""
        return self._newest.get(path)

    async def used(self, path: str, issued_at: datetime) -> None:
        """The child opened a session with such a certificate; durable before it returns."""
        async with self._database.transaction() as tx:
            row = (path, (issued_at - _EPOCH) // _MICROSECOND)
            await tx.execute("INSERT OR REPLACE INTO newest_certificates VALUES (?, ?)", row)
            tx.on_commit(lambda: self._newest.update({path: issued_at}))
