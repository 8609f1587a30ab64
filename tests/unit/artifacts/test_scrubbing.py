"""H2: the scrub reads from the medium, slowly, goes on where it was after a restart, and finds a flipped bit."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from wavemesh.artifacts import scrubbing
from wavemesh.artifacts.blobstore import BlobStore
from wavemesh.artifacts.digests import blob_name, digest_of
from wavemesh.artifacts.scrubbing import Scrub
from wavemesh.artifacts.tags import READ_STEP_BYTES
from wavemesh.runtime.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest

    from wavemesh.trust.statements import Digest

CONTENTS = [random.Random(seed).randbytes(READ_STEP_BYTES + 100) for seed in range(4)]
FAST = 1 << 30
REST_S = 1234.5


class Naps:
    """Takes the place of ``asyncio.sleep``: notes each pause and stops the world at the nth."""

    def __init__(self, most: int) -> None:
        self.taken: list[float] = []
        self._most = most
        self.is_over = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.taken.append(seconds)
        if len(self.taken) >= self._most:
            self.is_over.set()
            await asyncio.Event().wait()


async def filled(directory: Path) -> tuple[BlobStore, list[Digest]]:
    store = await BlobStore.open(directory, 1 << 30, SystemClock())
    for content in CONTENTS:
        if not store.has(digest_of(content)):
            async with store.writer(digest_of(content)) as writer:
                await writer.write(content)
    return store, sorted(map(digest_of, CONTENTS), key=blob_name)


async def until_napped(scrub: Scrub, naps: Naps, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "sleep", naps.sleep)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(scrub.run())
            await naps.is_over.wait()
            task.cancel()


async def read_names(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes which blobs are scrubbed from now on."""
    names: list[str] = []
    whole = store.scrub_steps

    def noting(digest: Digest) -> AsyncIterator[int]:
        names.append(blob_name(digest))
        return whole(digest)

    monkeypatch.setattr(store, "scrub_steps", noting)
    return names


async def test_it_pauses_behind_each_step_and_rests_behind_each_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = await filled(tmp_path)
    scrub = Scrub(store, SystemClock(), 1000, REST_S)
    naps = Naps(2 * len(CONTENTS) + 1)
    await until_napped(scrub, naps, monkeypatch)
    assert naps.taken == [READ_STEP_BYTES / 1000, 0.1] * len(CONTENTS) + [REST_S]
    assert store.counters.scrubbed_bytes == sum(map(len, CONTENTS))
    progress = scrub.progress
    assert progress.done_bytes == progress.total_bytes == store.counters.scrubbed_bytes


async def test_a_restart_goes_on_with_the_next_blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrubbing, "SAVE_EVERY_S", 0.0)
    store, digests = await filled(tmp_path)
    first = Scrub(store, SystemClock(), FAST, REST_S)
    await until_napped(first, Naps(2 * 2 + 1), monkeypatch)  # two blobs to their end, one in its middle
    again, _ = await filled(tmp_path)
    names = await read_names(again, monkeypatch)
    second = Scrub(again, SystemClock(), FAST, REST_S)
    await until_napped(second, Naps(2 * 2 + 1), monkeypatch)
    assert names == [blob_name(digest) for digest in digests[2:]]
    assert second.progress.began_at == first.progress.began_at.replace(microsecond=0)


async def test_the_next_round_begins_anew_and_says_when_the_last_one_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, digests = await filled(tmp_path)
    scrub = Scrub(store, SystemClock(), FAST, REST_S)
    names = await read_names(store, monkeypatch)
    await until_napped(scrub, Naps(2 * len(CONTENTS) + 2), monkeypatch)
    assert names == [blob_name(digest) for digest in (*digests, digests[0])]
    assert store.counters.scrub_rounds == 1
    assert scrub.progress.last_ended_at is not None
    again = Scrub(store, SystemClock(), FAST, REST_S)
    await until_napped(again, Naps(1), monkeypatch)
    assert again.progress.last_ended_at == scrub.progress.last_ended_at.replace(microsecond=0)


async def test_a_flipped_bit_is_found_and_the_rest_is_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, digests = await filled(tmp_path)
    called: list[None] = []
    store.keep(lambda: called.append(None))
    rotten = digests[1]
    path = tmp_path / "blobs" / rotten.sha256[:2] / blob_name(rotten)
    with path.open("r+b") as file:
        file.seek(50)
        byte = file.read(1)[0]
        file.seek(50)
        file.write(bytes([byte ^ 0x10]))
    names = await read_names(store, monkeypatch)
    await until_napped(Scrub(store, SystemClock(), FAST, REST_S), Naps(8), monkeypatch)
    assert names == [blob_name(digest) for digest in digests]
    assert list(store.suspects) == [rotten]
    assert len(called) == 1
    assert not store.has(rotten)


async def test_where_it_stands_need_not_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk costs only that a restart reads some again."""
    from wavemesh.runtime.durable import DiskFullError

    monkeypatch.setattr(scrubbing, "SAVE_EVERY_S", 0.0)
    store, _ = await filled(tmp_path)

    def full(*_: Any) -> None:
        msg = "no space"
        raise DiskFullError(msg)

    monkeypatch.setattr(store.disk, "write_atomic", full)
    await until_napped(Scrub(store, SystemClock(), FAST, REST_S), Naps(9), monkeypatch)
    assert store.counters.scrubbed_bytes == sum(map(len, CONTENTS))
