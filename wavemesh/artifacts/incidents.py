"""Which blobs of a hub were found wrong and are not healed yet, in its SQLite file; mirrored in memory.

An incident is written in the transaction that pauses and tells, before the wrong file is touched, and dropped in the
one that says that the blob is healed. So whatever a power cut interrupts is taken up from here (ADR 35): a blob with an
incident is believed only once this process has verified it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wavemesh.runtime.sqlite import Database, Transaction

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
INCIDENTS_SCHEMA = """
CREATE TABLE incidents (
    sha256 TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    found_at INTEGER NOT NULL,
    detail TEXT NOT NULL,
    PRIMARY KEY (sha256, size_bytes)
) STRICT
"""
MAX_DETAIL_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Incident:
    """A blob whose bytes were found wrong: which, when, and what was found, for people."""

    digest: Digest
    found_at: datetime
    detail: str


class Incidents:
    """The open incidents of one hub; never more than it has had blobs at once."""

    def __init__(self) -> None:
        """Use ``open``."""
        self._open: dict[Digest, Incident] = {}

    @classmethod
    async def open(cls, database: Database) -> Incidents:
        """Read what was noted."""
        incidents = cls()
        for row in await database.fetch_all("SELECT * FROM incidents"):
            digest = Digest(row["sha256"], row["size_bytes"])
            incidents._open[digest] = Incident(digest, _EPOCH + row["found_at"] * _MICROSECOND, row["detail"])
        return incidents

    @property
    def all(self) -> Mapping[Digest, Incident]:
        """By blob."""
        return self._open

    async def put(self, tx: Transaction, incident: Incident) -> None:
        """Note an incident, in the caller's transaction."""
        digest, found_at = incident.digest, (incident.found_at - _EPOCH) // _MICROSECOND
        detail = incident.detail[:MAX_DETAIL_CHARACTERS]
        row = (digest.sha256, digest.size_bytes, found_at, detail)
        await tx.execute("INSERT OR REPLACE INTO incidents VALUES (?, ?, ?, ?)", row)
        tx.on_commit(lambda: self._open.__setitem__(digest, incident))

    async def drop(self, tx: Transaction, digest: Digest) -> None:
        """It is healed, or nobody needs the blob any more."""
        await tx.execute(
            "DELETE FROM incidents WHERE sha256 = ? AND size_bytes = ?", (digest.sha256, digest.size_bytes)
        )
        tx.on_commit(partial(self._forget, digest))

    def _forget(self, digest: Digest) -> None:
        self._open.pop(digest, None)
