"""What a super hub makes of releases and offers, over real processes, gRPC, mutual TLS and SQLite (S5, S1, S2)."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.session_kit import until
from tests.superhub_kit import MIB, REGION, Region, python, read_all, store_id
from wavemesh.artifacts.chunks import chunk_file, missing, parse_index, rebuild_from_pack
from wavemesh.artifacts.compressed import rebuild_full_zstd
from wavemesh.artifacts.delta import codec
from wavemesh.artifacts.digests import digest_of
from wavemesh.errors import GateError, NotFoundError
from wavemesh.runtime.grpc import make_bulk_channel
from wavemesh.runtime.status import RemoteFaultError
from wavemesh.trust.statements import Digest
from wavemesh.v1 import artifact_pb2, artifact_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from superhub.app import SuperHub
    from tests.conftest import TrustKeys
    from wavemesh.identity.ca import FleetCa
    from wavemesh.identity.nodes import NodeId

STORE, OTHER = store_id("store-208"), store_id("store-209")
FULL, FULL_ZSTD, CHUNKS, DELTA = (
    artifact_pb2.DELIVERY_METHOD_FULL,
    artifact_pb2.DELIVERY_METHOD_FULL_ZSTD,
    artifact_pb2.DELIVERY_METHOD_CHUNKS,
    artifact_pb2.DELIVERY_METHOD_DELTA,
)
ALL = (FULL, FULL_ZSTD, CHUNKS, DELTA)


def _image(seed: int) -> bytes:
    """What compresses by half, 1 MiB of it."""
    rng = Random(seed)
    return b"".join(rng.randbytes(512) + bytes(512) for _ in range(1024))


OLD = _image(1)
NEW = OLD[: MIB // 2] + Random(2).randbytes(3000) + OLD[MIB // 2 : -5000] + _image(3)[:100_000]


@pytest.fixture
def region(tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys) -> Region:
    (tmp_path / "origin-files").mkdir()
    return Region(tmp_path, fleet_ca, trust_keys)


@asynccontextmanager
async def running(region: Region, deltas: str = "") -> AsyncIterator[SuperHub]:
    async with region.running_origin(), region.running_control():
        write(region, deltas)
        async with region.running_hub() as hub:
            await settled(region)
            yield hub


def write(region: Region, deltas: str = "", port: int = 0) -> None:
    region.write_hub(port)
    path = region.hub_dir / "config.toml"
    path.write_text(f"{path.read_text()}[deltas]\n{deltas}\n")


async def settled(region: Region) -> None:
    def is_done() -> bool:
        told = {name for accepted, _ in region.control.verdicts for name in accepted}
        return all(key.name in told for key in region.control.wanted)

    await until(is_done, region.control)


def message(digest: Digest) -> artifact_pb2.Digest:
    return artifact_pb2.Digest(sha256=digest.sha256, size_bytes=digest.size_bytes)


def named(digest: artifact_pb2.Digest) -> Digest:
    return Digest(digest.sha256, digest.size_bytes)


async def offers(
    region: Region,
    port: int,
    target: Digest,
    bases: Sequence[Digest] = (),
    *,
    store: NodeId = STORE,
    methods: Sequence[artifact_pb2.DeliveryMethod.ValueType] = ALL,
) -> list[artifact_pb2.Delivery]:
    async with make_bulk_channel(region.credentials(store), f"127.0.0.1:{port}", REGION) as channel:
        stub = artifact_pb2_grpc.ArtifactServiceStub(channel)
        request = artifact_pb2.OfferRequest(target=message(target), bases=map(message, bases), methods=methods)
        return list((await stub.Offer(request)).deliveries)


async def ready(
    region: Region, port: int, target: Digest, bases: Sequence[Digest] = (), *, store: NodeId = STORE
) -> dict[int, artifact_pb2.Delivery]:
    """The offers once all are made, by method."""
    async with asyncio.timeout(50):
        while True:
            found = await offers(region, port, target, bases, store=store)
            if all(one.HasField("payload") for one in found):
                return {one.method: one for one in found}
            assert all(one.ready_in_s >= 1 for one in found if not one.HasField("payload"))
            await asyncio.sleep(0.1)


async def drained(pieces: AsyncIterator[memoryview]) -> int:
    return sum([len(piece) async for piece in pieces])


async def until_made(hub: SuperHub, count: int = 0) -> None:
    """Nothing is at work any more, and so much was made at least."""
    deriving = hub.parts.deriving
    async with asyncio.timeout(50):
        while deriving.at_work or len(deriving.made) < count:  # noqa: ASYNC110  # a condition of the hub, not an event
            await asyncio.sleep(0.05)


def rows(region: Region, state: str = "made") -> list[tuple[str, ...]]:
    with sqlite3.connect(f"file:{region.hub_dir / 'state/superhub.db'}?mode=ro", uri=True) as database:
        return database.execute("SELECT method, target, bases FROM derived WHERE state = ?", (state,)).fetchall()


def leavings(region: Region) -> list[Path]:
    return list((region.hub_dir / "state/deriving").iterdir())


async def test_each_delivery_rebuilds_the_target(region: Region, tmp_path: Path) -> None:
    """S5: what is read by any of them is the target, byte for byte, for the bytes that were forecast."""
    old, new = region.publish("firmware-1", OLD), region.publish("firmware-2", NEW, version="2.0.0")
    async with running(region) as hub:
        client = region.client(STORE, hub.port)
        assert await read_all(client, old.main.digest) == OLD
        found = await ready(region, hub.port, new.main.digest, [old.main.digest])
        assert sorted(found) == sorted(ALL)
        assert found[FULL].read_bytes == len(NEW)
        payloads = {method: await read_all(client, named(one.payload)) for method, one in found.items()}
        index_bytes = await read_all(client, named(found[CHUNKS].index))
        (tmp_path / "old").write_bytes(OLD)

        (tmp_path / "zstd").write_bytes(payloads[FULL_ZSTD])
        rebuild_full_zstd(tmp_path / "zstd", tmp_path / "by-zstd", new.main.digest)
        assert (tmp_path / "by-zstd").read_bytes() == NEW

        (tmp_path / "delta").write_bytes(payloads[DELTA])
        assert [named(base) for base in found[DELTA].bases] == [old.main.digest]
        codec.rebuild([tmp_path / "old"], tmp_path / "delta", tmp_path / "by-delta", new.main.digest)
        assert (tmp_path / "by-delta").read_bytes() == NEW

        index = parse_index(index_bytes)
        ranges = missing(index, {chunk.id for chunk in chunk_file(tmp_path / "old")})
        part = b""
        for one in ranges:
            async with aclosing(client.read(named(found[CHUNKS].payload), one.offset, one.length)) as pieces:
                part += b"".join([bytes(piece) async for piece in pieces])
        (tmp_path / "part").write_bytes(part)
        target = new.main.digest
        rebuild_from_pack(
            index, tmp_path / "part", ranges, [tmp_path / "old"], out=tmp_path / "by-chunks", target=target
        )
        assert (tmp_path / "by-chunks").read_bytes() == NEW
        assert len(part) + len(index_bytes) == found[CHUNKS].read_bytes
        assert [named(base) for base in found[CHUNKS].bases] == [old.main.digest]

        sizes = {method: found[method].read_bytes for method in ALL}
        assert sizes[DELTA] < sizes[CHUNKS] < sizes[FULL_ZSTD] < sizes[FULL]
        assert {one.method: one.sent_bytes for one in hub.parts.seeding.seeded} == {
            "full": len(OLD) + len(NEW),
            "full-zstd": len(payloads[FULL_ZSTD]),
            "chunks": len(payloads[CHUNKS]) + len(index_bytes) + len(part),
            "delta": len(payloads[DELTA]),
        }
        assert leavings(region) == []
    assert region.bytes_served(new.main.digest) == len(NEW), "made from one fetch (S1)"


async def test_hundreds_of_askers_cost_one_delta(region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    """S1: single flight; two stores, many questions, one job for each recipe."""
    old, new = region.publish("firmware-1", OLD), region.publish("firmware-2", NEW, version="2.0.0")
    async with running(region) as hub:
        jobs: list[str] = []
        makers = hub.parts.deriving._makers
        make, compress, pack = makers.make, makers.compress, makers.pack

        async def counted_make(bases: Sequence[Path], target: Path, out: Path) -> None:
            jobs.append("delta")
            await make(bases, target, out)

        async def counted_compress(target: Path, out: Path, level: int) -> None:
            jobs.append("full-zstd")
            await compress(target, out, level)

        async def counted_pack(target: Path, out: Path, index: Path, level: int) -> None:
            jobs.append("chunks")
            await pack(target, out, index, level)

        monkeypatch.setattr(makers, "make", counted_make)
        monkeypatch.setattr(makers, "compress", counted_compress)
        monkeypatch.setattr(makers, "pack", counted_pack)
        await read_all(region.client(STORE, hub.port), old.main.digest)
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(
                    offers(region, hub.port, new.main.digest, [old.main.digest], store=(STORE, OTHER)[number % 2])
                )
                for number in range(40)
            ]
        assert all(len(one.result()) == 4 for one in asked)
        ours = await ready(region, hub.port, new.main.digest, [old.main.digest])
        theirs = await ready(region, hub.port, new.main.digest, [old.main.digest], store=OTHER)
        assert ours == theirs
        assert sorted(jobs) == ["chunks", "delta", "full-zstd"]
        both = [await read_all(region.client(store, hub.port), named(ours[DELTA].payload)) for store in (STORE, OTHER)]
        assert both[0] == both[1]
        assert digest_of(both[0]) == named(ours[DELTA].payload)
    assert region.bytes_served(new.main.digest) == len(NEW)


async def test_a_hold_stops_a_delta_in_its_middle(region: Region) -> None:
    """S2: what was made of a release is judged as the release is, also in the middle of a transfer."""
    old = region.publish("firmware-1", OLD)
    content = OLD + Random(5).randbytes(20 * MIB)
    new = region.publish("firmware-2", content, version="2.0.0")
    async with running(region, "max_s = 4") as hub:  # which takes a quick level
        client = region.client(STORE, hub.port)
        await read_all(client, old.main.digest)
        found = await ready(region, hub.port, new.main.digest, [])
        payload = named(found[CHUNKS].payload)
        async with aclosing(client.read(payload)) as pieces:
            received = len(await anext(pieces))
            before = len(region.control.verdicts)
            region.hold(1, new.name)
            await until(lambda: len(region.control.verdicts) > before, region.control)
            with pytest.raises(GateError) as caught:
                received += await drained(pieces)
        assert caught.value.gate == "hold"
        assert received < payload.size_bytes
        for one in found.values():
            with pytest.raises(GateError):
                await read_all(client, named(one.payload))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await offers(region, hub.port, new.main.digest, [old.main.digest])
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert await read_all(client, old.main.digest) == OLD


async def test_a_question_is_judged_as_a_read_is(region: Region) -> None:
    """S2; and what is asked beyond the bounds is refused by name."""
    old, new = region.publish("firmware-1", OLD), region.publish("firmware-2", NEW, version="2.0.0")
    region.hold(1, new.name)
    async with running(region) as hub:
        for target, code in (
            (new.main.digest, grpc.StatusCode.FAILED_PRECONDITION),
            (Digest("0" * 64, 5), grpc.StatusCode.NOT_FOUND),
            (Digest("0" * 63, 5), grpc.StatusCode.INVALID_ARGUMENT),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await offers(region, hub.port, target, [old.main.digest])
            assert caught.value.code() is code
        with pytest.raises(grpc.aio.AioRpcError, match="at most 64") as caught:
            await offers(region, hub.port, old.main.digest, [Digest(f"{number:064x}", 5) for number in range(65)])
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await offers(region, hub.port, old.main.digest, methods=()) == []
        [full] = await offers(region, hub.port, old.main.digest, methods=(FULL,))
        assert (named(full.payload), full.read_bytes) == (old.main.digest, len(OLD))
        assert hub.parts.deriving.at_work == []
    assert region.bytes_served(new.main.digest) == 0


async def test_what_was_made_is_no_release(region: Region) -> None:
    """A derived blob is served for its target's sake alone: it is no target itself, and no origin has it."""
    release = region.publish("firmware-1", OLD)
    async with running(region) as hub:
        found = await ready(region, hub.port, release.main.digest)
        payload = named(found[FULL_ZSTD].payload)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await offers(region, hub.port, payload)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        await hub.parts.deriving._blobs.delete(payload)
        with pytest.raises(NotFoundError):
            await read_all(region.client(STORE, hub.port), payload)
        again = await ready(region, hub.port, release.main.digest)
        assert again[FULL_ZSTD].payload == found[FULL_ZSTD].payload, "made again"


