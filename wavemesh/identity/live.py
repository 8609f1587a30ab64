"""A node's identity while it is renewed: one object for the life of a process, whose pair in use changes.

Servers ask for it at each handshake (``grpc.dynamic_ssl_server_credentials``; the fetcher runs on a thread of gRPC
core), so those that connect next see the new certificate and connections that are open go on. Channels cannot reload:
who holds one makes a new one (``SessionUpstream.move``; bulk channels are made anew for each transfer anyway).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from wavemesh.errors import PeerError
from wavemesh.identity.binding import binding_of
from wavemesh.identity.ca import certificates_pem
from wavemesh.identity.certificates import load_certificate, validity_problem
from wavemesh.identity.credentials import NodeCredentials
from wavemesh.identity.files import CA_FILE, CERTIFICATE_FILE, KEY_FILE, install_pair, sweep_pairs
from wavemesh.identity.keys import SoftwareKeys
from wavemesh.runtime.durable import Disk

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    from wavemesh.identity.authorities import Authorities
    from wavemesh.identity.keys import Keys
    from wavemesh.identity.nodes import NodeId
    from wavemesh.trust.enrolments import IssuedCertificate


class BadIssueError(PeerError):
    """A certificate that was issued to this node is not for its key, not for it, or of no authority it knows."""

    reason = "BAD_ISSUE"


class CertificateClockError(PeerError):
    """A certificate that was issued to this node is not valid by this node's clock: one of two clocks is wrong."""

    reason = "CERTIFICATE_CLOCK"


def verify_issued(
    authorities: Authorities, node_id: NodeId, key: ec.EllipticCurvePrivateKey, issued: IssuedCertificate, now: datetime
) -> list[x509.Certificate]:
    """The chain that was issued, leaf first, when it is for that node and that key and valid now.

    Raises BadIssueError, CertificateClockError.
    """
    leaf = load_certificate(issued.certificate)
    problem = validity_problem(leaf, now)
    if problem is not None:
        msg = (
            f"the new certificate of {node_id.path} is {problem}, but the clock here says {now.isoformat()} "
            f"and the issuer's {issued.at.isoformat()}; set the clock that is wrong"
        )
        raise CertificateClockError(msg)
    chain = [leaf, *map(load_certificate, issued.intermediates)]
    try:
        named = authorities.verify(leaf, now, chain[1:])
    except PeerError as error:
        msg = f"the new certificate of {node_id.path} is not to be believed: {error}"
        raise BadIssueError(msg) from error
    if named != node_id or leaf.public_key() != key.public_key():
        msg = f"the new certificate is of {named.uri}, or not for the key that {node_id.uri} made"
        raise BadIssueError(msg)
    return chain


def check_attested(certificate: x509.Certificate, attestation_key: bytes) -> None:
    """Raise BadIssueError unless the certificate binds that attestation key (a point; empty for none)."""
    if _attestation_key(certificate) != attestation_key:
        msg = "the new certificate does not bind this node's attestation key; update the hubs above it first"
        raise BadIssueError(msg)


def _attestation_key(certificate: x509.Certificate) -> bytes:
    binding = binding_of(certificate)
    return b"" if binding is None or binding.attestation is None else binding.attestation.key


class LiveCredentials:
    """Implements ``Credentials``; the pair in use is kept in ``directory``."""

    def __init__(self, directory: Path, first: NodeCredentials, disk: Disk, keys: Keys) -> None:
        """Use ``load``."""
        self._directory = directory
        self._disk = disk
        self.keys = keys
        """Where this node's keys live."""
        self._current = first
        self._authorities = first.authorities

    @classmethod
    def load(cls, directory: Path, disk: Disk | None = None, keys: Keys | None = None) -> LiveCredentials:
        """Read the pair in use and remove what cut renewals have left beside it; ``keys`` as for NodeCredentials.

        Raises CredentialsError, IdentitySwitchError.
        """
        disk, keys = disk or Disk(), keys or SoftwareKeys()
        first = NodeCredentials.load(directory, keys)
        sweep_pairs(directory, disk)
        return cls(directory, first, disk, keys)

    @property
    def current(self) -> NodeCredentials:
        """The pair in use."""
        return self._current

    @property
    def node_id(self) -> NodeId:
        """Who the node is."""
        return self._current.node_id

    @property
    def authorities(self) -> Authorities:
        """Whom it believes; one object for its life."""
        return self._authorities

    def install(self, key: ec.EllipticCurvePrivateKey, issued: IssuedCertificate, now: datetime) -> None:
        """Verify a new certificate, make it durable and use it. The old pair stays in use when this raises.

        Raises BadIssueError, CertificateClockError, DiskFaultError.
        """
        chain = verify_issued(self._authorities, self.node_id, key, issued, now)
        leaf = chain[0]
        check_attested(leaf, _attestation_key(self._current.certificate))
        files = self._directory / KEY_FILE, self._directory / CERTIFICATE_FILE, self._directory / CA_FILE
        pair = self.keys.keep(key), certificates_pem(chain)
        parsed = NodeCredentials.parse(files, *pair, self._current.ca_pem, self.keys)
        install_pair(self._directory, f"{leaf.serial_number:x}", *pair, self._disk)
        self._current = parsed

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a server that demands a certificate of this fleet from every client."""
        return self._dynamic(require_client_authentication=True)

    def joining_credentials(self) -> grpc.ServerCredentials:
        """For a server whose callers have no certificate yet."""
        return self._dynamic(require_client_authentication=False)

    def _dynamic(self, *, require_client_authentication: bool) -> grpc.ServerCredentials:
        return grpc.dynamic_ssl_server_credentials(
            self._current.certificate_configuration,
            self._fetcher(),  # type: ignore[arg-type]  # the stubs do not know that None keeps what is served
            require_client_authentication=require_client_authentication,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a channel to a server of this fleet, with the pair in use now."""
        return self._current.channel_credentials()

    def _fetcher(self) -> Callable[[], grpc.ServerCertificateConfiguration | None]:
        served = self._current

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            """The configuration where it changed; two threads at once at worst load it twice."""
            nonlocal served
            latest = self._current
            if latest is served:
                return None
            served = latest
            return latest.certificate_configuration

        return fetch
