"""Certificates to call with: those of the fleet's nodes, and those of everybody else who might try."""

from __future__ import annotations

import enum
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.conftest import FLEET, Issuers
from tests.security.matrix import Answer
from wavemesh.identity.ca import FleetCa, RegionCa
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.grpc import SESSION_OPTIONS
from wavemesh.trust.statements import Revocation, RevocationList, RevocationReach

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wavemesh.identity.ca import Issuer

_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)


class Impostor(enum.Enum):
    """A wrong identity; each claims to be a node that would be let in."""

    NO_CERTIFICATE = "no client certificate"
    NO_CA = "a self-signed certificate"
    OTHER_FLEET = "a certificate of another fleet's CA"
    OTHER_CA = "a certificate of another CA that calls itself the fleet's"
    NODE_AS_CA = "a certificate issued by a node of the fleet"
    EXPIRED = "an expired certificate"
    NOT_YET_VALID = "a certificate that is not valid yet"
    OTHER_NAME = "a certificate of the fleet's CA that names another fleet"
    NO_NAME = "a certificate of the fleet's CA without a SPIFFE id"
    OTHER_REGION = "a certificate of another region's authority"
    REVOKED = "a certificate that was taken back"
    REVOKED_AUTHORITY = "a certificate whose authority was taken back"

    @property
    def answer(self) -> Answer:
        """What it gets from an RPC that asks who calls."""
        is_ours = self in {Impostor.OTHER_NAME, Impostor.NO_NAME, Impostor.OTHER_REGION} | REVOKED
        return Answer.FORBIDDEN if is_ours else Answer.NO_CONNECTION


REVOKED = frozenset({Impostor.REVOKED, Impostor.REVOKED_AUTHORITY})


class Identities:
    """Everybody who calls, for one fleet CA."""

    def __init__(self, ca: FleetCa) -> None:
        self._ca = ca
        self._issuers = Issuers(ca)
        self._revoked_at = datetime.now(UTC) - 2 * _HOUR
        self._authority_since = self._issuers.since
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._other_fleet = FleetCa.create("other.example", datetime.now(UTC) - _DAY)
        self._other_ca = FleetCa.create(FLEET, datetime.now(UTC) - _DAY)

    def node(self, path: str) -> grpc.ChannelCredentials:
        """A node with a good certificate."""
        issuer = self._issuers.issuer(path)
        return self._present([self._issue(issuer, NodeId(FLEET, path)), *issuer.chain])

    def impostor(self, kind: Impostor, path: str) -> grpc.ChannelCredentials:
        """A wrong identity that claims to be the node at that path."""
        chain = self._revoked_chain(kind, path) if kind in REVOKED else self._chain(kind, path)
        return self._present(chain) if chain else grpc.ssl_channel_credentials(_pem(self._ca.certificate))

    def revocations(self, *paths: str) -> RevocationList:
        """What was taken back, for those with REVOKED identities that claim to be these nodes."""
        entries = {Revocation(path, RevocationReach.NODE, self._revoked_at, "stolen") for path in paths}
        for path in paths:
            if path.startswith("region/"):
                region = "/".join(path.split("/")[:2])
                entries.add(Revocation(region, RevocationReach.AUTHORITY, self._authority_since, "stolen"))
        return RevocationList(1, tuple(entries), self._revoked_at)

    def _revoked_chain(self, kind: Impostor, path: str) -> list[x509.Certificate]:
        """A leaf that is too old, or a good one below an authority that is."""
        if kind is Impostor.REVOKED or not path.startswith("region/"):
            issuer = self._issuers.issuer(path)
            return [self._issue(issuer, NodeId(FLEET, path), self._revoked_at - _HOUR), *issuer.chain]
        before, after = self._authority_since - _HOUR, datetime.now(UTC) + _DAY
        old = RegionCa.create(self._ca, path.split("/")[1], not_before=before, not_after=after)
        return [self._issue(old, NodeId(FLEET, path)), old.certificate]

    def _chain(self, kind: Impostor, path: str) -> list[x509.Certificate]:
        """The certificates that are shown, leaf first."""
        node, other, now = NodeId(FLEET, path), NodeId("other.example", path), datetime.now(UTC)
        if kind is Impostor.NO_CERTIFICATE:
            return []
        chain: list[x509.Certificate]
        match kind:
            case Impostor.NO_CA:
                chain = [self._signed_by(None, path, node.uri)]
            case Impostor.OTHER_FLEET:
                chain = [self._issue(self._other_fleet, other)]
            case Impostor.OTHER_CA:
                chain = [self._issue(self._other_ca, node)]
            case Impostor.NODE_AS_CA:
                issuer = self._issue(self._ca, NodeId(FLEET, "operator/mallory"))
                chain = [self._signed_by(issuer, path, node.uri), issuer]
            case Impostor.EXPIRED:
                chain = [self._issue(self._ca, node, now - _DAY, now - _HOUR)]
            case Impostor.NOT_YET_VALID:
                chain = [self._issue(self._ca, node, now + _HOUR, now + _DAY)]
            case Impostor.OTHER_NAME:
                careless = FleetCa(other.fleet, self._ca.certificate, self._ca._key)
                chain = [self._issue(careless, other)]
            case Impostor.OTHER_REGION:
                thief = RegionCa.create(self._ca, "west", not_before=now - _HOUR, not_after=now + _DAY)
                chain = [self._signed_by(thief.certificate, path, node.uri, thief._key), thief.certificate]
            case _:
                chain = [self._signed_by(self._ca.certificate, path, "", self._ca._key)]
        return chain

    def _present(self, chain: Sequence[x509.Certificate]) -> grpc.ChannelCredentials:
        key = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        pem = b"".join(map(_pem, chain))
        return grpc.ssl_channel_credentials(_pem(self._ca.certificate), private_key=key, certificate_chain=pem)

    def _issue(
        self, ca: Issuer, node: NodeId, not_before: datetime | None = None, not_after: datetime | None = None
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        return ca.issue(
            node, self._key.public_key(), not_before=not_before or now - _HOUR, not_after=not_after or now + _HOUR
        )

    def _signed_by(
        self, issuer: x509.Certificate | None, path: str, uri: str, key: ec.EllipticCurvePrivateKey | None = None
    ) -> x509.Certificate:
        """A certificate as nobody in the fleet would make it; without an issuer it signs itself."""
        now = datetime.now(UTC)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, path.rsplit("/", 1)[1])])
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer.subject if issuer is not None else name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _HOUR)
            .not_valid_after(now + _HOUR)
        )
        if uri:
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(key or self._key, hashes.SHA256())


def dial(port: int, server: NodeId, credentials: grpc.ChannelCredentials) -> grpc.aio.Channel:
    """A channel of its own connection to a server on this machine."""
    options = [*SESSION_OPTIONS, ("grpc.ssl_target_name_override", server.dns_name)]
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
