"""Being let in is not being believed: nobody reports for others, nobody is given what is for others (P2, D11)."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest

from tests import session_kit, storehub_kit, superhub_kit
from tests.conftest import FLEET
from tests.session_kit import until
from tests.storehub_kit import WAVE, device_node, eventually, lay_out, running, till, wan
from tests.superhub_kit import REGION, store_id
from tests.unit.control import control_kit
from wavemesh.codec.statements import decode, encode
from wavemesh.identity.nodes import NodeId
from wavemesh.session.faults import AskFailedError
from wavemesh.trust.envelope import sign_as_node
from wavemesh.trust.statements import (
    DeviceOutcome,
    EventReport,
    HealthPing,
    HubStatus,
    IntentKind,
    IntentReport,
    OperatorIntent,
    OutcomeKind,
    OutcomeReport,
    SnapshotReport,
    UpdateState,
)
from wavemesh.v1 import operator_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path

    from tests.conftest import CredentialsFactory, TrustKeys
    from tests.session_kit import Child
    from wavemesh.identity.ca import FleetCa
    from wavemesh.identity.credentials import NodeCredentials
    from wavemesh.session.frames import ResourceKey
    from wavemesh.trust.statements import Envelope

NOW = datetime.now(UTC)


def event(node: str) -> EventReport:
    return EventReport(f"event-of-{node}", node, "said", "", "", node, "", NOW)


# -- device and store hub ----------------------------------------------------------------------------------------------


async def test_a_device_reports_and_asks_for_itself_alone(tmp_path: Path) -> None:
    """Outcomes, snapshots, events and pings of another device stop at the store hub, which reports the attempts."""
    fleet = session_kit.Fleet.create(tmp_path / "fleet")
    control = storehub_kit.Control(fleet)
    super_hub = storehub_kit.SuperHub(control)
    async with AsyncExitStack() as stack:
        parent = await stack.enter_async_context(wan(super_hub))
        app = await stack.enter_async_context(running(lay_out(tmp_path / "hub", control, parent)))
        address = f"127.0.0.1:{app.port}"
        mine = await stack.enter_async_context(till(control, "pos-01", address))
        other = await stack.enter_async_context(till(control, "pos-02", address))
        theirs = other.outcome(OutcomeKind.UPDATED)
        forged = replace(other, node=other.node).outcome(OutcomeKind.FAILED, gate="boot", signer=mine.node)
        mine.report(theirs)  # genuine, but not pos-01's to report
        mine.report(forged)
        snapshot = SnapshotReport(other.node.path, "i" * 32, (theirs, forged), last=True)
        mine.child.log.append(encode(snapshot), "snapshot")
        mine.child.log.append(encode(event(other.node.path)), "event")
        mine.report(mine.outcome(OutcomeKind.UPDATED))
        await eventually(super_hub.outcomes)
        assert {one.device for one in super_hub.outcomes()} == {mine.node.path}
        assert len(super_hub.reported("report-refused")) == 4
        assert {one.subject for one in super_hub.reported("report-refused")} == {mine.node.path}
        assert not super_hub.reported("said")
        ping = HealthPing(WAVE, other.node.path, "b", "B", "0" * 64, 1, "hub")
        for signer in (other.node, mine.node):
            asked = encode(sign_as_node(ping, fleet.credentials(signer)))
            with pytest.raises(AskFailedError):
                await mine.child.upstream.ask("health-ping", asked, 5.0)


async def test_a_status_that_names_another_device_ends_the_session(tmp_path: Path) -> None:
    control = storehub_kit.Control(session_kit.Fleet.create(tmp_path / "fleet"))
    async with running(lay_out(tmp_path / "hub", control, "127.0.0.1:1")) as app:
        async with till(control, "pos-01", f"127.0.0.1:{app.port}") as mine:
            mine.status = replace(mine.status, device=device_node("pos-02").path)
            mine.say(UpdateState.VERIFIED)
            sink = mine.child.sink
            await until(lambda: any("status of" in one for one in sink.events), sink)
        assert device_node("pos-02").path not in app.hub.store.devices


async def test_a_device_is_given_its_own_assignment_alone(tmp_path: Path) -> None:
    """The order, its policy and the lease go to the device they name; permits to none."""
    control = storehub_kit.Control(session_kit.Fleet.create(tmp_path / "fleet"))
    super_hub = storehub_kit.SuperHub(control)
    async with AsyncExitStack() as stack:
        parent = await stack.enter_async_context(wan(super_hub))
        app = await stack.enter_async_context(running(lay_out(tmp_path / "hub", control, parent)))
        named = await stack.enter_async_context(till(control, "pos-01", f"127.0.0.1:{app.port}"))
        other = await stack.enter_async_context(till(control, "pos-02", f"127.0.0.1:{app.port}"))
        await eventually(lambda: super_hub.incarnation)
        super_hub.want(control.tuf(), control.holds(), control.policy_resource(), control.order("pos-01"))
        super_hub.want(control.permit("pos-01", super_hub.incarnation))
        for one in (named, other):
            one.say(UpdateState.VERIFIED)
        await eventually(named.lease)
        later = control.holds(2)  # behind all that other may have been sent
        super_hub.want(later)
        held = other.child.sink.resources
        await until(lambda: later.digest in {one.digest for one in held.values()}, other.child.sink)
        assert {key.type for key in named.child.sink.resources} == {"tuf", "holds", "policy", "order", "lease"}
        assert {key.type for key in held} == {"tuf", "holds"}


# -- store hub and super hub -------------------------------------------------------------------------------------------


def outcome(device: str, signer: NodeCredentials, kind: OutcomeKind = OutcomeKind.UPDATED) -> Envelope:
    gate = "" if kind is OutcomeKind.UPDATED else "boot"
    said = DeviceOutcome("142", device, 1, 1, kind, gate, "", "b", "B", "0" * 64, "3.8.2", "0" * 64, NOW)
    return sign_as_node(said, signer)


async def test_a_store_hub_reports_for_its_own_store_alone(
    tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys
) -> None:
    """What a hub says of another store is dropped and told to control; what it says of its own counts."""
    mine, other = store_id("store-20"), store_id("store-209")
    my_device, their_device = (NodeId(FLEET, f"{store.path}/device/pos-01") for store in (mine, other))
    region = superhub_kit.Region(tmp_path, fleet_ca, trust_keys, origin_port=1)
    theirs = outcome(their_device.path, region.credentials(their_device))
    by_me = outcome(their_device.path, region.credentials(mine), OutcomeKind.FAILED)
    intent = sign_as_node(
        OperatorIntent("i-1", IntentKind.PAUSE_WAVE, NOW, "142", reason="because"),
        region.credentials(NodeId(FLEET, "operator/alice")),
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(region.running_control())
        region.write_hub()
        hub = await stack.enter_async_context(region.running_hub())
        dial = session_kit.dialling(cast("Any", region), f"127.0.0.1:{hub.port}", node=mine, parent=REGION)
        child = await stack.enter_async_context(dial)
        for kind, body in (
            ("outcome", encode(OutcomeReport((theirs, by_me)))),
            ("snapshot", encode(SnapshotReport(other.path, "i" * 32, (theirs,), last=True))),
            ("event", encode(event(other.path))),
            ("intent", encode(IntentReport(intent, other.path))),
            ("outcome", encode(OutcomeReport((outcome(my_device.path, region.credentials(my_device)),)))),
        ):
            child.log.append(body, kind)
        child.upstream.wake()
        await until(lambda: region.outcomes() and len(region.events()) == 5, region.control)
        assert [one.kind for one in region.events()] == ["report-refused"] * 5
        assert all(f"{mine.path} speaks for" in one.detail or "not its own" in one.detail for one in region.events())
        assert [decode(DeviceOutcome, one.payload).device for one in region.outcomes()] == [my_device.path]
        assert "intent" not in {kind for kind, _ in region.control.applied}
        assert [one.node for one in region.snapshots() if one.node != REGION.path] == []


async def test_a_store_hub_is_given_what_is_for_its_store(
    tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys
) -> None:
    (tmp_path / "origin-files").mkdir()
    region = superhub_kit.Region(tmp_path, fleet_ca, trust_keys, origin_port=1)
    release = region.publish("firmware-1", b"firmware")
    stores = (store_id("store-20"), store_id("store-209"))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(region.running_control())
        region.write_hub()
        hub = await stack.enter_async_context(region.running_hub())
        children: list[Child] = []
        for store in stores:
            dial = session_kit.dialling(cast("Any", region), f"127.0.0.1:{hub.port}", node=store, parent=REGION)
            children.append(await stack.enter_async_context(dial))
        for store in stores:
            region.order(store, release)
        for child in children:
            await until(partial(_orders, child.sink.resources), child.sink)
        for store, child in zip(stores, children, strict=True):
            assert _orders(child.sink.resources) == [f"142/{store.name}"]


def _orders(held: Iterable[ResourceKey]) -> list[str]:
    return [key.name for key in held if key.type == "order"]


# -- super hub and control ---------------------------------------------------------------------------------------------


@pytest.fixture
def world(
    tmp_path: Path, credentials: CredentialsFactory, trust_keys: TrustKeys, make_manifest: Callable[..., Any]
) -> control_kit.World:
    (tmp_path / "control").mkdir()
    return control_kit.make_world(tmp_path / "control", credentials, trust_keys, make_manifest())


class _Credentials:
    """The fleet of a World, for the session kit."""

    def __init__(self, world: control_kit.World) -> None:
        self._world = world

    def credentials(self, node: NodeId) -> NodeCredentials:
        return self._world.credentials(node.path)


async def refusals(stub: Any) -> AsyncIterator[Any]:
    """What control audits of reports that it drops."""
    answer = await stub.ListAudit(operator_pb2.ListAuditRequest())
    for entry in answer.entries:
        if entry.action == "report.refused":
            yield entry


async def test_a_super_hub_speaks_and_hears_for_its_own_region_alone(world: control_kit.World) -> None:
    """Another region's super hub gets nothing of a wave and cannot report for it; a hub says only what hubs may."""
    west = NodeId(control_kit.FLEET, "region/west")
    mine, other = control_kit.DEVICES[0], control_kit.DEVICES[6]
    hub = control_kit.STORES[0]
    async with world.serving() as served, served.calling() as stub, served.region() as region:
        dial = session_kit.dialling(
            cast("Any", _Credentials(world)), served.address, node=west, parent=control_kit.CONTROL
        )
        async with dial as stranger:
            await stub.ApplyInventory(control_kit.inventory())
            await stub.PlanWave(control_kit.plan())
            await until(lambda: len(region.names("order")) == 2, region.sink)
            genuine = control_kit.outcome(world, mine, OutcomeKind.UPDATED)
            stranger.log.append(encode(OutcomeReport((genuine,))), "outcome")
            stranger.log.append(encode(event(hub)), "event")
            stranger.upstream.set_status("store/store-208/hub", encode(HubStatus(hub, NOW, connected=True)))
            stranger.upstream.wake()
            region.report(
                control_kit.outcome(world, other, OutcomeKind.FAILED, signer=hub),  # a hub of another store's device
                control_kit.outcome(world, mine, OutcomeKind.UPDATED, signer=hub),  # what only the device may say
                control_kit.outcome(world, mine, OutcomeKind.FAILED, signer=control_kit.MIDWEST.path),
                control_kit.outcome(world, other, OutcomeKind.FAILED, signer=mine),
                control_kit.outcome(world, other, OutcomeKind.UPDATED),
            )
            wave = await _counted(stub, 1)
            await eventually(lambda: stranger.log.first_number == 3)
            assert {key.type for key in stranger.sink.resources} == {"tuf", "holds"}
            refused = [one async for one in refusals(stub)]
            assert sorted(one.actor for one in refused) == [control_kit.MIDWEST.uri] * 4 + [west.uri] * 2
            assert wave.counts.failed == 0
            assert hub not in served.control.core.fleet.hubs


async def _counted(stub: Any, updated: int) -> operator_pb2.Wave:
    """The wave once that many devices have updated."""
    async for answer in stub.WatchWave(operator_pb2.WatchWaveRequest(wave_id="142"), timeout=10):
        if answer.wave.counts.updated == updated:
            return cast("operator_pb2.Wave", answer.wave)
    pytest.fail("the wave closed before")


async def test_an_operator_hands_in_its_own_intents_alone(world: control_kit.World) -> None:
    request = control_kit.intent(world, IntentKind.PAUSE_WAVE, operator="operator/alice", reason="because")
    async with world.serving() as served, served.calling("operator/bob") as stub:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await stub.SubmitIntent(request)
    assert refusal.value.code() is grpc.StatusCode.PERMISSION_DENIED
