"""Peers that stop reading, over real gRPC: cut at a bound, with a reason (M6)."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.session_kit import (
    CHILD_OPTIONS,
    DEVICE,
    FAST,
    STORE,
    Fleet,
    MemoryLog,
    MemoryRegistry,
    dialling,
    serving,
    until,
)
from wavemesh.codec.session import encode_child, encode_parent
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.grpc import make_channel, make_server
from wavemesh.runtime.peers import Peers
from wavemesh.session.downstream import SERVICE_NAME
from wavemesh.session.frames import MAX_ASK_BYTES, Ask, Heartbeat, Hello, Welcome
from wavemesh.session.link import DownstreamOptions
from wavemesh.v1 import session_pb2
from wavemesh.v1.session_pb2_grpc import SessionServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

STALL_S = 0.5
MOST_ASKS = 512
"""Of 64 KiB each: far more than any transport holds."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet.create(tmp_path_factory.mktemp("fleet"))


class Reasons(MemoryRegistry):
    """Notes why sessions ended."""

    def __init__(self) -> None:
        super().__init__()
        self.reasons: list[str] = []

    async def child_disconnected(self, child: Any, reason: str) -> None:
        self.reasons.append(reason)
        await super().child_disconnected(child, reason)


async def test_a_child_that_asks_but_reads_nothing_is_cut(fleet: Fleet) -> None:
    """Its answers fill the transport; then no frame is taken, or too many asks are unanswered."""
    registry = Reasons()
    options = DownstreamOptions(FAST, write_stall_s=STALL_S)
    asked = 0
    async with serving(fleet, registry, options=options) as parent:
        channel = make_channel(fleet.credentials(DEVICE), parent.address, STORE)
        call = SessionServiceStub(channel).Connect()
        await call.write(encode_child(Hello(1, "child/1", "i", 1, (), 1, ())))
        await until(lambda: "+pos-01" in registry.events, registry)
        try:
            while not registry.reasons and asked < MOST_ASKS:
                asked += 1
                await call.write(encode_child(Ask(asked, "echo", bytes(MAX_ASK_BYTES))))
                await asyncio.sleep(0.005)
        except grpc.aio.AioRpcError:
            await until(lambda: registry.reasons, registry)
        await channel.close()
    assert re.search("the peer took no frame for 0.5 s|more than 16 asks are unanswered", registry.reasons[0])


@asynccontextmanager
async def deaf_parent(fleet: Fleet, sessions: list[Any]) -> AsyncIterator[str]:
    """It welcomes, beats, and reads nothing."""
    credentials = fleet.credentials(STORE)

    async def connect(_: object, context: Any) -> None:
        await context.read()
        sessions.append(context)
        await context.write(encode_parent(Welcome(1, "parent/1", "s", 0, 200, 512, "e")))
        sequence = 0
        while True:
            sequence += 1
            await context.write(encode_parent(Heartbeat(sequence)))
            await asyncio.sleep(0.05)

    peers = Peers(credentials.authorities, SystemClock())
    server, port = make_server(credentials, address="127.0.0.1:0", maximum_concurrent_rpcs=16, peers=peers)
    method = grpc.stream_stream_rpc_method_handler(
        connect,
        request_deserializer=session_pb2.ConnectRequest.FromString,
        response_serializer=session_pb2.ConnectResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, {"Connect": method}),))
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def test_a_parent_that_beats_but_reads_nothing_is_left(fleet: Fleet) -> None:
    """And come back to, with every report still there."""
    log, sessions = MemoryLog(), list[Any]()
    for _ in range(64):
        log.append(bytes(200 * 1024))
    options = replace(CHILD_OPTIONS, write_stall_s=STALL_S)
    async with deaf_parent(fleet, sessions) as address, dialling(fleet, address, log=log, options=options) as child:
        await until(lambda: any("took no frame" in event for event in child.sink.events), child.sink)
        await until(lambda: len(sessions) > 1, child.sink)
        assert log.first_number == 1
