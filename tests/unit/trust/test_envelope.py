"""Envelopes: what is believed and what is not (P2, D11)."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from securesystemslib.dsse import Envelope as ReferenceEnvelope
from securesystemslib.signer import CryptoSigner

from wavemesh.identity.authorities import Authorities
from wavemesh.identity.ca import FleetCa, write_node
from wavemesh.identity.credentials import NodeCredentials
from wavemesh.identity.nodes import NodeId, Role
from wavemesh.trust import statements as s
from wavemesh.trust.envelope import (
    EarlySignatureError,
    SignatureGateError,
    pae,
    sign_as_node,
    sign_statement,
    sign_with_keys,
    verify_keys,
    verify_node,
    verify_role,
    verify_role_payload,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import CredentialsFactory
    from wavemesh.trust.metadata import TrustedMetadata

NOW = datetime.now(UTC)
STORE = "region/midwest/store/store-208"
DEVICE = STORE + "/device/pos-03"
HEX = "cd" * 32


def ping(device: str = DEVICE) -> s.HealthPing:
    return s.HealthPing("142", device, "0f" * 16, "B", HEX, 7, "either")


def lease(device: str = DEVICE) -> s.Lease:
    return s.Lease("142", device, "0f" * 16, 1, NOW, NOW + timedelta(hours=1))


def closed() -> s.WaveClosed:
    return s.WaveClosed("142", s.WaveState.CLOSED, NOW)


def intent() -> s.OperatorIntent:
    return s.OperatorIntent("i-1", s.IntentKind.PAUSE_WAVE, NOW, wave_id="142", reason="smoke")


def fake_trusted(*signers: CryptoSigner, threshold: int = 1) -> TrustedMetadata:
    keys = {signer.public_key.keyid: signer.public_key for signer in signers}
    return cast("TrustedMetadata", SimpleNamespace(role_keys=lambda role: {"control": (keys, threshold)}[role]))


def test_pae_is_that_of_the_specification() -> None:
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert pae("type/é", b"\0") == ReferenceEnvelope(b"\0", "type/é", {}).pae()


@pytest.mark.parametrize(
    ("path", "statement", "expect"),
    [
        (DEVICE, ping(), DEVICE),
        (STORE, lease(), Role.STORE_HUB),
        ("operator/alice", intent(), Role.OPERATOR),
        (STORE, s.HealthAck(HEX, "hub", NOW), None),
    ],
)
def test_a_node_is_believed(
    credentials: CredentialsFactory, path: str, statement: Any, expect: Role | str | None
) -> None:
    signer = credentials(path)
    envelope = sign_as_node(statement, signer)
    node_id, found = verify_node(envelope, type(statement), signer.authorities, NOW, expect)
    assert (node_id.path, found) == (path, statement)


def verify_ping(envelope: s.Envelope, credentials: CredentialsFactory, now: datetime = NOW, **more: Any) -> None:
    verify_node(envelope, s.HealthPing, credentials(STORE).authorities, now, **more)


def test_an_altered_payload_is_refused(credentials: CredentialsFactory) -> None:
    envelope = sign_as_node(ping(), credentials(DEVICE))
    with pytest.raises(SignatureGateError, match="does not fit") as refusal:
        verify_ping(dataclasses.replace(envelope, payload=envelope.payload[:-1] + b"x"), credentials)
    assert refusal.value.gate == "signature"
    assert refusal.value.details["signers"] == credentials(DEVICE).node_id.uri


def test_a_swapped_payload_type_is_refused(credentials: CredentialsFactory) -> None:
    hub = credentials(STORE)
    ack = sign_as_node(s.HealthAck(HEX, "control", NOW), hub)
    with pytest.raises(SignatureGateError, match=r"is not the .*authority-down"):
        verify_node(ack, s.AuthorityDown, hub.authorities, NOW)
    relabelled = dataclasses.replace(ack, payload_type=s.AuthorityDown.payload_type)
    with pytest.raises(SignatureGateError, match="does not fit"):
        verify_node(relabelled, s.AuthorityDown, hub.authorities, NOW)


def test_a_device_does_not_sign_orders(credentials: CredentialsFactory) -> None:
    device = credentials(DEVICE)
    with pytest.raises(SignatureGateError, match="for role keys only to sign"):
        verify_node(sign_as_node(closed(), device), s.WaveClosed, device.authorities, NOW)
    with pytest.raises(SignatureGateError, match="for storehub to sign"):
        verify_node(sign_as_node(lease(), device), s.Lease, device.authorities, NOW)
    with pytest.raises(SignatureGateError, match="0 of the 1 signatures needed by role 'control'"):
        verify_role(sign_as_node(closed(), device), s.WaveClosed, fake_trusted(CryptoSigner.generate_ed25519()))


def test_the_caller_demands_the_exact_signer(credentials: CredentialsFactory) -> None:
    envelope = sign_as_node(ping(), credentials(DEVICE))
    with pytest.raises(SignatureGateError, match="instead of 'region/midwest/store/store-208/device/pos-04'"):
        verify_ping(envelope, credentials, expect=STORE + "/device/pos-04")
    outcome = s.DeviceOutcome("1", DEVICE, 1, 1, s.OutcomeKind.SILENT, "watchdog", "", "", "", "", "", "", NOW)
    inferred = sign_as_node(outcome, credentials(STORE))
    verify_node(inferred, s.DeviceOutcome, credentials(STORE).authorities, NOW)
    with pytest.raises(SignatureGateError, match="which is no device"):
        verify_node(inferred, s.DeviceOutcome, credentials(STORE).authorities, NOW, Role.DEVICE)


def test_nobody_speaks_for_a_device_that_is_not_his(credentials: CredentialsFactory) -> None:
    other = "region/midwest/store/store-20/device/pos-03"
    with pytest.raises(SignatureGateError, match="not its own"):
        verify_ping(sign_as_node(ping(other), credentials(DEVICE)), credentials)
    with pytest.raises(SignatureGateError, match="not its own"):
        verify_node(sign_as_node(lease(other), credentials(STORE)), s.Lease, credentials(STORE).authorities, NOW)


def test_a_hub_does_not_acknowledge_for_control(credentials: CredentialsFactory) -> None:
    """D4: with authority control, only control's word counts."""
    ack = sign_as_node(s.HealthAck(HEX, "control", NOW), credentials(STORE))
    with pytest.raises(SignatureGateError, match="in the name of 'control'"):
        verify_node(ack, s.HealthAck, credentials(STORE).authorities, NOW)


