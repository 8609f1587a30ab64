"""The store hub's cache over real transfers (H1 to H3, S1): fetched once, verified, healed; and fenced restores."""

from __future__ import annotations

import shutil
from contextlib import AsyncExitStack, aclosing
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from storehub.cacheplan import CacheViews
from tests.session_kit import Fleet
from tests.storehub_kit import (
    OPERATOR,
    STORE,
    WAVE,
    Control,
    DrivenClock,
    SuperHub,
    device_node,
    eventually,
    lay_out,
    running,
    till,
    wan,
)
from wavemesh.artifacts.blobstore import BlobStore
from wavemesh.artifacts.digests import digest_of
from wavemesh.artifacts.transfer import ArtifactClient
from wavemesh.errors import GateError, NotFoundError, PeerError, WavemeshError
from wavemesh.runtime.grpc import make_bulk_channel
from wavemesh.trust.statements import Digest, Hold, IntentKind, OutcomeKind, UpdateState, WaveState
from wavemesh.v1 import operator_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

    from storehub.app import App
    from wavemesh.session.frames import Resource


MIB = 1024 * 1024


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet.create(tmp_path_factory.mktemp("fleet"))


@pytest.fixture
def control(fleet: Fleet) -> Control:
    return Control(fleet)


def client(fleet: Fleet, app: App) -> ArtifactClient:
    credentials = fleet.credentials(device_node("pos-12"))
    return ArtifactClient(lambda: make_bulk_channel(credentials, f"127.0.0.1:{app.port}", STORE))


async def read(source: ArtifactClient, digest: Digest) -> bytes:
    async with aclosing(source.read(digest)) as pieces:
        return b"".join([bytes(piece) async for piece in pieces])


def holds(app: App, digest: Digest) -> bool:
    return any(entry.digest == digest and entry.is_complete for entry in app.cache.entries())


def plan(control: Control) -> list[Resource]:
    order = control.order("pos-12", state=WaveState.PLANNED)
    return [control.tuf(), control.holds(), control.policy_resource(), order]


async def test_a_planned_wave_is_prefetched_once_and_served_in_the_dark(
    control: Control, fleet: Fleet, tmp_path: Path
) -> None:
    super_hub = SuperHub(control)
    directory = tmp_path / "hub"
    async with AsyncExitStack() as stack:
        async with wan(super_hub) as parent:
            app = await stack.enter_async_context(running(lay_out(directory, control, parent)))
            super_hub.want(*plan(control))
            await eventually(lambda: len(app.cache.entries()) == 2 and all(e.is_complete for e in app.cache.entries()))
        assert await read(client(fleet, app), control.firmware) == control.blobs[control.firmware.sha256]
        assert sorted(sha256 for sha256, _ in super_hub.reads) == sorted(control.blobs)
        with pytest.raises(WavemeshError):
            await read(client(fleet, app), Digest("0" * 64, 5))
        listed = app.cache.pins()
        assert listed[control.firmware.sha256] == (f"target of wave {WAVE}",)


@pytest.mark.parametrize("found_by", ["a device's read", "the scrub"])
async def test_bytes_that_rot_pause_the_wave_here_and_a_refetch_heals_it(
    found_by: str, control: Control, fleet: Fleet, tmp_path: Path
) -> None:
    """H2: nobody receives all of a blob that is not what its name says."""
    super_hub = SuperHub(control)
    directory = tmp_path / "hub"
    more = "scrub_interval_s = 1.0\nscrub_bytes_per_s = 10000000\n" if found_by == "the scrub" else ""
    async with wan(super_hub) as parent, running(lay_out(directory, control, parent, more=more)) as app:
        super_hub.want(*plan(control))
        await eventually(lambda: holds(app, control.firmware))
        [file] = (directory / "state" / "cache" / "blobs").glob(f"??/{control.firmware.sha256}-*")
        rotten = bytearray(file.read_bytes())
        rotten[100] ^= 1
        file.write_bytes(rotten)
        if found_by == "a device's read":
            with pytest.raises(WavemeshError):
                await read(client(fleet, app), control.firmware)
        await eventually(lambda: super_hub.reported("cache-healed"))
        [mismatch] = super_hub.reported("cache-mismatch")
        assert (mismatch.gate, mismatch.subject) == ("checksum", control.firmware.sha256)
        assert not app.hub.store.pauses
        assert await read(client(fleet, app), control.firmware) == control.blobs[control.firmware.sha256]


