"""Whom nodes believe: signed statements, TUF metadata, releases, holds and freshness."""
