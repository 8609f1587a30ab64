"""What a node proves its identity with: its key, its certificate and the fleet's CA certificates.

``load`` checks everything that does not depend on time: the files are there and well formed, the key belongs to the
certificate, the certificate chains to ca.crt. It does not refuse an expired certificate, because a device whose clock
or certificate is wrong must still start, run and roll back; tiers that want to say so early call ``check_validity``.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc import experimental

from wavemesh.errors import LocalError, PeerError
from wavemesh.identity.authorities import Authorities
from wavemesh.identity.certificates import CERTIFICATE_ERRORS, MAX_CA_CERTIFICATES, is_root, validity_problem
from wavemesh.identity.files import CA_FILE, CERTIFICATE_FILE, KEY_FILE, pair_directory
from wavemesh.identity.keys import CredentialsError, SoftwareKeys, refers_to_tpm

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from wavemesh.identity.keys import Keys
    from wavemesh.identity.nodes import NodeId

_LOG = logging.getLogger(__name__)
_MAX_FILE_BYTES = 256 * 1024


class Credentials(Protocol):
    """A node's identity as servers, channels and signers take it: fixed, or renewed while they run (``live.py``)."""

    @property
    def current(self) -> NodeCredentials:
        """What to use for the next connection or signature."""
        ...

    @property
    def node_id(self) -> NodeId:
        """Who the node is, whatever certificate it has."""
        ...

    @property
    def authorities(self) -> Authorities:
        """Whom the node believes; one object for its life."""
        ...

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a server that demands a certificate of this fleet from every client."""
        ...

    def joining_credentials(self) -> grpc.ServerCredentials:
        """For a server whose callers have no certificate yet."""
        ...

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a channel to a server of this fleet."""
        ...