async def test_while_rotten_bytes_cannot_be_healed_the_wave_is_paused_here(
    control: Control, fleet: Fleet, tmp_path: Path
) -> None:
    super_hub = SuperHub(control)
    directory = tmp_path / "hub"
    async with AsyncExitStack() as stack:
        async with wan(super_hub) as parent:
            app = await stack.enter_async_context(running(lay_out(directory, control, parent)))
            super_hub.want(*plan(control), control.order("pos-12", generation=2))
            await eventually(lambda: holds(app, control.firmware))
        [file] = (directory / "state" / "cache" / "blobs").glob(f"??/{control.firmware.sha256}-*")
        file.write_bytes(b"\0" * control.firmware.size_bytes)
        with pytest.raises(WavemeshError):
            await read(client(fleet, app), control.firmware)
        await eventually(lambda: app.hub.store.pauses)
        assert list(app.hub.store.pauses) == [(WAVE, f"hub:{STORE.name}")]
        assert app.hub.standing(app.hub.belief.orders[WAVE]).standing.value == "paused"


@pytest.mark.parametrize("asked_by", ["a wave", "an operator"])
async def test_a_releases_rauc_bundle_is_prefetched_like_its_other_artifacts(
    asked_by: str, fleet: Fleet, tmp_path: Path
) -> None:
    """H1, ADR 16: a device whose slots RAUC writes finds the bundle at its hub."""
    bundle = b"the image, packed" * 1000
    control = Control(fleet, bundle=bundle)
    super_hub = SuperHub(control)
    async with wan(super_hub) as parent, running(lay_out(tmp_path / "hub", control, parent)) as app:
        super_hub.want(control.tuf(), control.holds())
        if asked_by == "a wave":
            super_hub.want(*plan(control))
        else:
            await eventually(lambda: app.hub.belief.trusted is not None)
            intent = control.intent(IntentKind.PREFETCH, wave_id="", policy_yaml=control.policy_yaml)
            await app.intents.submit(intent, OPERATOR)
        await eventually(lambda: holds(app, digest_of(bundle)) and holds(app, control.firmware))
        assert await read(client(fleet, app), digest_of(bundle)) == bundle


async def test_a_held_release_is_neither_fetched_nor_served(control: Control, fleet: Fleet, tmp_path: Path) -> None:
    super_hub = SuperHub(control)
    async with wan(super_hub) as parent, running(lay_out(tmp_path / "hub", control, parent)) as app:
        hold = Hold("fw", control.firmware.sha256, "smoke")
        super_hub.want(control.tuf(), control.holds(holds=(hold,)))
        await eventually(lambda: app.hub.belief.holds is not None)
        super_hub.want(control.policy_resource(), control.order("pos-12"))
        await eventually(lambda: super_hub.reported("cache-refused"))
        assert {event.gate for event in super_hub.reported("cache-refused")} == {"hold"}
        assert super_hub.reads == []
        with pytest.raises(GateError) as refused:
            await read(client(fleet, app), control.firmware)
        assert refused.value.gate == "hold"


async def test_a_gate_of_the_super_hub_is_told_by_name(control: Control, fleet: Fleet, tmp_path: Path) -> None:
    super_hub = SuperHub(control)
    super_hub.blob_faults[control.firmware.sha256] = GateError("freshness", "signed 15 days ago")
    async with wan(super_hub) as parent, running(lay_out(tmp_path / "hub", control, parent)) as app:
        super_hub.want(*plan(control))
        await eventually(lambda: super_hub.reported("cache-refused"))
        [event] = super_hub.reported("cache-refused")
        assert (event.gate, event.subject) == ("freshness", "fw.img")
        with pytest.raises(GateError) as refused:
            await read(client(fleet, app), control.firmware)
        assert refused.value.gate == "freshness"
        super_hub.blob_faults.clear()
        await eventually(lambda: holds(app, control.firmware))


async def test_what_does_not_fit_is_refused_beforehand(control: Control, tmp_path: Path) -> None:
    super_hub = SuperHub(control)
    big = control.add_release("big", b"\x01" * (3 * 1024 * 1024))
    async with wan(super_hub) as parent:
        directory = lay_out(tmp_path / "hub", control, parent, more="quota_bytes = 1100000\n")
        async with running(directory) as app:
            super_hub.want(
                control.tuf(), control.holds(), control.policy_resource(), control.order("pos-12", release="big")
            )
            await eventually(lambda: super_hub.reported("cache-refused"))
            assert {event.gate for event in super_hub.reported("cache-refused")} == {"cache-quota"}
            assert big.sha256 not in {sha256 for sha256, _ in super_hub.reads}
            assert app.cache.used_bytes == 0


