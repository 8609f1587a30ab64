"""H2: what is found wrong is held no more, its file waits for its keeper, is kept for a while, and gives way."""

from __future__ import annotations

import os
import random
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from tests.stopping_disk import PowerCutError, StoppingDisk
from wavemesh.artifacts import quarantine
from wavemesh.artifacts.blobstore import BlobMismatchError, BlobStore, QuotaExceededError
from wavemesh.artifacts.digests import blob_name, digest_of
from wavemesh.artifacts.partial import mark_path
from wavemesh.artifacts.quarantine import Quarantine
from wavemesh.errors import ConflictError, NotFoundError
from wavemesh.runtime.durable import Disk, DiskFaultError

if TYPE_CHECKING:
    from pathlib import Path

    from wavemesh.trust.statements import Digest

CONTENT = random.Random(5).randbytes(5000)
DIGEST = digest_of(CONTENT)
QUOTA_BYTES = 12_000


class Clock:
    """Stands still."""

    def now(self) -> datetime:
        return datetime(2026, 5, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return 0.0


class Kept:
    """A store with a keeper who does nothing by himself, and how often he was called."""

    def __init__(self, store: BlobStore) -> None:
        self.store = store
        self.calls = 0
        store.keep(self._called)

    def _called(self) -> None:
        self.calls += 1


async def kept(directory: Path, disk: Disk | None = None, quota_bytes: int = QUOTA_BYTES) -> Kept:
    return Kept(await BlobStore.open(directory, quota_bytes, Clock(), disk))


async def put(store: BlobStore, content: bytes = CONTENT, digest: Digest | None = None) -> None:
    async with store.writer(digest or digest_of(content)) as writer:
        await writer.write(content[writer.offset :])


async def read(store: BlobStore, digest: Digest = DIGEST) -> bytes:
    return b"".join([piece async for piece in store.read(digest)])


def path_of(directory: Path, digest: Digest = DIGEST) -> Path:
    return directory / "blobs" / digest.sha256[:2] / blob_name(digest)


def flip(path: Path) -> bytes:
    """One bit; returns what is there then."""
    content = bytearray(path.read_bytes())
    content[1234] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    return bytes(content)


async def found_rotten(store: BlobStore) -> None:
    with pytest.raises(BlobMismatchError):
        await read(store)


async def test_a_suspect_is_not_held_and_its_file_waits_for_its_keeper(tmp_path: Path) -> None:
    one = await kept(tmp_path)
    await put(one.store)
    rotten = flip(path_of(tmp_path))
    await found_rotten(one.store)
    assert one.calls == 2  # one more blob, one more suspect
    assert not one.store.has(DIGEST)
    assert list(one.store.suspects) == [DIGEST]
    assert one.store.used_bytes == DIGEST.size_bytes
    assert path_of(tmp_path).read_bytes() == rotten
    with pytest.raises(NotFoundError):
        await read(one.store)
    with pytest.raises(ConflictError, match="set aside"):
        await put(one.store)
    await one.store.set_aside(DIGEST)
    await one.store.set_aside(DIGEST)
    assert one.store.counters.quarantined == 1
    assert not path_of(tmp_path).exists()
    assert (tmp_path / "quarantine" / blob_name(DIGEST)).read_bytes() == rotten
    await put(one.store)
    assert await read(one.store) == CONTENT


async def test_a_restart_before_the_keeper_acted_finds_it_again(tmp_path: Path) -> None:
    """A power cut between finding and telling costs nothing: the file is still where it was."""
    one = await kept(tmp_path)
    await put(one.store)
    flip(path_of(tmp_path))
    await found_rotten(one.store)
    again = await kept(tmp_path)
    assert again.store.has(DIGEST)
    assert not again.store.is_verified(DIGEST)
    await found_rotten(again.store)
    assert again.calls == 1


async def test_a_blob_of_another_length_is_a_suspect_from_the_start(tmp_path: Path) -> None:
    one = await kept(tmp_path)
    await put(one.store)
    os.truncate(path_of(tmp_path), 100)
    again = await kept(tmp_path)
    assert not again.store.has(DIGEST)
    assert "100 bytes" in str(again.store.suspects[DIGEST])
    await again.store.set_aside(DIGEST)
    assert (tmp_path / "quarantine" / blob_name(DIGEST)).stat().st_size == 100
    assert again.store.quarantine.used_bytes == 100


async def test_wrong_bytes_that_arrive_are_kept_until_they_are_told_of(tmp_path: Path) -> None:
    """H2: verified on arrival; after a restart the whole partial file is found wrong again, without a byte fetched."""
    wrong = b"x" + CONTENT[1:]
    one = await kept(tmp_path)
    with pytest.raises(BlobMismatchError, match="arrived"):
        await put(one.store, wrong, DIGEST)
    assert list(one.store.suspects) == [DIGEST]
    again = await kept(tmp_path)
    with pytest.raises(BlobMismatchError, match="arrived"):
        async with again.store.writer(DIGEST) as writer:
            assert writer.offset == DIGEST.size_bytes
    await again.store.set_aside(DIGEST)
    assert (tmp_path / "quarantine" / blob_name(DIGEST)).read_bytes() == wrong
    assert not mark_path(tmp_path / "partial" / blob_name(DIGEST)).exists()
    assert again.store.used_bytes == 0
    await put(again.store)
    assert await read(again.store) == CONTENT


async def test_quarantine_gives_way_before_anything_sound_is_refused(tmp_path: Path) -> None:
    """Quota: 12,000 bytes; 5,000 lie in quarantine, and still three blobs of 4,000 fit."""
    one = await kept(tmp_path)
    await put(one.store)
    flip(path_of(tmp_path))
    await found_rotten(one.store)
    await one.store.set_aside(DIGEST)
    await put(one.store, CONTENT[:4000])
    assert one.store.quarantine.used_bytes == 5000
    await put(one.store, CONTENT[:4001])
    assert one.store.quarantine.used_bytes == 0
    assert not any((tmp_path / "quarantine").iterdir())
    with pytest.raises(QuotaExceededError):
        await put(one.store, CONTENT[:4002])


async def test_a_blob_too_big_to_keep_is_not_kept(tmp_path: Path) -> None:
    one = await kept(tmp_path)
    await put(one.store)
    await put(one.store, CONTENT + b"longer")
    flip(path_of(tmp_path))
    await found_rotten(one.store)
    one.store.quota_bytes = DIGEST.size_bytes + 100
    await one.store.set_aside(DIGEST)
    assert one.store.quarantine.files == ()


def test_no_more_than_so_many_are_kept_and_the_first_go_first(tmp_path: Path) -> None:
    aside = Quarantine(tmp_path / "quarantine", Disk())
    aside.load()
    for number in range(quarantine.MAX_FILES + 2):
        path = tmp_path / f"{number:064x}-3"
        path.write_bytes(b"bad")
        aside.take(path)
    kept_names = [int(file.digest.sha256, 16) for file in aside.files]
    assert kept_names == list(range(2, quarantine.MAX_FILES + 2))
    assert len(list((tmp_path / "quarantine").iterdir())) == quarantine.MAX_FILES
    (tmp_path / "quarantine" / "junk").write_bytes(b"junk")
    again = Quarantine(tmp_path / "quarantine", Disk())
    again.load()
    assert {file.digest for file in again.files} == {file.digest for file in aside.files}
    assert not (tmp_path / "quarantine" / "junk").exists()


async def test_power_cut_at_every_step_of_setting_aside(tmp_path: Path) -> None:
    """The wrong bytes are never held for good: each cut leaves them to be found again, or aside, or gone."""
    for steps in range(100):
        directory = tmp_path / str(steps)
        one = await kept(directory)
        await put(one.store)
        flip(path_of(directory))
        disk = StoppingDisk(1_000_000)
        stopping = await kept(directory, disk)
        await found_rotten(stopping.store)
        disk.steps_left = steps
        try:
            await stopping.store.set_aside(DIGEST)
        except PowerCutError:
            again = await kept(directory)
            if again.store.has(DIGEST):
                await found_rotten(again.store)
                await again.store.set_aside(DIGEST)
            await put(again.store)
            assert await read(again.store) == CONTENT
        else:
            assert steps >= 3
            return
    pytest.fail("it takes more steps than were tried")


async def test_a_disk_that_will_not_move_it_leaves_it_a_suspect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await kept(tmp_path)
    await put(one.store)
    flip(path_of(tmp_path))
    await found_rotten(one.store)

    def refuse(self: Disk, source: Path, target: Path) -> None:
        msg = f"{target}: no"
        raise DiskFaultError(msg)

    with monkeypatch.context() as patched:
        patched.setattr(Disk, "rename", refuse)
        with pytest.raises(DiskFaultError):
            await one.store.set_aside(DIGEST)
    assert list(one.store.suspects) == [DIGEST]
    await one.store.set_aside(DIGEST)
    assert not one.store.suspects