@dataclass(frozen=True, slots=True, repr=False)
class NodeCredentials:
    """A node's identity, ready to dial, serve and sign. ``certificate`` is the leaf."""

    node_id: NodeId
    certificate: x509.Certificate
    intermediates: tuple[x509.Certificate, ...]
    authorities: Authorities
    _key: ec.EllipticCurvePrivateKey
    _key_pem: bytes
    _chain_pem: bytes
    _ca_pem: bytes

    @classmethod
    def load(cls, directory: Path, keys: Keys | None = None) -> NodeCredentials:
        """Read the pair in use (node.key; node.crt, leaf first, then intermediates) and ca.crt.

        ``keys`` says where the key lives, by default in its file. Raises CredentialsError, IdentitySwitchError.
        """
        pair = pair_directory(directory)
        files = pair / KEY_FILE, pair / CERTIFICATE_FILE, directory / CA_FILE
        key_data, chain_pem, ca_pem = map(_read, files)
        return cls.parse(files, key_data, chain_pem, ca_pem, keys)

    @classmethod
    def parse(
        cls,
        files: tuple[Path, Path, Path],
        key_data: bytes,
        chain_pem: bytes,
        ca_pem: bytes,
        keys: Keys | None = None,
    ) -> NodeCredentials:
        """The same of bytes that are, or will be, in those files; raises CredentialsError."""
        key_file, certificate_file, ca_file = files
        key = (keys or SoftwareKeys()).load(key_file, key_data)
        leaf, *chain = _parse_certificates(certificate_file, chain_pem)
        # Whom to trust is for ca.crt alone to say: what came with the leaf may link to an anchor, never be one.
        intermediates = [certificate for certificate in chain if not is_root(certificate)]
        authorities = _parse_certificates(ca_file, ca_pem)
        if leaf.public_key() != key.public_key():
            msg = f"{key_file} is not the key of {certificate_file}: enrol the node again"
            raise CredentialsError(msg)
        try:
            known = Authorities([*authorities, *intermediates])
            node_id = known.verify(leaf, leaf.not_valid_before_utc)
        except PeerError as error:
            msg = f"{certificate_file} does not fit {ca_file}: {error}; enrol the node again"
            raise CredentialsError(msg) from error
        return cls(node_id, leaf, tuple(intermediates), known, key, key_data, chain_pem, ca_pem)

    def __repr__(self) -> str:
        """Never show the key."""
        return f"NodeCredentials({self.node_id.uri})"

    @property
    def current(self) -> NodeCredentials:
        """Itself."""
        return self

    @property
    def certificate_configuration(self) -> grpc.ServerCertificateConfiguration:
        """What a server proves itself with, and whom it lets in."""
        return grpc.ssl_server_certificate_configuration([(self._key_pem, self._chain_pem)], self._ca_pem)

    @property
    def ca_pem(self) -> bytes:
        """The fleet's root, as ca.crt has it."""
        return self._ca_pem

    @property
    def root_der(self) -> bytes:
        """The fleet's root, as a token carries it."""
        root = next(one for one in x509.load_pem_x509_certificates(self._ca_pem) if is_root(one))
        return root.public_bytes(serialization.Encoding.DER)

    @property
    def certificate_der(self) -> bytes:
        """The leaf as it is embedded in envelopes."""
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def intermediates_der(self) -> tuple[bytes, ...]:
        """What stands between the leaf and the root, as it is embedded in envelopes."""
        return tuple(one.public_bytes(serialization.Encoding.DER) for one in self.intermediates)

    def check_validity(self, now: datetime) -> None:
        """Raise CredentialsError when the certificate's period does not contain ``now``."""
        problem = validity_problem(self.certificate, now)
        if problem is not None:
            msg = f"certificate of {self.node_id.uri} is {problem}: check the clock, or enrol the node again"
            raise CredentialsError(msg)

    def sign(self, data: bytes) -> bytes:
        """ECDSA P-256 with SHA-256, ASN.1 DER. Raises LocalError where the key lives in hardware."""
        return self._key.sign(data, ec.ECDSA(hashes.SHA256()))

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a server that demands a certificate of this fleet from every client."""
        return grpc.ssl_server_credentials(
            [(self._key_pem, self._chain_pem)], root_certificates=self._ca_pem, require_client_auth=True
        )

    def joining_credentials(self) -> grpc.ServerCredentials:
        """For a server whose callers have no certificate yet: it proves itself, and asks for nothing."""
        return grpc.ssl_server_credentials([(self._key_pem, self._chain_pem)])

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a channel to a server of this fleet. Which node it is, the caller pins by ``NodeId.dns_name``."""
        if not refers_to_tpm(self._key_pem):
            return grpc.ssl_channel_credentials(
                root_certificates=self._ca_pem, private_key=self._key_pem, certificate_chain=self._chain_pem
            )
        with warnings.catch_warnings():
            # An experimental part of grpcio; tests/integration/test_grpc_traps.py holds what is relied on.
            warnings.simplefilter("ignore", experimental.ExperimentalApiWarning)
            signing: grpc.ChannelCredentials = experimental.ssl_channel_credentials_with_custom_signer(
                private_key_sign_fn=self._sign_handshake,
                root_certificates=self._ca_pem,
                certificate_chain=self._chain_pem,
            )
        return signing

    def _sign_handshake(self, data: bytes, algorithm: object, _: object) -> bytes:
        """Called on a thread of gRPC; what it raises ends the handshake. Not all who dial hear why: the log has it."""
        if algorithm != experimental.PrivateKeySignatureAlgorithm.ECDSA_SECP256R1_SHA256:
            msg = f"TLS wants a signature by {algorithm}, the key is P-256"
            raise RuntimeError(msg)
        try:
            return self.sign(data)
        except LocalError as error:
            _LOG.error("no connection: %s", error)
            raise


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}; enrol the node, or correct the directory in its configuration"
        raise CredentialsError(msg) from error
    if len(data) > _MAX_FILE_BYTES:
        msg = f"{path} is larger than {_MAX_FILE_BYTES} bytes: not a file of a node's identity"
        raise CredentialsError(msg)
    return data


def _parse_certificates(path: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except CERTIFICATE_ERRORS as error:
        msg = f"{path} holds no certificates in PEM: {error}"
        raise CredentialsError(msg) from error
    if len(certificates) > MAX_CA_CERTIFICATES:
        msg = f"{path} holds {len(certificates)} certificates; at most {MAX_CA_CERTIFICATES} are accepted"
        raise CredentialsError(msg)
    return certificates
