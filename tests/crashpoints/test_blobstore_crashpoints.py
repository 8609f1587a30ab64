"""Power is cut at every durable step of writing a blob: what is found then is never a wrong blob, and it resumes.

The disk forgets what a real one may forget: bytes that were not fsynced turn to zeros, names that were not fsynced in
their directory fall back to what they were.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.stopping_disk import PowerCutError, StoppingDisk
from wavemesh.artifacts.blobstore import BlobMismatchError, BlobStore
from wavemesh.artifacts.digests import digest_of
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.durable import Disk

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = Random(1).randbytes(5000)
DIGEST = digest_of(CONTENT)
STEP = 700
MARK_EVERY = 1500
QUOTA_BYTES = 1 << 20


class ForgetfulDisk(StoppingDisk):
    """Knows what was not durable when it stopped."""

    def __init__(self, steps: int) -> None:
        super().__init__(steps)
        self._durable: dict[Path, bytes] = {}
        self._renamed: list[tuple[Path, Path, bytes | None]] = []

    def fsync(self, descriptor: int, path: Path) -> None:
        super().fsync(descriptor, path)
        self._durable[path] = path.read_bytes()

    def rename(self, source: Path, target: Path) -> None:
        before = target.read_bytes() if target.exists() else None
        super().rename(source, target)
        self._renamed.append((source, target, before))
        self._durable[target] = self._durable.pop(source, b"")

    def fsync_dir(self, directory: Path) -> None:
        super().fsync_dir(directory)
        self._renamed = [one for one in self._renamed if one[1].parent != directory]

    def forget(self, root: Path) -> None:
        """Leave on the disk what was surely there when the power went."""
        for path in (path for path in root.rglob("*") if path.is_file()):
            durable = self._durable.get(path, b"")
            present = path.read_bytes()
            kept = durable[: len(present)]
            path.write_bytes(kept + bytes(len(present) - len(kept)))
        for source, target, before in reversed(self._renamed):
            target.replace(source)
            if before is not None:
                target.write_bytes(before)


async def fill(directory: Path, disk: Disk) -> int:
    """Write the blob from where it was left; returns where that was."""
    store = await BlobStore.open(directory, QUOTA_BYTES, SystemClock(), disk)
    async with store.writer(DIGEST) as writer:
        start = writer.offset
        for offset in range(start, len(CONTENT), STEP):
            await writer.write(CONTENT[offset : offset + STEP])
    return start


async def fill_until_cut(directory: Path, steps: int) -> bool:
    """Whether the blob was written before the power went."""
    disk = ForgetfulDisk(steps)
    try:
        await fill(directory, disk)
    except PowerCutError:
        disk.forget(directory)
        return False
    return True


@pytest.mark.parametrize("boot", ["another", ""])
async def test_power_cut_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot: str) -> None:
    """H1, D9: exhaustive over the durable steps of one blob; the next boot has another id, or none is known."""
    monkeypatch.setattr("wavemesh.artifacts.partial.MARK_EVERY_BYTES", MARK_EVERY)
    monkeypatch.setattr("wavemesh.artifacts.blobstore.boot_id", lambda: "first" if boot else "")
    resumed: set[int] = set()
    for steps in range(1000):
        directory = tmp_path / str(steps)
        monkeypatch.setattr("wavemesh.artifacts.blobstore.boot_id", lambda: "first" if boot else "")
        if await fill_until_cut(directory, steps):
            break
        monkeypatch.setattr("wavemesh.artifacts.blobstore.boot_id", lambda: boot)
        resumed.add(await recover(directory))
    else:
        pytest.fail("the blob takes more steps than were tried")
    assert max(resumed) >= 2 * MARK_EVERY, "what was marked was not fetched again"
    assert steps > 15


async def recover(directory: Path) -> int:
    """After the cut: no wrong byte is ever given out, and the blob can be completed; returns where that began."""
    store = await BlobStore.open(directory, QUOTA_BYTES, SystemClock())
    if store.has(DIGEST):
        try:
            assert b"".join([piece async for piece in store.read(DIGEST)]) == CONTENT
        except BlobMismatchError:
            pytest.fail("a blob became visible before its bytes were durable")
        return 0
    start = await fill(directory, Disk())
    found = await BlobStore.open(directory, QUOTA_BYTES, SystemClock())
    assert b"".join([piece async for piece in found.read(DIGEST)]) == CONTENT
    return start