async def test_what_was_made_and_went_bad_is_never_served_whole_and_made_again(region: Region) -> None:
    """H2, for what no origin has."""
    release = region.publish("firmware-1", OLD)
    async with running(region) as hub:
        client = region.client(STORE, hub.port)
        found = await ready(region, hub.port, release.main.digest)
        payload = named(found[FULL_ZSTD].payload)
        path = hub.parts.deriving._blobs.file_of(payload)
        path.write_bytes(b"!" + path.read_bytes()[1:])
        with pytest.raises(RemoteFaultError) as caught:
            await read_all(client, payload)
        assert caught.value.details["reason"] == "BLOB_MISMATCH"
        with pytest.raises(NotFoundError):
            await read_all(client, payload)
        again = await ready(region, hub.port, release.main.digest)
        assert digest_of(await read_all(client, named(again[FULL_ZSTD].payload))) == payload


async def test_deltas_that_are_switched_off_are_not_made(region: Region) -> None:
    release = region.publish("firmware-1", OLD)
    async with running(region, "enabled = false") as hub:
        assert [one.method for one in await offers(region, hub.port, release.main.digest)] == [FULL]
        assert hub.parts.deriving.at_work == []


async def test_what_enters_the_region_is_made_ready_where_policy_says_so(region: Region) -> None:
    """S5: ready before the window of the first store that asks."""
    release = region.publish("firmware-1", OLD)
    async with running(region, 'start = "entered"') as hub:
        await read_all(region.client(STORE, hub.port), release.main.digest)
        await until_made(hub, 2)
        assert {one.recipe.method.value for one in hub.parts.deriving.made} == {"full-zstd", "chunks"}


