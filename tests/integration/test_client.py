"""The Python client at a real control over mTLS: lists, pages, filters, watches across a restart, refusals (O2)."""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.unit.control.control_kit import (
    CONTROL,
    DEVICES,
    POLICY,
    STORES,
    World,
    inventory,
    make_world,
    plan,
)
from wavemesh.client.operator import ClientOptions, connect, new_intent_id
from wavemesh.client.retrying import Backoff
from wavemesh.errors import BusyError, ConflictError, ForbiddenError, LinkDownError, NotFoundError, PeerError
from wavemesh.identity.ca import FleetCa, write_node
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.grpc import make_channel, make_server
from wavemesh.runtime.peers import Peers
from wavemesh.runtime.status import answers
from wavemesh.trust.statements import IntentKind, OperatorIntent
from wavemesh.v1 import operator_pb2 as pb
from wavemesh.v1 import rollout_pb2
from wavemesh.v1.operator_pb2_grpc import OperatorServiceServicer, add_OperatorServiceServicer_to_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.conftest import CredentialsFactory, TrustKeys
    from tests.unit.control.control_kit import Served
    from wavemesh.client.operator import OperatorClient

FAST = ClientOptions(deadline_s=10.0, backoff=Backoff(base_s=0.05, cap_s=0.2))
ALICE = "operator/alice"


@pytest.fixture
def world(
    tmp_path: Path, credentials: CredentialsFactory, trust_keys: TrustKeys, make_manifest: Callable[..., Any]
) -> World:
    directory = tmp_path / "control"
    directory.mkdir()
    return make_world(directory, credentials, trust_keys, make_manifest())


@asynccontextmanager
async def client_of(served: Served, path: str = ALICE, **options: Any) -> AsyncIterator[OperatorClient]:
    chosen = dataclasses.replace(FAST, **options)
    async with connect(served.world.credentials(path), served.address, CONTROL, chosen) as client:
        yield client


def wish(kind: IntentKind, wave_id: str, intent_id: str = "", **fields: Any) -> OperatorIntent:
    return OperatorIntent(intent_id or new_intent_id(), kind, datetime.now(UTC), wave_id=wave_id, **fields)


async def names(pages: Any) -> list[str]:
    return [getattr(one, "wave_id", "") or one.path async for one in pages]


async def test_lists_pages_and_filters(world: World) -> None:
    """Every page is asked for, each entry comes once; filters are those of the contract (O2)."""
    async with world.serving() as served, client_of(served) as client:
        await client.apply_inventory(inventory())
        labelled = pb.InventoryDevice(
            path=DEVICES[0],
            device_class="pos-tablet",
            hardware_revision="r2",
            labels={"segment": "retail-us-midwest", "rack.row": "7"},
        )
        await client.apply_inventory(pb.ApplyInventoryRequest(devices=[labelled]))
        for percent in (1, 2, 3):
            policy = POLICY.replace(b"percentage: 100", b"percentage: %d" % percent)
            await client.plan_wave(plan(wave=f"w{percent}", policy=policy))
        await client.submit(wish(IntentKind.START_WAVE, "w1"))
        await client.submit(wish(IntentKind.START_WAVE, "w2"))
        await client.submit(wish(IntentKind.PAUSE_WAVE, "w2", reason="smoke"))

        def waves(**fields: Any) -> Any:
            return names(client.waves(pb.ListWavesRequest(page_size=1, **fields)))

        assert await waves() == ["w3", "w2", "w1"]
        assert await waves(states=[rollout_pb2.WAVE_STATE_RUNNING]) == ["w1"]
        assert await waves(states=[rollout_pb2.WAVE_STATE_PAUSED, rollout_pb2.WAVE_STATE_PLANNED]) == ["w3", "w2"]
        used = {store.store for wave_id in ("w1", "w2", "w3") for store in (await client.wave(wave_id)).stores}
        for store in STORES:
            assert await waves(store=store.rsplit("/", 1)[1]) == (["w3", "w2", "w1"] if store in used else [])

        def devices(**fields: Any) -> Any:
            return names(client.devices(pb.ListDevicesRequest(page_size=5, **fields)))

        assert await devices() == sorted(DEVICES)
        assert await devices(store=STORES[1]) == sorted(path for path in DEVICES if path.startswith(STORES[1]))
        assert await devices(labels={"rack.row": "7", "segment": "retail-us-midwest"}) == [DEVICES[0]]
        assert await devices(labels={"rack.row": "8"}) == []
        assert await devices(device_class="camera") == []
        of_wave = pb.ListIntentsRequest(page_size=1, wave_id="w2", disposition=pb.DISPOSITION_APPLIED)
        applied = [record.kind async for record in client.intents(of_wave)]
        asked = [record.kind async for record in client.intents(pb.ListIntentsRequest(wave_id="w2"))]
        assert set(applied) <= set(asked) == {rollout_pb2.INTENT_KIND_START_WAVE, rollout_pb2.INTENT_KIND_PAUSE_WAVE}
        for path in DEVICES[:3]:
            await client.revoke_node(pb.RevokeNodeRequest(path=path, reason="stolen"))
        taken_back = client.revocations(pb.ListRevocationsRequest(page_size=2))
        assert [entry.path async for entry in taken_back] == list(DEVICES[:3])
        assert [entry.subject async for entry in client.audit(pb.ListAuditRequest(page_size=2))]


