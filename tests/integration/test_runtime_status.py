"""Errors over real gRPC: the class, its reason, details and time to come back arrive; a local fault's text does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.session_kit import DEVICE, OTHER_STORE, STORE, Fleet
from wavemesh.errors import (
    BusyError,
    ConflictError,
    ForbiddenError,
    GateError,
    LinkDownError,
    NotFoundError,
    PeerError,
    WavemeshError,
)
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.durable import DiskFullError
from wavemesh.runtime.grpc import make_bulk_channel, make_channel, make_server, serve_health, set_serving
from wavemesh.runtime.peers import Peers
from wavemesh.runtime.status import RemoteFaultError, answers, error_from_rpc
from wavemesh.session.faults import SessionViolationError, SupersededError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture(scope="module")
def small_fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet.create(tmp_path_factory.mktemp("fleet"))


class Service:
    """Raises what it is told to."""

    error: WavemeshError | None = None

    def __init__(self, peers: Peers) -> None:
        self.peers = peers

    @answers
    async def call(self, request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        if self.error is not None:
            raise self.error
        return self.peers.of(context).path.encode()


@pytest.fixture
async def served(small_fleet: Fleet) -> AsyncIterator[tuple[Service, str]]:
    service = Service(Peers(small_fleet.credentials(STORE).authorities, SystemClock()))
    server, port = make_server(small_fleet.credentials(STORE), address="127.0.0.1:0", maximum_concurrent_rpcs=9)
    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(service.call)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.Status", {"Call": method}),))
    await set_serving(serve_health(server, ["t.Status"]), ["t.Status"])
    await server.start()
    yield service, f"127.0.0.1:{port}"
    await server.stop(None)


async def call(fleet: Fleet, address: str, **roles: Any) -> bytes:
    channel = make_channel(fleet.credentials(roles.get("child", DEVICE)), address, roles.get("parent", STORE))
    try:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/t.Status/Call")
        return await method(b"", timeout=10)
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error) from error
    finally:
        await channel.close()


@pytest.mark.parametrize(
    ("raised", "kind", "details"),
    [
        (ForbiddenError("no", child="x"), ForbiddenError, {"child": "x"}),
        (NotFoundError("no", digest="d"), NotFoundError, {"digest": "d"}),
        (ConflictError("no"), ConflictError, {}),
        (SupersededError("no"), ConflictError, {"reason": "SUPERSEDED"}),
        (SessionViolationError("no"), PeerError, {"reason": "SESSION_VIOLATION"}),
    ],
)
async def test_peer_errors_arrive(
    small_fleet: Fleet,
    served: tuple[Service, str],
    raised: WavemeshError,
    kind: type[WavemeshError],
    details: dict[str, str],
) -> None:
    service, address = served
    service.error = raised
    with pytest.raises(kind, match="no") as error:
        await call(small_fleet, address)
    assert type(error.value) is kind
    assert error.value.details == details


async def test_gates_and_retry_after_arrive(small_fleet: Fleet, served: tuple[Service, str]) -> None:
    service, address = served
    service.error = GateError("peripheral:scanner", "no scanner", device="pos-17")
    with pytest.raises(GateError) as gate:
        await call(small_fleet, address)
    assert (gate.value.gate, gate.value.details["device"]) == ("peripheral:scanner", "pos-17")
    service.error = BusyError("storm", 2.5)
    with pytest.raises(BusyError) as busy:
        await call(small_fleet, address)
    assert busy.value.retry_after_s == 2.5


async def test_a_local_fault_keeps_its_text(small_fleet: Fleet, served: tuple[Service, str]) -> None:
    service, address = served
    service.error = DiskFullError("/var/lib/hub.db: no space", path="/var/lib/hub.db")
    with pytest.raises(RemoteFaultError) as error:
        await call(small_fleet, address)
    assert error.value.details == {"reason": "DISK_FULL"}
    assert "hub.db" not in str(error.value)


async def test_who_calls_is_told_by_the_certificate(small_fleet: Fleet, served: tuple[Service, str]) -> None:
    """M2: and a client accepts the certificate of the one peer it named."""
    _, address = served
    assert await call(small_fleet, address) == DEVICE.path.encode()
    with pytest.raises(LinkDownError):
        await call(small_fleet, address, parent=OTHER_STORE)
    with pytest.raises(LinkDownError):
        await call(small_fleet, address.replace("127.0.0.1", "127.0.0.2"))


async def test_health_is_served(small_fleet: Fleet, served: tuple[Service, str]) -> None:
    channel = make_bulk_channel(small_fleet.credentials(DEVICE), served[1], STORE)
    try:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for name in ("", "t.Status"):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
    finally:
        await channel.close()
