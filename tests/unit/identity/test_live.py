"""Installing what was issued: only what is this node's, for its new key, by an authority it knows, valid now."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from tests.conftest import FLEET, Issuers
from wavemesh.codec.statements import encode
from wavemesh.errors import LocalError, PeerError
from wavemesh.identity.ca import FleetCa, write_node
from wavemesh.identity.certificates import BadCertificateError
from wavemesh.identity.credentials import NodeCredentials
from wavemesh.identity.files import CURRENT_FILE
from wavemesh.identity.live import LiveCredentials
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.durable import Disk, DiskFullError
from wavemesh.trust.enrolments import IssuedCertificate, RenewalRequest
from wavemesh.trust.envelope import sign_as_node, verify_node

if TYPE_CHECKING:
    from pathlib import Path

NODE = NodeId(FLEET, "region/midwest/store/store-208")
NOW = datetime.now(UTC)


class Full(Disk):
    def write(self, descriptor: int, data: bytes | bytearray | memoryview, path: Path) -> None:
        msg = f"{path}: no space left"
        raise DiskFullError(msg)


@pytest.fixture
def live(tmp_path: Path, fleet_ca: FleetCa) -> LiveCredentials:
    issuer = Issuers(fleet_ca).issuer(NODE.path)
    write_node(tmp_path, issuer, NODE, not_before=NOW - timedelta(hours=1), not_after=NOW + timedelta(days=1))
    return LiveCredentials.load(tmp_path)


def issue(ca: FleetCa, key: ec.EllipticCurvePrivateKey, node: NodeId = NODE) -> IssuedCertificate:
    issuer = Issuers(ca).issuer(node.path)
    until = NOW + timedelta(days=1)
    leaf = issuer.issue(node, key.public_key(), not_before=NOW - timedelta(minutes=5), not_after=until)
    chain = tuple(one.public_bytes(Encoding.DER) for one in issuer.chain)
    return IssuedCertificate(leaf.public_bytes(Encoding.DER), chain, NOW)


def test_what_is_its_own_is_used_at_once_and_after_a_restart(
    live: LiveCredentials, fleet_ca: FleetCa, tmp_path: Path
) -> None:
    key, before, authorities = ec.generate_private_key(ec.SECP256R1()), live.current, live.authorities
    old_word = sign_as_node(RenewalRequest(NODE.path, b"csr", NOW), live)
    live.install(key, issue(fleet_ca, key), NOW)
    assert live.current is not before
    assert live.authorities is authorities
    assert NodeCredentials.load(tmp_path).certificate == live.current.certificate
    # What was signed with the old key stays good; what is signed now carries the new certificate.
    new_word = sign_as_node(RenewalRequest(NODE.path, b"csr", NOW), live)
    for word in (old_word, new_word):
        assert verify_node(word, RenewalRequest, authorities, NOW)[0] == NODE
    assert old_word.signatures[0].certificate == before.certificate_der
    assert new_word.signatures[0].certificate == live.current.certificate_der
    assert encode(old_word) != encode(new_word)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("another key", "BAD_ISSUE"),
        ("another node", "BAD_ISSUE"),
        ("another fleet's root", "BAD_ISSUE"),
        ("no chain", "BAD_ISSUE"),
        ("no certificate", "BAD_CERTIFICATE"),
        ("the clock ahead", "CERTIFICATE_CLOCK"),
        ("the clock behind", "CERTIFICATE_CLOCK"),
        ("a full disk", "DISK_FULL"),
    ],
)
def test_what_is_not_leaves_everything_as_it_was(
    live: LiveCredentials, fleet_ca: FleetCa, tmp_path: Path, case: str, reason: str
) -> None:
    key, now = ec.generate_private_key(ec.SECP256R1()), NOW
    issued = issue(fleet_ca, key)
    match case:
        case "another key":
            key = ec.generate_private_key(ec.SECP256R1())
        case "another node":
            issued = issue(fleet_ca, key, NodeId(FLEET, "region/midwest/store/store-209"))
        case "another fleet's root":
            issued = issue(FleetCa.create(FLEET, NOW - timedelta(days=1)), key)
        case "no chain":
            issued = IssuedCertificate(issued.certificate, (), NOW)
        case "no certificate":
            issued = IssuedCertificate(b"nothing", (), NOW)
        case "the clock ahead":
            now = NOW + timedelta(days=2)
        case "the clock behind":
            now = NOW - timedelta(minutes=6)
        case _:
            live._disk = Full()
    before = live.current
    with pytest.raises((PeerError, LocalError, BadCertificateError)) as caught:
        live.install(key, issued, now)
    assert caught.value.reason == reason
    assert live.current is before
    assert NodeCredentials.load(tmp_path).certificate == before.certificate
    assert not (tmp_path / CURRENT_FILE).exists()


def test_a_switch_that_names_nothing_is_refused(live: LiveCredentials, tmp_path: Path) -> None:
    for text in ("../elsewhere", "pair-", "pair-xyz", ""):
        (tmp_path / CURRENT_FILE).write_text(text)
        with pytest.raises(LocalError, match="enrol the node again"):
            NodeCredentials.load(tmp_path)
