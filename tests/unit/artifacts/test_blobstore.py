"""The blob store: verified on completion and on read, resumable, within its quota, readable while it is written."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import threading
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from wavemesh.artifacts import blobstore
from wavemesh.artifacts.blobstore import (
    BlobMismatchError,
    BlobStore,
    FetchStoppedError,
    OutOfRangeError,
    QuotaExceededError,
)
from wavemesh.artifacts.digests import STEP_BYTES, blob_name, digest_of
from wavemesh.artifacts.partial import PartialFile, mark_path
from wavemesh.artifacts.tags import READ_STEP_BYTES
from wavemesh.errors import ConflictError, NotFoundError
from wavemesh.runtime.durable import Disk, DiskFullError
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = random.Random(7).randbytes(3 * STEP_BYTES + 17)
DIGEST = digest_of(CONTENT)
QUOTA_BYTES = 64 * STEP_BYTES


class SetClock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.time = datetime(2026, 5, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()


async def opened(directory: Path, quota_bytes: int = QUOTA_BYTES, disk: Disk | None = None) -> BlobStore:
    return await BlobStore.open(directory, quota_bytes, SetClock(), disk)


async def put(store: BlobStore, content: bytes = CONTENT, digest: Digest | None = None) -> Digest:
    digest = digest or digest_of(content)
    async with store.writer(digest) as writer:
        for start in range(writer.offset, len(content), STEP_BYTES):
            await writer.write(content[start : start + STEP_BYTES])
    return digest


async def everything(store: BlobStore, digest: Digest = DIGEST, offset: int = 0) -> bytes:
    return b"".join([piece async for piece in store.read(digest, offset)])


async def collect(store: BlobStore, offset: int, pieces: list[bytes]) -> None:
    async for piece in store.read(DIGEST, offset):
        pieces += [piece]


def files_in(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


async def test_what_is_written_is_read(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    assert not store.has(DIGEST)
    await put(store)
    assert store.has(DIGEST)
    assert await everything(store) == CONTENT
    for offset in (1, READ_STEP_BYTES, READ_STEP_BYTES + 1, len(CONTENT) - 1, len(CONTENT)):
        assert await everything(store, offset=offset) == CONTENT[offset:]
    again = await opened(tmp_path)
    assert again.has(DIGEST)
    assert [entry.is_complete for entry in again.entries()] == [True]
    assert (tmp_path / "blobs" / DIGEST.sha256[:2] / blob_name(DIGEST)).exists()


async def test_an_empty_blob_is_a_blob(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    empty = await put(store, b"")
    assert store.has(empty)
    assert await everything(store, empty) == b""


async def test_wrong_bytes_never_become_visible(tmp_path: Path) -> None:
    """H2: verified on arrival."""
    store = await opened(tmp_path)
    with pytest.raises(BlobMismatchError):
        await put(store, b"x" + CONTENT[1:], DIGEST)
    assert not store.has(DIGEST)
    assert store.entries() == []
    assert not any((tmp_path / "partial").iterdir())
    await put(store)
    assert await everything(store) == CONTENT


async def test_more_bytes_than_the_size_are_refused(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    with pytest.raises(BlobMismatchError):
        await put(store, CONTENT + b"x", DIGEST)
    assert not store.has(DIGEST)


async def test_a_partial_blob_resumes_where_it_was_left(tmp_path: Path) -> None:
    """M3: nothing held is fetched again, across a restart of the process."""
    store = await opened(tmp_path)
    async with store.writer(DIGEST) as writer:
        await writer.write(CONTENT[: STEP_BYTES + 5])
    assert store.partial_size(DIGEST) == STEP_BYTES + 5
    again = await opened(tmp_path)
    assert not again.has(DIGEST)
    assert not again.entries()[0].is_complete
    async with again.writer(DIGEST) as writer:
        assert writer.offset == STEP_BYTES + 5
        await writer.write(CONTENT[writer.offset :])
    assert await everything(again) == CONTENT


def unmarked(tmp_path: Path, boot: str, marked: bytes, behind: bytes) -> PartialFile:
    """A partial file as a crash leaves it: some bytes marked, some only written; reopened in ``boot``."""
    path = tmp_path / blob_name(DIGEST)
    file = PartialFile(path, DIGEST, Disk(), "boot-1")
    file.append(marked)
    file.mark()
    file.append(behind)
    file.close()
    return PartialFile(path, DIGEST, Disk(), boot)


@pytest.mark.parametrize(("boot", "believed"), [("boot-1", 1500), ("boot-2", 1000), ("", 1000)])
def test_what_a_crash_leaves_is_believed_as_far_as_it_can_be(tmp_path: Path, boot: str, believed: int) -> None:
    """After a crash of the process all of it, after a power cut what was fsynced."""
    file = unmarked(tmp_path, boot, CONTENT[:1000], CONTENT[1000:1500])
    try:
        assert file.offset == believed
        assert file.path.stat().st_size == believed
    finally:
        file.close()


def test_bytes_without_a_mark_are_not_believed(tmp_path: Path) -> None:
    path = tmp_path / blob_name(DIGEST)
    path.write_bytes(CONTENT[:100])
    file = PartialFile(path, DIGEST, Disk(), "boot-1")
    assert file.offset == 0
    file.close()
    mark_path(path).write_text("rubbish")
    file = PartialFile(path, DIGEST, Disk(), "boot-1")
    assert file.offset == 0
    file.close()


async def test_a_blob_that_went_bad_on_disk_is_found_on_read(tmp_path: Path) -> None:
    """H2: verified on read; the reader never gets all of a wrong blob, and it is gone for the next one."""
    store = await opened(tmp_path)
    await put(store)
    path = tmp_path / "blobs" / DIGEST.sha256[:2] / blob_name(DIGEST)
    with path.open("r+b") as file:
        file.seek(10)
        file.write(bytes([CONTENT[10] ^ 1]))
    pieces: list[bytes] = []
    with pytest.raises(BlobMismatchError):
        await collect(store, STEP_BYTES, pieces)
    assert sum(map(len, pieces)) < len(CONTENT) - STEP_BYTES
    assert not store.has(DIGEST)
    assert not path.exists()


@pytest.mark.parametrize("known_by", ["its writer", "an earlier read"])
@pytest.mark.parametrize("cache", ["in the page cache", "on disk alone"])
async def test_what_was_verified_before_is_checked_before_any_of_it_is_given_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known_by: str, cache: str
) -> None:
    store = await opened(tmp_path)
    await put(store)
    if known_by == "an earlier read":
        store = await opened(tmp_path)
        assert await everything(store) == CONTENT
    if cache == "on disk alone":
        monkeypatch.setattr("wavemesh.artifacts.blobstore._read_cached", lambda *_: None)
    monkeypatch.setattr("wavemesh.artifacts.blobstore._read_and_hash", None)  # nothing is hashed in full again
    for offset in (0, 1, READ_STEP_BYTES, len(CONTENT) - 1, len(CONTENT)):
        assert await everything(store, offset=offset) == CONTENT[offset:]
    with (tmp_path / "blobs" / DIGEST.sha256[:2] / blob_name(DIGEST)).open("r+b") as file:
        file.seek(READ_STEP_BYTES)
        file.write(bytes([CONTENT[READ_STEP_BYTES] ^ 1]))
    pieces: list[bytes] = []
    with pytest.raises(BlobMismatchError):
        await collect(store, 0, pieces)
    assert b"".join(pieces) == CONTENT[:READ_STEP_BYTES]
    assert not store.has(DIGEST)


async def test_the_scrub_hashes_in_full_whatever_was_verified_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await opened(tmp_path)
    await put(store)
    hashed: list[int] = []
    whole = blobstore._read_and_hash

    def counting(descriptor: int, position: int, *rest: Any) -> bytes:
        hashed.append(position)
        return whole(descriptor, position, *rest)

    monkeypatch.setattr(blobstore, "_read_and_hash", counting)
    await store.scrub(DIGEST)
    assert hashed == list(range(0, len(CONTENT), READ_STEP_BYTES))


@pytest.mark.parametrize("fault", [FileNotFoundError(errno.ENOENT, "gone"), OSError(errno.EIO, "bad sector")])
async def test_a_blob_that_cannot_be_read_is_dropped_to_be_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: OSError
) -> None:
    store = await opened(tmp_path)
    await put(store)

    def failing(*_: object) -> bytes:
        raise fault

    if fault.errno == errno.ENOENT:
        (tmp_path / "blobs" / DIGEST.sha256[:2] / blob_name(DIGEST)).unlink()
    else:
        for call in ("pread", "preadv"):
            monkeypatch.setattr(f"wavemesh.artifacts.blobstore.os.{call}", failing)
    words = "No such file" if fault.errno == errno.ENOENT else "bad sector"
    with pytest.raises(BlobMismatchError, match=words):
        await everything(store)
    monkeypatch.undo()
    assert not store.has(DIGEST)
    await put(store)
    assert await everything(store) == CONTENT


async def test_scrub_finds_a_truncated_blob_and_does_not_count_as_use(tmp_path: Path) -> None:
    clock = SetClock()
    store = await BlobStore.open(tmp_path, QUOTA_BYTES, clock)
    await put(store)
    written = clock.time
    clock.time += timedelta(days=1)
    await store.scrub(DIGEST)
    assert store.entries()[0].last_used_at == written
    path = tmp_path / "blobs" / DIGEST.sha256[:2] / blob_name(DIGEST)
    os.truncate(path, 100)
    with pytest.raises(BlobMismatchError):
        await store.scrub(DIGEST)
    with pytest.raises(NotFoundError):
        await store.scrub(DIGEST)


async def test_use_orders_the_entries_across_restarts(tmp_path: Path) -> None:
    """H1: the longest unused comes first; eviction goes by it."""
    clock = SetClock()
    store = await BlobStore.open(tmp_path, QUOTA_BYTES, clock)
    first, second = await put(store, b"first"), await put(store, b"second")
    clock.time += timedelta(minutes=1)
    await everything(store, first)
    assert [entry.digest for entry in store.entries()] == [second, first]
    again = await BlobStore.open(tmp_path, QUOTA_BYTES, clock)
    assert again.entries()[-1].digest == first


async def test_the_quota_is_known_before_the_first_byte(tmp_path: Path) -> None:
    store = await opened(tmp_path, 2 * len(CONTENT))
    await put(store)
    async with store.writer(Digest("0" * 64, len(CONTENT))) as writer:
        await writer.write(b"reserved in full")
        with pytest.raises(QuotaExceededError, match="quota"):
            async with store.writer(Digest("1" * 64, 1)):
                pass
    assert store.used_bytes == 2 * len(CONTENT)
    assert await store.delete(DIGEST) == len(CONTENT)
    await put(store, b"fits now")


async def test_a_disk_too_small_is_known_before_the_first_byte(tmp_path: Path) -> None:
    store = await opened(tmp_path, 1 << 50)
    with pytest.raises(QuotaExceededError, match="disk"):
        async with store.writer(Digest("1" * 64, 1 << 40)):
            pass
    assert store.entries() == []


async def test_delete_of_complete_partial_and_busy(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await put(store)
    other = Digest("2" * 64, 9)
    async with store.writer(other) as writer:
        await writer.write(b"12345")
        with pytest.raises(ConflictError):
            await store.delete(other)
        with pytest.raises(ConflictError):
            async with store.writer(other):
                pass
    assert await store.delete(other) == 9
    assert await store.delete(DIGEST) == DIGEST.size_bytes
    assert await store.delete(DIGEST) == 0
    assert store.used_bytes == 0
    assert not any((tmp_path / "partial").iterdir())
    assert (await opened(tmp_path)).entries() == []


async def test_what_cannot_be_a_blob_is_removed_at_start(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await put(store)
    directory = tmp_path / "blobs" / DIGEST.sha256[:2]
    (directory / "junk").write_bytes(b"junk")
    os.truncate(directory / blob_name(DIGEST), 3)
    (tmp_path / "partial" / "junk").write_bytes(b"junk")
    (tmp_path / "partial" / f"{blob_name(DIGEST)}.mark").write_text("orphan")
    again = await opened(tmp_path)
    assert again.entries() == []
    assert not files_in(tmp_path)


class FullDisk(Disk):
    """Has room for ``room_bytes`` of data, then fails half way through a write as a real disk does."""

    room_bytes = 1 << 50

    def write(self, descriptor: int, data: bytes | bytearray | memoryview, path: Path) -> None:
        view = memoryview(data).cast("B")
        if len(view) > self.room_bytes:
            os.write(descriptor, view[: self.room_bytes])
            msg = f"{path}: {os.strerror(errno.ENOSPC)}"
            raise DiskFullError(msg)
        self.room_bytes -= len(view)
        super().write(descriptor, data, path)


async def test_a_disk_that_fills_up_costs_nothing_that_was_held(tmp_path: Path) -> None:
    """H1: disk-full without a wrong or lost byte."""
    disk = FullDisk()
    store = await opened(tmp_path, disk=disk)
    async with store.writer(DIGEST) as writer:
        await writer.write(CONTENT[:1000])
        disk.room_bytes = 500
        with pytest.raises(DiskFullError):
            await writer.write(CONTENT[1000:2000])
    disk.room_bytes = 1 << 50
    async with store.writer(DIGEST) as writer:
        assert writer.offset == 1000
        await writer.write(CONTENT[1000:])
    assert await everything(store) == CONTENT


class SlowDisk(Disk):
    """Holds the step that makes a blob's name durable."""

    def __init__(self) -> None:
        self.entered, self.leave = threading.Event(), threading.Event()

    def fsync_dir(self, directory: Path) -> None:
        super().fsync_dir(directory)
        if directory.name == DIGEST.sha256[:2]:
            self.entered.set()
            self.leave.wait(10)


