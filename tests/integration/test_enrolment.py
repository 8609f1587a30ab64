"""Join, renew, retire: each with the other side offline, late, replayed and under a wrong clock (D11).

Real control, super hub and store hub over real mutual TLS; what was measured is printed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.enrolment_kit import DEVICE, LOCALHOST, STORE, Mesh, Running, SetClock, dialling, until
from tests.superhub_kit import python
from tests.unit.control.control_kit import FLEET, MIDWEST
from wavemesh.codec.statements import decode, encode
from wavemesh.errors import ForbiddenError, PeerError
from wavemesh.identity.binding import binding_of
from wavemesh.identity.credentials import NodeCredentials
from wavemesh.identity.csr import make_request
from wavemesh.identity.live import CertificateClockError
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.clock import SystemClock
from wavemesh.trust.enrolments import IssueAnswer, RenewalRequest
from wavemesh.trust.envelope import sign_as_node
from wavemesh.v1 import operator_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.conftest import TrustKeys
    from wavemesh.identity.join import Joined
    from wavemesh.identity.tokens import Token


def reason(error: PeerError) -> str:
    return error.details.get("reason", error.reason)


@pytest.fixture
def mesh(tmp_path: Path, trust_keys: TrustKeys) -> Mesh:
    return Mesh.create(tmp_path, trust_keys)


@pytest.fixture
async def running(mesh: Mesh) -> AsyncIterator[Running]:
    async with mesh.running() as running:
        yield running


async def refusal(mesh: Mesh, token: Token, directory: Path, clock: object = None) -> str:
    """The reason by which that token is refused; whatever it is, nothing is installed."""
    with pytest.raises(PeerError) as caught:
        await mesh.join(directory, token, clock or SystemClock())  # type: ignore[arg-type]
    assert not (directory / "identity" / "current").exists()
    assert not (directory / "config.toml").exists()
    return reason(caught.value)


# -- joining --------------------------------------------------------------------------------------------------------


async def test_a_device_joins_as_a_program_while_control_is_out_of_reach(running: Running) -> None:
    """Names and binding are the enrolment's; control hears of it when it is back, and marks the token as used."""
    token = await running.token()
    await running.control.aclose()
    directory = running.mesh.directory / "device"
    file = running.mesh.directory / "token"
    file.write_text(token.text())
    process = await python("wavemesh.identity.join", "--dir", str(directory), "--token-file", str(file))
    out, _ = await process.communicate()
    assert process.returncode == 0, out
    mine = NodeCredentials.load(directory / "identity")
    bound = binding_of(mine.certificate)
    assert mine.node_id == DEVICE
    assert bound is not None
    assert (bound.device_class, bound.hardware_revision) == ("pos-tablet", "r2")
    assert (directory / "trust" / "root.json").read_bytes() == running.mesh.trust_keys.pinned_root
    assert f'address = "{running.address}"' in (directory / "config.toml").read_text()
    async with dialling(directory, running.address, STORE) as device:
        await until(lambda: device.upstream.is_connected)
    again = await running.mesh.join(directory, token)
    assert again.again
    async with running.mesh.control() as served, served.calling() as stub:
        request = operator_pb2.ListNodesRequest(below=DEVICE.path)
        async with asyncio.timeout(15):
            while not (node := (await stub.ListNodes(request)).nodes[0]).HasField("token_used_at"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        audit = {(one.action, one.subject) for one in (await stub.ListAudit(operator_pb2.ListAuditRequest())).entries}
    assert node.serial == f"{mine.certificate.serial_number:x}"
    assert {("node.enrol", DEVICE.path), ("node.joined", DEVICE.path)} <= audit
    await until(lambda: not running.mesh.enrolled(running.hub, DEVICE.path))


async def test_tokens_are_refused_each_by_its_own_reason(running: Running, tmp_path: Path) -> None:
    mesh, token, sink = running.mesh, await running.token(), running.hub.parts.sink
    await until(lambda: ("enrolment", DEVICE.path) in {(one.key.type, one.key.name) for one in sink.held()})
    for_stores = {key.type for key in running.hub.parts.registry.desired(STORE)}
    assert "tuf" in for_stores
    assert "enrolment" not in for_stores
    other = dataclasses.replace(token, secret=bytes(32))
    next_door = dataclasses.replace(token, node=NodeId(FLEET, f"{STORE.path}/device/pos-02"))
    at_the_hub = dataclasses.replace(token, addresses=(f"{LOCALHOST}:{running.hub.join_port}",))
    got = {
        "wrong secret": await refusal(mesh, other, tmp_path / "a"),
        "wrong node": await refusal(mesh, next_door, tmp_path / "b"),
        # TLS already: the super hub is not the parent that the token names.
        "wrong parent": await refusal(mesh, at_the_hub, tmp_path / "c"),
        "unknown root": await refusal(mesh, dataclasses.replace(token, root=_other_root()), tmp_path / "d"),
        "other TUF root": await refusal(mesh, dataclasses.replace(token, trust_root_sha256="0" * 64), tmp_path / "e"),
    }
    assert got == {
        "wrong secret": "TOKEN_UNKNOWN",
        "wrong node": "TOKEN_UNKNOWN",
        "wrong parent": "LINK_DOWN",
        "unknown root": "LINK_DOWN",
        "other TUF root": "BAD_ISSUE",
    }


def _other_root() -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    from wavemesh.identity.ca import FleetCa

    return FleetCa.create(FLEET, datetime.now(UTC) - timedelta(hours=1)).certificate.public_bytes(Encoding.DER)


async def test_a_token_is_used_once(running: Running, tmp_path: Path) -> None:
    """The same key gets the same certificate, as after a lost answer; another key is refused, also after a restart."""
    token = await running.token()
    directory = tmp_path / "device"
    await running.mesh.join(directory, token)
    first = NodeCredentials.load(directory / "identity")
    (directory / "identity" / "joined").unlink()
    (directory / "identity" / "joining.key").write_bytes(first._key_pem)
    again = await running.mesh.join(directory, token)
    assert not again.again
    assert NodeCredentials.load(directory / "identity").certificate == first.certificate
    assert await refusal(running.mesh, token, tmp_path / "thief") == "ALREADY_USED"


async def test_late_and_under_wrong_clocks(running: Running, tmp_path: Path) -> None:
    mesh, token = running.mesh, await running.token(lifetime_s=600)
    mesh.clock.off_by = timedelta(hours=1)
    late = await refusal(mesh, token, tmp_path / "late")
    mesh.clock.off_by = timedelta(days=-1)
    hub_behind = await refusal(mesh, token, tmp_path / "hub")
    mesh.clock.off_by = timedelta()
    ahead, behind = SetClock(), SetClock()
    ahead.off_by, behind.off_by = timedelta(days=200), timedelta(minutes=-30)
    device_ahead = await refusal(mesh, token, tmp_path / "device", ahead)
    # The key was kept: with its clock set, and by a clock that is behind a little less, it gets that very certificate.
    device_behind = await refusal(mesh, token, tmp_path / "device", behind)
    joined: Joined = await mesh.join(tmp_path / "device", token)
    assert (late, hub_behind) == ("TOKEN_EXPIRED", "ISSUER_CLOCK")
    assert (device_ahead, device_behind) == ("CERTIFICATE_CLOCK", "CERTIFICATE_CLOCK")
    assert not joined.again


async def test_the_way_up_may_be_down(running: Running, tmp_path: Path) -> None:
    """A store hub without its super hub says so, and the token is as good as before."""
    token = await running.token()
    await running.super_hub.aclose()
    await until(lambda: not running.store.upstream.is_connected)
    assert await refusal(running.mesh, token, tmp_path / "device") == "LINK_DOWN"
    async with running.mesh.super_hub():
        await until(lambda: running.store.upstream.is_connected)
        await running.mesh.join(tmp_path / "device", token)


async def test_a_region_without_an_authority_says_so(mesh: Mesh, tmp_path: Path) -> None:
    (mesh.hub_dir / "authority" / "ca.key").unlink()
    async with mesh.control() as served, mesh.super_hub() as hub:
        token = await mesh.token(served, hub, STORE)
        assert await refusal(mesh, token, tmp_path / "store") == "NO_AUTHORITY"


# -- renewing -------------------------------------------------------------------------------------------------------


async def test_renewal_moves_the_session_and_retires_the_old_certificate(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = await running.device()
    old = NodeCredentials.load(directory / "identity")
    async with dialling(directory, running.address, STORE) as device:
        await until(lambda: device.upstream.is_connected)
        began_s = time.perf_counter()
        await device.renewal.renew()
        took_s = time.perf_counter() - began_s
        assert device.upstream.is_connected
        new = device.live.current
    with capsys.disabled():
        sys.stderr.write(f"\nrenewal through a store hub and its super hub, session moved: {took_s * 1e3:.0f} ms\n")
    assert new.certificate.serial_number != old.certificate.serial_number
    assert new.certificate.public_key() != old.certificate.public_key()
    assert NodeCredentials.load(directory / "identity").certificate == new.certificate
    bound = binding_of(new.certificate)
    assert bound is not None
    assert (bound.device_class, bound.hardware_revision) == ("pos-tablet", "r2")
    assert await _refusal_of(old, running) == "RETIRED"


async def _refusal_of(credentials: NodeCredentials, running: Running) -> str:
    from wavemesh.artifacts.transfer import ArtifactClient
    from wavemesh.runtime.grpc import make_bulk_channel

    client = ArtifactClient(lambda: make_bulk_channel(credentials, running.address, STORE))
    with pytest.raises(ForbiddenError) as caught:
        await client.find_missing(())
    return reason(caught.value)


async def test_old_requests_renew_nothing(running: Running) -> None:
    """Replayed: the latest key gets its own certificate again, an older one none; nor does one signed by an old key."""
    directory = await running.device()
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]
    old = NodeCredentials.load(directory / "identity")

    async def ask(key: ec.EllipticCurvePrivateKey, signer: NodeCredentials) -> IssueAnswer:
        request = RenewalRequest(DEVICE.path, make_request(key, "pos-01"), datetime.now(UTC))
        body = encode(sign_as_node(request, signer))
        return decode(IssueAnswer, await device.upstream.ask("renew", body, 10.0))

    async with dialling(directory, running.address, STORE) as device:
        await until(lambda: device.upstream.is_connected)
        first, same = await ask(keys[0], old), await ask(keys[0], old)
        second = await ask(keys[1], old)
        replayed = await ask(keys[0], old)
        await device.renewal.renew()
        await device.renewal.renew()
        by_old_key = await ask(keys[2], old)
    assert first.issued is not None
    assert same.issued is not None
    assert first.issued.certificate == same.issued.certificate
    assert second.issued is not None
    assert (replayed.refused, by_old_key.refused) == ("REPLAYED", "REPLAYED")


async def test_a_device_that_was_replaced_renews_nothing(running: Running) -> None:
    """Another one has joined in its place, and has not even dialled yet."""
    directory = await running.device()
    async with dialling(directory, running.address, STORE) as device:
        await until(lambda: device.upstream.is_connected)
        replacement = await running.device("replacement")
        with pytest.raises(PeerError) as caught:
            await device.renewal.renew()
        async with dialling(replacement, running.address, STORE) as other:
            await until(lambda: other.upstream.is_connected)
            await other.renewal.renew()
    assert reason(caught.value) == "REPLAYED"


async def test_renewal_offline_and_under_wrong_clocks_leaves_the_certificate_in_use(running: Running) -> None:
    directory = await running.device()
    clock = SetClock()
    async with dialling(directory, running.address, STORE, clock) as device:
        await until(lambda: device.upstream.is_connected)
        before = device.live.current
        clock.off_by = timedelta(days=-2)
        with pytest.raises(CertificateClockError, match="set the clock"):
            await device.renewal.renew()
        clock.off_by = timedelta()
        running.mesh.clock.off_by = timedelta(days=-1)
        with pytest.raises(PeerError, match="not valid before"):
            await device.renewal.renew()
        running.mesh.clock.off_by = timedelta()
        await running.super_hub.aclose()
        await until(lambda: not running.store.upstream.is_connected)
        with pytest.raises(PeerError, match="no session with its super hub"):
            await device.renewal.renew()
        assert device.live.current is before
        assert NodeCredentials.load(directory / "identity").certificate == before.certificate
        assert device.upstream.is_connected
        async with running.mesh.super_hub():
            await until(lambda: running.store.upstream.is_connected)
            await device.renewal.renew()
    assert device.live.current is not before


async def test_nobody_renews_for_another(running: Running) -> None:
    """A device's request signed by a neighbour, and one that names a neighbour, get nothing."""
    directory = await running.device()
    neighbour = NodeId(FLEET, f"{STORE.path}/device/pos-02")
    other = running.mesh.world.credentials(neighbour.path)
    mine = NodeCredentials.load(directory / "identity")
    csr = make_request(ec.generate_private_key(ec.SECP256R1()), "pos-01")
    async with dialling(directory, running.address, STORE) as device:
        await until(lambda: device.upstream.is_connected)
        by_other = encode(sign_as_node(RenewalRequest(DEVICE.path, csr, datetime.now(UTC)), other))
        with pytest.raises(PeerError, match="instead of"):
            await device.upstream.ask("renew", by_other, 10.0)
        for_other = encode(sign_as_node(RenewalRequest(neighbour.path, csr, datetime.now(UTC)), mine))
        answer = decode(IssueAnswer, await device.upstream.ask("renew", for_other, 10.0))
    assert answer.refused == "WRONG_NODE"


async def test_hubs_renew_while_they_serve(running: Running) -> None:
    """Super hub and store hub take new certificates; those that connect next see them, sessions below go on."""
    directory = await running.device()
    async with dialling(directory, running.address, STORE) as device:
        await until(lambda: device.upstream.is_connected)
        await until(lambda: "settled" in device.sink.events)
        events = list(device.sink.events)
        before = running.store.renewal.issued_at
        await running.store.renewal.renew()
        assert running.store.renewal.issued_at > before
        old_hub = running.hub.credentials.current
        await running.hub.parts.renewal.renew()
        assert running.hub.credentials.current is not old_hub
        await until(lambda: running.store.upstream.is_connected and running.hub.parts.upstream.is_connected)
        assert device.sink.events == events
        # What the device dials next is the renewed hub; its own renewal goes all the way up.
        await device.renewal.renew()
    assert MIDWEST.path == running.hub.node_id.path


# -- taken back -----------------------------------------------------------------------------------------------------


async def test_who_was_revoked_comes_back_by_a_new_token_alone(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stream ends, the old certificate opens and renews nothing; the next one is believed at once."""
    directory = await running.device()
    old = NodeCredentials.load(directory / "identity")
    async with dialling(directory, running.address, STORE) as device, running.served.calling() as stub:
        await until(lambda: device.upstream.is_connected)
        began_s = time.perf_counter()
        await stub.RevokeNode(operator_pb2.RevokeNodeRequest(path=DEVICE.path, reason="stolen"))
        await until(lambda: not device.upstream.is_connected)
        took_s = time.perf_counter() - began_s
    with capsys.disabled():
        sys.stderr.write(
            f"\nfrom the operator's word at control to the end of a device's stream: {took_s * 1e3:.0f} ms\n"
        )
    assert took_s < 5
    assert await _refusal_of(old, running) == "REVOKED"
    csr = make_request(ec.generate_private_key(ec.SECP256R1()), "pos-01")
    request = RenewalRequest(DEVICE.path, csr, datetime.now(UTC))
    with pytest.raises(PeerError, match="taken back"):
        await running.hub.parts.authority._renew(STORE, sign_as_node(request, old))
    again = await running.device("again")
    new = NodeCredentials.load(again / "identity")
    async with dialling(again, running.address, STORE) as device:
        await until(lambda: device.upstream.is_connected)
    for tier in (running.served.control.authorities, running.hub.credentials.authorities):
        assert tier.verify(new.certificate, datetime.now(UTC), new.intermediates) == DEVICE
