"""Seeding a region over real processes, gRPC, mutual TLS and SQLite (S1, S2)."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.session_kit import MemoryLog, MemorySink, resource, until
from tests.superhub_kit import MIB, REGION, Region, python, read_all, store_id
from wavemesh.artifacts.download import Patience, download
from wavemesh.codec.statements import encode
from wavemesh.errors import GateError, NotFoundError
from wavemesh.runtime.status import RemoteFaultError
from wavemesh.session.frames import ResourceKey
from wavemesh.trust.files import sign_metadata
from wavemesh.trust.repository import publish_targets, revoke_release

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from superhub.app import SuperHub
    from tests.conftest import TrustKeys
    from wavemesh.identity.ca import FleetCa
    from wavemesh.trust.statements import Digest

STORE = store_id("store-208")
IMAGE = Random(8).randbytes(6 * MIB + 11)
PATIENT = Patience(attempts=10_000, back_off_min_s=0.01, back_off_max_s=0.2)


@pytest.fixture
def region(tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys) -> Region:
    (tmp_path / "origin-files").mkdir()
    return Region(tmp_path, fleet_ca, trust_keys)


@asynccontextmanager
async def running(region: Region, rate_bytes_per_s: int = 0) -> AsyncIterator[SuperHub]:
    async with region.running_origin(rate_bytes_per_s), region.running_control():
        region.write_hub()
        async with region.running_hub() as hub:
            await settled(region)
            yield hub


async def settled(region: Region) -> None:
    """The super hub has, or has refused, what control wants."""

    def is_done() -> bool:
        told = {name for accepted, _ in region.control.verdicts for name in accepted}
        told |= {one.key.name for _, rejected in region.control.verdicts for one in rejected}
        return all(key.name in told for key in region.control.wanted)

    await until(is_done, region.control)


async def expect_gate(region: Region, hub: SuperHub, gate: str, digest: Digest) -> None:
    """The store is refused by name, and control is told once."""
    client = region.client(STORE, hub.port)
    for _ in range(2):
        with pytest.raises(GateError) as caught:
            await read_all(client, digest)
        assert caught.value.gate == gate
    await until(lambda: [event.gate for event in region.events()] == [gate], region.control)
    [event] = region.events()
    assert (event.kind, event.node) == ("compliance-refused", REGION.path)
    assert region.bytes_served(digest) == 0


async def test_twenty_stores_cost_the_origin_one_transfer(region: Region) -> None:
    """S1: any byte crosses the origin link once, however many ask at once."""
    release = region.publish("firmware-1", IMAGE, packed=IMAGE[::-1])
    async with running(region) as hub:
        async with asyncio.TaskGroup() as group:
            reads = [
                group.create_task(read_all(region.client(store_id(f"store-{number}"), hub.port), release.main.digest))
                for number in range(20)
            ]
        assert all(read.result() == IMAGE for read in reads)
        assert await read_all(region.client(STORE, hub.port), release.main.digest, 1000) == IMAGE[1000:]
        assert release.bundle is not None
        assert await read_all(region.client(STORE, hub.port), release.bundle.digest) == IMAGE[::-1]
        for artifact in release.artifacts:
            assert region.bytes_served(artifact.digest) == artifact.digest.size_bytes
    assert {entry["client"] for entry in region.access_log()} == {REGION.uri}
    assert region.events() == []


async def test_only_what_a_signed_release_names_is_known(region: Region) -> None:
    region.publish("firmware-1", IMAGE)
    stray = region.put_at_origin(b"never signed by anybody")
    async with running(region) as hub:
        with pytest.raises(NotFoundError):
            await read_all(region.client(STORE, hub.port), stray)
    assert region.bytes_served(stray) == 0


async def test_a_release_with_too_few_signatures_is_refused(region: Region) -> None:
    """S2, P2."""
    release = region.publish_weak_bundle("firmware-1", IMAGE)
    async with running(region) as hub:
        await expect_gate(region, hub, "signature", release.main.digest)


async def test_an_over_age_release_is_refused(region: Region) -> None:
    """S2: signed within 14 days."""
    signed_at = (datetime.now(UTC) - timedelta(days=15)).replace(microsecond=0)
    release = region.publish("firmware-1", IMAGE, signed_at=signed_at)
    async with running(region) as hub:
        await expect_gate(region, hub, "freshness", release.main.digest)


async def test_a_held_release_is_refused(region: Region) -> None:
    release = region.publish("firmware-1", IMAGE)
    region.hold(1, release.name)
    async with running(region) as hub:
        await expect_gate(region, hub, "hold", release.main.digest)


async def test_a_release_for_another_region_is_refused(region: Region) -> None:
    release = region.publish("firmware-1", IMAGE, regions=("north", "south"))
    async with running(region) as hub:
        await expect_gate(region, hub, "class", release.main.digest)


async def test_a_release_for_another_class_than_ordered_is_refused(region: Region) -> None:
    release = region.publish("firmware-1", IMAGE)
    region.order(STORE, release, device_class="scanner")
    async with running(region) as hub:
        await expect_gate(region, hub, "class", release.main.digest)
        other = region.client(store_id("store-209"), hub.port)
        assert await read_all(other, release.main.digest) == IMAGE


async def test_a_revoked_release_is_refused_by_name(region: Region) -> None:
    release = region.publish("firmware-1", IMAGE)
    async with running(region) as hub:
        client = region.client(STORE, hub.port)
        assert await read_all(client, release.main.digest) == IMAGE
        assert region.published is not None
        now, keys = datetime.now(UTC), region.keys
        targets = sign_metadata(revoke_release(region.published.targets, release.name, "bad", now), *keys.releases[:2])
        region.published = publish_targets(region.published, targets, keys.online, now)
        await want_trust(region)
        with pytest.raises(GateError) as caught:
            await read_all(client, release.main.digest)
        assert caught.value.gate == "revoked"


async def want_trust(region: Region) -> None:
    """Send the metadata as it is now, and wait until the super hub has it."""
    before = len(region.control.verdicts)
    region.want(resource("metadata", encode(region.published), kind="tuf"))
    await until(lambda: len(region.control.verdicts) > before, region.control)


async def test_what_the_region_has_is_seeded_to_replacements_and_audited(region: Region) -> None:
    """Semantics, "Trust": age gates the first entry only."""
    signed_at = (datetime.now(UTC) - timedelta(days=13, hours=12)).replace(microsecond=0)
    release = region.publish("firmware-1", IMAGE, signed_at=signed_at)
    async with running(region) as hub:
        assert await read_all(region.client(STORE, hub.port), release.main.digest) == IMAGE
    config = (region.hub_dir / "config.toml").read_text()
    (region.hub_dir / "config.toml").write_text(config + "[compliance]\nmax_age_days = 13.0\n")
    async with region.running_control(), region.running_hub() as hub:
        assert await read_all(region.client(STORE, hub.port), release.main.digest) == IMAGE
        await until(region.events, region.control)
    assert [event.kind for event in region.events()] == ["compliance-over-age"]
    assert region.bytes_served(release.main.digest) == len(IMAGE)


async def test_a_hold_ends_a_transfer_in_its_middle_and_goes_down_at_once(region: Region) -> None:
    """S2: seeding stops, the fetch from the origin too, and the stores learn of the hold."""
    release = region.publish("firmware-1", IMAGE)
    sink = MemorySink()
    async with running(region, rate_bytes_per_s=4 * MIB) as hub:
        async with region.running_store(STORE, hub.port, MemoryLog(), sink):
            async with aclosing(region.client(STORE, hub.port).read(release.main.digest)) as pieces:
                received = len(await anext(pieces))
                region.hold(1, release.name)
                with pytest.raises(GateError) as caught:
                    received += await drained(pieces)
            assert caught.value.gate == "hold"
            assert received < len(IMAGE)
            await until(lambda: ResourceKey("holds", "fleet") in sink.resources, sink)
        assert region.bytes_served(release.main.digest) < len(IMAGE)
        with pytest.raises(GateError):
            await read_all(region.client(STORE, hub.port), release.main.digest)
        region.hold(2)
        client = region.client(STORE, hub.port)
        await until(lambda: len(region.control.verdicts) >= 3, region.control)
        assert await read_all(client, release.main.digest) == IMAGE
    starts = [entry["range_start"] for entry in region.access_log() if release.main.digest.sha256 in entry["path"]]
    assert starts[0] == 0
    assert starts[1] > 0, "what had arrived before the hold is not fetched again"


async def test_a_hold_ends_a_transfer_from_the_cache_too(region: Region) -> None:
    """Whatever gRPC had taken already may arrive; it is far from all."""
    image = Random(9).randbytes(MIB) * 48
    release = region.publish("firmware-1", image)
    async with running(region) as hub:
        client = region.client(STORE, hub.port)
        assert await read_all(client, release.main.digest) == image
        async with aclosing(client.read(release.main.digest)) as pieces:
            received = len(await anext(pieces))
            before = len(region.control.verdicts)
            region.hold(1, release.name)
            await until(lambda: len(region.control.verdicts) > before, region.control)
            with pytest.raises(GateError) as caught:
                received += await drained(pieces)
    assert caught.value.gate == "hold"
    assert received < len(image)


async def test_a_full_cache_makes_room_or_says_so(region: Region) -> None:
    """What no order names goes first, longest unused; what is needed stays."""
    old, ordered, new = (
        region.publish(name, Random(name).randbytes(MIB), version=f"1.0.{number}")
        for number, name in enumerate(("firmware-1", "firmware-2", "firmware-3"))
    )
    region.order(STORE, ordered)
    async with region.running_origin(), region.running_control():
        region.write_hub(cache_quota_bytes=2 * MIB + 64 * 1024)
        async with region.running_hub() as hub:
            await settled(region)
            client = region.client(STORE, hub.port)
            for release in (old, ordered, new, ordered):
                await read_all(client, release.main.digest)
            assert await client.find_missing([old.main.digest, ordered.main.digest, new.main.digest]) == [
                old.main.digest
            ]
            region.order(STORE, new, wave_id="143")
            await settled(region)
            with pytest.raises(GateError) as caught:
                await read_all(client, old.main.digest)
            assert caught.value.gate == "cache-quota"
    assert region.bytes_served(ordered.main.digest) == MIB


async def test_an_origin_that_lacks_or_spoils_a_blob(region: Region) -> None:
    """Its bytes are believed by nobody: the store gets the error, control is told, the next try starts clean."""
    release = region.publish("firmware-1", IMAGE)
    path = region.origin_files / release.main.digest.sha256
    path.unlink()
    async with running(region) as hub:
        client = region.client(STORE, hub.port)
        with pytest.raises(NotFoundError):
            await read_all(client, release.main.digest)
        path.write_bytes(b"x" + IMAGE[1:])
        with pytest.raises(RemoteFaultError) as caught:
            await read_all(client, release.main.digest)
        assert caught.value.details["reason"] == "BLOB_MISMATCH"
        await until(lambda: [event.kind for event in region.events()] == ["cache-mismatch"], region.control)
        path.write_bytes(IMAGE)
        assert await read_all(client, release.main.digest) == IMAGE


async def test_a_directory_that_cannot_run_is_one_line_and_exit_code_2(region: Region) -> None:
    """Q2."""
    async with region.running_control():
        region.write_hub()
        (region.hub_dir / "config.toml").write_text('listen = "127.0.0.1:0"\n[control]\naddress = 7\nname = "main"\n')
        process = await python("superhub", "--dir", str(region.hub_dir), stderr=asyncio.subprocess.PIPE)
        _, complaint = await process.communicate()
        assert process.returncode == 2
        assert complaint.decode().startswith("superhub: ")
        assert "config.toml: control.address: expected a string, got 7" in complaint.decode()
        region.write_hub(region.control_port)
        process = await python("superhub", "--dir", str(region.hub_dir), stderr=asyncio.subprocess.PIPE)
        _, complaint = await process.communicate()
        assert process.returncode == 2
        assert "cannot listen" in complaint.decode()


async def drained(pieces: object) -> int:
    count = 0
    async for piece in pieces:  # type: ignore[attr-defined]  # an async generator
        count += len(piece)
    return count


class Sink:
    """Collects a download, whatever it verifies."""

    def __init__(self, digest: Digest) -> None:
        self.digest = digest
        self.content = bytearray()

    @property
    def offset(self) -> int:
        return len(self.content)

    async def write(self, data: bytes | memoryview) -> None:
        self.content += data

    async def finish(self) -> None:
        """Compared by the test."""


async def test_a_killed_super_hub_goes_on_where_it_was(region: Region) -> None:
    """M3, S4: kill -9 in the middle of a fetch; nothing that is held is fetched again."""
    release = region.publish("firmware-1", IMAGE)
    digest = release.main.digest
    async with region.running_origin(rate_bytes_per_s=3 * MIB), region.running_control():
        region.write_hub()
        async with region.running_hub() as hub:  # only to choose a free port, and to have it settled
            await settled(region)
            port = hub.port
        region.write_hub(port)
        half_way = asyncio.Event()
        sink = Sink(digest)

        def progress(offset: int) -> None:
            if offset > MIB:
                half_way.set()

        process = await python("superhub", "--dir", str(region.hub_dir))
        try:
            async with asyncio.TaskGroup() as group:
                client = region.client(STORE, port)
                loading = group.create_task(download(client, sink, rng=Random(1), patience=PATIENT, progress=progress))
                await half_way.wait()
                process.kill()
                await process.wait()
                [partial] = [path for path in (region.hub_dir / "state/cache/partial").iterdir() if not path.suffix]
                held = partial.stat().st_size
                assert MIB < held < len(IMAGE)
                process = await python("superhub", "--dir", str(region.hub_dir))
                await loading
        finally:
            process.terminate()
            assert await process.wait() == 0
    assert bytes(sink.content) == IMAGE
    entries = [entry for entry in region.access_log() if digest.sha256 in entry["path"]]
    assert [entry["range_start"] for entry in entries] == [0, held]
    assert entries[-1]["bytes"] == len(IMAGE) - held