@pytest.mark.parametrize(
    ("method", "request_", "word"),
    [
        ("ListWaves", pb.ListWavesRequest(states=[99]), "states"),  # type: ignore[list-item]  # no such state
        ("ListWaves", pb.ListWavesRequest(states=[1] * 17), "states"),  # type: ignore[list-item]  # by number
        ("ListDevices", pb.ListDevicesRequest(labels={'a"b': "x"}), "labels"),
        ("ListDevices", pb.ListDevicesRequest(labels={str(n): "x" for n in range(65)}), "labels"),
        ("ListIntents", pb.ListIntentsRequest(disposition=9), "disposition"),  # type: ignore[arg-type]  # none such
    ],
)
async def test_filters_have_bounds(world: World, method: str, request_: Any, word: str) -> None:
    """Q2: what is wrong with a filter is said by its name."""
    async with world.serving() as served, client_of(served) as client:
        with pytest.raises(PeerError, match=word):
            await client.ask(getattr(client.stub, method), request_)


async def test_refusals_have_the_servers_class_and_reason(world: World) -> None:
    """What control refused, the caller can tell apart (O2)."""
    async with world.serving() as served, client_of(served) as client:
        with pytest.raises(NotFoundError) as missing:
            await client.wave("none")
        assert missing.value.details["wave"] == "none"
        with pytest.raises(NotFoundError):
            await anext(client.watch_wave("none"))
        with pytest.raises(NotFoundError):
            await names(client.waves(pb.ListWavesRequest(store="none")))
        with pytest.raises(ConflictError) as elsewhere:
            await client.device_logs(pb.GetDeviceLogsRequest(device="pos-01"))
        assert elsewhere.value.details["reason"] == "ASK_HUB"


async def test_an_intent_sent_again_is_the_same_intent(world: World) -> None:
    """The id is the idempotency key (O1)."""
    async with world.serving() as served, client_of(served) as client:
        await client.apply_inventory(inventory())
        await client.plan_wave(plan())
        start = wish(IntentKind.START_WAVE, "142", "start-142")
        assert [(await client.submit(start)).duplicate, (await client.submit(start)).duplicate] == [False, True]


