"""The first schema.

Revision: 0001. A frozen copy: later changes of control/schema.py come as further revisions.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    _audit()
    _cursors()
    _devices()
    _intents()
    _meta()
    _outcomes()
    _pauses()
    _permits()
    _policies()
    _resources()
    _stores()
    _wave_targets()
    _waves()


def _audit() -> None:
    op.create_table(
        "audit",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(length=400), nullable=False),
        sa.Column("action", sa.String(length=100), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("event_id", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("event_id"),
    )


def _cursors() -> None:
    op.create_table(
        "cursors",
        sa.Column("child", sa.String(length=200), nullable=False),
        sa.Column("incarnation", sa.String(length=64), nullable=False),
        sa.Column("through", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("child", "incarnation"),
    )


def _devices() -> None:
    op.create_table(
        "devices",
        sa.Column("path", sa.String(length=300), nullable=False),
        sa.Column("store", sa.String(length=200), nullable=False),
        sa.Column("device_class", sa.String(length=100), nullable=False),
        sa.Column("hardware_revision", sa.String(length=100), nullable=False),
        sa.Column("segment", sa.String(length=200), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("firmware_version", sa.String(length=100), nullable=False),
        sa.Column("firmware_sha256", sa.String(length=64), nullable=False),
        sa.Column("config_version", sa.String(length=100), nullable=False),
        sa.Column("last_seen_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("path"),
    )
    op.create_index(op.f("ix_devices_segment"), "devices", ["segment"], unique=False)
    op.create_index(op.f("ix_devices_store"), "devices", ["store"], unique=False)


def _intents() -> None:
    op.create_table(
        "intents",
        sa.Column("intent_id", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=30), nullable=False),
        sa.Column("wave_id", sa.String(length=64), nullable=False),
        sa.Column("device", sa.String(length=300), nullable=False),
        sa.Column("operator", sa.String(length=200), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("disposition", sa.String(length=20), nullable=False),
        sa.Column("waiting_for", sa.JSON(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.Column("settled_at", sa.BigInteger(), nullable=True),
        sa.Column("payload_sha256", sa.String(length=64), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("intent_id"),
        sa.UniqueConstraint("number"),
    )
    op.create_index(op.f("ix_intents_disposition"), "intents", ["disposition"], unique=False)


def _meta() -> None:
    op.create_table(
        "meta",
        sa.Column("name", sa.String(length=50), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )


def _outcomes() -> None:
    op.create_table(
        "outcomes",
        sa.Column("wave_id", sa.String(length=64), nullable=False),
        sa.Column("device", sa.String(length=300), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("gate", sa.String(length=100), nullable=False),
        sa.Column("by_device", sa.Boolean(), nullable=False),
        sa.Column("payload_sha256", sa.String(length=64), nullable=False),
        sa.Column("signed_by", sa.String(length=400), nullable=False),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.Column("slot", sa.String(length=10), nullable=False),
        sa.Column("firmware_sha256", sa.String(length=64), nullable=False),
        sa.Column("firmware_version", sa.String(length=100), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("wave_id", "device"),
    )
    op.create_index("ix_outcomes_device", "outcomes", ["device"], unique=False)


def _pauses() -> None:
    op.create_table(
        "pauses",
        sa.Column("wave_id", sa.String(length=64), nullable=False),
        sa.Column("origin", sa.String(length=200), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("wave_id", "origin"),
    )


def _permits() -> None:
    op.create_table(
        "permits",
        sa.Column("wave_id", sa.String(length=64), nullable=False),
        sa.Column("device", sa.String(length=300), nullable=False),
        sa.Column("generation", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("store", sa.String(length=200), nullable=False),
        sa.Column("hub_incarnation", sa.String(length=64), nullable=False),
        sa.Column("issued_at", sa.BigInteger(), nullable=False),
        sa.Column("written_off", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("wave_id", "device", "generation"),
    )


def _policies() -> None:
    op.create_table(
        "policies",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("digest"),
    )


def _resources() -> None:
    op.create_table(
        "resources",
        sa.Column("scope", sa.String(length=200), nullable=False),
        sa.Column("type", sa.String(length=30), nullable=False),
        sa.Column("name", sa.String(length=400), nullable=False),
        sa.Column("counter", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("audience", sa.JSON(), nullable=False),
        sa.Column("urgent", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "type", "name"),
    )


def _stores() -> None:
    op.create_table(
        "stores",
        sa.Column("path", sa.String(length=200), nullable=False),
        sa.Column("time_zone", sa.String(length=100), nullable=False),
        sa.Column("hub_incarnation", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("path"),
    )


def _wave_targets() -> None:
    op.create_table(
        "wave_targets",
        sa.Column("wave_id", sa.String(length=64), nullable=False),
        sa.Column("device", sa.String(length=300), nullable=False),
        sa.Column("store", sa.String(length=200), nullable=False),
        sa.PrimaryKeyConstraint("wave_id", "device"),
    )
    op.create_index("ix_wave_targets_device", "wave_targets", ["device"], unique=False)


def _waves() -> None:
    op.create_table(
        "waves",
        sa.Column("wave_id", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("cohort", sa.String(length=400), nullable=False),
        sa.Column("device_class", sa.String(length=100), nullable=False),
        sa.Column("hardware_revision", sa.String(length=100), nullable=False),
        sa.Column("release", sa.String(length=200), nullable=False),
        sa.Column("firmware_sha256", sa.String(length=64), nullable=False),
        sa.Column("firmware_size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("policy_digest", sa.String(length=64), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("permit_batch", sa.Integer(), nullable=True),
        sa.Column("halt_ratio", sa.Float(), nullable=False),
        sa.Column("halt_least_outcomes", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("state_reason", sa.Text(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("planned_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("closed_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("wave_id"),
        sa.UniqueConstraint("number"),
    )
    op.create_index(op.f("ix_waves_release"), "waves", ["release"], unique=False)
    op.create_index(op.f("ix_waves_state"), "waves", ["state"], unique=False)
    # ### end Alembic commands ###
