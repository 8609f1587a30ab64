"""The outbox of telemetry (wavemesh/telemetry/outbox.py).

Revision: 0003. A frozen copy: later changes of control/schema.py come as further revisions.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create its three tables."""
    op.create_table(
        "telemetry",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("source", sa.String(length=300), nullable=False),
        sa.Column("incarnation", sa.String(length=512), nullable=False),
        sa.Column("source_number", sa.BigInteger(), nullable=False),
        sa.Column("trace_id", sa.String(length=32), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("stored_at", sa.BigInteger(), nullable=False),
        sa.Column("sent", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_telemetry_trace_id", "telemetry", ["trace_id"], unique=False)
    unsent = sa.text("sent = 0")
    op.create_index(
        "ix_telemetry_unsent", "telemetry", ["number"], unique=False, sqlite_where=unsent, postgresql_where=unsent
    )
    op.create_table(
        "telemetry_cursors",
        sa.Column("source", sa.String(length=300), nullable=False),
        sa.Column("incarnation", sa.String(length=512), nullable=False),
        sa.Column("through", sa.BigInteger(), nullable=False),
        sa.Column("moved_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("source", "incarnation"),
    )
    op.create_table(
        "telemetry_drops",
        sa.Column("node", sa.String(length=300), nullable=False),
        sa.Column("dropped", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("node"),
    )