async def test_a_full_cache_gives_up_what_was_made_before_what_was_fetched(region: Region) -> None:
    """S1: an original costs the origin link a second time, what was made here costs a minute."""
    old, new = region.publish("firmware-1", OLD), region.publish("firmware-2", NEW, version="2.0.0")
    async with region.running_origin(), region.running_control():
        region.write_hub(cache_quota_bytes=len(OLD) + len(NEW) + 64 * 1024)
        async with region.running_hub() as hub:
            await settled(region)
            client = region.client(STORE, hub.port)
            found = await ready(region, hub.port, old.main.digest)
            assert len(found) > 2
            assert await read_all(client, new.main.digest) == NEW
            assert await client.find_missing([old.main.digest, new.main.digest]) == []
            assert await client.find_missing([named(found[CHUNKS].payload)]) == [named(found[CHUNKS].payload)]
            _ = await offers(region, hub.port, new.main.digest, [old.main.digest])
            await until_made(hub)
            assert await client.find_missing([old.main.digest, new.main.digest]) == []
    assert region.bytes_served(old.main.digest) == len(OLD)


def workers_of(pid: int) -> list[int]:
    """The processes that this one has started and that are at work."""
    return [one for one, (state, parent) in _processes().items() if parent == pid and state != "Z"]


def is_alive(pid: int) -> bool:
    return _processes().get(pid, ("Z", 0))[0] != "Z"


