"""A storm at one parent, over real gRPC and TLS: admitted at a rate, pressing children first, live ones undisturbed."""

from __future__ import annotations

import asyncio
import gc
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.session_kit import (
    CHILD_OPTIONS,
    DEVICE,
    FAST,
    FLEET,
    STORE,
    Fleet,
    MemoryLog,
    MemoryRegistry,
    MemorySink,
    dialling,
    serving,
    until,
)
from wavemesh.codec.session import encode_child
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.grpc import make_channel, make_server
from wavemesh.runtime.peers import Peers
from wavemesh.runtime.status import retry_after_of
from wavemesh.session.frames import Hello
from wavemesh.session.link import DownstreamOptions, SessionDownstream, SessionUpstream
from wavemesh.v1 import session_pb2
from wavemesh.v1.session_pb2_grpc import SessionServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

CHILDREN = 24
RATE = 10.0
AT_ONCE = 4
TERMS = replace(FAST, heartbeat_interval_s=2.0)
NARROW = DownstreamOptions(TERMS, opens_per_s=RATE, opens_at_once=AT_ONCE)
TRIAL = NodeId(FLEET, f"{STORE.path}/device/trial")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet.create(tmp_path_factory.mktemp("fleet"))


def child(number: int) -> NodeId:
    return NodeId(FLEET, f"{STORE.path}/device/pos-{number}")


async def test_a_storm_comes_back_in_its_turn_and_disturbs_nobody(fleet: Fleet) -> None:
    """Each is told a time, keeps to it, and is admitted then; a session that lives beats and reports meanwhile."""
    registry, loop = MemoryRegistry(), asyncio.get_running_loop()
    nodes = [child(number) for number in range(100, 100 + CHILDREN)]
    for node in nodes:
        fleet.credentials(node)
    async with serving(fleet, registry, options=NARROW) as parent, dialling(fleet, parent.address) as live:
        await until(lambda: "settled" in live.sink.events, live.sink)
        async with AsyncExitStack() as stack:
            began_s = loop.time()
            for node in nodes:
                await stack.enter_async_context(dialling(fleet, parent.address, node=node, options=CHILD_OPTIONS))
            live.log.append(b"said in the storm")
            live.upstream.wake()
            await until(lambda: len(parent.downstream.connected()) == CHILDREN + 1, registry, within_s=20)
            lasted_s = loop.time() - began_s
        assert lasted_s >= (CHILDREN - AT_ONCE - 1) / RATE
        assert registry.applied == [("event", b"said in the storm")]
        assert live.sink.events == ["connected", "settled"]


def _connections(port: int) -> int:
    """Established connections at the server of that port, by the kernel's tables."""
    tables = [Path(f"/proc/net/{name}").read_text(encoding="ascii") for name in ("tcp", "tcp6")]
    fields = [line.split() for table in tables for line in table.splitlines()[1:]]
    return sum(each[1].endswith(f":{port:04X}") and each[3] == "01" for each in fields)


async def test_a_child_that_is_turned_away_gives_its_connection_back(fleet: Fleet) -> None:
    """M6: at once, not when its collector of cycles comes; or the parent holds two of a child that is back by then."""
    options = DownstreamOptions(TERMS, max_sessions=1, shed_retry_s=60.0)
    gc.collect()
    gc.disable()
    try:
        async with serving(fleet, MemoryRegistry(), options=options) as parent, dialling(fleet, parent.address) as live:
            await until(lambda: "settled" in live.sink.events, live.sink)
            assert _connections(parent.port) == 1
            other = SessionUpstream(
                credentials=fleet.credentials(child(50)),
                parent=STORE,
                address=parent.address,
                log=MemoryLog(),
                sink=MemorySink(),
                clock=SystemClock(),
                rng=Random(7),
                software_version="child/1",
            )
            end, _ = await other._attempt()
            assert end.reason.startswith("BUSY")
            await until(lambda: _connections(parent.port) == 1, live.sink)
    finally:
        gc.enable()


async def _opens(fleet: Fleet, address: str, node: NodeId) -> float | None:
    """None when the session opens, else the seconds after which the parent wants the child back."""
    channel = make_channel(fleet.credentials(node), address, STORE)
    try:
        call = SessionServiceStub(channel).Connect()
        await call.write(encode_child(Hello(1, "child/1", "i", 1, (), 1, ())))
        return None if (await call.read()) is not grpc.aio.EOF else -1.0
    except grpc.aio.AioRpcError as error:
        return retry_after_of(error) if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED else -1.0
    finally:
        await channel.close()


