"""Migrations of control's database (Alembic)."""