async def test_a_watch_resumes_across_a_restart(world: World) -> None:
    """Nothing is yielded twice, no change is missed for good, and the watch ends with the wave (O2)."""
    async with world.serving() as served:
        port = served.control.port
        async with client_of(served) as client:
            await client.apply_inventory(inventory())
            await client.plan_wave(plan())
    world.config = dataclasses.replace(world.config, listen=f"127.0.0.1:{port}")
    seen: asyncio.Queue[pb.Wave] = asyncio.Queue()
    options = dataclasses.replace(FAST, watch_patience_s=30.0)
    async with connect(world.credentials(ALICE), f"127.0.0.1:{port}", CONTROL, options) as client:

        async def follow() -> None:
            async with aclosing(client.watch_wave("142")) as waves:
                async for wave in waves:
                    seen.put_nowait(wave)

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            async with world.serving():
                watching = group.create_task(follow())
                first = await seen.get()
                assert first.state == rollout_pb2.WAVE_STATE_PLANNED
            async with world.serving() as served:
                await client.submit(wish(IntentKind.START_WAVE, "142"))
                second = await seen.get()
                assert second.state == rollout_pb2.WAVE_STATE_RUNNING
                assert seen.empty()
                watching.cancel()


async def test_a_watch_loses_patience(world: World) -> None:
    """A control that stays away ends the watch with the error, not never."""
    async with connect(
        world.credentials(ALICE), "127.0.0.1:1", CONTROL, dataclasses.replace(FAST, watch_patience_s=0.3)
    ) as client:
        with pytest.raises(LinkDownError):
            await anext(client.watch_wave("142"))


def deadlines(client: OperatorClient, call: str, then: Callable[[], object] = lambda: None) -> list[float]:
    """The deadlines that each attempt of that call is given from now on, seconds."""
    real, given = getattr(client.stub, call), list[float]()

    def attempt(request: Any, *, timeout: float) -> Any:
        given.append(timeout)
        then()
        return real(request, timeout=timeout)

    setattr(client.stub, call, attempt)
    return given


async def test_a_stream_grown_old_is_opened_again(world: World) -> None:
    """A stream has a deadline too; the watch outlives it."""
    async with world.serving() as served, client_of(served, watch_stream_s=0.2) as client:
        await client.apply_inventory(inventory())
        await client.plan_wave(plan())
        third = asyncio.Event()
        opened = deadlines(client, "WatchWave", lambda: third.set() if len(opened) == 3 else None)
        async with aclosing(client.watch_wave("142")) as waves:
            assert (await anext(waves)).wave_id == "142"
            async with asyncio.timeout(20), asyncio.TaskGroup() as group:
                following = group.create_task(_next(waves))
                await third.wait()
                await client.submit(wish(IntentKind.START_WAVE, "142"))
                assert (await following).state == rollout_pb2.WAVE_STATE_RUNNING
    assert set(opened) == {0.2}


async def _next(waves: Any) -> pb.Wave:
    wave: pb.Wave = await anext(waves)
    return wave


@pytest.mark.parametrize("path", [DEVICES[0], STORES[0], "region/midwest"])
async def test_a_certificate_of_no_operator_is_refused(world: World, path: str) -> None:
    """The role in the certificate decides (P2)."""
    async with world.serving() as served, client_of(served, path) as client:
        with pytest.raises(ForbiddenError):
            await names(client.waves())
        with pytest.raises(ForbiddenError):
            await anext(client.watch_wave("142"))


async def test_a_stranger_is_refused_and_so_is_another_node(world: World, tmp_path: Path) -> None:
    """An operator of a CA that is not the fleet's; control's address with another node's name (P2)."""
    now = datetime.now(UTC)
    stranger = write_node(
        tmp_path / "stranger",
        FleetCa.create("test.example", now - timedelta(days=1)),
        NodeId("test.example", ALICE),
        not_before=now - timedelta(hours=1),
        not_after=now + timedelta(days=1),
    )
    short = dataclasses.replace(FAST, deadline_s=1.0)
    async with world.serving() as served:
        async with connect(stranger, served.address, CONTROL, short) as client:
            with pytest.raises(LinkDownError):
                await client.fleet_status()
        other = NodeId("test.example", "control/cloud-2")
        async with connect(world.credentials(ALICE), served.address, other, short) as client:
            with pytest.raises(LinkDownError):
                await client.fleet_status()


