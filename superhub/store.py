"""What the super hub must not forget: one SQLite file, the session's tables included.

* ``outcomes``: the winning outcome of each (wave, device) as signed, until control closes the wave. They are what a
  restarted log's snapshot is made of.
* ``seen``: ids of intents and events that went up, and what was reported once; bounded, the oldest go first.
* ``derived``: what was made of which blob (``derived.py``).
* ``entered``: when each release entered this region, for ever: a few bytes a release.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import astuple
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from superhub.derived import DERIVED_SCHEMA
from superhub.issued import ISSUED_SCHEMA
from superhub.urls import URLS_SCHEMA
from wavemesh.artifacts.incidents import INCIDENTS_SCHEMA, Incidents
from wavemesh.codec.statements import decode, encode
from wavemesh.identity.sqlite import RETIREMENTS_SCHEMA
from wavemesh.outcomes import Rank
from wavemesh.runtime.sqlite import Database
from wavemesh.session.frames import MAX_REPORT_BYTES, Report
from wavemesh.session.sqlite import SESSION_SCHEMA
from wavemesh.telemetry.outbox import TABLES as TELEMETRY_TABLES
from wavemesh.trust.statements import Envelope, SnapshotReport

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from superhub.rollup import Heard, Key
    from wavemesh.runtime.sqlite import Transaction
    from wavemesh.trust.releases import ReleaseManifest

MAX_SEEN = 200_000

_SCHEMA = """
CREATE TABLE outcomes (
    wave_id TEXT NOT NULL,
    device TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    by_device INTEGER NOT NULL,
    payload_sha256 TEXT NOT NULL,
    envelope BLOB NOT NULL,
    PRIMARY KEY (wave_id, device)
) WITHOUT ROWID;
CREATE TABLE seen (
    number INTEGER PRIMARY KEY, -- not AUTOINCREMENT: ignored inserts would count, and push out what is remembered
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    UNIQUE (kind, id)
);
CREATE TABLE entered (
    release TEXT NOT NULL,
    main_sha256 TEXT NOT NULL,
    entered_at TEXT NOT NULL,
    digests TEXT NOT NULL,
    PRIMARY KEY (release, main_sha256)
) WITHOUT ROWID
"""
MIGRATIONS = (
    f"{SESSION_SCHEMA};\n{_SCHEMA}",
    f"{RETIREMENTS_SCHEMA};\n{ISSUED_SCHEMA}",
    TELEMETRY_TABLES,
    INCIDENTS_SCHEMA,
    URLS_SCHEMA,
    DERIVED_SCHEMA,
)


class RegionStore:
    """The tables of one super hub."""

    def __init__(self, database: Database) -> None:
        """Use ``open``."""
        self.database = database
        self.incidents = Incidents()
        self._entered: dict[tuple[str, str], datetime] = {}
        self._blobs_seen: dict[str, str] = {}

    @classmethod
    async def open(cls, path: Path) -> RegionStore:
        """Open or create the file; raises DatabaseFaultError, DatabaseTooNewError."""
        store = cls(await Database.open(path, MIGRATIONS))
        async with AsyncExitStack() as undo:
            undo.push_async_callback(store.database.close)  # its threads would keep a failed start alive
            for row in await store.database.fetch_all("SELECT release, main_sha256, entered_at, digests FROM entered"):
                store._remember(row[0], row[1], datetime.fromisoformat(row[2]), row[3])
            store.incidents = await Incidents.open(store.database)
            undo.pop_all()
        return store

    # -- outcomes ---------------------------------------------------------------------------------------------------

    async def ranks(self, tx: Transaction, keys: Iterable[Key]) -> dict[Key, Rank]:
        """What is known of the given outcomes."""
        known: dict[Key, Rank] = {}
        sql = "SELECT attempt, sequence, by_device, payload_sha256 FROM outcomes WHERE wave_id = ? AND device = ?"
        for key in keys:
            row = await tx.fetch_one(sql, key)
            if row is not None:
                known[key] = Rank(row[0], row[1], bool(row[2]), row[3])
        return known

    async def put_outcomes(self, tx: Transaction, heard: Sequence[Heard]) -> None:
        """Keep these in the place of what was known."""
        rows = [(*one.key, *astuple(one.rank), encode(one.envelope)) for one in heard]
        await tx.execute_many("INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    async def close_wave(self, tx: Transaction, wave_id: str) -> None:
        """Control has said its last word on a wave: its outcomes need not be told again."""
        await tx.execute("DELETE FROM outcomes WHERE wave_id = ?", (wave_id,))

    async def snapshot(self, node: str, tx: Transaction, incarnation: str) -> list[Report]:
        """All outcomes, as the reports of kind ``snapshot`` that a new incarnation's log begins with.

        Snapshots of stores that wait to go up come first: control acts on each by itself, so ours does not cover them.
        Behind ours is an empty one for each store's newest incarnation: a control that was restored from a backup may
        not know that it came, and would leave the permits of the one before outstanding.
        """
        heard = await _stores_heard(tx)
        said_again = {report.body for report in heard}
        waiting = [
            Report("snapshot", row[0])
            for row in await tx.fetch_all("SELECT body FROM session_reports WHERE kind = 'snapshot' ORDER BY number")
            if row[0] not in said_again and decode(SnapshotReport, row[0]).node != node
        ]
        parts: list[list[Envelope]] = [[]]
        room = _PART_BYTES
        for row in await tx.fetch_all("SELECT envelope FROM outcomes ORDER BY wave_id, device"):
            if len(row[0]) > room and parts[-1]:
                parts.append([])
                room = _PART_BYTES
            parts[-1].append(decode(Envelope, row[0]))
            room -= len(row[0]) + _FRAMING_BYTES
        return (
            waiting
            + [
                Report("snapshot", encode(SnapshotReport(node, incarnation, tuple(part), last=part is parts[-1])))
                for part in parts
            ]
            + heard
        )

    # -- what was told ----------------------------------------------------------------------------------------------

    async def is_first(self, tx: Transaction, kind: str, name: str) -> bool:
        """Whether this was never told before; from now on it was."""
        if not await tx.execute("INSERT OR IGNORE INTO seen (kind, id) VALUES (?, ?)", (kind, name)):
            return False
        await tx.execute("DELETE FROM seen WHERE number <= (SELECT MAX(number) FROM seen) - ?", (MAX_SEEN,))
        return True

    # -- releases in the region -------------------------------------------------------------------------------------

    @property
    def entered(self) -> Mapping[tuple[str, str], datetime]:
        """When each release, by name and main digest, entered the region."""
        return self._entered

    def release_seen_with(self, sha256: str) -> str | None:
        """A release of this region that had such a blob, even if it is revoked by now."""
        return self._blobs_seen.get(sha256)

    async def enter(self, tx: Transaction, release: ReleaseManifest, now: datetime) -> None:
        """A release enters the region; the first time counts."""
        digests = " ".join(artifact.digest.sha256 for artifact in release.artifacts)
        row = (release.name, release.main.digest.sha256, now.astimezone(UTC).isoformat(), digests)
        await tx.execute("INSERT OR IGNORE INTO entered VALUES (?, ?, ?, ?)", row)
        tx.on_commit(lambda: self._remember(row[0], row[1], now, digests))

    def _remember(self, release: str, main_sha256: str, entered_at: datetime, digests: str) -> None:
        self._entered.setdefault((release, main_sha256), entered_at)
        for sha256 in digests.split():
            self._blobs_seen.setdefault(sha256, release)


async def _stores_heard(tx: Transaction) -> list[Report]:
    """That each store has told all it holds; its outcomes are in this region's own snapshot."""
    newest = "SELECT max(id) FROM session_cursors GROUP BY child_path"
    rows = await tx.fetch_all(
        f"SELECT child_path, incarnation FROM session_cursors WHERE id IN ({newest}) ORDER BY child_path"  # noqa: S608  # constants
    )
    return [Report("snapshot", encode(SnapshotReport(row[0], row[1], (), last=True))) for row in rows]


_FRAMING_BYTES = 16
_PART_BYTES = MAX_REPORT_BYTES - 4096
"""Envelopes of one snapshot report; the rest is for its names and framing."""
