"""What reconciliation has found and what lasts (control/reconciliation.py).

Revision: 0004. A frozen copy: later changes of control/schema.py come as further revisions.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create its table."""
    op.create_table(
        "discrepancies",
        sa.Column("cause", sa.String(length=30), nullable=False),
        sa.Column("wave_id", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.String(length=300), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("cause", "wave_id", "subject"),
    )
