"""Enrolments, certificates, and waves that rotate them.

Revision: 0002.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add two tables and a column; waves that were planned before rotate nothing."""
    op.create_table(
        "certificates",
        sa.Column("path", sa.String(length=300), nullable=False),
        sa.Column("serial", sa.String(length=64), nullable=False),
        sa.Column("issued_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("device_class", sa.String(length=100), nullable=False),
        sa.Column("hardware_revision", sa.String(length=100), nullable=False),
        sa.Column("wave_id", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("path"),
    )
    op.create_table(
        "enrolments",
        sa.Column("node", sa.String(length=300), nullable=False),
        sa.Column("device_class", sa.String(length=100), nullable=False),
        sa.Column("hardware_revision", sa.String(length=100), nullable=False),
        sa.Column("secret_sha256", sa.String(length=64), nullable=False),
        sa.Column("issued_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(length=400), nullable=False),
        sa.Column("used_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("node"),
    )
    op.create_table(
        "retirements",
        sa.Column("path", sa.String(length=300), nullable=False),
        sa.Column("issued_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("path"),
    )
    with op.batch_alter_table("waves") as waves:
        waves.add_column(sa.Column("rotate_certificates", sa.Boolean(), nullable=False, server_default=sa.false()))
