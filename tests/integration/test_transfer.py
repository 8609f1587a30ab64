"""ArtifactService over real gRPC and mutual TLS: authorisation, resumption, shedding, errors by their contract."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from lab.wan import Link, LinkConfig, Mode
from wavemesh.artifacts.blobstore import BlobMismatchError, BlobStore
from wavemesh.artifacts.chunkindex import Range
from wavemesh.artifacts.digests import digest_of
from wavemesh.artifacts.download import Patience, download, download_ranges
from wavemesh.artifacts.pacing import LEAST_MESSAGE_BYTES, MOMENT_S, most_message_bytes
from wavemesh.artifacts.transfer import STALL_S, ArtifactClient, ArtifactServer
from wavemesh.errors import BusyError, ForbiddenError, GateError, LinkDownError, NotFoundError, WavemeshError
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.grpc import LAN_BULK, make_bulk_channel, make_server
from wavemesh.runtime.peers import Peers
from wavemesh.runtime.status import RemoteFaultError
from wavemesh.trust.statements import Digest
from wavemesh.v1 import artifact_pb2, artifact_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
    from pathlib import Path

    from wavemesh.identity.credentials import NodeCredentials
    from wavemesh.identity.nodes import NodeId

HUB = "region/midwest/store/store-208"
CONTENT = Random(3).randbytes(5 * 1024 * 1024 + 3)
DIGEST = digest_of(CONTENT)
MIB = 1024 * 1024
# The window of a device, what TLS and HTTP/2 add to 2 MiB, and the rest of the message that was being read.
MOST_LOST_BYTES = 64 * 1024
QUICK = Patience(attempts=50, back_off_min_s=0.01, back_off_max_s=0.05)


class Collected:
    """A RangeSink in memory."""

    def __init__(self) -> None:
        self.content = bytearray()

    @property
    def offset(self) -> int:
        return len(self.content)

    async def write(self, data: bytes | memoryview) -> None:
        self.content += data


class OlderServer(ArtifactServer):
    """As the version before: the length of a ReadRequest is a field it does not know."""

    async def read(self, request: artifact_pb2.ReadRequest, context: Any) -> None:
        request.ClearField("length_bytes")
        await super().read(request, context)


class StoreSource:
    """A BlobSource over a store, with a fault to inject before each piece."""

    def __init__(self, store: BlobStore) -> None:
        self.store = store
        self.read: Callable[[Digest, int, int], AsyncGenerator[bytes, None]] = store.read
        self.offsets: list[int] = []
        self.left = asyncio.Event()
        self.fault: Callable[[], WavemeshError | None] = lambda: None

    async def find_missing(self, peer: NodeId, digests: Sequence[Digest]) -> Sequence[Digest]:
        return [digest for digest in digests if not self.store.has(digest)]

    async def open(self, peer: NodeId, digest: Digest, offset: int, length_bytes: int) -> AsyncGenerator[bytes, None]:
        self.offsets.append(offset)
        return self._pieces(digest, offset, length_bytes)

    async def _pieces(self, digest: Digest, offset: int, length_bytes: int) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(self.read(digest, offset, length_bytes)) as pieces:
                async for piece in pieces:
                    if (error := self.fault()) is not None:
                        raise error
                    yield piece
        finally:
            self.left.set()


class Rig:
    """A server of one hub and what tests need of it."""

    def __init__(self, credentials: Any, source: StoreSource, server: ArtifactServer, port: int) -> None:
        self._credentials = credentials
        self.source = source
        self.server = server
        self.port = port
        self.channels_opened = 0

    def channel(self, path: str, hub: NodeCredentials | None = None, address: str = "") -> grpc.aio.Channel:
        self.channels_opened += 1
        peer = (hub or self._credentials(HUB)).node_id
        address = address or f"127.0.0.1:{self.port}"
        return make_bulk_channel(self._credentials(path), address, peer, LAN_BULK)

    def client(self, path: str = f"{HUB}/device/pos-01", stall_s: float = STALL_S) -> ArtifactClient:
        return ArtifactClient(lambda: self.channel(path), stall_s=stall_s)


@asynccontextmanager
async def serving(
    credentials: Any, directory: Path, kind: type[ArtifactServer] = ArtifactServer, **options: Any
) -> AsyncIterator[Rig]:
    store = await BlobStore.open(directory, 1 << 30, SystemClock())
    async with store.writer(DIGEST) as writer:
        await writer.write(CONTENT)
    source = StoreSource(store)
    peers = Peers(credentials(HUB).authorities, SystemClock())
    server, port = make_server(credentials(HUB), address="127.0.0.1:0", maximum_concurrent_rpcs=100, peers=peers)
    artifacts = kind(credentials(HUB).node_id, source, peers, **options)
    artifacts.add_to(server)
    await server.start()
    try:
        yield Rig(credentials, source, artifacts, port)
    finally:
        await server.stop(0)


async def read(client: ArtifactClient, digest: Digest = DIGEST, offset: int = 0) -> bytes:
    async with aclosing(client.read(digest, offset)) as pieces:
        return b"".join([bytes(piece) async for piece in pieces])


async def at_rest(count: Callable[[], int], looks: int = 20) -> int:
    """The count once it has stayed the same for that many looks in a row."""
    last, same = -1, 0
    while same < looks:
        await asyncio.sleep(0.01)
        now = count()
        last, same = now, same + 1 if now == last else 0
    return last


async def test_what_a_broken_link_takes_along_is_bounded(credentials: Any, tmp_path: Path) -> None:
    """M3: of what the hub sent a device that stopped reading, a little is under way when the link breaks."""
    async with (
        serving(credentials, tmp_path) as rig,
        Link(LinkConfig("lan", "127.0.0.1:0", f"127.0.0.1:{rig.port}")) as link,
        rig.channel(f"{HUB}/device/pos-01", address=link.address) as channel,
    ):
        await channel.channel_ready()
        before = await at_rest(lambda: link.down_bytes)
        arrived = 0
        async with aclosing(ArtifactClient(lambda: channel).read(DIGEST)) as pieces:
            async for piece in pieces:
                arrived += len(piece)
                if arrived >= 2 * MIB:
                    break
            sent = await at_rest(lambda: link.down_bytes) - before
            assert 0 < sent - arrived <= MOST_LOST_BYTES
            link.set_mode(Mode.CUT)
            with pytest.raises(LinkDownError):
                await anext(pieces)


async def test_a_slow_reader_gets_small_messages(credentials: Any) -> None:
    """What a link that breaks leaves of a message is lost with it, so a slow link carries small ones."""
    sizes: list[int] = []

    async def take_slowly(message: bytes) -> None:
        sizes.append(len(message))
        await asyncio.sleep(1.2 * MOMENT_S)  # plays: a slow reader

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield CONTENT[: 256 * 1024]

    server: Any = ArtifactServer(credentials(HUB).node_id, StoreSource.__new__(StoreSource), Peers.__new__(Peers))
    await server._send(SimpleNamespace(write=take_slowly), pieces(), 256 * 1024, most_message_bytes(0))
    assert sum(sizes) > 256 * 1024
    assert all(size < LEAST_MESSAGE_BYTES + 16 for size in sizes[1:])


async def first_step_only(digest: Digest, offset: int, length_bytes: int) -> AsyncGenerator[bytes, None]:
    """A source that goes on for as long as it is not left."""
    yield CONTENT[offset : offset + 1024]
    await asyncio.Event().wait()


async def test_blobs_travel_whole_and_from_any_offset(credentials: Any, tmp_path: Path) -> None:
    async with serving(credentials, tmp_path) as rig:
        client = rig.client()
        assert await read(client) == CONTENT
        for offset in (1, len(CONTENT) - 1, len(CONTENT)):
            assert await read(client, offset=offset) == CONTENT[offset:]
        unknown = Digest("0" * 64, 1)
        assert await client.find_missing([unknown, DIGEST]) == [unknown]


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 1), (5, 3 * MIB), (MIB // 2 - 1, 2), (len(CONTENT) - 1, 1), (0, len(CONTENT))]
)
async def test_a_part_of_a_blob_travels_alone(credentials: Any, tmp_path: Path, offset: int, length: int) -> None:
    """S5: of a pack of chunks a store reads only what it lacks."""
    async with serving(credentials, tmp_path) as rig:
        async with aclosing(rig.client().read(DIGEST, offset, length)) as pieces:
            got = b"".join([bytes(piece) async for piece in pieces])
        assert got == CONTENT[offset : offset + length]
        await asyncio.wait_for(rig.source.left.wait(), 5)


async def test_more_than_a_blob_has_is_out_of_range(credentials: Any, tmp_path: Path) -> None:
    async with serving(credentials, tmp_path) as rig:
        with pytest.raises(RemoteFaultError, match="has not"):
            await anext(rig.client().read(DIGEST, 1, len(CONTENT)))
        async with rig.channel(f"{HUB}/device/pos-01") as channel:
            stub = artifact_pb2_grpc.ArtifactServiceStub(channel)
            named = artifact_pb2.Digest(sha256=DIGEST.sha256, size_bytes=DIGEST.size_bytes)
            for request in (
                artifact_pb2.ReadRequest(digest=named, offset=1, length_bytes=len(CONTENT)),
                artifact_pb2.ReadRequest(digest=named, length_bytes=(1 << 64) - 1),
                artifact_pb2.ReadRequest(digest=named, offset=(1 << 64) - 1),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    _ = [response async for response in stub.Read(request)]
                assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
        assert rig.source.offsets == []


async def test_a_server_that_knows_no_length_is_stopped_at_the_last_byte_wanted(
    credentials: Any, tmp_path: Path
) -> None:
    """Compatibility: an N-1 super hub ignores the field and sends all to the end."""
    async with serving(credentials, tmp_path, kind=OlderServer) as rig:
        rig.source.read = first_step_only
        async with asyncio.timeout(10), aclosing(rig.client().read(DIGEST, 10, 100)) as pieces:
            got = b"".join([bytes(piece) async for piece in pieces])
        assert got == CONTENT[10:110]
        await asyncio.wait_for(rig.source.left.wait(), 5)


async def test_a_part_that_ends_early_is_a_broken_link(credentials: Any, tmp_path: Path) -> None:
    async def short(digest: Digest, offset: int, length_bytes: int) -> AsyncGenerator[bytes, None]:
        yield CONTENT[offset : offset + length_bytes - 1]

    async with serving(credentials, tmp_path) as rig:
        rig.source.read = short
        with pytest.raises(LinkDownError, match="ended at byte 109 of 110"):
            async with aclosing(rig.client().read(DIGEST, 10, 100)) as pieces:
                _ = [bytes(piece) async for piece in pieces]


async def test_ranges_are_gone_on_with_in_their_middle(credentials: Any, tmp_path: Path) -> None:
    """M3, for parts: over a link that keeps breaking each byte wanted arrives once, in order."""
    ranges = (Range(7, 2 * MIB), Range(3 * MIB, 1), Range(4 * MIB, MIB + 3))
    wanted = b"".join(CONTENT[one.offset : one.offset + one.length] for one in ranges)
    async with serving(credentials, tmp_path / "hub") as rig:
        rng = Random(11)
        rig.source.fault = lambda: LinkDownError("flaky") if rng.random() < 0.4 else None
        sink = Collected()
        await download_ranges(rig.client(), DIGEST, ranges, sink, rng=Random(5), patience=QUICK)
        assert bytes(sink.content) == wanted
        assert len(rig.source.offsets) > len(ranges)
        assert rig.source.offsets == sorted(rig.source.offsets)


async def test_blobs_that_belong_together_cost_one_channel(credentials: Any, tmp_path: Path) -> None:
    """Each channel is a TLS handshake for both sides; without the transfer around them, each read has its own."""
    async with serving(credentials, tmp_path) as rig:
        client = rig.client()
        async with client.transfer():
            for _ in range(3):
                assert await read(client) == CONTENT
        assert rig.channels_opened == 1
        assert await read(client) == CONTENT
        assert rig.channels_opened == 2


async def test_the_generated_stub_reads_the_hand_made_frames(credentials: Any, tmp_path: Path) -> None:
    async with serving(credentials, tmp_path) as rig, rig.channel(f"{HUB}/device/pos-01") as channel:
        request = artifact_pb2.ReadRequest(
            digest=artifact_pb2.Digest(sha256=DIGEST.sha256, size_bytes=DIGEST.size_bytes), offset=7
        )
        stub = artifact_pb2_grpc.ArtifactServiceStub(channel)
        frames = [response.data async for response in stub.Read(request)]
        assert b"".join(frames) == CONTENT[7:]
        assert max(len(data) for data in frames) <= 1024 * 1024


@pytest.mark.parametrize(
    "path",
    [
        "region/midwest/store/store-209/device/pos-12",
        "region/midwest/store/store-209",
        "region/midwest",
        "operator/alice",
        "control/one",
    ],
)
async def test_only_the_hubs_own_children_are_served(credentials: Any, tmp_path: Path, path: str) -> None:
    async with serving(credentials, tmp_path) as rig:
        with pytest.raises(ForbiddenError):
            await read(rig.client(path))
        with pytest.raises(ForbiddenError):
            await rig.client(path).find_missing([DIGEST])
        assert rig.source.offsets == []


async def test_errors_are_those_of_the_contract(credentials: Any, tmp_path: Path) -> None:
    async with serving(credentials, tmp_path) as rig:
        client = rig.client()
        with pytest.raises(NotFoundError):
            await read(client, Digest(DIGEST.sha256, DIGEST.size_bytes - 1))
        with pytest.raises(RemoteFaultError) as caught:
            await read(client, offset=DIGEST.size_bytes + 1)
        assert caught.value.details["reason"] == "OUT_OF_RANGE"
        assert isinstance(caught.value.__cause__, grpc.aio.AioRpcError)
        assert caught.value.__cause__.code() is grpc.StatusCode.OUT_OF_RANGE
        rig.source.fault = lambda: BlobMismatchError(DIGEST, "rot")
        with pytest.raises(RemoteFaultError) as caught:
            await read(client)
        assert isinstance(caught.value.__cause__, grpc.aio.AioRpcError)
        assert caught.value.__cause__.code() is grpc.StatusCode.DATA_LOSS
        rig.source.fault = lambda: GateError("hold", "release is on hold")
        with pytest.raises(GateError) as gate:
            await read(client)
        assert gate.value.gate == "hold"


async def test_a_download_survives_a_link_that_keeps_breaking(credentials: Any, tmp_path: Path) -> None:
    """M3: every byte once; M2: the channel is gone when the transfer is."""
    async with serving(credentials, tmp_path / "hub") as rig:
        rng = Random(11)
        rig.source.fault = lambda: LinkDownError("flaky") if rng.random() < 0.4 else None
        store = await BlobStore.open(tmp_path / "device", 1 << 30, SystemClock())
        client = rig.client()
        async with store.writer(DIGEST) as writer:
            await download(client, writer, rng=Random(5), patience=QUICK)
        assert store.has(DIGEST)
        assert len(rig.source.offsets) > 1
        assert rig.source.offsets == sorted(rig.source.offsets)
        assert rig.channels_opened == len(rig.source.offsets)
        assert client._channel is None


async def test_a_server_that_restarts_does_not_end_a_download(credentials: Any, tmp_path: Path) -> None:
    device = await BlobStore.open(tmp_path / "device", 1 << 30, SystemClock())
    port = 0
    half_way = asyncio.Event()

    def progress(offset: int) -> None:
        if offset >= len(CONTENT) // 2:
            half_way.set()

    async with asyncio.TaskGroup() as group:
        async with serving(credentials, tmp_path / "hub") as rig:
            port = rig.port
            rig.source.fault = lambda: LinkDownError("slow end") if half_way.is_set() else None

            async def fetch() -> None:
                async with device.writer(DIGEST) as writer:
                    await download(rig.client(), writer, rng=Random(5), patience=QUICK, progress=progress)

            fetching = group.create_task(fetch())
            await half_way.wait()
        assert not fetching.done()
        store = await BlobStore.open(tmp_path / "hub", 1 << 30, SystemClock())
        peers = Peers(credentials(HUB).authorities, SystemClock())
        address = f"127.0.0.1:{port}"
        server, _ = make_server(credentials(HUB), address=address, maximum_concurrent_rpcs=10, peers=peers)
        ArtifactServer(credentials(HUB).node_id, StoreSource(store), peers).add_to(server)
        await server.start()
        await fetching
        await server.stop(0)
    assert device.has(DIGEST)


async def test_too_many_reads_are_shed_with_a_time_to_return(credentials: Any, tmp_path: Path) -> None:
    """M6: in all and per peer."""
    async with serving(credentials, tmp_path, maximum_reads=2, maximum_reads_per_peer=1) as rig:
        rig.source.read = first_step_only
        first, second, third = (rig.client(f"{HUB}/device/pos-0{number}") for number in (1, 2, 3))
        async with aclosing(first.read(DIGEST)) as one:
            await anext(one)
            with pytest.raises(BusyError) as busy:
                await read(first)
            assert busy.value.retry_after_s > 0
            async with aclosing(second.read(DIGEST)) as two:
                await anext(two)
                with pytest.raises(BusyError):
                    await read(third)


async def test_a_reader_that_takes_nothing_is_dropped(credentials: Any, tmp_path: Path) -> None:
    """Flow control reaches the disk: a stalled reader costs a bounded read-ahead, then its place."""
    async with serving(credentials, tmp_path, stall_s=0.3) as rig:
        big = Random(4).randbytes(1024 * 1024) * 40
        digest = digest_of(big)
        async with rig.source.store.writer(digest) as writer:
            for start in range(0, len(big), 1024 * 1024):
                await writer.write(big[start : start + 1024 * 1024])
        pieces_read = 0

        def count() -> None:
            nonlocal pieces_read
            pieces_read += 1

        rig.source.fault = count
        async with aclosing(rig.client().read(digest)) as pieces:
            await anext(pieces)
            async with asyncio.timeout(20):
                await rig.source.left.wait()
        assert pieces_read < 40


async def test_a_sender_that_stands_still_is_left(credentials: Any, tmp_path: Path) -> None:
    async with serving(credentials, tmp_path) as rig, rig.source.store.writer(Digest("1" * 64, 100)):
        standing = rig.client(stall_s=0.3)
        rig.source.read = rig.source.store.follow  # a source that waits for its writer
        with pytest.raises(LinkDownError, match="no bytes"):
            await read(standing, Digest("1" * 64, 100))
