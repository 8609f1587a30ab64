"""Runs migrations on the connection that control gives; there is no alembic.ini."""

from __future__ import annotations

from alembic import context

from control.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
