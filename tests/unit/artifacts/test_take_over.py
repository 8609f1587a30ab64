"""A rebuilt file becomes the blob its writer verifies (H4), copied nowhere and believed only when it is right."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from tests.stopping_disk import PowerCutError, StoppingDisk
from wavemesh.artifacts.blobstore import BlobMismatchError, BlobStore, QuotaExceededError
from wavemesh.artifacts.digests import STEP_BYTES, digest_of
from wavemesh.artifacts.partial import boot_id, take_over
from wavemesh.runtime.durable import Disk
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = random.Random(3).randbytes(2 * STEP_BYTES + 9)
DIGEST = digest_of(CONTENT)


class Clock:
    def now(self) -> datetime:
        return datetime(2026, 11, 27, tzinfo=UTC)

    def monotonic(self) -> float:
        return 0.0


async def opened(directory: Path, quota_bytes: int = 1 << 30) -> BlobStore:
    return await BlobStore.open(directory / "cache", quota_bytes, Clock())


async def whole(store: BlobStore, digest: Digest) -> bytes:
    return b"".join([piece async for piece in store.read(digest)])


async def test_it_is_verified_and_finished_without_another_byte(tmp_path: Path) -> None:
    store, out = await opened(tmp_path), tmp_path / "out"
    out.write_bytes(CONTENT)
    store.reserve(DIGEST)
    inode = out.stat().st_ino
    take_over(out, store.partial_of(DIGEST), DIGEST, Disk(), boot_id())
    async with store.writer(DIGEST) as writer:
        assert writer.offset == DIGEST.size_bytes
    assert store.has(DIGEST)
    assert await whole(store, DIGEST) == CONTENT
    assert store.file_of(DIGEST).stat().st_ino == inode
    assert not out.exists()


async def test_what_is_wrong_never_becomes_the_blob(tmp_path: Path) -> None:
    store, out = await opened(tmp_path), tmp_path / "out"
    out.write_bytes(CONTENT[:-1] + b"?")
    take_over(out, store.partial_of(DIGEST), DIGEST, Disk(), boot_id())
    with pytest.raises(BlobMismatchError):
        async with store.writer(DIGEST):
            pass
    assert not store.has(DIGEST)
    assert store.partial_size(DIGEST) == 0


async def test_a_file_of_another_length_is_refused_and_what_was_there_stays(tmp_path: Path) -> None:
    store, out = await opened(tmp_path), tmp_path / "out"
    async with store.writer(DIGEST) as writer:
        await writer.write(CONTENT[:1000])
    out.write_bytes(CONTENT[:-1])
    with pytest.raises(BlobMismatchError, match="bytes were rebuilt"):
        take_over(out, store.partial_of(DIGEST), DIGEST, Disk(), boot_id())
    assert store.partial_size(DIGEST) == 1000


async def test_power_that_fails_on_the_way_leaves_it_whole_or_not_there(tmp_path: Path) -> None:
    """Cut before each durable step: the next start finishes the right bytes, or has none and begins anew."""
    ends: set[bool] = set()
    for steps in range(20):
        directory = tmp_path / str(steps)
        store, out = await opened(directory), directory / "out"
        async with store.writer(DIGEST) as writer:
            await writer.write(CONTENT[:1000])
        out.write_bytes(CONTENT)
        try:
            take_over(out, store.partial_of(DIGEST), DIGEST, StoppingDisk(steps), "another-boot")
        except PowerCutError:
            is_cut = True
        else:
            is_cut = False
        again = await opened(directory)
        async with again.writer(DIGEST) as writer:
            ends.add(writer.offset == DIGEST.size_bytes)
            assert is_cut or writer.offset == DIGEST.size_bytes
            if writer.offset < DIGEST.size_bytes:
                await writer.write(CONTENT[writer.offset :])
        assert await whole(again, DIGEST) == CONTENT
        if not is_cut:
            break
    assert ends == {True, False}
    assert not is_cut


async def test_what_is_reserved_counts_before_its_first_byte(tmp_path: Path) -> None:
    store = await opened(tmp_path, quota_bytes=DIGEST.size_bytes + 10)
    store.reserve(DIGEST)
    assert store.used_bytes == DIGEST.size_bytes
    store.reserve(DIGEST)
    with pytest.raises(QuotaExceededError):
        store.reserve(Digest("1" * 64, 11))
    await store.delete(DIGEST)
    assert store.used_bytes == 0
