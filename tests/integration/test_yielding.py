"""Reads that give way, over real gRPC: another window is another channel, and no byte is lost or asked for twice."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING, Any

from tests.session_kit import DEVICE, STORE, Fleet
from wavemesh.artifacts.digests import digest_of
from wavemesh.artifacts.inflight import MIN_BYTES
from wavemesh.artifacts.transfer import ArtifactServer
from wavemesh.artifacts.yielding import YieldingReader
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.grpc import make_bulk_channel, make_server
from wavemesh.runtime.peers import Peers

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence
    from pathlib import Path

    import grpc

    from wavemesh.identity.nodes import NodeId
    from wavemesh.trust.statements import Digest

CONTENT = Random(5).randbytes(6 * 1024 * 1024 + 7)
DIGEST = digest_of(CONTENT)


class Source:
    """One blob, in pieces as the store reads it."""

    def __init__(self) -> None:
        self.offsets: list[int] = []

    async def find_missing(self, peer: NodeId, digests: Sequence[Digest]) -> Sequence[Digest]:
        return ()

    async def open(self, peer: NodeId, digest: Digest, offset: int, length_bytes: int) -> AsyncGenerator[bytes, None]:
        self.offsets.append(offset)
        return self._pieces(offset)

    async def _pieces(self, offset: int) -> AsyncGenerator[bytes, None]:
        for start in range(offset, len(CONTENT), 512 * 1024):
            yield CONTENT[start : start + 512 * 1024]


class Ticking:
    """A clock on which each look takes its time: a link that is fast, but not so fast that one look says nothing."""

    def __init__(self, step_s: float) -> None:
        self._now = 0.0
        self._step_s = step_s

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        self._now += self._step_s
        return self._now


@asynccontextmanager
async def reading(tmp_path: Path, step_s: float) -> AsyncIterator[tuple[YieldingReader, Source, list[int]]]:
    fleet, source, windows = Fleet.create(tmp_path), Source(), []
    credentials = fleet.credentials(STORE)
    peers = Peers(credentials.authorities, SystemClock())
    server, port = make_server(credentials, address="127.0.0.1:0", maximum_concurrent_rpcs=16, peers=peers)
    ArtifactServer(STORE, source, peers).add_to(server)
    await server.start()

    def channel(options: tuple[tuple[str, Any], ...]) -> grpc.aio.Channel:
        windows.append(dict(options)["grpc.http2.lookahead_bytes"])
        return make_bulk_channel(fleet.credentials(DEVICE), f"127.0.0.1:{port}", STORE, options)

    try:
        yield YieldingReader(channel, Ticking(step_s)), source, windows
    finally:
        await server.stop(None)


async def whole(reader: YieldingReader, offset: int = 0) -> bytes:
    async with aclosing(reader.read(DIGEST, offset)) as pieces:
        return b"".join([bytes(piece) async for piece in pieces])


async def test_a_fast_link_gets_wider_windows_and_the_bytes_are_right(tmp_path: Path) -> None:
    """A quarter of the window in three milliseconds, at a trip as long: nothing queues."""
    async with reading(tmp_path, 0.003) as (reader, source, windows):
        for _ in range(4):
            assert await whole(reader) == CONTENT
        assert windows[0] == MIN_BYTES
        assert reader.window_bytes > 2 * MIN_BYTES
        assert windows == sorted(windows)
        moved_at = [offset for offset in source.offsets if offset]
        assert moved_at
        assert all(0 < offset < len(CONTENT) for offset in moved_at)


async def test_a_part_moves_too_and_ends_where_it_is_to(tmp_path: Path) -> None:
    async with reading(tmp_path, 0.003) as (reader, source, _):
        length = len(CONTENT) - 2000
        for _ in range(4):
            async with aclosing(reader.read(DIGEST, 1000, length)) as pieces:
                assert b"".join([bytes(piece) async for piece in pieces]) == CONTENT[1000 : 1000 + length]
        assert any(1000 < offset < 1000 + length for offset in source.offsets)


async def test_two_reads_move_together_and_both_are_right(tmp_path: Path) -> None:
    async with reading(tmp_path, 0.001) as (reader, source, _), asyncio.TaskGroup() as group:
        both = [group.create_task(whole(reader)), group.create_task(whole(reader, 1))]
        assert await both[0] == CONTENT
        assert await both[1] == CONTENT[1:]
        assert len(source.offsets) > 2


async def test_one_window_is_one_channel(tmp_path: Path) -> None:
    """On a thin link nothing is ever opened anew in the middle of a blob."""
    async with reading(tmp_path, 0.01) as (reader, source, windows):
        assert await whole(reader) == CONTENT
        assert windows == [MIN_BYTES]
        assert source.offsets == [0]
