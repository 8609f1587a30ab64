"""Credentials and the fleet's CA (D11)."""

from __future__ import annotations

import shutil
import stat
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from wavemesh.identity.ca import CA_KEY_FILE, CaFilesError, FleetCa, write_node
from wavemesh.identity.certificates import (
    LONGEST_LEAF_LIFETIME,
    BadCertificateError,
    Scope,
    load_certificate,
    verify_certificate,
)
from wavemesh.identity.credentials import NodeCredentials
from wavemesh.identity.keys import CredentialsError
from wavemesh.identity.nodes import NodeId

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import CredentialsFactory

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
HUB = "region/midwest/store/store-208"
DEVICE = HUB + "/device/pos-03"


def make(directory: Path, ca: FleetCa, path: str = HUB) -> NodeCredentials:
    node_id = NodeId(ca.fleet, path)
    return write_node(directory, ca, node_id, not_before=NOW, not_after=NOW + timedelta(days=30))


@pytest.fixture(scope="module")
def ca() -> FleetCa:
    return FleetCa.create("test.example", NOW)


def test_a_written_node_loads_and_its_signature_verifies(tmp_path: Path, ca: FleetCa) -> None:
    written = make(tmp_path, ca)
    loaded = NodeCredentials.load(tmp_path)
    assert loaded.node_id == written.node_id == NodeId("test.example", HUB)
    key = load_certificate(loaded.certificate_der).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(loaded.sign(b"data"), b"data", ec.ECDSA(hashes.SHA256()))
    assert loaded.authorities.verify(loaded.certificate, NOW) == loaded.node_id
    assert stat.S_IMODE((tmp_path / "node.key").stat().st_mode) == 0o600
    assert "key" not in repr(loaded).lower()


@pytest.mark.parametrize(
    ("path", "serves"),
    [("control/c1", True), ("region/midwest", True), (HUB, True), (DEVICE, False), ("operator/alice", False)],
)
def test_only_control_and_hubs_may_serve(ca: FleetCa, path: str, serves: bool) -> None:  # noqa: FBT001 - a table
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    leaf = ca.issue(NodeId("test.example", path), key, not_before=NOW, not_after=NOW + timedelta(days=1))
    usages = set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert ExtendedKeyUsageOID.CLIENT_AUTH in usages
    assert (ExtendedKeyUsageOID.SERVER_AUTH in usages) is serves
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_the_ca_survives_saving_and_its_key_is_private(tmp_path: Path, ca: FleetCa) -> None:
    ca.save(tmp_path)
    assert stat.S_IMODE((tmp_path / CA_KEY_FILE).stat().st_mode) == 0o600
    again = FleetCa.load(tmp_path)
    assert again.fleet == "test.example"
    assert make(tmp_path / "node", again).authorities.certificates == (ca.certificate,)


def test_a_damaged_ca_is_refused_by_file(tmp_path: Path, ca: FleetCa) -> None:
    ca.save(tmp_path)
    FleetCa.create("test.example", NOW).save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / CA_KEY_FILE, tmp_path / CA_KEY_FILE)
    with pytest.raises(CaFilesError, match=r"ca\.key is not the key of .*ca\.crt"):
        FleetCa.load(tmp_path)
    with pytest.raises(CaFilesError, match=r"No such file"):
        FleetCa.load(tmp_path / "nowhere")


def test_the_ca_does_not_issue_for_another_fleet(ca: FleetCa) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    with pytest.raises(RuntimeError, match="does not issue"):
        ca.issue(NodeId("other.example", HUB), key, not_before=NOW, not_after=NOW + timedelta(days=1))


@pytest.mark.parametrize("name", ["node.key", "node.crt", "ca.crt"])
def test_a_missing_or_malformed_file_is_named(tmp_path: Path, ca: FleetCa, name: str) -> None:
    make(tmp_path, ca)
    (tmp_path / name).write_text("rubbish")
    with pytest.raises(CredentialsError, match=name):
        NodeCredentials.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CredentialsError, match=rf"{name}: No such file.*enrol"):
        NodeCredentials.load(tmp_path)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, ca: FleetCa) -> None:
    make(tmp_path / "one", ca)
    make(tmp_path / "two", ca)
    make(tmp_path / "foreign", FleetCa.create("test.example", NOW))
    shutil.copy(tmp_path / "two" / "node.key", tmp_path / "one" / "node.key")
    with pytest.raises(CredentialsError, match="is not the key of"):
        NodeCredentials.load(tmp_path / "one")
    shutil.copy(tmp_path / "foreign" / "ca.crt", tmp_path / "two" / "ca.crt")
    with pytest.raises(CredentialsError, match=r"does not fit .*ca\.crt"):
        NodeCredentials.load(tmp_path / "two")


