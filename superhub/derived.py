"""What was made of blobs, durable: which blobs are derived, of what and by what method.

A row is there before its blobs are, in state ``coming``, so that after a crash nobody wonders whose they are: then what
is whole becomes ``made`` and the rest goes, blobs and row. ``made`` is said once all blobs of a row are complete and
verified. What goes from the cache goes from here at the next start or the next look. So nothing that is told of here
lacks a blob, and no derived blob lies in the cache that is not told of.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from superhub.derivations import AGAIN_AFTER, Dismissed, Made, Recipe
from wavemesh.artifacts.digests import blob_name, parse_blob_name
from wavemesh.artifacts.plan import Method
from wavemesh.runtime.sqlite import DatabaseFaultError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from sqlite3 import Row

    from wavemesh.artifacts.blobstore import BlobStore
    from wavemesh.runtime.sqlite import Database, Transaction
    from wavemesh.trust.statements import Digest

DERIVED_SCHEMA = """
CREATE TABLE derived (
    method TEXT NOT NULL,
    target TEXT NOT NULL, -- blobs are SHA256-SIZE
    bases TEXT NOT NULL, -- in order, with spaces between them
    state TEXT NOT NULL, -- coming, made, dismissed
    payload TEXT NOT NULL,
    pack_index TEXT NOT NULL,
    cost_s REAL NOT NULL,
    at TEXT NOT NULL,
    reason TEXT NOT NULL, -- of dismissed ones
    PRIMARY KEY (method, target, bases)
) WITHOUT ROWID
"""
_INSERT = "INSERT OR REPLACE INTO derived VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_DELETE = "DELETE FROM derived WHERE method = ? AND target = ? AND bases = ?"
_COMING, _MADE, _DISMISSED = "coming", "made", "dismissed"


class Derived:
    """The table of one super hub, in memory as well."""

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        """Use ``open``."""
        self._database = database
        self._blobs = blobs
        self._made: dict[Recipe, Made] = {}
        self._dismissed: dict[Recipe, Dismissed] = {}
        self._targets: dict[Digest, set[Digest]] = {}

    @classmethod
    async def open(cls, database: Database, blobs: BlobStore, now: datetime) -> Derived:
        """Read the table and settle it with what the cache has; raises DatabaseFaultError, DiskFaultError."""
        table = cls(database, blobs)
        lost: list[Made] = []
        for row in await database.fetch_all("SELECT * FROM derived ORDER BY at"):
            one = _read(row)
            if isinstance(one, Made) and all(blobs.has(blob) for blob in one.blobs):
                table._note(one)
            elif isinstance(one, Made):
                lost.append(one)
            elif now - one.at < AGAIN_AFTER:
                table._dismissed[one.recipe] = one
        async with database.transaction() as tx:
            await tx.execute("UPDATE derived SET state = ? WHERE state = ?", (_MADE, _COMING))
            earliest = (now - AGAIN_AFTER).astimezone(UTC).isoformat()
            await tx.execute("DELETE FROM derived WHERE state = ? AND at <= ?", (_DISMISSED, earliest))
        for made in lost:
            await table.forget(made)
        return table

    # -- what there is ----------------------------------------------------------------------------------------------

    def made(self, recipe: Recipe) -> Made | None:
        """What was made by a recipe and is here."""
        made = self._made.get(recipe)
        return made if made is not None and all(self._blobs.has(blob) for blob in made.blobs) else None

    def all(self) -> Iterator[Made]:
        """Everything that was made and is here, the oldest first."""
        return (made for recipe in list(self._made) if (made := self.made(recipe)) is not None)

    def dismissed(self, recipe: Recipe) -> Dismissed | None:
        """What a recipe was dismissed for."""
        return self._dismissed.get(recipe)

    def targets_of(self, digest: Digest) -> Sequence[Digest]:
        """The blobs that a derived one was made of; none for one that is not derived."""
        return sorted(self._targets.get(digest, ()), key=blob_name)

    # -- what changes -----------------------------------------------------------------------------------------------

    async def coming(self, made: Made) -> None:
        """The blobs of ``made`` are about to come into the cache; raises DatabaseFaultError."""
        async with self._database.transaction() as tx:
            await self._put(tx, made, _COMING)

    async def keep(self, made: Made) -> None:
        """They are there, whole; raises DatabaseFaultError."""
        async with self._database.transaction() as tx:
            await self._put(tx, made, _MADE)
            tx.on_commit(lambda: self._note(made))

    async def dismiss(self, one: Dismissed) -> None:
        """A recipe is not worth trying again soon; raises DatabaseFaultError."""
        at = one.at.astimezone(UTC).isoformat()
        async with self._database.transaction() as tx:
            await tx.execute(_INSERT, (*_key(one.recipe), _DISMISSED, "", "", 0.0, at, one.reason[:1000]))
            tx.on_commit(lambda: self._dismissed.update({one.recipe: one}))

    async def forget(self, made: Made) -> None:
        """Remove what was made, blobs and row; blobs that others need, or that are being written, stay."""
        self._made.pop(made.recipe, None)
        self._index()
        for blob in made.blobs:
            if blob not in self._targets and not self._blobs.is_arriving(blob):
                await self._blobs.delete(blob)
        async with self._database.transaction() as tx:
            await tx.execute(_DELETE, _key(made.recipe))

    async def prune(self) -> None:
        """Forget what the cache has lost."""
        for made in [one for recipe, one in self._made.items() if self.made(recipe) is None]:
            await self.forget(made)

    @staticmethod
    async def _put(tx: Transaction, made: Made, state: str) -> None:
        index = "" if made.index is None else blob_name(made.index)
        at = made.made_at.astimezone(UTC).isoformat()
        await tx.execute(_INSERT, (*_key(made.recipe), state, blob_name(made.payload), index, made.cost_s, at, ""))

    def _note(self, made: Made) -> None:
        self._made[made.recipe] = made
        self._dismissed.pop(made.recipe, None)
        self._index()

    def _index(self) -> None:
        self._targets = {}
        for made in self._made.values():
            for blob in made.blobs:
                self._targets.setdefault(blob, set()).add(made.recipe.target)


def _key(recipe: Recipe) -> tuple[str, str, str]:
    return recipe.method.value, blob_name(recipe.target), " ".join(blob_name(base) for base in recipe.bases)


def _read(row: Row | Mapping[str, str]) -> Made | Dismissed:
    recipe = Recipe(Method(row["method"]), _digest(row["target"]), tuple(_digests(row["bases"].split())))
    at = datetime.fromisoformat(row["at"])
    if row["state"] == _DISMISSED:
        return Dismissed(recipe, row["reason"], at)
    index = _digest(row["pack_index"]) if row["pack_index"] else None
    return Made(recipe, _digest(row["payload"]), index, at, float(row["cost_s"]))


def _digests(names: Iterable[str]) -> Iterator[Digest]:
    return (_digest(name) for name in names)


def _digest(name: str) -> Digest:
    digest = parse_blob_name(name)
    if digest is None:
        msg = f"the table of derived blobs has {name[:80]!r}, which names none"
        raise DatabaseFaultError(msg)
    return digest