def test_certificates_of_others_are_refused(credentials: CredentialsFactory, tmp_path: Path) -> None:
    ours = sign_as_node(ping(), credentials(DEVICE))
    foreign_ca = FleetCa.create("test.example", NOW - timedelta(days=1))
    foreign = write_node(
        tmp_path,
        foreign_ca,
        NodeId("test.example", DEVICE),
        not_before=NOW - timedelta(hours=1),
        not_after=NOW + timedelta(days=1),
    )
    with pytest.raises(SignatureGateError, match="not valid"):
        verify_ping(sign_as_node(ping(), foreign), credentials)
    sibling = credentials(STORE + "/device/pos-04")
    swapped = dataclasses.replace(ours.signatures[0], certificate=sibling.certificate_der)
    with pytest.raises(SignatureGateError, match=r"names .*pos-03' and carries the certificate of .*pos-04"):
        verify_ping(dataclasses.replace(ours, signatures=(swapped,)), credentials)
    renamed = dataclasses.replace(swapped, keyid=sibling.node_id.uri)
    with pytest.raises(SignatureGateError, match="does not fit"):
        verify_ping(dataclasses.replace(ours, signatures=(renamed,)), credentials)
    bare = dataclasses.replace(ours.signatures[0], certificate=b"")
    with pytest.raises(SignatureGateError, match="not a DER certificate"):
        verify_ping(dataclasses.replace(ours, signatures=(bare,)), credentials)


def test_an_expired_certificate_is_refused_at_the_injected_time(credentials: CredentialsFactory) -> None:
    envelope = sign_as_node(ping(), credentials(DEVICE))
    with pytest.raises(SignatureGateError, match="expired at"):
        verify_ping(envelope, credentials, NOW + timedelta(days=91))
    with pytest.raises(EarlySignatureError, match="not valid before"):
        verify_ping(envelope, credentials, NOW - timedelta(hours=2))


