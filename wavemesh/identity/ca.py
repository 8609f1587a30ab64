"""The fleet's certificate authority, first form: one offline root that issues leaves.

What a leaf may be used for follows from the role in its SPIFFE id: control and hubs serve and dial, devices and
operators only dial. SANs: the SPIFFE id, the node's DNS name, further names and addresses on demand. Keys are EC P-256;
private keys are files of mode 0600.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wavemesh.errors import LocalError
from wavemesh.identity.certificates import fleet_uri
from wavemesh.identity.credentials import CA_FILE, CERTIFICATE_FILE, KEY_FILE, NodeCredentials
from wavemesh.identity.nodes import Role
from wavemesh.runtime.durable import write_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from ipaddress import IPv4Address, IPv6Address
    from pathlib import Path

    from wavemesh.identity.nodes import NodeId

CA_KEY_FILE = "ca.key"
ROOT_LIFETIME = timedelta(days=3650)
_PRIVATE = 0o600
_SERVING = frozenset({Role.CONTROL, Role.SUPER_HUB, Role.STORE_HUB})


class CaFilesError(LocalError):
    """The CA's files are missing or malformed."""

    reason = "CA_FILES"


@dataclass(frozen=True, slots=True, repr=False)
class FleetCa:
    """A fleet's root key and certificate."""

    fleet: str
    certificate: x509.Certificate
    _key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, fleet: str, now: datetime) -> FleetCa:
        """Make a new root, valid from ``now`` for ROOT_LIFETIME."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{fleet} root")])
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + ROOT_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
            .add_extension(_key_usage(certifies=True), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(fleet_uri(fleet))]), critical=False
            )
            .add_extension(identifier, critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(fleet, certificate, key)

    def issue(
        self,
        node_id: NodeId,
        public_key: ec.EllipticCurvePublicKey,
        *,
        not_before: datetime,
        not_after: datetime,
        ip_addresses: Sequence[IPv4Address | IPv6Address] = (),
        dns_names: Sequence[str] = (),
    ) -> x509.Certificate:
        """A leaf for that node. RuntimeError for a node of another fleet."""
        if node_id.fleet != self.fleet:
            msg = f"the CA of {self.fleet} does not issue for {node_id.uri}"
            raise RuntimeError(msg)
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if node_id.role in _SERVING:
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(node_id.uri), x509.DNSName(node_id.dns_name)]
        names += [x509.DNSName(name) for name in dns_names]
        names += [x509.IPAddress(address) for address in ip_addresses]
        authority = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node_id.name)]))
            .issuer_name(self.certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before)
            .not_valid_after(not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(certifies=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def save(self, directory: Path) -> None:
        """Write ca.key (0600) and ca.crt."""
        directory.mkdir(parents=True, exist_ok=True)
        write_file(directory / CA_KEY_FILE, _key_pem(self._key), _PRIVATE)
        write_file(directory / CA_FILE, _certificate_pem(self.certificate))

    @classmethod
    def load(cls, directory: Path) -> FleetCa:
        """Read what ``save`` wrote; raises CaFilesError."""
        try:
            key = serialization.load_pem_private_key((directory / CA_KEY_FILE).read_bytes(), password=None)
            certificate = x509.load_pem_x509_certificate((directory / CA_FILE).read_bytes())
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        except (OSError, ValueError, x509.ExtensionNotFound) as error:
            msg = f"cannot read the CA in {directory} ({CA_KEY_FILE}, {CA_FILE}): {error}; restore it from its backup"
            raise CaFilesError(msg) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            msg = f"{directory / CA_KEY_FILE} is not the key of {directory / CA_FILE}; restore both from their backup"
            raise CaFilesError(msg)
        return cls(uri.removeprefix(fleet_uri("")), certificate, key)


def write_node(
    directory: Path,
    ca: FleetCa,
    node_id: NodeId,
    *,
    not_before: datetime,
    not_after: datetime,
    ip_addresses: Sequence[IPv4Address | IPv6Address] = (),
    dns_names: Sequence[str] = (),
) -> NodeCredentials:
    """Make a key and certificate for the node and write node.key (0600), node.crt and ca.crt."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = ca.issue(
        node_id,
        key.public_key(),
        not_before=not_before,
        not_after=not_after,
        ip_addresses=ip_addresses,
        dns_names=dns_names,
    )
    directory.mkdir(parents=True, exist_ok=True)
    write_file(directory / KEY_FILE, _key_pem(key), _PRIVATE)
    write_file(directory / CERTIFICATE_FILE, _certificate_pem(certificate))
    write_file(directory / CA_FILE, _certificate_pem(ca.certificate))
    return NodeCredentials.load(directory)


def _key_usage(*, certifies: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certifies,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certifies,
        crl_sign=certifies,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