@asynccontextmanager
async def guarded(fleet: Fleet, is_pressing: Callable[[NodeId], bool]) -> AsyncIterator[str]:
    credentials = fleet.credentials(STORE)
    peers = Peers(credentials.authorities, SystemClock())
    server, port = make_server(credentials, address="127.0.0.1:0", maximum_concurrent_rpcs=64, peers=peers)
    options = DownstreamOptions(FAST, opens_per_s=0.1, opens_at_once=1, is_pressing=is_pressing)
    SessionDownstream(STORE, MemoryRegistry(), SystemClock(), peers, options).add_to(server)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def test_a_device_in_its_trial_goes_before_the_others(fleet: Fleet) -> None:
    async with guarded(fleet, lambda node: node == TRIAL) as address:
        assert await _opens(fleet, address, DEVICE) is None
        told = [await _opens(fleet, address, child(number)) for number in range(2)]
        assert told == pytest.approx([10.0, 20.0], abs=2.0)
        assert await _opens(fleet, address, TRIAL) is None


async def test_children_of_a_parent_that_stops_are_told_different_times(fleet: Fleet) -> None:
    registry = MemoryRegistry()
    options = DownstreamOptions(FAST, opens_per_s=RATE)
    async with serving(fleet, registry, options=options) as parent, AsyncExitStack() as stack:
        calls = []
        for number in range(4):
            channel = make_channel(fleet.credentials(child(number)), parent.address, STORE)
            stack.push_async_callback(channel.close)
            calls.append(call := SessionServiceStub(channel).Connect())
            await call.write(encode_child(Hello(1, "child/1", "i", 1, (), 1, ())))
        await until(lambda: len(parent.downstream.connected()) == 4, registry)
        await parent.downstream.drain(5.0)
        told = []
        for call in calls:
            while isinstance(message := await call.read(), session_pb2.ConnectResponse):
                if message.HasField("goodbye"):
                    told.append(message.goodbye.retry_after_ms)
    assert sorted(told) == [5000, 5100, 5200, 5300]


async def test_one_node_cannot_use_up_what_is_there_for_all(fleet: Fleet) -> None:
    """Calls that say nothing, or whose end nobody reads, stay open; a node may have so many of them."""
    credentials = fleet.credentials(STORE)
    peers = Peers(credentials.authorities, SystemClock(), maximum_calls_per_node=3)
    server, port = make_server(credentials, address="127.0.0.1:0", maximum_concurrent_rpcs=64, peers=peers)
    SessionDownstream(STORE, MemoryRegistry(), SystemClock(), peers, DownstreamOptions(FAST)).add_to(server)
    await server.start()
    address = f"127.0.0.1:{port}"
    channel = make_channel(fleet.credentials(DEVICE), address, STORE)
    silent = [SessionServiceStub(channel).Connect() for _ in range(3)]
    try:
        for call in silent:
            await call.wait_for_connection()
        async with asyncio.timeout(10.0):
            while (told := await _opens(fleet, address, DEVICE)) is None:
                pass
        assert told == pytest.approx(1.0)
        assert await _opens(fleet, address, child(1)) is None
        silent[0].cancel()
        async with asyncio.timeout(10.0):
            while await _opens(fleet, address, DEVICE) is not None:
                pass
    finally:
        await channel.close()
        await server.stop(None)


async def test_connections_beyond_the_bound_are_closed_before_their_handshake(fleet: Fleet) -> None:
    """And a bound that was reached is no lock: who leaves makes room."""
    credentials = fleet.credentials(STORE)
    peers = Peers(credentials.authorities, SystemClock())
    server, port = make_server(credentials, address="127.0.0.1:0", maximum_concurrent_rpcs=3, peers=peers)
    await server.start()
    channels = [make_channel(fleet.credentials(DEVICE), f"127.0.0.1:{port}", STORE) for _ in range(6)]
    try:
        states = await asyncio.gather(*(_settled(channel) for channel in channels))
        assert sorted(state.name for state in states) == ["READY"] * 4 + ["TRANSIENT_FAILURE"] * 2
        for channel, state in zip(channels, states, strict=True):
            if state is grpc.ChannelConnectivity.READY:
                await channel.close()
        late = channels[states.index(grpc.ChannelConnectivity.TRANSIENT_FAILURE)]
        async with asyncio.timeout(10.0):
            while await _settled(late) is not grpc.ChannelConnectivity.READY:
                await late.wait_for_state_change(grpc.ChannelConnectivity.TRANSIENT_FAILURE)
    finally:
        for channel in channels:
            await channel.close()
        await server.stop(None)


async def _settled(channel: grpc.aio.Channel) -> grpc.ChannelConnectivity:
    """READY or TRANSIENT_FAILURE, whichever comes first."""
    final = {grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE}
    while (state := channel.get_state(try_to_connect=True)) not in final:
        await channel.wait_for_state_change(state)
    return state