async def test_a_plan_says_what_would_go_and_what_would_help(control: Control, tmp_path: Path) -> None:
    """H1: before a byte moves; nothing is changed by it."""
    super_hub = SuperHub(control)
    control.add_release("big", b"\x01" * (2 * MIB))
    control.add_release("bigger", b"\x02" * (4 * MIB))
    async with wan(super_hub) as parent:
        directory = lay_out(tmp_path / "hub", control, parent, more=f"quota_bytes = {3 * MIB}\n")
        async with running(directory) as app:
            super_hub.want(*plan(control))
            await eventually(lambda: holds(app, control.firmware))
            views = CacheViews(app.hub, app.cache)
            first = views.plan(pb.PlanCacheRequest(wave_id=WAVE))
            assert (first.gate, first.fetch_bytes, len(first.evictions)) == ("", 0, 0)
            refused = views.plan(pb.PlanCacheRequest(release="bigger"))
            assert (refused.gate, refused.bound) == ("cache-quota", "quota")
            assert refused.after_bytes == refused.before_bytes == app.cache.used_bytes
            assert [(one.reason, one.frees_bytes) for one in refused.helps] == [
                (f"target of wave {WAVE}", app.cache.used_bytes)
            ]
            super_hub.want(control.closed())
            await eventually(lambda: app.hub.store.waves[WAVE].closed_at is not None)
            plan_of_big = views.plan(pb.PlanCacheRequest(release="big"))
            assert plan_of_big.gate == ""
            assert [entry.digest.sha256 for entry in plan_of_big.evictions]
            assert plan_of_big.after_bytes <= plan_of_big.quota_bytes
            assert holds(app, control.firmware)
            with pytest.raises(NotFoundError, match="nothing-of-the-kind"):
                views.plan(pb.PlanCacheRequest(release="nothing-of-the-kind"))
            with pytest.raises(PeerError, match="one of"):
                views.plan(pb.PlanCacheRequest())


async def test_one_content_under_two_names_is_stored_and_fetched_once(control: Control, tmp_path: Path) -> None:
    """S1."""
    super_hub = SuperHub(control)
    same = control.add_release("twin", control.blobs[control.firmware.sha256])
    assert same == control.firmware
    async with wan(super_hub) as parent, running(lay_out(tmp_path / "hub", control, parent)) as app:
        super_hub.want(*plan(control))
        await eventually(lambda: holds(app, control.firmware))
        twin = control.order("pos-12", state=WaveState.PLANNED, release="twin", wave_id="143")
        super_hub.want(twin)
        await eventually(lambda: "143" in app.hub.store.waves and all(map(app.cache.blobs.has, wanted(app, "143"))))
        assert [sha256 for sha256, _ in super_hub.reads].count(control.firmware.sha256) == 1
        listed = CacheViews(app.hub, app.cache).listing(100)
        [entry] = [one for one in listed.entries if one.digest.sha256 == control.firmware.sha256]
        assert list(entry.names) == ["fw.img", "twin.img"]
        assert len([one for one in app.cache.entries() if one.digest.sha256 == control.firmware.sha256]) == 1


def wanted(app: App, wave_id: str) -> tuple[Digest, ...]:
    return app.hub.store.waves[wave_id].blobs


async def test_what_is_partly_there_is_given_up_once_nobody_wants_it(control: Control, tmp_path: Path) -> None:
    super_hub, clock = SuperHub(control), DrivenClock()
    directory = lay_out(tmp_path / "hub", control, "127.0.0.1:1", more="partial_keep_s = 60.0\n")
    store = await BlobStore.open(directory / "state" / "cache", 1 << 30, clock)
    unwanted = Digest("7" * 64, 1000)
    for digest in (unwanted, control.firmware):
        async with store.writer(digest) as writer:
            await writer.write(control.blobs[control.firmware.sha256][:500])
    async with wan(super_hub) as parent:
        directory = lay_out(directory, control, parent, more="partial_keep_s = 60.0\n")
        super_hub.blob_faults[control.firmware.sha256] = GateError("freshness", "not now")
        async with running(directory, clock) as app:
            super_hub.want(*plan(control))
            await eventually(lambda: super_hub.reported("cache-refused"))
            assert app.cache.blobs.partial_size(unwanted) == 500
            clock.ahead = timedelta(minutes=2)
            await eventually(lambda: app.cache.blobs.counters.swept)
            assert app.cache.blobs.partial_size(unwanted) == 0
            assert app.cache.blobs.partial_size(control.firmware) == 500
            assert (app.cache.blobs.counters.swept, app.cache.blobs.counters.swept_bytes) == (1, 1000)


