"""Ends of a session that share no protocol version, over real gRPC: refused in words, no hot loop, back alone."""

from __future__ import annotations

import dataclasses
import logging

import grpc
import pytest

from tests.session_kit import CHILD_OPTIONS, DEVICE, FAST, STORE, Fleet, MemoryRegistry, dialling, serving
from tests.storehub_kit import eventually
from wavemesh.codec.session import encode_child
from wavemesh.runtime.grpc import make_channel
from wavemesh.runtime.status import error_from_rpc
from wavemesh.session.frames import Hello
from wavemesh.session.link import DownstreamOptions
from wavemesh.session.negotiation import Dialect
from wavemesh.v1.session_pb2_grpc import SessionServiceStub

NEWER = DownstreamOptions(dataclasses.replace(FAST, dialect=Dialect(5, 6, frozenset({"telemetry"}))))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet.create(tmp_path_factory.mktemp("fleet"))


async def test_the_refusal_says_who_must_be_updated(fleet: Fleet) -> None:
    async with (
        serving(fleet, MemoryRegistry(), options=NEWER) as parent,
        make_channel(fleet.credentials(DEVICE), parent.address, STORE) as channel,
    ):
        call = SessionServiceStub(channel).Connect()
        await call.write(encode_child(Hello(4, "child/1", "i", 1, (), 3)))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error_from_rpc(refused.value).details == {
        "reason": "PROTOCOL_VERSION",
        "our_minimum": "5",
        "our_maximum": "6",
        "their_minimum": "3",
        "their_maximum": "4",
        "update": "child",
    }


async def test_a_child_that_is_too_old_stays_away_and_returns_once_it_can(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    """What it holds stays; it says why it is alone; once the parent is one it can speak with, the session opens."""
    registry = MemoryRegistry()
    address = ""
    options = dataclasses.replace(CHILD_OPTIONS, incompatible_s=0.4)
    caplog.set_level(logging.WARNING, "wavemesh.session.upstream")
    async with dialling(fleet, lambda: address, options=options) as child:
        async with serving(fleet, registry, options=NEWER) as parent:
            address = parent.address
            await eventually(lambda: child.upstream.refusal)
            assert len(caplog.records) == 1
            assert "update the child" in child.upstream.refusal
            assert not child.upstream.is_connected
            assert child.sink.events == registry.events == []
        dialect = Dialect(1, 6, frozenset({"telemetry"}))
        understanding = DownstreamOptions(dataclasses.replace(FAST, dialect=dialect))
        async with serving(fleet, registry, options=understanding) as parent:
            address = parent.address
            await eventually(lambda: child.upstream.is_connected)
            assert child.upstream.refusal == ""
            assert child.upstream.capabilities == parent.downstream.capabilities(DEVICE.path) == frozenset()


async def test_capabilities_are_told_to_both_tiers(fleet: Fleet) -> None:
    """What both know is there while the session is, and gone with it."""
    terms = dataclasses.replace(FAST, dialect=Dialect(1, 1, frozenset({"telemetry", "renewal"})))
    options = dataclasses.replace(CHILD_OPTIONS, dialect=Dialect(1, 1, frozenset({"telemetry", "teleport"})))
    async with serving(fleet, MemoryRegistry(), options=DownstreamOptions(terms)) as parent:
        async with dialling(fleet, parent.address, options=options) as child:
            await eventually(lambda: child.upstream.is_connected)
            assert child.upstream.capabilities == parent.downstream.capabilities(DEVICE.path) == {"telemetry"}
        assert child.upstream.capabilities == frozenset()
        await eventually(lambda: not parent.downstream.connected())
        assert parent.downstream.capabilities(DEVICE.path) == frozenset()
