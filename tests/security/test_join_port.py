"""The port where nodes join: whoever calls, with a certificate or without, gets one RPC, and that by token alone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.enrolment_kit import DEVICE, LOCALHOST, STORE, Mesh, SetClock
from tests.security.identities import Identities, Impostor
from tests.security.matrix import methods
from tests.security.test_authorisation_matrix import first
from wavemesh.codec.statements import to_proto
from wavemesh.identity.ca import certificates_pem
from wavemesh.identity.csr import make_request
from wavemesh.identity.keys import SoftwareKeys
from wavemesh.runtime.grpc import SESSION_OPTIONS
from wavemesh.runtime.joining import BURST, MAX_REQUEST_BYTES, Bucket
from wavemesh.runtime.status import error_from_rpc
from wavemesh.trust.enrolments import JoinRequest
from wavemesh.v1 import enrolment_pb2
from wavemesh.v1.enrolment_pb2_grpc import EnrolmentServiceStub

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import TrustKeys

JOIN = "wavemesh.v1.EnrolmentService/Join"
METHODS = methods()


def dial(port: int, name: str, credentials: grpc.ChannelCredentials) -> grpc.aio.Channel:
    options = [*SESSION_OPTIONS, ("grpc.ssl_target_name_override", name)]
    return grpc.aio.secure_channel(f"{LOCALHOST}:{port}", credentials, options=options)


def request(node: str = STORE.path, **changes: object) -> enrolment_pb2.JoinRequest:
    csr = make_request(SoftwareKeys().create(), "anybody")
    fields = {"fleet": STORE.fleet, "node": node, "secret": bytes(32), "csr": csr} | changes
    return to_proto(JoinRequest(**fields))  # type: ignore[arg-type,no-any-return]


async def refusal(channel: grpc.aio.Channel, message: enrolment_pb2.JoinRequest) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await EnrolmentServiceStub(channel).Join(message, timeout=10.0)
    error = error_from_rpc(caught.value)
    return error.details.get("reason", error.reason)


async def test_nothing_but_join_is_served_and_join_to_no_certificate_but_to_tokens(
    tmp_path: Path, trust_keys: TrustKeys
) -> None:
    """A certificate of the fleet helps nobody here: not the super hub's own, not an operator's."""
    mesh = Mesh.create(tmp_path, trust_keys)
    identities = Identities(mesh.ca)
    callers = {
        "no certificate": identities.impostor(Impostor.NO_CERTIFICATE, STORE.path),
        "operator": identities.node("operator/alice"),
        "store hub": identities.node(STORE.path),
        "another region": identities.impostor(Impostor.OTHER_REGION, STORE.path),
    }
    wrong: list[str] = []
    async with mesh.super_hub() as hub:
        for title, credentials in callers.items():
            async with dial(hub.join_port, hub.node_id.dns_name, credentials) as channel:
                for name, method in METHODS.items():
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await first(channel, name, method)
                    code = caught.value.code()
                    wanted = grpc.StatusCode.INVALID_ARGUMENT if name == JOIN else grpc.StatusCode.UNIMPLEMENTED
                    if code is not wanted:
                        wrong.append(f"{name} as {title}: {code.name}, not {wanted.name}")
                assert await refusal(channel, request()) == "TOKEN_UNKNOWN"
    assert not wrong, "\n".join(wrong)


async def test_what_a_stranger_asks_is_refused_by_its_own_reason(tmp_path: Path, trust_keys: TrustKeys) -> None:
    mesh = Mesh.create(tmp_path, trust_keys)
    nobody = grpc.ssl_channel_credentials(certificates_pem([mesh.ca.certificate]))
    async with mesh.super_hub() as hub, dial(hub.join_port, hub.node_id.dns_name, nobody) as channel:
        got = {
            "a device, at the super hub": await refusal(channel, request(DEVICE.path)),
            "a store of another region": await refusal(channel, request("region/west/store/store-208")),
            "an operator": await refusal(channel, request("operator/mallory")),
            "another fleet": await refusal(channel, request(fleet="other.example")),
            "no request": await refusal(channel, request(csr=b"nothing")),
            "no path": await refusal(channel, request("../../etc")),
            "too much": await refusal(channel, _large()),
        }
    assert got == {
        "a device, at the super hub": "WRONG_NODE",
        "a store of another region": "WRONG_NODE",
        "an operator": "WRONG_NODE",
        "another fleet": "WRONG_FLEET",
        "no request": "BAD_CSR",
        "no path": "BAD_NODE_ID",
        "too much": "BUSY",
    }


def _large() -> enrolment_pb2.JoinRequest:
    """More than the port takes: gRPC itself refuses it with RESOURCE_EXHAUSTED."""
    return enrolment_pb2.JoinRequest(fleet="f" * (MAX_REQUEST_BYTES + 1))


class Stopped(SetClock):
    """A clock whose seconds do not pass."""

    def monotonic(self) -> float:
        return 1.0


async def test_guessing_is_slowed_down(tmp_path: Path, trust_keys: TrustKeys) -> None:
    """One after the other, so that only the rate can refuse."""
    mesh = Mesh.create(tmp_path, trust_keys)
    mesh.clock = Stopped()
    nobody = grpc.ssl_channel_credentials(certificates_pem([mesh.ca.certificate]))
    async with mesh.super_hub() as hub, dial(hub.join_port, hub.node_id.dns_name, nobody) as channel:
        reasons = [await refusal(channel, request()) for _ in range(int(BURST) + 2)]
    assert reasons == ["TOKEN_UNKNOWN"] * int(BURST) + ["BUSY"] * 2


async def test_a_crowd_is_refused_and_not_queued(tmp_path: Path, trust_keys: TrustKeys) -> None:
    mesh = Mesh.create(tmp_path, trust_keys)
    nobody = grpc.ssl_channel_credentials(certificates_pem([mesh.ca.certificate]))
    async with (
        mesh.super_hub() as hub,
        dial(hub.join_port, hub.node_id.dns_name, nobody) as channel,
        asyncio.TaskGroup() as group,
    ):
        asked = [group.create_task(refusal(channel, request())) for _ in range(4 * int(BURST))]
    reasons = [one.result() for one in asked]
    assert set(reasons) == {"TOKEN_UNKNOWN", "BUSY"}
    assert reasons.count("BUSY") >= len(reasons) / 2


def test_a_bucket_gives_its_burst_then_its_rate() -> None:
    bucket = Bucket(rate=2.0, burst=3.0, now_s=0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert bucket.take(0.5) == 0.0
    assert [bucket.take(100.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