def test_of_a_certificate_of_others_no_date_makes_an_early_one(credentials: CredentialsFactory, tmp_path: Path) -> None:
    stranger = FleetCa.create(credentials(DEVICE).node_id.fleet, NOW)
    later = NOW + timedelta(hours=1)
    write_node(tmp_path, stranger, credentials(DEVICE).node_id, not_before=later, not_after=later + timedelta(days=1))
    envelope = sign_as_node(ping(), NodeCredentials.load(tmp_path))
    with pytest.raises(SignatureGateError, match="not valid before") as caught:
        verify_ping(envelope, credentials)
    assert not isinstance(caught.value, EarlySignatureError)


def test_a_revoked_nodes_word_is_refused_by_name_of_the_revocation(credentials: CredentialsFactory) -> None:
    """In an envelope as in TLS; what it signs with a later certificate is believed."""
    me, hub = credentials(DEVICE), Authorities(credentials(STORE).authorities.certificates)
    issued_at = me.certificate.not_valid_before_utc
    envelope = sign_as_node(ping(), me)
    for epoch, path, reach, before, is_hit in (
        (1, DEVICE, s.RevocationReach.NODE, issued_at, False),
        (2, DEVICE, s.RevocationReach.NODE, issued_at + timedelta(seconds=1), True),
        (3, STORE, s.RevocationReach.NODE, issued_at + timedelta(seconds=1), False),
        (4, STORE, s.RevocationReach.BELOW, issued_at + timedelta(seconds=1), True),
    ):
        hub.take(s.RevocationList(epoch, (s.Revocation(path, reach, before, "stolen"),), NOW))
        if is_hit:
            with pytest.raises(SignatureGateError, match=f"taken back: certificates of {path}.*stolen"):
                verify_node(envelope, s.HealthPing, hub, NOW)
        else:
            assert verify_node(envelope, s.HealthPing, hub, NOW)[1] == ping()


def test_a_node_signs_once(credentials: CredentialsFactory) -> None:
    envelope = sign_as_node(ping(), credentials(DEVICE))
    for signatures in ((), envelope.signatures * 2):
        with pytest.raises(SignatureGateError, match="a node's statement has one"):
            verify_ping(dataclasses.replace(envelope, signatures=signatures), credentials)


def test_a_role_is_believed_at_its_threshold() -> None:
    one, two, three = (CryptoSigner.generate_ed25519() for _ in range(3))
    trusted = fake_trusted(one, two, threshold=2)
    assert verify_role(sign_statement(closed(), [one, two]), s.WaveClosed, trusted) == closed()
    for signers in ([one], [one, three], [one, one], []):
        with pytest.raises(SignatureGateError, match="of the 2 signatures needed"):
            verify_role(sign_statement(closed(), signers), s.WaveClosed, trusted)


def test_keys_of_other_kinds_sign_too() -> None:
    """Hubs' and control's keys may live in an HSM, which mostly means ECDSA."""
    signer = CryptoSigner.generate_ecdsa()
    assert verify_role(sign_statement(closed(), [signer]), s.WaveClosed, fake_trusted(signer)) == closed()


def test_bytes_that_are_no_statement() -> None:
    signer = CryptoSigner.generate_ed25519()
    envelope = sign_with_keys("application/json", b"{}", [signer])
    assert verify_role_payload(envelope, "application/json", fake_trusted(signer)) == b"{}"
    with pytest.raises(SignatureGateError, match="is not the text/plain"):
        verify_role_payload(envelope, "text/plain", fake_trusted(signer))
    with pytest.raises(SignatureGateError, match="0 of the 1"):
        verify_role_payload(dataclasses.replace(envelope, payload=b"[]"), "application/json", fake_trusted(signer))


def test_bounds_and_malformed_payloads() -> None:
    signer = CryptoSigner.generate_ed25519()
    keys = {signer.public_key.keyid: signer.public_key}
    big = s.Envelope("t", b"x" * (1024 * 1024 + 1), ())
    with pytest.raises(SignatureGateError, match="at most 1048576"):
        verify_keys(big, "t", keys, 1, "control")
    many = s.Envelope("t", b"", (s.Signature("k", b"s"),) * 17)
    with pytest.raises(SignatureGateError, match="at most 16"):
        verify_keys(many, "t", keys, 1, "control")
    with pytest.raises(SignatureGateError, match="0 of the 0"):
        verify_keys(s.Envelope("t", b"", ()), "t", keys, 0, "control")
    rubbish = sign_with_keys(s.WaveClosed.payload_type, b"\xff\xff", [signer])
    with pytest.raises(SignatureGateError, match="signed well, but malformed"):
        verify_role(rubbish, s.WaveClosed, fake_trusted(signer))
