"""What is taken back ends at super hubs and store hubs: live, offline, replayed, restarted. Real tiers, real mTLS."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import AsyncExitStack, asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest

from tests import session_kit, storehub_kit, superhub_kit
from tests.session_kit import MemoryRegistry, resource, until
from tests.storehub_kit import OPERATOR, STORE, eventually, lay_out, running, till, wan
from tests.superhub_kit import REGION, store_id
from wavemesh.codec.statements import decode, encode
from wavemesh.identity.ca import write_node
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.grpc import make_channel
from wavemesh.runtime.status import error_from_rpc
from wavemesh.trust.envelope import sign_statement
from wavemesh.trust.statements import (
    Envelope,
    IntentKind,
    OutcomeKind,
    Revocation,
    RevocationList,
    RevocationReach,
)
from wavemesh.v1 import operator_pb2
from wavemesh.v1.operator_pb2_grpc import OperatorServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from storehub.app import App
    from tests.conftest import TrustKeys
    from wavemesh.identity.authorities import Authorities
    from wavemesh.identity.ca import FleetCa
    from wavemesh.identity.nodes import NodeId
    from wavemesh.session.frames import Resource

ENDS_WITHIN_S = 5.0
#: Between the certificates that the kits make, an hour old, and those made anew.
CUT_OFF = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=10)


def listed(epoch: int, *nodes: NodeId, reach: RevocationReach = RevocationReach.NODE) -> RevocationList:
    entries = tuple(Revocation(node.path, reach, CUT_OFF, "stolen") for node in nodes)
    return RevocationList(epoch, entries, datetime.now(UTC))


def report_time(what: str, began: float) -> None:
    print(f"{what} ended after {SystemClock().monotonic() - began:.3f} s")  # noqa: T201  # pytest -s shows it


def reason(caught: grpc.aio.AioRpcError) -> str:
    error = error_from_rpc(caught)
    return error.details.get("reason", error.reason)


def refusals(registry: MemoryRegistry) -> list[str]:
    """Gates by which lists of revocations were refused."""
    return [one.gate for _, rejected in registry.verdicts for one in rejected if one.key.type == "revocations"]


def durable_when_told(authorities: Authorities, database: Path) -> list[int]:
    """How many lists of revocations are on disk each time that a list comes into force."""
    seen: list[int] = []

    def look() -> None:
        with closing(sqlite3.connect(database)) as disk:
            [count] = disk.execute("SELECT COUNT(*) FROM session_resources WHERE type = 'revocations'").fetchone()
        seen.append(count)

    authorities.on_change(look)
    return seen


# -- at a super hub ----------------------------------------------------------------------------------------------------


class RegionUnderTest:
    """A super hub with a control that plays what the test wants."""

    def __init__(self, region: superhub_kit.Region) -> None:
        self.region = region

    def want(self, revocations: RevocationList) -> Resource:
        content = encode(sign_statement(revocations, [self.region.keys.control]))
        made = resource("fleet", content, kind="revocations", urgent=True, counter=revocations.epoch)
        self.region.want(resource("metadata", encode(self.region.keys.empty), kind="tuf"), made)
        return made

    def dialling(self, port: int, node: NodeId) -> Any:
        return session_kit.dialling(cast("Any", self.region), f"127.0.0.1:{port}", node=node, parent=REGION)


@pytest.fixture
def under_test(tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys) -> RegionUnderTest:
    return RegionUnderTest(superhub_kit.Region(tmp_path, fleet_ca, trust_keys, origin_port=1))


async def test_a_revoked_store_hub_is_cut_off_at_its_super_hub(under_test: RegionUnderTest) -> None:
    """Durable before its stream ends, refused from then on, also by the next process of the hub with control dark."""
    region, mine, other = under_test.region, store_id("store-20"), store_id("store-209")
    async with AsyncExitStack() as stack:
        hub_life = await stack.enter_async_context(AsyncExitStack())
        control_life = await stack.enter_async_context(AsyncExitStack())
        await control_life.enter_async_context(region.running_control())
        region.write_hub()
        hub = await hub_life.enter_async_context(region.running_hub())
        durable = durable_when_told(hub.credentials.authorities, region.hub_dir / "state" / "superhub.db")
        async with under_test.dialling(hub.port, mine) as revoked, under_test.dialling(hub.port, other) as kept:
            await eventually(lambda: revoked.upstream.is_connected and kept.upstream.is_connected)
            began = SystemClock().monotonic()
            under_test.want(listed(1, mine))
            await eventually(lambda: not revoked.upstream.is_connected, within_s=ENDS_WITHIN_S)
            report_time("a revoked store hub's session", began)
            await eventually(lambda: "REVOKED" in revoked.upstream.refusal)
            assert hub.credentials.authorities.revocations == listed_in(region)
            assert durable == [1]
            assert kept.upstream.is_connected
            await until(lambda: [key for key in kept.sink.resources if key.type == "revocations"], kept.sink)
        await control_life.aclose()
        await hub_life.aclose()
        again = await stack.enter_async_context(region.running_hub())
        async with under_test.dialling(again.port, mine) as revoked, under_test.dialling(again.port, other) as kept:
            await eventually(lambda: kept.upstream.is_connected)
            assert not revoked.upstream.is_connected
            assert again.credentials.authorities.revocations is not None


def listed_in(region: superhub_kit.Region) -> RevocationList:
    [held] = [one for key, one in region.control.wanted.items() if key.type == "revocations"]
    return decode(RevocationList, decode(Envelope, held.content).payload)


async def test_a_super_hub_refuses_an_older_list_and_keeps_its_own(under_test: RegionUnderTest) -> None:
    """A replay, and a removal, also over a restart: what was taken back stays so."""
    region, mine, other = under_test.region, store_id("store-20"), store_id("store-209")
    async with region.running_control():
        region.write_hub()
        async with region.running_hub() as hub:
            made = under_test.want(listed(2, mine))
            await eventually(lambda: hub.credentials.authorities.revocations)
            under_test.want(listed(1))
            await eventually(lambda: refusals(region.control) == ["replay"])
            del region.control.wanted[made.key]
            region.hold(1)  # with the removal
            await eventually(lambda: ["fleet"] in [accepted for accepted, _ in region.control.verdicts[2:]])
    async with region.running_hub() as hub:
        held = hub.credentials.authorities.revocations
        assert held is not None
        assert held.epoch == 2
        async with under_test.dialling(hub.port, mine) as revoked, under_test.dialling(hub.port, other) as kept:
            await eventually(lambda: kept.upstream.is_connected)
            assert not revoked.upstream.is_connected


# -- at a store hub ----------------------------------------------------------------------------------------------------


class StoreUnderTest:
    """A store hub below a super hub that plays what the test wants."""

    def __init__(self, directory: Path) -> None:
        self.control = storehub_kit.Control(session_kit.Fleet.create(directory / "fleet"))
        self.super_hub = storehub_kit.SuperHub(self.control)
        self.directory = directory / "hub"

    def want(self, revocations: RevocationList) -> None:
        made = self.control.make("revocations", "fleet", self.control.sign(revocations), urgent=True)
        self.super_hub.want(self.control.tuf(), made)

    @asynccontextmanager
    async def serving(self, parent: str) -> AsyncIterator[App]:
        async with running(lay_out(self.directory, self.control, parent)) as app:
            yield app

    def till(self, app: App, name: str) -> Any:
        return till(self.control, name, f"127.0.0.1:{app.port}")

    def channel(self, app: App, node: NodeId) -> grpc.aio.Channel:
        return make_channel(self.control.fleet.credentials(node), f"127.0.0.1:{app.port}", STORE)


@pytest.fixture
def store(tmp_path: Path) -> StoreUnderTest:
    return StoreUnderTest(tmp_path)


async def test_a_revoked_device_and_operator_are_cut_off_at_the_store_hub(store: StoreUnderTest) -> None:
    """A device's session and an operator's watch; the other device stays. With a new certificate it is let in again."""
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(store.serving(await stack.enter_async_context(wan(store.super_hub))))
        store.super_hub.want(store.control.tuf(), store.control.holds(), store.control.order("pos-01"))
        await eventually(lambda: app.hub.store.waves)
        revoked = await stack.enter_async_context(store.till(app, "pos-01"))
        kept = await stack.enter_async_context(store.till(app, "pos-02"))
        stub: Any = OperatorServiceStub(await stack.enter_async_context(store.channel(app, OPERATOR)))
        watch = stub.WatchWave(operator_pb2.WatchWaveRequest(wave_id=storehub_kit.WAVE))
        await watch.read()
        await eventually(lambda: len(app.hub.present) == 2)
        await eventually(lambda: revoked.child.upstream.is_connected and kept.child.upstream.is_connected)
        durable = durable_when_told(app.hub.credentials.authorities, store.directory / "state" / "hub.sqlite3")
        began = SystemClock().monotonic()
        store.want(listed(1, revoked.node, OPERATOR))
        await eventually(lambda: revoked.node.path not in app.hub.present, within_s=ENDS_WITHIN_S)
        report_time("a revoked device's session", began)
        assert await asyncio.wait_for(watch.code(), ENDS_WITHIN_S) is grpc.StatusCode.PERMISSION_DENIED
        report_time("a revoked operator's watch at a store hub", began)
        assert durable == [1]
        await eventually(lambda: "REVOKED" in revoked.child.upstream.refusal)
        await until(lambda: any(key.type == "revocations" for key in kept.child.sink.resources), kept.child.sink)
        assert kept.node.path in app.hub.present
        fleet = store.control.fleet
        fleet.nodes[revoked.node.path] = write_node(
            fleet.directory / "again",
            fleet.issuers.issuer(revoked.node.path),
            revoked.node,
            not_before=CUT_OFF,
            not_after=datetime.now(UTC) + timedelta(days=1),
        )
        await stack.enter_async_context(store.till(app, "pos-01"))
        await eventually(lambda: revoked.node.path in app.hub.present)


async def test_a_dark_store_hub_applies_what_it_hears_when_the_wan_returns(store: StoreUnderTest) -> None:
    """Until then it cannot know; afterwards, dark and restarted, it still does, and an older list changes nothing."""
    async with AsyncExitStack() as stack:
        async with wan(store.super_hub) as address:
            pass
        async with store.serving(address) as app:
            revoked = await stack.enter_async_context(store.till(app, "pos-01"))
            await eventually(lambda: app.hub.present)
            store.want(listed(2, revoked.node))
            async with wan(store.super_hub, address):
                await eventually(lambda: not app.hub.present)
                store.want(listed(1))
                await eventually(lambda: refusals(store.super_hub) == ["replay"])
                store.super_hub.drop(*[one for one in store.super_hub.wanted.values() if one.key.type == "revocations"])
                store.super_hub.want(store.control.holds())  # behind the removal
                await eventually(lambda: app.hub.belief.holds)
        async with store.serving("127.0.0.1:1") as app:
            await stack.enter_async_context(store.till(app, "pos-02"))
            refused = await stack.enter_async_context(store.till(app, "pos-01"))
            await eventually(lambda: app.hub.present)
            assert not refused.child.upstream.is_connected
            held = app.hub.credentials.authorities.revocations
            assert held is not None
            assert held.epoch == 2


async def test_no_word_of_a_revoked_node_counts_at_the_store_hub(store: StoreUnderTest) -> None:
    """An outcome that a device signed before it was revoked, and a revoked operator's intent: gate ``signature``."""
    fleet = store.control.fleet
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(store.serving(await stack.enter_async_context(wan(store.super_hub))))
        mine = await stack.enter_async_context(store.till(app, "pos-01"))
        await eventually(lambda: app.hub.present)
        genuine = mine.outcome(OutcomeKind.UPDATED)
        intent = store.control.intent(IntentKind.PAUSE_WAVE)
        store.want(listed(1, mine.node, OPERATOR))
        await eventually(lambda: app.hub.credentials.authorities.revocations)
        fleet.nodes[mine.node.path] = write_node(
            fleet.directory / "again",
            fleet.issuers.issuer(mine.node.path),
            mine.node,
            not_before=CUT_OFF,
            not_after=datetime.now(UTC) + timedelta(days=1),
        )
        again = await stack.enter_async_context(store.till(app, "pos-01"))
        again.report(genuine)
        await eventually(lambda: store.super_hub.reported("report-refused"))
        assert "taken back" in store.super_hub.reported("report-refused")[0].detail
        again.sequence = 5
        again.report(again.outcome(OutcomeKind.UPDATED))
        await eventually(store.super_hub.outcomes)
        assert [one.sequence for one in store.super_hub.outcomes()] == [6]
        with pytest.raises(Exception, match="taken back") as refusal:
            app.hub.belief.judge_intent(intent, datetime.now(UTC))
        assert getattr(refusal.value, "gate", "") == "signature"


async def test_operators_are_told_at_the_store_hub_what_was_taken_back(store: StoreUnderTest) -> None:
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(store.serving(await stack.enter_async_context(wan(store.super_hub))))
        stub: Any = OperatorServiceStub(await stack.enter_async_context(store.channel(app, OPERATOR)))
        empty = await stub.ListRevocations(operator_pb2.ListRevocationsRequest())
        assert (empty.epoch, len(empty.revocations)) == (0, 0)
        store.want(listed(3, storehub_kit.device_node("pos-01"), REGION))
        await eventually(lambda: app.hub.credentials.authorities.revocations)
        page = await stub.ListRevocations(operator_pb2.ListRevocationsRequest(page_size=1))
        assert (page.epoch, len(page.revocations), page.next_page_token) == (3, 1, "1")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.RevokeNode(operator_pb2.RevokeNodeRequest(path="region/midwest", reason="stolen"))
        assert reason(caught.value) == "ASK_CONTROL"