def test_validity_is_said_apart_from_loading(tmp_path: Path, ca: FleetCa) -> None:
    """A device with a wrong clock still starts (D5); who asks is told."""
    loaded = make(tmp_path, ca)
    loaded.check_validity(NOW)
    with pytest.raises(CredentialsError, match="expired at 2026-05-31"):
        loaded.check_validity(NOW + timedelta(days=31))
    with pytest.raises(CredentialsError, match="not valid before"):
        loaded.check_validity(NOW - timedelta(days=1))


def test_certificates_that_prove_nothing(tmp_path: Path, ca: FleetCa) -> None:
    loaded = make(tmp_path, ca)
    with pytest.raises(BadCertificateError, match="expired"):
        verify_certificate(loaded.certificate, [ca.certificate], NOW + timedelta(days=31))
    with pytest.raises(BadCertificateError, match="not valid at"):
        verify_certificate(loaded.certificate, [FleetCa.create("test.example", NOW).certificate], NOW)
    with pytest.raises(BadCertificateError, match="no root"):
        verify_certificate(loaded.certificate, [], NOW)
    with pytest.raises(BadCertificateError, match="not a DER"):
        load_certificate(b"rubbish")
    with pytest.raises(BadCertificateError, match="at most"):
        load_certificate(b"0" * 20_000)


def test_a_leaf_that_claims_to_live_longer_than_any_may_is_not_believed(ca: FleetCa) -> None:
    """Or else what was taken back could never be forgotten."""
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    longest = NOW + LONGEST_LEAF_LIFETIME
    leaf = ca.issue(NodeId(ca.fleet, HUB), key, not_before=NOW, not_after=longest)
    proof = verify_certificate(leaf, [ca.certificate], NOW)
    assert (proof.issued_at, proof.expires_at) == (NOW, longest)
    assert [scope for scope, _ in proof.authorities] == [Scope(ca.fleet)]
    leaf = ca.issue(NodeId(ca.fleet, HUB), key, not_before=NOW, not_after=longest + timedelta(seconds=1))
    with pytest.raises(BadCertificateError, match="at most 400"):
        verify_certificate(leaf, [ca.certificate], NOW)


def test_a_ca_cannot_speak_for_another_fleet(ca: FleetCa) -> None:
    """The CA's own fleet is in its certificate; a leaf that names another one is refused."""
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    liar = FleetCa("other.example", ca.certificate, ca._key)
    leaf = liar.issue(NodeId("other.example", HUB), key, not_before=NOW, not_after=NOW + timedelta(days=1))
    with pytest.raises(BadCertificateError, match=r"comes from a CA that speaks for spiffe://test\.example"):
        verify_certificate(leaf, [ca.certificate], NOW)


def test_a_leaf_cannot_issue(tmp_path: Path, ca: FleetCa) -> None:
    hub = make(tmp_path, ca)
    liar = FleetCa(ca.fleet, hub.certificate, hub._key)
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    leaf = liar.issue(NodeId(ca.fleet, DEVICE), key, not_before=NOW, not_after=NOW + timedelta(days=1))
    with pytest.raises(BadCertificateError, match="not valid"):
        verify_certificate(leaf, [ca.certificate, hub.certificate], NOW)


async def test_mutual_tls_works_with_these_credentials(credentials: CredentialsFactory) -> None:
    """M2: mutual TLS on every hop; a client without a certificate gets nowhere."""
    hub, device = credentials(HUB), credentials(DEVICE)
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", hub.server_credentials())
    await server.start()
    options = [("grpc.ssl_target_name_override", hub.node_id.dns_name)]
    try:
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", device.channel_credentials(), options=options) as good:
            await good.channel_ready()
            with pytest.raises(grpc.aio.AioRpcError) as answer:
                await _call(good)
            assert answer.value.code() is grpc.StatusCode.UNIMPLEMENTED
        nobody = grpc.ssl_channel_credentials(hub._ca_pem)
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", nobody, options=options) as bad:
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await _call(bad)
            assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        await server.stop(None)


async def _call(channel: grpc.aio.Channel) -> bytes:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/none/None")
    return await call(b"", timeout=5)


def test_what_comes_with_the_leaf_is_no_anchor(tmp_path: Path, ca: FleetCa) -> None:
    liar = FleetCa.create(ca.fleet, NOW)
    make(tmp_path / "liar", liar)
    make(tmp_path / "node", ca)
    chain = (tmp_path / "liar" / "node.crt").read_bytes() + (tmp_path / "liar" / "ca.crt").read_bytes()
    (tmp_path / "node" / "node.crt").write_bytes(chain)
    shutil.copy(tmp_path / "liar" / "node.key", tmp_path / "node" / "node.key")
    with pytest.raises(CredentialsError, match="does not fit"):
        NodeCredentials.load(tmp_path / "node")
