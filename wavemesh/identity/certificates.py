"""Whether a certificate proves who somebody is.

Rules: the leaf chains to one of the fleet's roots, through intermediates if need be, and every certificate of the chain
is valid at ``now`` (RFC 5280 path validation by the cryptography package); the leaf has exactly one URI SAN, the node's
SPIFFE id; it lies within what every authority of the chain says it speaks for in its own URI SAN: ``spiffe://FLEET``
for the root, ``spiffe://FLEET/region/R`` for a region's authority. So the CA of one fleet cannot speak for another, nor
a region for its neighbour, for control or for an operator. TLS knows nothing of this rule: whoever serves holds it
against the chain its peer showed (``authorities.py``). A root is what signed itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509 import verification

from wavemesh.errors import PeerError
from wavemesh.identity.nodes import BadNodeIdError, NodeId, Role, is_within

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

MAX_CERTIFICATE_BYTES = 16 * 1024
MAX_CA_CERTIFICATES = 16
MAX_CHAIN_CERTIFICATES = 2
"""Above a leaf: at most its region's authority and the root."""
LONGEST_LEAF_LIFETIME = timedelta(days=400)
"""No leaf is believed that claims to live longer, so a revocation need not be remembered for ever."""
_MAX_CHAIN_DEPTH = 4
_FLEET_URI = re.compile(r"spiffe://([^/]+)")
# What reading a hostile certificate raises; some of these are no ValueErrors, and parts are parsed only when asked for.
CERTIFICATE_ERRORS = (
    ValueError,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    UnsupportedAlgorithm,
)


class BadCertificateError(PeerError):
    """A certificate does not prove what it should; the message says why."""

    reason = "BAD_CERTIFICATE"


class EarlyCertificateError(BadCertificateError):
    """A certificate that will prove what it should: it is our clock that is behind, or its issuer's ahead."""


def fleet_uri(fleet: str) -> str:
    """The URI SAN of a fleet's CA: its SPIFFE trust domain."""
    return f"spiffe://{fleet}"


class Scope(NamedTuple):
    """What an authority speaks for: a whole fleet, or one region of it."""

    fleet: str
    region: str = ""

    def covers(self, node_id: NodeId) -> bool:
        """Whether that node is within it."""
        return node_id.fleet == self.fleet and (not self.region or is_within(node_id.path, f"region/{self.region}"))


@dataclass(frozen=True, slots=True)
class Proof:
    """Which node a leaf proves, and by what: when the leaf was issued, when the first certificate of its chain expires,
    each authority above it with the time it was issued itself, and when the last certificate of its chain starts.
    """

    node_id: NodeId
    issued_at: datetime
    expires_at: datetime
    authorities: tuple[tuple[Scope, datetime], ...]
    starts_at: datetime


def authority_scope(certificate: x509.Certificate) -> Scope | None:
    """What an authority's certificate says it speaks for; None if that is not exactly one fleet or region."""
    uris = _uris(certificate)
    if len(uris) != 1:
        return None
    match = _FLEET_URI.fullmatch(uris[0])
    if match is not None:
        return Scope(match[1])
    try:
        node_id = NodeId.parse(uris[0])
    except BadNodeIdError:
        return None
    return Scope(node_id.fleet, node_id.name) if node_id.role is Role.SUPER_HUB else None


def load_certificate(der: bytes) -> x509.Certificate:
    """Read one DER certificate; raises BadCertificateError."""
    if len(der) > MAX_CERTIFICATE_BYTES:
        msg = f"certificate of {len(der)} bytes; at most {MAX_CERTIFICATE_BYTES} are accepted"
        raise BadCertificateError(msg)
    try:
        return x509.load_der_x509_certificate(der)
    except CERTIFICATE_ERRORS as error:
        msg = f"not a DER certificate: {error}"
        raise BadCertificateError(msg) from error


