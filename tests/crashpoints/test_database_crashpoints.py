"""What ``Database`` promises of a commit holds at every system call of SQLite (M3, Q2), sampled.

The complete form is ``python -m tests.crashpoints.database_bytes cut``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.crashpoints.database_bytes import Call, Replay, parse, record
from tests.crashpoints.device_story import RAM_DISK

if TYPE_CHECKING:
    from collections.abc import Iterator

COUNT, CHECKPOINT_EVERY = 6, 3


@pytest.fixture(scope="module")
def top() -> Iterator[Path]:
    """In memory: the model says what is flushed, a real disk only takes its time."""
    with tempfile.TemporaryDirectory(dir=RAM_DISK, prefix="crashpoints-") as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def calls(top: Path) -> list[Call]:
    """What the kernel was asked in a short run."""
    (top / "db").mkdir()
    return parse(record(top / "db", COUNT, CHECKPOINT_EVERY), top / "db")


def replay(top: Path, calls: list[Call], one_of: int) -> Replay:
    done = Replay(top / "db", calls, one_of=one_of)
    done.run(top / "scratch")
    return done


def test_a_commit_that_returned_is_there_and_whole(top: Path, calls: list[Call]) -> None:
    kinds = [call.kind for call in calls]
    assert kinds.count("committed") == COUNT
    assert kinds.count("fdatasync") > COUNT
    assert any(call.kind == "pwrite64" and call.path.suffix == ".sqlite3" for call in calls), "a checkpoint"
    done = replay(top, calls, one_of=4)
    assert done.problems == []
    assert len(done.states) > 20


@pytest.mark.parametrize("name", ["hub.sqlite3-wal", "hub.sqlite3", "db"], ids=["log", "file", "directory"])
def test_a_flush_that_is_left_out_is_found(top: Path, calls: list[Call], name: str) -> None:
    """As ``synchronous=NORMAL`` would leave out the first of them."""
    left = [call for call in calls if call.kind != "fdatasync" or call.path.name != name]
    assert len(left) < len(calls)
    assert replay(top, left, one_of=6).problems