async def test_reflection_lists_every_service(world: World) -> None:
    """A tool that knows nothing of the contract finds all of it (O2)."""
    async with (
        world.serving() as served,
        make_channel(world.credentials(ALICE), served.address, CONTROL) as channel,
    ):
        stub: Any = _untyped(reflection_pb2_grpc.ServerReflectionStub)(channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="*")]))
        listed = {service.name async for answer in call for service in answer.list_services_response.service}
    assert listed == {
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "wavemesh.v1.OperatorService",
        "wavemesh.v1.SessionService",
    }


def _untyped(value: object) -> Any:
    """What generated types know only in its synchronous or generating form."""
    return value


class Overloaded(OperatorServiceServicer):
    """Refuses each call once as busy; its list of waves never ends."""

    def __init__(self, hint_s: float) -> None:
        self.hint_s = hint_s
        self.calls: list[tuple[str, float]] = []

    async def _answer(self, name: str, answer: Any) -> Any:
        self.calls.append((name, asyncio.get_running_loop().time()))
        if sum(name == called for called, _ in self.calls) == 1:
            msg = "too many at once"
            raise BusyError(msg, self.hint_s)
        return answer

    @answers
    async def GetFleetStatus(  # noqa: N802  # gRPC names
        self, request: pb.GetFleetStatusRequest, context: Any
    ) -> Any:
        return await self._answer("GetFleetStatus", pb.GetFleetStatusResponse(devices=7))

    @answers
    async def SetHold(  # noqa: N802  # gRPC names
        self, request: pb.SetHoldRequest, context: Any
    ) -> Any:
        return await self._answer("SetHold", pb.SetHoldResponse())

    @answers
    async def ListWaves(  # noqa: N802  # gRPC names
        self, request: pb.ListWavesRequest, context: Any
    ) -> Any:
        return pb.ListWavesResponse(waves=[pb.Wave(wave_id="142")], next_page_token="again")


@asynccontextmanager
async def overloaded(world: World, hint_s: float) -> AsyncIterator[tuple[Overloaded, OperatorClient]]:
    servicer: Overloaded = _untyped(Overloaded)(hint_s)
    credentials = world.credentials(CONTROL.path)
    peers = Peers(credentials.authorities, SystemClock())
    server, port = make_server(credentials, address="127.0.0.1:0", maximum_concurrent_rpcs=10, peers=peers)
    add_OperatorServiceServicer_to_server(servicer, server)
    await server.start()
    try:
        async with connect(world.credentials(ALICE), f"127.0.0.1:{port}", CONTROL, FAST) as client:
            yield servicer, client
    finally:
        await server.stop(None)


async def test_a_busy_server_is_asked_again_when_it_said(world: World) -> None:
    """Not before the hint, within one deadline for all attempts."""
    async with overloaded(world, 0.2) as (servicer, client):
        given = deadlines(client, "GetFleetStatus")
        assert (await client.fleet_status()).devices == 7
    (_, first), (_, second) = servicer.calls
    assert second - first >= 0.2
    assert FAST.deadline_s >= given[0] >= given[1] + 0.2


async def test_a_hint_beyond_the_deadline_is_the_answer(world: World) -> None:
    async with overloaded(world, 60.0) as (servicer, client):
        with pytest.raises(BusyError) as busy:
            await client.within(1.0).fleet_status()
    assert busy.value.retry_after_s == 60.0
    assert len(servicer.calls) == 1


async def test_what_must_not_be_repeated_is_not(world: World) -> None:
    """A lift repeated late could undo somebody else's hold."""
    async with overloaded(world, 0.0) as (servicer, client):
        with pytest.raises(BusyError):
            await client.lift_hold("firmware-v3.8.2")
    assert len(servicer.calls) == 1


async def test_pages_that_do_not_end_are_an_error(world: World) -> None:
    async with overloaded(world, 0.0) as (_, client):
        with pytest.raises(PeerError, match="do not end"):
            await names(client.waves())