def _processes() -> dict[int, tuple[str, int]]:
    """State and parent of all there are."""
    found: dict[int, tuple[str, int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            found[int(path.parent.name)] = state, int(parent)
    return found


async def test_a_killed_super_hub_leaves_no_worker_and_no_half_delta(region: Region) -> None:
    """Kill -9 while a job works: the job dies too, the next start sweeps, and the next question makes it anew."""
    content = b"".join(Random(number).randbytes(700) + bytes(300) for number in range(3_000))
    release = region.publish("firmware-1", content)
    async with region.running_origin(), region.running_control():
        write(region)
        async with region.running_hub() as hub:  # only to choose a free port, and to have it settled
            await settled(region)
            port = hub.port
        write(region, port=port)
        process = await python("superhub", "--dir", str(region.hub_dir))
        try:
            client = region.client(STORE, port)
            async with asyncio.timeout(30):
                while not workers_of(process.pid):
                    await asked(region, port, release.main.digest)
                    await asyncio.sleep(0.05)
            [worker] = workers_of(process.pid)
            process.kill()
            await process.wait()
            async with asyncio.timeout(10):
                while is_alive(worker):  # noqa: ASYNC110  # another process has no event
                    await asyncio.sleep(0.02)
            assert leavings(region) != []
            assert rows(region) == []
            write(region, "max_s = 4", port)  # quick levels from here on
            process = await python("superhub", "--dir", str(region.hub_dir))
            async with asyncio.timeout(30):
                while not await asked(region, port, release.main.digest, (FULL,)):  # noqa: ASYNC110  # the same
                    await asyncio.sleep(0.05)
            assert leavings(region) == []
            found = await ready(region, port, release.main.digest)
            assert {row[0] for row in rows(region)} == {"full-zstd", "chunks"}
            assert digest_of(await read_all(client, named(found[FULL_ZSTD].payload))) == named(found[FULL_ZSTD].payload)
        finally:
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    assert region.bytes_served(release.main.digest) == len(content)


async def asked(
    region: Region, port: int, target: Digest, methods: Sequence[artifact_pb2.DeliveryMethod.ValueType] = ALL
) -> bool:
    """Ask a super hub that may not be up yet; whether it answered."""
    try:
        await offers(region, port, target, methods=methods)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False
    return True
