"""What the authority of the region has issued, durable: the latest certificates of each node, and the tokens used."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from wavemesh.identity.issuing import MAX_HISTORY, Issued

if TYPE_CHECKING:
    from wavemesh.runtime.sqlite import Transaction

ISSUED_SCHEMA = """
CREATE TABLE issued (
    number INTEGER PRIMARY KEY,
    path TEXT NOT NULL,
    key_sha256 TEXT NOT NULL,
    certificate BLOB NOT NULL,
    issued_at INTEGER NOT NULL, -- µs since 1970, as all times here
    not_before INTEGER NOT NULL,
    signer_not_before INTEGER,
    UNIQUE (path, key_sha256)
) STRICT;
CREATE TABLE tokens_used (
    secret_sha256 TEXT PRIMARY KEY,
    path TEXT NOT NULL,
    key_sha256 TEXT NOT NULL,
    trust_root_sha256 TEXT NOT NULL,
    used_at INTEGER NOT NULL
) STRICT
"""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class UsedToken:
    """A token that a key has joined with."""

    secret_sha256: str
    path: str
    key_sha256: str
    trust_root_sha256: str


async def history(tx: Transaction, path: str) -> list[Issued]:
    """The latest certificates of a node, the newest last."""
    rows = await tx.fetch_all("SELECT * FROM issued WHERE path = ? ORDER BY number", (path,))
    return [
        Issued(
            key_sha256=row["key_sha256"],
            certificate=row["certificate"],
            issued_at=_time(row["issued_at"]),
            not_before=_time(row["not_before"]),
            signer_not_before=None if row["signer_not_before"] is None else _time(row["signer_not_before"]),
        )
        for row in rows
    ]


async def keep(tx: Transaction, path: str, issued: Issued) -> None:
    """Keep one more certificate of a node; the oldest beyond MAX_HISTORY go."""
    signer = None if issued.signer_not_before is None else _stamp(issued.signer_not_before)
    await tx.execute(
        "INSERT INTO issued (path, key_sha256, certificate, issued_at, not_before, signer_not_before) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        (path, issued.key_sha256, issued.certificate, _stamp(issued.issued_at), _stamp(issued.not_before), signer),
    )
    await tx.execute(
        "DELETE FROM issued WHERE path = :path AND number NOT IN "
        "(SELECT number FROM issued WHERE path = :path ORDER BY number DESC LIMIT :limit)",
        {"path": path, "limit": MAX_HISTORY},
    )


async def used_token(tx: Transaction, secret_sha256: str, path: str) -> UsedToken | None:
    """The token of that node, if it was used."""
    sql = "SELECT * FROM tokens_used WHERE secret_sha256 = ? AND path = ?"
    row = await tx.fetch_one(sql, (secret_sha256, path))
    if row is None:
        return None
    return UsedToken(row["secret_sha256"], row["path"], row["key_sha256"], row["trust_root_sha256"])


async def use_token(tx: Transaction, token: UsedToken, now: datetime) -> None:
    """Mark a token as used, for ever: a few bytes a token."""
    row = (token.secret_sha256, token.path, token.key_sha256, token.trust_root_sha256, _stamp(now))
    await tx.execute("INSERT INTO tokens_used VALUES (?, ?, ?, ?, ?)", row)


def _stamp(at: datetime) -> int:
    return (at - _EPOCH) // _MICROSECOND


def _time(stamp: int) -> datetime:
    return _EPOCH + timedelta(microseconds=stamp)
