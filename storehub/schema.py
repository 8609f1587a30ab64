"""The store hub's tables. Times are microseconds since the epoch (UTC); statements are stored as they were signed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from wavemesh.artifacts.incidents import INCIDENTS_SCHEMA
from wavemesh.identity.sqlite import RETIREMENTS_SCHEMA
from wavemesh.session.sqlite import SESSION_SCHEMA
from wavemesh.telemetry.outbox import TABLES as TELEMETRY_TABLES

_TABLES = """
CREATE TABLE facts (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
CREATE TABLE devices (
    path TEXT PRIMARY KEY,
    status BLOB NOT NULL,
    seen_at INTEGER NOT NULL,
    last_known_good_sha256 TEXT NOT NULL
) STRICT;
CREATE TABLE slots (
    device TEXT PRIMARY KEY,
    wave_id TEXT NOT NULL,
    use TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    granted_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    until INTEGER NOT NULL,
    lease_id TEXT NOT NULL,
    grant_content BLOB NOT NULL,
    intent_id TEXT NOT NULL,
    epoch TEXT NOT NULL,
    counter INTEGER NOT NULL
) STRICT;
CREATE TABLE outcomes (
    wave_id TEXT NOT NULL,
    device TEXT NOT NULL,
    envelope BLOB NOT NULL,
    signed_by TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    PRIMARY KEY (wave_id, device)
) STRICT;
CREATE TABLE waves (
    wave_id TEXT PRIMARY KEY,
    order_content BLOB NOT NULL,
    blobs TEXT NOT NULL,
    first_seen_at INTEGER NOT NULL,
    closed_state INTEGER,
    closed_at INTEGER
) STRICT;
CREATE TABLE pauses (
    wave_id TEXT NOT NULL,
    origin TEXT NOT NULL,
    reason TEXT NOT NULL,
    effect TEXT NOT NULL,
    PRIMARY KEY (wave_id, origin)
) STRICT;
CREATE TABLE intents (
    intent_id TEXT PRIMARY KEY,
    envelope BLOB NOT NULL,
    operator TEXT NOT NULL,
    source TEXT NOT NULL,
    disposition INTEGER NOT NULL,
    device_path TEXT NOT NULL,
    waiting_for TEXT NOT NULL,
    detail TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    report_number INTEGER NOT NULL,
    epoch TEXT NOT NULL,
    counter INTEGER NOT NULL,
    digests TEXT NOT NULL
) STRICT;
CREATE TABLE device_logs (
    device TEXT NOT NULL,
    incarnation TEXT NOT NULL,
    number INTEGER NOT NULL,
    at INTEGER NOT NULL,
    level TEXT NOT NULL,
    wave_id TEXT NOT NULL,
    text TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    PRIMARY KEY (device, incarnation, number)
) STRICT;
CREATE INDEX device_logs_by_age ON device_logs (received_at);
"""

_PAUSES_BY_INTENT = "ALTER TABLE pauses ADD COLUMN intent_id TEXT NOT NULL DEFAULT ''"

_DELIVERIES = """
CREATE TABLE deliveries (
    target TEXT PRIMARY KEY,
    content TEXT NOT NULL
) STRICT;
"""

MIGRATIONS = (
    SESSION_SCHEMA + ";\n" + _TABLES,
    RETIREMENTS_SCHEMA,
    TELEMETRY_TABLES,
    INCIDENTS_SCHEMA,
    _PAUSES_BY_INTENT,
    _DELIVERIES,
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_stamp(at: datetime) -> int:
    """A time as it is stored."""
    return (at - _EPOCH) // _MICROSECOND


def from_stamp(stamp: int) -> datetime:
    """A stored time."""
    return _EPOCH + timedelta(microseconds=stamp)
