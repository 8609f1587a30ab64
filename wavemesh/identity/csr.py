"""Certificate requests: how a node asks for a certificate, and what an issuer takes from the asking.

A request (PKCS#10) proves that who asks has the key; its names count for nothing, as a node's name and binding come
from its enrolment or from the certificate it renews.
"""

from __future__ import annotations

import hashlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from wavemesh.errors import PeerError
from wavemesh.identity.certificates import CERTIFICATE_ERRORS

MAX_REQUEST_BYTES = 4096


class BadCsrError(PeerError):
    """A certificate request is malformed, too large, not of a P-256 key, or its signature does not fit."""

    reason = "BAD_CSR"


def make_request(key: ec.EllipticCurvePrivateKey, name: str) -> bytes:
    """A request for that key, DER; ``name`` is for people who look at it."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def key_of_request(der: bytes) -> ec.EllipticCurvePublicKey:
    """The key whose holder made the request; raises BadCsrError."""
    if len(der) > MAX_REQUEST_BYTES:
        msg = f"certificate request of {len(der)} bytes; at most {MAX_REQUEST_BYTES} are accepted"
        raise BadCsrError(msg)
    try:
        request = x509.load_der_x509_csr(der)
        key = request.public_key()
        is_proven = request.is_signature_valid
    except (*CERTIFICATE_ERRORS, TypeError) as error:
        msg = f"not a certificate request in DER (PKCS#10): {error}"
        raise BadCsrError(msg) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        msg = "the certificate request is not for an EC P-256 key; make one"
        raise BadCsrError(msg)
    if not is_proven:
        msg = "the certificate request is not signed by the key it is for"
        raise BadCsrError(msg)
    return key


def key_sha256(key: ec.EllipticCurvePublicKey) -> str:
    """A public key's name: SHA-256 of its SubjectPublicKeyInfo, hex."""
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()