async def test_wrong_bytes_from_the_super_hub_pause_the_wave_and_are_told_once(
    control: Control, tmp_path: Path
) -> None:
    """H2, on arrival: told before the wrong file moves, however often it comes; healed when the right bytes come."""
    super_hub = SuperHub(control)
    right = control.blobs[control.firmware.sha256]
    control.blobs[control.firmware.sha256] = right[:-1] + b"x"
    async with wan(super_hub) as parent, running(lay_out(tmp_path / "hub", control, parent)) as app:
        super_hub.want(*plan(control))
        await eventually(lambda: super_hub.reported("cache-mismatch"))
        await eventually(lambda: app.cache.blobs.counters.quarantined > 1)
        assert list(app.hub.store.pauses) == [(WAVE, f"hub:{STORE.name}")]
        control.blobs[control.firmware.sha256] = right
        await eventually(lambda: super_hub.reported("cache-healed"))
        assert len(super_hub.reported("cache-mismatch")) == 1
        assert not app.hub.store.pauses
        assert not app.hub.store.incidents.all


async def test_a_hub_restored_from_a_backup_is_fenced_and_sends_its_snapshot(control: Control, tmp_path: Path) -> None:
    """Semantics, "Sessions": the old incarnation's numbers are spent; the new one begins with all it knows."""
    super_hub = SuperHub(control)
    directory, backup = tmp_path / "hub", tmp_path / "backup"
    async with wan(super_hub) as parent:
        async with running(lay_out(directory, control, parent)) as app:
            old = app.hub.log.incarnation
            super_hub.want(control.tuf(), control.holds(), control.policy_resource(), control.order("pos-12", "pos-13"))
            async with till(control, "pos-12", f"127.0.0.1:{app.port}") as one:
                one.report(one.outcome(OutcomeKind.UPDATED))
                await eventually(super_hub.outcomes)
        shutil.copytree(directory / "state", backup)
        async with running(directory) as app, till(control, "pos-13", f"127.0.0.1:{app.port}") as one:
            one.report(one.outcome(OutcomeKind.UPDATED))
            await eventually(lambda: len(super_hub.outcomes()) == 2)
        shutil.rmtree(directory / "state")
        shutil.copytree(backup, directory / "state")
        super_hub.applied.clear()
        async with running(directory) as app:
            await eventually(lambda: any(kind == "snapshot" for kind, _ in super_hub.applied))
            assert app.hub.log.incarnation != old
            assert [o.device for o in super_hub.outcomes()] == [device_node("pos-12").path]
            # No lease until every target has said where it is (or the maxima have passed).
            super_hub.want(*(control.permit(name, app.hub.log.incarnation) for name in ("pos-12", "pos-13")))
            await eventually(lambda: len(app.hub.belief.permits) == 2)
            async with till(control, "pos-13", f"127.0.0.1:{app.port}") as one:
                one.say(UpdateState.VERIFIED)
                await eventually(lambda: one.node.path in app.hub.present and app.hub.present[one.node.path].is_heard)
                decision = await app.scheduler.step()
                assert decision.granted == ()
                async with till(control, "pos-12", f"127.0.0.1:{app.port}") as other:
                    other.say(UpdateState.COMMITTED)
                    await eventually(one.lease)


async def test_prefetch_given_by_an_operator(control: Control, fleet: Fleet, tmp_path: Path) -> None:
    super_hub = SuperHub(control)
    async with wan(super_hub) as parent, running(lay_out(tmp_path / "hub", control, parent)) as app:
        super_hub.want(control.tuf(), control.holds())
        await eventually(lambda: app.hub.belief.trusted is not None)
        envelope = control.intent(IntentKind.PREFETCH, wave_id="", policy_yaml=control.policy_yaml)
        record, duplicate = await app.intents.submit(envelope, OPERATOR)
        assert (record.disposition.name, duplicate) == ("QUEUED", False)
        await eventually(lambda: app.hub.store.intents["i-1"].disposition.name == "APPLIED")
        again = control.intent(IntentKind.PREFETCH, "i-2", wave_id="", policy_yaml=control.policy_yaml)
        record, duplicate = await app.intents.submit(again, OPERATOR)
        assert (record.disposition.name, duplicate) == ("APPLIED", True)
        assert holds(app, control.firmware)
