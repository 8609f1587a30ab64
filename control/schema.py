"""Control's tables (SQLAlchemy Core). Migrations live in ``control/migrations``; a test keeps both equal.

Rules: nothing here is particular to SQLite. Times are microseconds since 1970 in UTC, so that they sort and compare
the same everywhere; enums are stored by name. What can be derived (counts, ratios, exposure) is not stored.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Dialect,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    false,
    or_,
)
from sqlalchemy.types import TypeDecorator

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class UtcTime(TypeDecorator[datetime]):
    """An aware UTC datetime as microseconds since 1970."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """To the database."""
        del dialect
        return None if value is None else (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        """From the database."""
        del dialect
        return None if value is None else _EPOCH + value * _MICROSECOND


EVENT_ID_CHARACTERS = 64


def is_named(column: Column[str], wanted: str) -> ColumnElement[bool]:
    """Whether a path or SPIFFE id in a column is meant by a path, a SPIFFE id or its last segment."""
    return or_(column == wanted, column.endswith(f"/{wanted}", autoescape=True))


metadata = MetaData()

#: Single values: "epoch" and "counter", of resource versions.
meta = Table("meta", metadata, Column("name", String(50), primary_key=True), Column("value", Text, nullable=False))

#: ``hub_incarnation`` is the one permits are bound to; empty until the hub was first heard.
stores = Table(
    "stores",
    metadata,
    Column("path", String(200), primary_key=True),
    Column("time_zone", String(100), nullable=False),
    Column("hub_incarnation", String(64), nullable=False, default=""),
)

#: What runs on it is a coarse copy of its status and its outcomes: written when it changes, not each time it is heard.
devices = Table(
    "devices",
    metadata,
    Column("path", String(300), primary_key=True),
    Column("store", String(200), nullable=False, index=True),
    Column("device_class", String(100), nullable=False),
    Column("hardware_revision", String(100), nullable=False),
    Column("segment", String(200), nullable=False, index=True),
    Column("labels", JSON, nullable=False),
    Column("firmware_version", String(100), nullable=False, default=""),
    Column("firmware_sha256", String(64), nullable=False, default=""),
    Column("config_version", String(100), nullable=False, default=""),
    Column("last_seen_at", UtcTime),
)

policies = Table(
    "policies",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("payload", LargeBinary, nullable=False),
)

#: ``state`` is never PAUSED here: a wave is paused while it runs and a row of ``pauses`` is in force.
waves = Table(
    "waves",
    metadata,
    Column("wave_id", String(64), primary_key=True),
    Column("number", Integer, nullable=False, unique=True),
    Column("cohort", String(400), nullable=False),
    Column("device_class", String(100), nullable=False),
    Column("hardware_revision", String(100), nullable=False),
    Column("release", String(200), nullable=False, index=True),
    Column("firmware_sha256", String(64), nullable=False),
    Column("firmware_size_bytes", BigInteger, nullable=False),
    Column("policy_digest", String(64), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("permit_batch", Integer),
    Column("halt_ratio", Float, nullable=False),
    Column("halt_least_outcomes", Integer, nullable=False),
    Column("state", String(20), nullable=False, index=True),
    Column("state_reason", Text, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("planned_at", UtcTime, nullable=False),
    Column("started_at", UtcTime),
    Column("expires_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime),
    Column("closed_at", UtcTime),
    Column("rotate_certificates", Boolean, nullable=False, server_default=false()),
)

wave_targets = Table(
    "wave_targets",
    metadata,
    Column("wave_id", String(64), primary_key=True),
    Column("device", String(300), primary_key=True),
    Column("store", String(200), nullable=False),
    Index("ix_wave_targets_device", "device"),
)

outcomes = Table(
    "outcomes",
    metadata,
    Column("wave_id", String(64), primary_key=True),
    Column("device", String(300), primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("kind", String(20), nullable=False),
    Column("gate", String(100), nullable=False),
    Column("by_device", Boolean, nullable=False),
    Column("payload_sha256", String(64), nullable=False),
    Column("signed_by", String(400), nullable=False),
    Column("evidence", Text, nullable=False),
    Column("slot", String(10), nullable=False),
    Column("firmware_sha256", String(64), nullable=False),
    Column("firmware_version", String(100), nullable=False),
    Column("at", UtcTime, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    Index("ix_outcomes_device", "device"),
)

#: One row an issue; the highest generation of a device is the one in force.
permits = Table(
    "permits",
    metadata,
    Column("wave_id", String(64), primary_key=True),
    Column("device", String(300), primary_key=True),
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("store", String(200), nullable=False),
    Column("hub_incarnation", String(64), nullable=False),
    Column("issued_at", UtcTime, nullable=False),
    Column("written_off", Boolean, nullable=False, default=False),
)

pauses = Table(
    "pauses",
    metadata,
    Column("wave_id", String(64), primary_key=True),
    Column("origin", String(200), primary_key=True),
    Column("reason", Text, nullable=False),
    Column("since", UtcTime, nullable=False),
)

intents = Table(
    "intents",
    metadata,
    Column("intent_id", String(64), primary_key=True),
    Column("number", Integer, nullable=False, unique=True),
    Column("kind", String(30), nullable=False),
    Column("wave_id", String(64), nullable=False),
    Column("device", String(300), nullable=False),
    Column("operator", String(200), nullable=False),
    Column("reason", Text, nullable=False),
    Column("disposition", String(20), nullable=False, index=True),
    Column("waiting_for", JSON, nullable=False),
    Column("detail", Text, nullable=False),
    Column("received_at", UtcTime, nullable=False),
    Column("settled_at", UtcTime),
    Column("payload_sha256", String(64), nullable=False),
    Column("envelope", LargeBinary, nullable=False),
)

#: ``event_id`` is set for what was reported from below, so that a replay is kept once.
audit = Table(
    "audit",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("actor", String(400), nullable=False),
    Column("action", String(100), nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("event_id", String(EVENT_ID_CHARACTERS), unique=True),
)

cursors = Table(
    "cursors",
    metadata,
    Column("child", String(200), primary_key=True),
    Column("incarnation", String(64), primary_key=True),
    Column("through", BigInteger, nullable=False),
)

#: Desired state as signed and published; ``scope`` is a region's path, or empty for everybody. TUF metadata and the
#: hold list are kept here and nowhere else.
resources = Table(
    "resources",
    metadata,
    Column("scope", String(200), primary_key=True),
    Column("type", String(30), primary_key=True),
    Column("name", String(400), primary_key=True),
    Column("counter", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("content", LargeBinary, nullable=False),
    Column("audience", JSON, nullable=False),
    Column("urgent", Boolean, nullable=False),
)

#: The outbox of telemetry: the statements of wavemesh/telemetry/outbox.py work on these.
telemetry = Table(
    "telemetry",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("source", String(300), nullable=False),
    Column("incarnation", String(512), nullable=False),
    Column("source_number", BigInteger, nullable=False),
    Column("trace_id", String(32), nullable=False, index=True),
    Column("body", LargeBinary, nullable=False),
    Column("size", Integer, nullable=False),
    Column("stored_at", BigInteger, nullable=False),
    Column("sent", Integer, nullable=False),
    sqlite_autoincrement=True,
)
_UNSENT = telemetry.c.sent == 0
Index("ix_telemetry_unsent", telemetry.c.number, sqlite_where=_UNSENT, postgresql_where=_UNSENT)

telemetry_cursors = Table(
    "telemetry_cursors",
    metadata,
    Column("source", String(300), primary_key=True),
    Column("incarnation", String(512), primary_key=True),
    Column("through", BigInteger, nullable=False),
    Column("moved_at", BigInteger, nullable=False),
)

telemetry_drops = Table(
    "telemetry_drops",
    metadata,
    Column("node", String(300), primary_key=True),
    Column("dropped", BigInteger, nullable=False),
)

#: Who may join; the latest of each node. ``secret_sha256`` names the token, whose secret is known to its bearer alone.
enrolments = Table(
    "enrolments",
    metadata,
    Column("node", String(300), primary_key=True),
    Column("device_class", String(100), nullable=False),
    Column("hardware_revision", String(100), nullable=False),
    Column("secret_sha256", String(64), nullable=False),
    Column("issued_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Column("created_by", String(400), nullable=False),
    Column("used_at", UtcTime),
)

#: The youngest certificate known of each node; ``wave_id`` is the wave it was renewed for.
certificates = Table(
    "certificates",
    metadata,
    Column("path", String(300), primary_key=True),
    Column("serial", String(64), nullable=False),
    Column("issued_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime),
    Column("device_class", String(100), nullable=False),
    Column("hardware_revision", String(100), nullable=False),
    Column("wave_id", String(64), nullable=False),
)

#: Start of the newest certificate that each super hub has used here; older ones are refused.
retirements = Table(
    "retirements",
    metadata,
    Column("path", String(300), primary_key=True),
    Column("issued_at", UtcTime, nullable=False),
)

#: Discrepancies that reconciliation has found and that last: each is audited when it comes and when it goes.
discrepancies = Table(
    "discrepancies",
    metadata,
    Column("cause", String(30), primary_key=True),
    Column("wave_id", String(64), primary_key=True),
    Column("subject", String(300), primary_key=True),
    Column("since", UtcTime, nullable=False),
)
