"""One fetch per blob, however many ask (S1)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from wavemesh.artifacts.blobstore import BlobStore, FetchStoppedError, QuotaExceededError
from wavemesh.artifacts.digests import digest_of
from wavemesh.artifacts.fetching import Fetches
from wavemesh.errors import GateError, LinkDownError
from wavemesh.runtime.clock import SystemClock

if TYPE_CHECKING:
    from pathlib import Path

    from wavemesh.artifacts.blobstore import BlobWriter
    from wavemesh.trust.statements import Digest

CONTENT = b"firmware" * 300_000
DIGEST = digest_of(CONTENT)


class Origin:
    """Hands out CONTENT when allowed, and counts."""

    def __init__(self) -> None:
        self.fetches: list[tuple[Digest, int]] = []
        self.asked = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, writer: BlobWriter) -> None:
        self.fetches.append((writer.digest, writer.offset))
        half = len(CONTENT) // 2
        if writer.offset < half:
            await writer.write(CONTENT[writer.offset : half])
        self.asked.set()
        await self.may_go_on.wait()
        if self.error is not None:
            raise self.error
        await writer.write(CONTENT[writer.offset :])


async def collected(fetches: Fetches, offset: int) -> bytes:
    return b"".join([piece async for piece in await fetches.open(DIGEST, offset)])


async def test_twenty_askers_one_fetch(tmp_path: Path) -> None:
    store, origin = await BlobStore.open(tmp_path, 1 << 24, SystemClock()), Origin()
    async with asyncio.TaskGroup() as group:
        fetches = Fetches(store, origin, group)
        readers = [group.create_task(collected(fetches, offset)) for offset in range(20)]
        await origin.asked.wait()
        readers += [group.create_task(collected(fetches, offset)) for offset in range(20, 40)]
        waiting = group.create_task(fetches.ensure(DIGEST))
        origin.may_go_on.set()
        for offset, reader in enumerate(readers):
            assert await reader == CONTENT[offset:]
        await waiting
        assert await collected(fetches, 0) == CONTENT
    assert origin.fetches == [(DIGEST, 0)]


async def test_a_failure_is_told_to_all_and_the_next_resumes(tmp_path: Path) -> None:
    store, origin = await BlobStore.open(tmp_path, 1 << 24, SystemClock()), Origin()
    origin.error = LinkDownError("origin is down")
    origin.may_go_on.set()
    async with asyncio.TaskGroup() as group:
        fetches = Fetches(store, origin, group)
        for call in (fetches.ensure(DIGEST), collected(fetches, 0)):
            with pytest.raises(LinkDownError):
                await call
        origin.error = None
        await fetches.ensure(DIGEST)
    half = len(CONTENT) // 2
    assert [offset for _, offset in origin.fetches] == [0, half, half]
    assert store.has(DIGEST)


async def test_a_stopped_fetch_tells_why_and_keeps_what_it_has(tmp_path: Path) -> None:
    store, origin = await BlobStore.open(tmp_path, 1 << 24, SystemClock()), Origin()
    async with asyncio.TaskGroup() as group:
        fetches = Fetches(store, origin, group)
        waiting = group.create_task(wait_for_gate(fetches))
        follower = group.create_task(follow_to_its_stop(fetches))
        await origin.asked.wait()
        fetches.stop(DIGEST, GateError("hold", "on hold"))
        await waiting
        await follower
        assert store.partial_size(DIGEST) == len(CONTENT) // 2
        fetches.begin(DIGEST)
        fetches.stop(DIGEST, GateError("hold", "before its first step"))
        await wait_for_gate(fetches)


async def wait_for_gate(fetches: Fetches) -> None:
    with pytest.raises(GateError):
        await fetches.ensure(DIGEST)


async def follow_to_its_stop(fetches: Fetches) -> None:
    with pytest.raises((GateError, FetchStoppedError)):
        await collected(fetches, 0)


async def test_no_room_is_an_answer(tmp_path: Path) -> None:
    store = await BlobStore.open(tmp_path, 10, SystemClock())
    async with asyncio.TaskGroup() as group:
        fetches = Fetches(store, Origin(), group)
        with pytest.raises(QuotaExceededError):
            await fetches.open(DIGEST, 0)
