"""Copies of what nodes have on disk at a moment, taken while they run."""

from __future__ import annotations

import shutil
import sqlite3
import stat
from contextlib import closing
from typing import TYPE_CHECKING

from device.state import FORMAT

if TYPE_CHECKING:
    from pathlib import Path

_DATABASES = (".sqlite", ".sqlite3", ".db")
_LEFT_OUT = ("-wal", "-shm", "-journal", ".sock", ".lock", ".tmp")
# Boots and steps are the board's own account, and what the supervisor says; the agent reads boot.json alone.
_OF_RUN = {"boot.json"}
NODES = ("control", "superhub", "stores", "devices")


def take(directory: Path, target: Path) -> None:
    """Copy every node's directory; databases by SQLite's own backup, which sees whole transactions only."""
    for node in NODES:
        for path in sorted((directory / node).rglob("*")):
            _copy(path, target / path.relative_to(directory))


def _copy(path: Path, target: Path) -> None:
    if path.name.endswith(_LEFT_OUT) or (path.parent.name == "run" and path.name not in _OF_RUN):
        return
    try:
        is_file = stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:  # replaced while the tree was read
        return
    if not is_file:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in _DATABASES:
        with (
            closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(target)) as copy,
        ):
            source.backup(copy)
        return
    shutil.copyfile(path, target)
    target.chmod(path.stat().st_mode & 0o777)


def schema_versions(moment: Path) -> dict[str, str | int]:
    """The schema each tier's database had, as the tier counts it."""
    counted = {"superhub": "superhub/state/superhub.db", "storehub": "stores/store-208/state/hub.sqlite3"}
    found: dict[str, str | int] = {"device": FORMAT}
    for tier, name in counted.items():
        found[tier] = _one(moment / name, "PRAGMA user_version")
    found["control"] = _one(moment / "control/state/control.sqlite", "SELECT version_num FROM alembic_version")
    return found


def _one(database: Path, query: str) -> str | int:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        [row] = connection.execute(query).fetchall()
    value: str | int = row[0]
    return value
