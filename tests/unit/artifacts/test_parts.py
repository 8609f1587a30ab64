"""Parts of blobs: given out verified, alone, and of what arrives no sooner than the rule of the last step allows."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from wavemesh.artifacts.blobstore import BlobMismatchError, BlobStore
from wavemesh.artifacts.digests import STEP_BYTES, digest_of
from wavemesh.artifacts.tags import READ_STEP_BYTES
from wavemesh.runtime.clock import SystemClock

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = random.Random(7).randbytes(3 * STEP_BYTES + 17)
DIGEST = digest_of(CONTENT)


async def opened(directory: Path) -> BlobStore:
    return await BlobStore.open(directory, 64 * STEP_BYTES, SystemClock())


async def put(store: BlobStore) -> None:
    async with store.writer(DIGEST) as writer:
        for start in range(0, len(CONTENT), STEP_BYTES):
            await writer.write(CONTENT[start : start + STEP_BYTES])


def files_in(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


@pytest.mark.parametrize("verified", [True, False], ids=["verified before", "not yet verified"])
@pytest.mark.parametrize(
    ("offset", "length"), [(0, 1), (READ_STEP_BYTES - 1, 2), (7, 2 * STEP_BYTES), (len(CONTENT) - 1, 1), (9, 0)]
)
async def test_a_part_is_read_alone(tmp_path: Path, offset: int, length: int, *, verified: bool) -> None:
    store = await opened(tmp_path)
    await put(store)
    if not verified:
        store = await opened(tmp_path)
    async with aclosing(store.read(DIGEST, offset, length)) as pieces:
        got = b"".join([piece async for piece in pieces])
    assert got == CONTENT[offset : offset + length if length else None]


async def test_no_part_of_a_blob_that_went_bad_elsewhere_is_given_out(tmp_path: Path) -> None:
    """H2: what no process has verified yet is hashed whole before the first byte of a part leaves."""
    await put(await opened(tmp_path))
    [path] = files_in(tmp_path / "blobs")
    path.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    store = await opened(tmp_path)
    with pytest.raises(BlobMismatchError):
        await anext(store.read(DIGEST, 0, 10))
    assert not store.has(DIGEST)


async def test_a_part_is_read_without_what_lies_before_it(tmp_path: Path) -> None:
    """Hundreds of parts of one pack must not cost hundreds of packs of reading."""
    store = await opened(tmp_path)
    await put(store)
    [path] = files_in(tmp_path / "blobs")
    path.write_bytes(bytes([CONTENT[0] ^ 1]) + CONTENT[1:])
    async with aclosing(store.read(DIGEST, 2 * STEP_BYTES, 100)) as pieces:
        assert b"".join([piece async for piece in pieces]) == CONTENT[2 * STEP_BYTES :][:100]
    with pytest.raises(BlobMismatchError):
        await anext(store.read(DIGEST, 0, 10))


async def test_a_part_of_what_arrives_is_followed_to_its_own_end(tmp_path: Path) -> None:
    """S1: a part may leave before the blob is whole; its last step still waits until it is verified."""
    store = await opened(tmp_path)
    last: list[bytes] = []

    async def follow() -> None:
        async with aclosing(store.follow(DIGEST, len(CONTENT) - 5, 3)) as pieces:
            last.extend([piece async for piece in pieces])

    async with asyncio.TaskGroup() as group, store.writer(DIGEST) as writer:
        await writer.write(CONTENT[: 2 * STEP_BYTES])
        async with aclosing(store.follow(DIGEST, 100, STEP_BYTES)) as pieces:
            got = b"".join([piece async for piece in pieces])
        assert got == CONTENT[100 : 100 + STEP_BYTES]
        group.create_task(follow())
        await writer.write(CONTENT[2 * STEP_BYTES :])
        async with aclosing(store.follow(DIGEST, len(CONTENT) - READ_STEP_BYTES - 20, 10)) as pieces:
            assert len(await anext(pieces)) == 10
        assert last == [], "all bytes are here, and their digest is not verified yet"
    assert last == [CONTENT[-5:-2]]
