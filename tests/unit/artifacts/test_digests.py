"""Digests: what is well formed, names of files, hashing in threads."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from typing import TYPE_CHECKING

import pytest

from wavemesh.artifacts.digests import (
    MAX_BLOB_BYTES,
    STEP_BYTES,
    BadDigestError,
    blob_name,
    check_digest,
    digest_of,
    digest_of_file,
    in_thread,
    parse_blob_name,
)
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from pathlib import Path

GOOD = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "digest",
    [
        Digest("", 1),
        Digest(GOOD.upper(), 1),
        Digest(GOOD[:-1], 1),
        Digest(GOOD + "0", 1),
        Digest(GOOD + "\n", 1),
        Digest("../" + GOOD[3:], 1),
        Digest(GOOD, -1),
        Digest(GOOD, MAX_BLOB_BYTES + 1),
    ],
)
def test_bad_digests_are_refused(digest: Digest) -> None:
    """Q2: a name from outside never becomes a path unless it is well formed."""
    with pytest.raises(BadDigestError):
        check_digest(digest)


def test_names_go_there_and_back() -> None:
    digest = check_digest(Digest(GOOD, 12345))
    assert parse_blob_name(blob_name(digest)) == digest
    for name in (GOOD, f"{GOOD}-", f"{GOOD}-01", f"{GOOD}-1.mark", f"{GOOD[:-1]}-1", "lost+found"):
        assert parse_blob_name(name) is None


async def test_file_and_memory_agree(tmp_path: Path) -> None:
    content = b"wave" * (STEP_BYTES // 2 + 3)
    (tmp_path / "image").write_bytes(content)
    assert await digest_of_file(tmp_path / "image") == digest_of(content)
    assert digest_of(content).sha256 == hashlib.sha256(content).hexdigest()


async def test_a_cancelled_step_has_ended_before_the_caller_goes_on() -> None:
    """Or the caller would close a file that its own thread still writes."""
    entered, leave, left = threading.Event(), threading.Event(), threading.Event()

    def step() -> None:
        entered.set()
        leave.wait(10)
        left.set()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(in_thread(step))
        await asyncio.to_thread(entered.wait, 10)
        task.cancel()
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
        leave.set()
        await asyncio.wait([task])
        assert task.cancelled()
        assert left.is_set()


async def test_the_error_of_a_step_is_the_callers() -> None:
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0)
