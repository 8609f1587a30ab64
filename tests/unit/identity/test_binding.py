"""What a certificate binds: it survives the certificate, and a malformed one is refused, not passed over."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from wavemesh.identity.binding import (
    BINDING_OID,
    MAX_PCRS,
    MAX_WORD_CHARACTERS,
    Attestation,
    Binding,
    binding_of,
    issued_at,
    renew_at,
)
from wavemesh.identity.certificates import BadCertificateError
from wavemesh.identity.nodes import NodeId

if TYPE_CHECKING:
    from wavemesh.identity.ca import FleetCa

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
KEY = ec.generate_private_key(ec.SECP256R1())
NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "n")])


def certificate(value: bytes | None) -> x509.Certificate:
    """Self-signed, with that value of the extension."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(NAME)
        .issuer_name(NAME)
        .public_key(KEY.public_key())
        .serial_number(7)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=10))
    )
    if value is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(BINDING_OID, value), critical=False)
    return builder.sign(KEY, hashes.SHA256())


words = st.text(max_size=MAX_WORD_CHARACTERS)


@settings(max_examples=60, deadline=None)
@given(words, words, st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1)))  # noqa: DTZ001  # made aware below
def test_what_is_bound_is_read_again(device_class: str, revision: str, at: datetime) -> None:
    bound = Binding(at.replace(tzinfo=UTC), device_class, revision)
    assert binding_of(certificate(bound.extension().value)) == bound


def test_an_attestation_key_and_pcrs_are_read_again() -> None:
    """Also with everything at its bound; without one the bytes are those of before."""
    pcrs = tuple((number, f"{number:064x}") for number in range(MAX_PCRS))
    longest = "\u2603" * MAX_WORD_CHARACTERS
    bound = Binding(NOW, longest, longest, Attestation(bytes(range(65)), pcrs))
    assert binding_of(certificate(bound.extension().value)) == bound
    assert b"attestation" not in Binding(NOW, "a", "b").extension().value


def test_a_certificate_without_one_says_its_start(fleet_ca: FleetCa) -> None:
    plain = certificate(None)
    assert binding_of(plain) is None
    assert issued_at(plain) == NOW
    start = fleet_ca.certificate.not_valid_before_utc
    bound = fleet_ca.issue(
        NodeId(fleet_ca.fleet, "operator/alice"),
        KEY.public_key(),
        not_before=start,
        not_after=start + timedelta(days=1),
        binding=Binding(start + timedelta(minutes=5, microseconds=3)),
    )
    assert issued_at(bound) == start + timedelta(minutes=5, microseconds=3)


WITH_KEY = Binding(NOW, "a", "b", Attestation(b"\1", ((7, "ab"),))).extension().value


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\x0c",
        b"\x0c\x02{}",
        b"\x0c\x03{}",
        b"\x04\x02{}",
        b"\x0c\x81\x02{}",
        b'\x0c\x2b{"class":"a","hardware":"b","issued":"later"}'[:45],
        Binding(NOW, "a", "b").extension().value + b" ",
        Binding(NOW, "a", "b").extension().value.replace(b'"a"', b"[1]"),
        Binding(NOW, "a", "b").extension().value.replace(b'"a"', b"123"),
        WITH_KEY.replace(b'"01"', b'"0z"'),
        WITH_KEY.replace(b'"7"', b'"x"'),
        WITH_KEY.replace(b'{"7":"ab"}', b'["7","ab"]'),
        WITH_KEY.replace(b'"key"', b'"kez"'),
    ],
)
def test_a_malformed_one_is_refused(value: bytes) -> None:
    with pytest.raises(BadCertificateError):
        binding_of(certificate(value))


def test_words_have_a_bound() -> None:
    with pytest.raises(RuntimeError, match="at most 100"):
        Binding(NOW, "x" * (MAX_WORD_CHARACTERS + 1)).extension()


def test_renewal_is_due_between_half_and_six_tenths() -> None:
    leaf = certificate(None)
    assert renew_at(leaf, 0.0) == NOW + timedelta(days=5)
    assert renew_at(leaf, 1.0) == NOW + timedelta(days=6)
