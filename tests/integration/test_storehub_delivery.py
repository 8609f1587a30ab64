"""Deliveries at a store hub over real gRPC (S5, H4, M3): planned before the first byte, rebuilt once, accounted."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.delivery_kit import MIB, OfferingHub, first_wave, images, next_wave, terms
from tests.session_kit import Fleet
from tests.storehub_kit import STORE, WAVE, Control, SuperHub, device_node, eventually, lay_out, running, wan
from wavemesh.artifacts.plan import Method
from wavemesh.artifacts.transfer import ArtifactClient
from wavemesh.codec.statements import decode
from wavemesh.errors import GateError
from wavemesh.runtime.grpc import make_bulk_channel
from wavemesh.trust.delivered import DeliveryState
from wavemesh.trust.statements import HubStatus
from wavemesh.v1 import artifact_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from storehub.app import App
    from storehub.deliveries import Delivery
    from wavemesh.trust.delivered import DeliveryView
    from wavemesh.trust.statements import Digest


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet.create(tmp_path_factory.mktemp("fleet"))


class Store:
    """A store hub that runs the old release; the new one is published and its wave not planned yet."""

    def __init__(self, fleet: Fleet, directory: Path, seed: int, kind: type[SuperHub] = OfferingHub) -> None:
        self.control = Control(fleet)
        self.old_image, self.new_image = images(seed)
        self.old = self.control.add_release("old", self.old_image)
        self.new = self.control.add_release("new", self.new_image)
        made = directory / "made"
        self.super_hub: Any = OfferingHub(self.control, made) if kind is OfferingHub else kind(self.control)
        self.directory = directory
        self.parent = ""

    @asynccontextmanager
    async def hub(self, more: str = "") -> AsyncIterator[App]:
        async with running(lay_out(self.directory / "hub", self.control, self.parent, more=more)) as app:
            yield app

    async def hold_old(self, app: App) -> None:
        self.super_hub.want(*first_wave(self.control, "old"))
        await eventually(lambda: holds(app, self.old))
        await eventually(lambda: not delivery(app, self.old).is_open)

    def status(self) -> HubStatus:
        """What the hub last said of itself."""
        return decode(HubStatus, self.super_hub.statuses["hub"])

    def told(self) -> dict[str, DeliveryView]:
        """Deliveries at their end by wave, as they went up."""
        return {one.wave_id: one for one in self.status().deliveries if one.state is DeliveryState.DONE}

    def plan_new(self) -> None:
        self.super_hub.want(*next_wave(self.control, "new"))

    @property
    def pieces(self) -> list[Path]:
        return sorted((self.directory / "hub" / "state" / "cache").glob("pieces/*"))


@asynccontextmanager
async def store(
    fleet: Fleet, directory: Path, seed: int = 1, kind: type[SuperHub] = OfferingHub
) -> AsyncIterator[Store]:
    one = Store(fleet, directory, seed, kind)
    async with wan(one.super_hub) as parent:
        one.parent = parent
        yield one


def holds(app: App, digest: Digest) -> bool:
    return any(entry.digest == digest and entry.is_complete for entry in app.cache.entries())


def delivery(app: App, digest: Digest) -> Delivery:
    return app.cache.deliveries.all[digest]


async def read(fleet: Fleet, app: App, digest: Digest) -> bytes:
    credentials = fleet.credentials(device_node("pos-12"))
    client = ArtifactClient(lambda: make_bulk_channel(credentials, f"127.0.0.1:{app.port}", STORE))
    async with aclosing(client.read(digest)) as pieces:
        return b"".join([bytes(piece) async for piece in pieces])


async def arrived(app: App, digest: Digest) -> Delivery:
    await eventually(lambda: holds(app, digest) and not delivery(app, digest).is_open, within_s=20)
    return delivery(app, digest)


async def test_a_delta_moves_little_and_devices_get_plain_bytes(fleet: Fleet, tmp_path: Path) -> None:
    """S5, H4: rebuilt once at the hub; what the ledger says was moved is what the super hub sent."""
    async with store(fleet, tmp_path) as one, one.hub() as app:
        await one.hold_old(app)
        payload = one.super_hub.delta(one.old, one.new)
        one.plan_new()
        done = await arrived(app, one.new)
        assert await read(fleet, app, one.new) == one.new_image
        assert done.plan is not None
        assert (done.plan.method, done.wave_id) == (Method.DELTA, WAVE)
        assert done.moved_bytes == done.forecast_bytes == payload.size_bytes == one.super_hub.sent[payload.sha256]
        assert one.super_hub.sent[one.new.sha256] == 0
        assert payload.size_bytes < one.new.size_bytes / 50
        asked = one.super_hub.asked[-1]
        assert [base.sha256 for base in asked.bases] == [one.old.sha256]
        await eventually(lambda: not holds(app, payload) and not one.pieces)
        await eventually(lambda: WAVE in one.told())
        told = one.told()[WAVE]
        assert (told.method, told.state, told.name) == ("delta", DeliveryState.DONE, "new.img")
        assert (told.forecast_bytes, told.moved_bytes) == (payload.size_bytes, payload.size_bytes)
        assert told.size_bytes == one.new.size_bytes
        assert {one.new, one.old} <= set(one.status().held)


async def test_chunks_read_only_what_the_bases_lack(fleet: Fleet, tmp_path: Path) -> None:
    async with store(fleet, tmp_path, 2) as one, one.hub() as app:
        await one.hold_old(app)
        pack, index = one.super_hub.chunks(one.new, one.old, read_bytes=300_000)
        one.plan_new()
        done = await arrived(app, one.new)
        assert await read(fleet, app, one.new) == one.new_image
        assert done.plan is not None
        assert done.plan.method is Method.CHUNKS
        moved = one.super_hub.sent[pack.sha256] + one.super_hub.sent[index.sha256]
        assert done.moved_bytes == done.plan.read_bytes == moved
        assert done.forecast_bytes == 300_000
        assert 0 < moved < one.new.size_bytes / 2
        await eventually(lambda: not one.pieces)


async def test_a_compressed_blob_is_unpacked_once(fleet: Fleet, tmp_path: Path) -> None:
    async with store(fleet, tmp_path, 3) as one, one.hub() as app:
        content = b"compresses well. " * 60_000
        text = one.control.add_release("text", content)
        payload = one.super_hub.compressed(text)
        one.super_hub.want(one.control.holds(), *next_wave(one.control, "text"))
        done = await arrived(app, text)
        assert await read(fleet, app, text) == content
        assert done.moved_bytes == payload.size_bytes == one.super_hub.sent[payload.sha256]


async def test_a_super_hub_that_knows_no_deliveries_gets_the_blob_read_whole_and_the_ledger_says_so(
    fleet: Fleet, tmp_path: Path
) -> None:
    """Compatibility: an N-1 super hub answers UNIMPLEMENTED."""
    async with store(fleet, tmp_path, 4, SuperHub) as one, one.hub() as app:
        await one.hold_old(app)
        done = delivery(app, one.old)
        assert done.plan is not None
        assert done.plan.method is Method.FULL
        assert done.said.startswith("the super hub is older than deliveries")
        assert done.moved_bytes == one.old.size_bytes


async def test_what_was_wrong_is_given_up_told_and_not_planned_again(fleet: Fleet, tmp_path: Path) -> None:
    """H4: never a wrong byte; never silently full: the event and the next plan say what failed."""
    async with store(fleet, tmp_path, 5) as one, one.hub() as app:
        await one.hold_old(app)
        good = one.super_hub.delta(one.old, one.new)
        bad_bytes = bytearray(one.control.blobs[good.sha256])
        bad_bytes[-20] ^= 1
        bad = one.super_hub.put(bytes(bad_bytes))
        one.super_hub.offers.clear()
        one.super_hub.offer(one.new, artifact_pb2.DELIVERY_METHOD_DELTA, bases=[one.old], payload=bad)
        one.plan_new()
        done = await arrived(app, one.new)
        assert await read(fleet, app, one.new) == one.new_image
        [told] = one.super_hub.reported("delivery-replanned")
        assert (told.gate, told.wave_id, told.subject) == ("checksum", WAVE, "new.img")
        assert done.plan is not None
        assert done.plan.method is Method.FULL
        assert "delta" in done.said
        assert "failed before" in done.said
        assert done.moved_bytes == one.new.size_bytes + bad.size_bytes
        assert done.forecast_bytes == bad.size_bytes
        assert not app.hub.store.pauses, "nothing held went bad"
        assert not holds(app, bad)


async def test_a_base_that_rotted_is_told_healed_and_not_blamed_on_the_delta(fleet: Fleet, tmp_path: Path) -> None:
    async with store(fleet, tmp_path, 6) as one, one.hub() as app:
        await one.hold_old(app)
        [file] = (one.directory / "hub" / "state" / "cache" / "blobs").glob(f"??/{one.old.sha256}-*")
        rotten = bytearray(file.read_bytes())
        rotten[1000] ^= 1
        file.write_bytes(rotten)
        one.super_hub.delta(one.old, one.new)
        one.plan_new()
        await arrived(app, one.new)
        assert await read(fleet, app, one.new) == one.new_image
        [told] = one.super_hub.reported("delivery-replanned")
        assert "had rotted" in told.detail
        assert [event.subject for event in one.super_hub.reported("cache-mismatch")] == [one.old.sha256]
        await eventually(lambda: holds(app, one.old))
        assert await read(fleet, app, one.old) == one.old_image


async def test_beyond_the_budget_nothing_is_read_and_a_delta_that_becomes_ready_is_taken(
    fleet: Fleet, tmp_path: Path
) -> None:
    """Gate byte-budget: refused before the first byte, told upstream; asked again until something fits."""
    async with store(fleet, tmp_path, 7) as one, one.hub() as app:
        await one.hold_old(app)
        terms(one.control, byte_budget=64 * 1024)
        one.plan_new()
        await eventually(lambda: [e for e in one.super_hub.reported("cache-refused") if e.gate == "byte-budget"])
        refused = delivery(app, one.new)
        assert refused.state is DeliveryState.REFUSED
        assert f"full, reads {one.new.size_bytes} bytes and 65536 are left" in refused.said
        assert one.super_hub.sent[one.new.sha256] == 0
        with pytest.raises(GateError) as gate:
            await read(fleet, app, one.new)
        assert gate.value.gate == "byte-budget"
        payload = one.super_hub.delta(one.old, one.new)
        done = await arrived(app, one.new)
        assert done.moved_bytes == payload.size_bytes <= 64 * 1024
        assert await read(fleet, app, one.new) == one.new_image


async def test_a_delta_being_made_is_waited_for(fleet: Fleet, tmp_path: Path) -> None:
    async with store(fleet, tmp_path, 8) as one, one.hub() as app:
        await one.hold_old(app)
        terms(one.control, price_per_hour=0)
        waits = {"bases": [one.old], "read_bytes": 5000, "ready_in_s": 1}
        one.super_hub.offer(one.new, artifact_pb2.DELIVERY_METHOD_DELTA, **waits)
        one.plan_new()
        await eventually(lambda: one.new in app.cache.deliveries.all)
        waiting = delivery(app, one.new)
        assert (waiting.state, waiting.forecast_bytes) == (DeliveryState.WAITING, 5000)
        assert "base of the planned delivery of new.img" in app.cache.pins()[one.old.sha256]
        asked = len(one.super_hub.asked)
        await eventually(lambda: len(one.super_hub.asked) > asked)
        one.super_hub.offers.clear()
        payload = one.super_hub.delta(one.old, one.new)
        done = await arrived(app, one.new)
        assert done.moved_bytes == payload.size_bytes
        assert one.super_hub.sent[one.new.sha256] == 0


async def test_a_link_that_breaks_costs_nothing_that_was_read(fleet: Fleet, tmp_path: Path) -> None:
    """M3: parts of a pack resume to the byte, over another session and another process of the hub."""
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(store(fleet, tmp_path, 9))
        async with one.hub() as app:
            await one.hold_old(app)
            pack, index = one.super_hub.chunks(one.new, one.old, read_bytes=300_000)
            gate = Gate(one.super_hub, pack.sha256, after_bytes=100_000)
            one.plan_new()
            await asyncio.wait_for(gate.reached.wait(), 10)
            await eventually(lambda: any(path.stat().st_size >= 90_000 for path in one.pieces))
            planned = delivery(app, one.new).plan
        gate.is_shut = False
        asked = len(one.super_hub.asked)
        async with one.hub() as app:
            assert delivery(app, one.new).plan == planned
            done = await arrived(app, one.new)
            assert await read(fleet, app, one.new) == one.new_image
        assert len(one.super_hub.asked) == asked, "the plan is durable: nobody asks again"
        sent = one.super_hub.sent[pack.sha256] + one.super_hub.sent[index.sha256]
        assert done.moved_bytes == done.plan.read_bytes if done.plan is not None else False
        assert sent <= done.moved_bytes + 128 * 1024, "what was on the way when the link broke, and no more"
        resumed = [offset for sha256, offset in one.super_hub.reads if sha256 == pack.sha256]
        assert max(resumed) > 0


class Gate:
    """Holds up the super hub's bytes of one blob."""

    def __init__(self, super_hub: OfferingHub, sha256: str, after_bytes: int) -> None:
        self.reached, self.is_shut = asyncio.Event(), True
        whole = super_hub.open

        async def open_(peer: Any, digest: Digest, offset: int, length_bytes: int) -> Any:
            pieces = await whole(peer, digest, offset, length_bytes)
            return self._held(super_hub, pieces, after_bytes) if digest.sha256 == sha256 else pieces

        super_hub.open = open_  # type: ignore[method-assign]

    async def _held(self, super_hub: OfferingHub, pieces: Any, after_bytes: int) -> Any:
        passed = 0
        async with aclosing(pieces):
            async for piece in pieces:
                if self.is_shut and passed >= after_bytes:
                    self.reached.set()
                    await asyncio.Event().wait()
                passed += len(piece)
                yield piece


