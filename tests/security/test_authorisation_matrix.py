"""The authorisation matrix: every RPC, at every tier, by every role and every wrong identity (P2, D11).

The real servers of the three tiers, real mutual TLS. One test a tier: it collects what is not as the matrix says.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tests import storehub_kit
from tests.conftest import FLEET
from tests.security.identities import REVOKED, Identities, Impostor, dial
from tests.security.matrix import (
    BEGIN,
    CHILDREN,
    PAGE,
    ROWS,
    Answer,
    Caller,
    Tier,
    Who,
    expected,
    methods,
    page,
    services,
    who,
)
from tests.superhub_kit import Region
from tests.unit.control.control_kit import make_world
from wavemesh.identity.ca import write_node
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.status import error_from_rpc
from wavemesh.v1 import session_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from google.protobuf.descriptor import MethodDescriptor
    from google.protobuf.message import Message

    from tests.conftest import CredentialsFactory, TrustKeys
    from wavemesh.identity.authorities import Authorities
    from wavemesh.identity.ca import FleetCa

TIMEOUT_S = 20.0
METHODS = methods()
REFLECTION = "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"

# An empty request is enough to see who is let in; where it is not, this one is, and its answer must be a message.
REQUESTS: dict[str, Message] = {
    "wavemesh.v1.SessionService/Connect": session_pb2.ConnectRequest(
        hello=session_pb2.Hello(protocol_version=1, incarnation="a" * 32, next_report_number=1)
    ),
    "grpc.health.v1.Health/Check": health_pb2.HealthCheckRequest(),
    REFLECTION: reflection_pb2.ServerReflectionRequest(list_services=""),
}
# What a request that is let in may be told when there is nothing to do it with.
_REASONED = frozenset(
    {
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
_REFUSED = {
    grpc.StatusCode.PERMISSION_DENIED: Answer.FORBIDDEN,
    grpc.StatusCode.UNIMPLEMENTED: Answer.ABSENT,
    grpc.StatusCode.UNAVAILABLE: Answer.NO_CONNECTION,
}


async def first(channel: grpc.aio.Channel, name: str, method: MethodDescriptor) -> bytes | None:
    """The first message that answers, None when the call ends well without one; raises AioRpcError.

    Answers are read as a stream, whatever they are: on the wire there is no difference.
    """
    request = (REQUESTS.get(name) or GetMessageClass(method.input_type)()).SerializeToString()
    if method.client_streaming:
        return await _first_of_stream(channel, name, request)
    ask: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(f"/{name}")
    return await _read(ask(request, timeout=TIMEOUT_S))


async def _first_of_stream(channel: grpc.aio.Channel, name: str, request: bytes) -> bytes | None:
    start: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"/{name}")
    call = start(timeout=TIMEOUT_S)
    try:
        await call.write(request)
    except asyncio.InvalidStateError:
        pass  # refused before the request was out; the read says how
    except grpc.aio.AioRpcError:
        # Refused while the request was on its way, and grpcio lost the status to an error of its own ("Internal error
        # from Core"). Whom a server refuses unheard it refuses without a request as well.
        call.cancel()
        call = start(timeout=TIMEOUT_S)
    return await _read(call)


async def _read(call: grpc.aio.UnaryStreamCall[bytes, bytes] | grpc.aio.StreamStreamCall[bytes, bytes]) -> bytes | None:
    try:
        message = await call.read()
        return message if isinstance(message, bytes) else None
    finally:
        call.cancel()


async def answer(channel: grpc.aio.Channel, name: str) -> Answer | str:
    """What a caller gets; a text when it is nothing the matrix knows."""
    try:
        message = await first(channel, name, METHODS[name])
    except grpc.aio.AioRpcError as error:
        code, reason = error.code(), error_from_rpc(error).details.get("reason")
        if code in _REFUSED:
            return _REFUSED[code]
        if reason in {"ASK_CONTROL", "ASK_HUB"}:
            return Answer.SENT_ON
        return Answer.SERVED if code in _REASONED and name not in REQUESTS else f"{code.name}: {error.details()}"
    return "no message" if message is None and name in REQUESTS else Answer.SERVED


def expected_of_impostor(name: str, tier: Tier, kind: Impostor) -> Answer:
    if kind.answer is Answer.NO_CONNECTION or who(name, tier) not in {Who.NODES, Who.NOBODY}:
        return kind.answer
    return Answer.SERVED if who(name, tier) is Who.NODES else Answer.ABSENT


def served_child(tier: Tier) -> str:
    """Path of a node that a tier serves as its child."""
    return min(caller.value for caller in CHILDREN[tier])


@dataclass(frozen=True, slots=True)
class Running:
    """A server under test, and whom it believes."""

    port: int
    authorities: Authorities


async def wrong_cells(tier: Tier, port: int, identities: Identities) -> list[str]:
    """Call everything as everybody; returns what is not as the matrix says."""
    wrong: list[str] = []

    async def call_all(title: str, credentials: grpc.ChannelCredentials, wanted: dict[str, Answer]) -> None:
        async with dial(port, NodeId(FLEET, tier.path), credentials) as channel:
            for name in METHODS:
                got = await answer(channel, name)
                if got is not wanted[name]:
                    wrong.append(f"{name} at {tier.title} as {title}: {got}, not {wanted[name]}")

    async with asyncio.TaskGroup() as group:
        for caller in Caller:
            cells = {name: expected(name, tier, caller) for name in ROWS}
            group.create_task(call_all(caller.value, identities.node(caller.value), cells))
        served = served_child(tier)
        for kind in Impostor:
            cells = {name: expected_of_impostor(name, tier, kind) for name in ROWS}
            for path in (served, Caller.OPERATOR.value):
                group.create_task(call_all(f"{path} with {kind.value}", identities.impostor(kind, path), cells))
    return wrong


@asynccontextmanager
async def control(
    directory: Path, ca: FleetCa, credentials: CredentialsFactory, trust_keys: TrustKeys
) -> AsyncIterator[Running]:
    async with make_world(directory / "control", credentials, trust_keys).serving() as served:
        yield Running(served.control.port, served.control.authorities)


@asynccontextmanager
async def super_hub(
    directory: Path, ca: FleetCa, credentials: CredentialsFactory, trust_keys: TrustKeys
) -> AsyncIterator[Running]:
    region = Region(directory, ca, trust_keys, origin_port=1, control_port=1)
    region.write_hub()
    async with region.running_hub() as hub:
        yield Running(hub.port, hub.credentials.authorities)


@asynccontextmanager
async def store_hub(
    directory: Path, ca: FleetCa, credentials: CredentialsFactory, trust_keys: TrustKeys
) -> AsyncIterator[Running]:
    node = credentials(Tier.STORE_HUB.path)
    of = node.certificate
    write_node(
        directory / "identity", ca, node.node_id, not_before=of.not_valid_before_utc, not_after=of.not_valid_after_utc
    )
    (directory / "trust").mkdir()
    (directory / "trust" / "root.json").write_bytes(trust_keys.pinned_root)
    config = storehub_kit.CONFIG.format(port=0, parent="127.0.0.1:1", lease_s=1, trial_s=1, watchdog_s=1)
    (directory / "config.toml").write_text(config)
    async with storehub_kit.running(directory) as app:
        yield Running(app.port, app.hub.credentials.authorities)


SERVERS = {Tier.CONTROL: control, Tier.SUPER_HUB: super_hub, Tier.STORE_HUB: store_hub}


@pytest.mark.parametrize("tier", Tier, ids=lambda tier: tier.title)
async def test_everybody_gets_what_the_matrix_says(
    tier: Tier, tmp_path: Path, fleet_ca: FleetCa, credentials: CredentialsFactory, trust_keys: TrustKeys
) -> None:
    identities = Identities(fleet_ca)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(SERVERS[tier](tmp_path, fleet_ca, credentials, trust_keys))
        server.authorities.take(identities.revocations(served_child(tier), Caller.OPERATOR.value))
        port = server.port
        wrong = await wrong_cells(tier, port, identities)
        node = identities.node(Caller.OPERATOR.value)
        channel = await stack.enter_async_context(dial(port, NodeId(FLEET, tier.path), node))
        reflected = await first(channel, REFLECTION, METHODS[REFLECTION])
    assert not wrong, "\n".join(wrong)
    listed = reflection_pb2.ServerReflectionResponse.FromString(reflected or b"")
    assert {one.name for one in listed.list_services_response.service} == services(tier)


@pytest.mark.parametrize("tier", Tier, ids=lambda tier: tier.title)
async def test_a_revoked_identity_is_told_so_by_every_rpc(
    tier: Tier, tmp_path: Path, fleet_ca: FleetCa, credentials: CredentialsFactory, trust_keys: TrustKeys
) -> None:
    """Whatever is asked, and whatever of it was taken back."""
    identities, paths = Identities(fleet_ca), (served_child(tier), Caller.OPERATOR.value)
    told: set[str] = set()
    async with SERVERS[tier](tmp_path, fleet_ca, credentials, trust_keys) as server:
        server.authorities.take(identities.revocations(*paths))
        for kind, path in product(REVOKED, paths):
            async with dial(server.port, NodeId(FLEET, tier.path), identities.impostor(kind, path)) as channel:
                for name in ROWS:
                    if who(name, tier) not in {Who.NODES, Who.NOBODY}:
                        with pytest.raises(grpc.aio.AioRpcError) as caught:
                            await first(channel, name, METHODS[name])
                        told.add(error_from_rpc(caught.value).details["reason"])
    assert told == {"REVOKED"}


def test_every_rpc_has_a_row_and_every_row_an_rpc() -> None:
    assert sorted(ROWS) == sorted(METHODS)


def test_every_tier_serves_an_rpc_to_somebody_and_refuses_it_to_others() -> None:
    """A matrix that lets everybody in, or nobody, would be green as well."""
    for tier in Tier:
        answers = {expected(name, tier, caller) for name in ROWS for caller in Caller}
        assert {Answer.SERVED, Answer.FORBIDDEN} <= answers


def test_the_page_shows_the_matrix() -> None:
    text = PAGE.read_text()
    assert BEGIN in text
    assert text == page(text), "run python -m tests.security.matrix"