async def test_a_writer_cancelled_while_it_finishes_has_finished(tmp_path: Path) -> None:
    """M3: the blob is there, so it is not fetched again."""
    disk = SlowDisk()
    store = await opened(tmp_path, disk=disk)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(put(store))
        await asyncio.to_thread(disk.entered.wait, 10)
        task.cancel()
        await asyncio.sleep(0)
        disk.leave.set()
    assert task.cancelled()
    assert store.has(DIGEST)
    assert await everything(store) == CONTENT
    assert not files_in(tmp_path / "partial")


async def test_readers_follow_the_writer_and_get_the_end_only_when_it_is_verified(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    received: list[bytearray] = [bytearray() for _ in range(3)]
    grew = asyncio.Event()

    async def follow(into: bytearray, offset: int) -> None:
        async for piece in store.follow(DIGEST, offset):
            into += piece
            grew.set()

    async with asyncio.TaskGroup() as group, store.writer(DIGEST) as writer:
        for number, into in enumerate(received):
            group.create_task(follow(into, number * 1000))
        for start in range(0, len(CONTENT), STEP_BYTES):
            await writer.write(CONTENT[start : start + STEP_BYTES])
        while len(received[0]) < len(CONTENT) - READ_STEP_BYTES:
            grew.clear()
            await grew.wait()
        assert len(received[0]) == len(CONTENT) - READ_STEP_BYTES
    for number, into in enumerate(received):
        assert bytes(into) == CONTENT[number * 1000 :]
    assert b"".join([piece async for piece in store.follow(DIGEST, 5)]) == CONTENT[5:]


async def test_followers_learn_that_the_writer_failed(tmp_path: Path) -> None:
    store = await opened(tmp_path)

    async def follow(error: type[Exception]) -> None:
        with pytest.raises(error):
            await anext(store.follow(DIGEST, len(CONTENT) - 1))

    async def spoil(group: asyncio.TaskGroup) -> None:
        async with store.writer(DIGEST) as writer:
            group.create_task(follow(BlobMismatchError))
            await writer.write(bytes(len(CONTENT) - 1000))

    async with asyncio.TaskGroup() as group:
        async with store.writer(DIGEST) as writer:
            follower = group.create_task(follow(FetchStoppedError))
            await writer.write(CONTENT[:1000])
        await follower
        with pytest.raises(BlobMismatchError):
            await spoil(group)


async def test_reads_beyond_the_end_and_of_unknown_blobs_are_refused(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await put(store)
    for call in (store.read, store.follow):
        with pytest.raises(OutOfRangeError):
            await anext(call(DIGEST, len(CONTENT) + 1))
        with pytest.raises(NotFoundError):
            await anext(call(Digest(DIGEST.sha256, len(CONTENT) - 1), 0))


async def test_a_reader_reads_on_when_its_blob_is_evicted(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await put(store)
    async with aclosing(store.read(DIGEST)) as pieces:
        received = bytearray(await anext(pieces))
        await store.delete(DIGEST)
        async for piece in pieces:
            received += piece
    assert received == CONTENT


async def test_marks_bound_what_a_power_cut_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wavemesh.artifacts.partial.MARK_EVERY_BYTES", STEP_BYTES)
    monkeypatch.setattr(blobstore, "boot_id", lambda: "")
    store = await opened(tmp_path)
    async with store.writer(DIGEST) as writer:
        for start in range(0, 2 * STEP_BYTES + 2, STEP_BYTES + 1):
            await writer.write(CONTENT[start : start + STEP_BYTES + 1])
        marked = mark_path(tmp_path / "partial" / blob_name(DIGEST)).read_text()
        assert int(marked.split()[1]) == writer.offset