def node_id_of(certificate: x509.Certificate) -> NodeId:
    """The node a leaf names in its URI SAN, unverified; raises BadCertificateError or BadNodeIdError."""
    uris = _uris(certificate)
    if len(uris) != 1:
        msg = f"certificate has {len(uris)} URI SANs; a node's has exactly one, its SPIFFE id"
        raise BadCertificateError(msg)
    return NodeId.parse(uris[0])


def verify_certificate(leaf: x509.Certificate, ca_certificates: Sequence[x509.Certificate], now: datetime) -> Proof:
    """What the leaf proves at ``now``; raises BadCertificateError (EarlyCertificateError) or BadNodeIdError."""
    node_id = node_id_of(leaf)
    lifetime = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    if lifetime > LONGEST_LEAF_LIFETIME:
        msg = f"certificate of {node_id.uri} claims to be good for {lifetime.days} days; at most 400 are accepted"
        raise BadCertificateError(msg)
    roots = [certificate for certificate in ca_certificates if is_root(certificate)]
    intermediates = [certificate for certificate in ca_certificates if not is_root(certificate)]
    if not roots:
        msg = "no root among the CA certificates: nothing can be verified"
        raise BadCertificateError(msg)
    try:
        chain = _chain(leaf, roots, intermediates, now)
    except verification.VerificationError as error:
        msg = f"certificate of {node_id.uri} is not valid at {now.isoformat()}: {validity_problem(leaf, now) or error}"
        if _is_early(leaf, roots, intermediates, now):
            raise EarlyCertificateError(msg) from error
        raise BadCertificateError(msg) from error
    authorities: list[tuple[Scope, datetime]] = []
    for authority in chain[1:]:
        scope = authority_scope(authority)
        if scope is None or not scope.covers(node_id):
            speaks_for = ", ".join(_uris(authority)) or "no fleet"
            msg = f"certificate of {node_id.uri} comes from a CA that speaks for {speaks_for}"
            raise BadCertificateError(msg)
        authorities.append((scope, authority.not_valid_before_utc))
    expires_at = min(one.not_valid_after_utc for one in chain)
    starts_at = max(one.not_valid_before_utc for one in chain)
    return Proof(node_id, leaf.not_valid_before_utc, expires_at, tuple(authorities), starts_at)


def _chain(
    leaf: x509.Certificate,
    roots: Sequence[x509.Certificate],
    intermediates: Sequence[x509.Certificate],
    now: datetime,
) -> list[x509.Certificate]:
    """The leaf's chain to a root, all valid at ``now``; raises VerificationError."""
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store(list(roots)))
        .time(now)
        .max_chain_depth(_MAX_CHAIN_DEPTH)
        .build_client_verifier()
    )
    return verifier.verify(leaf, list(intermediates)).chain


def _is_early(
    leaf: x509.Certificate,
    roots: Sequence[x509.Certificate],
    intermediates: Sequence[x509.Certificate],
    now: datetime,
) -> bool:
    """Whether nothing but time is wanting: anybody can write a date that is to come."""
    try:
        return now < leaf.not_valid_before_utc and bool(_chain(leaf, roots, intermediates, leaf.not_valid_before_utc))
    except verification.VerificationError:
        return False


@lru_cache(maxsize=4 * MAX_CA_CERTIFICATES)
def is_root(certificate: x509.Certificate) -> bool:
    """Whether the certificate signed itself; equal names alone would let an intermediate pose as an anchor."""
    try:
        certificate.verify_directly_issued_by(certificate)
    except (*CERTIFICATE_ERRORS, TypeError, InvalidSignature):
        return False
    return True


def validity_problem(certificate: x509.Certificate, now: datetime) -> str | None:
    """Why the certificate's own period does not contain ``now``; None if it does."""
    if now < certificate.not_valid_before_utc:
        return f"not valid before {certificate.not_valid_before_utc.isoformat()}"
    if now > certificate.not_valid_after_utc:
        return f"expired at {certificate.not_valid_after_utc.isoformat()}"
    return None


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    except CERTIFICATE_ERRORS as error:
        msg = f"certificate with malformed extensions: {error}"
        raise BadCertificateError(msg) from error
    return names.get_values_for_type(x509.UniformResourceIdentifier)
