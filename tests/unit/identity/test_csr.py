"""Certificate requests: who asks has the key, and it is one we take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from wavemesh.identity.csr import MAX_REQUEST_BYTES, BadCsrError, key_of_request, key_sha256, make_request
from wavemesh.identity.keys import SoftwareKeys

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes

KEY = SoftwareKeys().create()


def _point(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def request(key: CertificateIssuerPrivateKeyTypes, algorithm: hashes.SHA256 | None) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, algorithm).public_bytes(Encoding.DER)


def test_the_key_is_the_one_that_signed() -> None:
    assert key_of_request(make_request(KEY, "pos-01")) == KEY.public_key()
    assert key_sha256(KEY.public_key()) != key_sha256(SoftwareKeys().create().public_key())


def test_a_request_for_somebody_elses_key_is_refused() -> None:
    """The public key of another in a request that one has signed oneself."""
    mine, theirs = (make_request(key, "pos-01") for key in (KEY, SoftwareKeys().create()))
    own, other = [_point(key_of_request(one)) for one in (mine, theirs)]
    forged = mine.replace(own, other)
    assert forged != mine
    with pytest.raises(BadCsrError, match="not signed by the key"):
        key_of_request(forged)


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"nothing",
        make_request(KEY, "pos-01")[:-1],
        bytes(MAX_REQUEST_BYTES + 1),
        request(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256()),
        request(ed25519.Ed25519PrivateKey.generate(), None),
    ],
)
def test_what_we_do_not_take_is_refused(der: bytes) -> None:
    with pytest.raises(BadCsrError):
        key_of_request(der)