async def test_what_nobody_wants_any_more_is_stopped_and_leaves_nothing(fleet: Fleet, tmp_path: Path) -> None:
    """A wave that closes in the middle: its pieces go, the pins go, and the hub goes on."""
    async with store(fleet, tmp_path, 12) as one, one.hub() as app:
        await one.hold_old(app)
        pack, index = one.super_hub.chunks(one.new, one.old, read_bytes=300_000)
        gate = Gate(one.super_hub, pack.sha256, after_bytes=100_000)
        one.plan_new()
        await asyncio.wait_for(gate.reached.wait(), 10)
        one.super_hub.want(one.control.closed())
        await eventually(lambda: one.new not in app.cache.deliveries.all and not one.pieces)
        await eventually(lambda: {entry.digest for entry in app.cache.entries()}.isdisjoint({index, pack}))
        assert "base of the planned delivery of new.img" not in app.cache.pins().get(one.old.sha256, ())
        assert await read(fleet, app, one.old) == one.old_image


async def test_pieces_that_do_not_fit_beside_the_target_are_not_read(fleet: Fleet, tmp_path: Path) -> None:
    """Cache: room for pieces and result is there before the first byte, or the plan is given up and says so."""
    async with store(fleet, tmp_path, 10) as one, one.hub(more=f"quota_bytes = {2 * MIB + 80_000}\n") as app:
        await one.hold_old(app)
        noise = one.super_hub.put(images(11, MIB // 2)[0])
        one.super_hub.offer(one.new, artifact_pb2.DELIVERY_METHOD_DELTA, bases=[one.old], payload=noise)
        one.plan_new()
        done = await arrived(app, one.new)
        assert one.super_hub.sent[noise.sha256] == 0
        assert done.plan is not None
        assert done.plan.method is Method.FULL
        [told] = one.super_hub.reported("delivery-replanned")
        assert "no room for the pieces of delta" in told.detail
        assert await read(fleet, app, one.new) == one.new_image
