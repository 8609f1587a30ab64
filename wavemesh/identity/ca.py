"""Who issues the fleet's certificates: one offline root, and below it one authority a region.

The root certifies control, operators and the regions' authorities; a region's authority, whose key lives on the super
hub, certifies its own super hub, store hubs and devices, so that a region goes on enrolling and renewing while control
is out of reach. What a region may speak for is in its certificate twice: as URI SAN ``spiffe://FLEET/region/R``, which
``certificates.verify_certificate`` holds against the leaf's own id, and as DNS name constraints (RFC 5280, 4.2.1.10),
which TLS itself holds against the names that children check their parents by.

What a leaf may be used for follows from the role in its SPIFFE id: control and hubs serve and dial, devices and
operators only dial. SANs: the SPIFFE id, the node's DNS name, further names and addresses on demand. Keys are EC P-256;
private keys are files of mode 0600.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wavemesh.errors import LocalError
from wavemesh.identity.certificates import MAX_CHAIN_CERTIFICATES, authority_scope, fleet_uri
from wavemesh.identity.credentials import NodeCredentials
from wavemesh.identity.files import CA_FILE, CERTIFICATE_FILE, KEY_FILE, PRIVATE_MODE, PUBLIC_MODE
from wavemesh.identity.keys import key_pem
from wavemesh.identity.nodes import NodeId, Role, is_within
from wavemesh.runtime.durable import write_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from ipaddress import IPv4Address, IPv6Address
    from pathlib import Path

    from wavemesh.identity.binding import Binding

CA_KEY_FILE = "ca.key"
ROOT_LIFETIME = timedelta(days=3650)
REGION_LIFETIME = timedelta(days=1825)
NODE_LIFETIME = timedelta(days=90)
"""At least the longest time offline (30 days, docs/adr/0003-trust.md) and a margin; renewed well before."""
_SERVING = frozenset({Role.CONTROL, Role.SUPER_HUB, Role.STORE_HUB})


class CaFilesError(LocalError):
    """The CA's files are missing or malformed."""

    reason = "CA_FILES"


class Issuer(Protocol):
    """Somebody who may issue leaves."""

    @property
    def root(self) -> x509.Certificate:
        """The fleet's root, which nodes pin."""
        ...

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """What a leaf must be shown with so that the root is reached: nothing, or the region's own certificate."""
        ...

    def issue(
        self,
        node_id: NodeId,
        public_key: ec.EllipticCurvePublicKey,
        *,
        not_before: datetime,
        not_after: datetime,
        ip_addresses: Sequence[IPv4Address | IPv6Address] = (),
        dns_names: Sequence[str] = (),
        binding: Binding | None = None,
    ) -> x509.Certificate:
        """A leaf for that node; RuntimeError for one this issuer may not speak for."""
        ...


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
        builder = _authority(name, name, key.public_key(), key.public_key(), fleet_uri(fleet), path_length=1)
        certificate = builder.not_valid_before(now).not_valid_after(now + ROOT_LIFETIME).sign(key, hashes.SHA256())
        return cls(fleet, certificate, key)

    @property
    def root(self) -> x509.Certificate:
        """Itself."""
        return self.certificate

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """Nothing stands between a leaf and the root."""
        return ()

    def certify_region(
        self, region: str, public_key: ec.EllipticCurvePublicKey, *, not_before: datetime, not_after: datetime
    ) -> x509.Certificate:
        """The certificate of a region's authority: for nodes of that region, and for no authority below."""
        hub = NodeId(self.fleet, f"region/{region}")
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{self.fleet} {region}")])
        # A name permits itself and all below it, and says nothing of names of other kinds: the URI SAN has the rest.
        permitted = [
            x509.DNSName(f"{region}.{role.value}.{self.fleet}")
            for role in (Role.SUPER_HUB, Role.STORE_HUB, Role.DEVICE)
        ]
        return (
            _authority(
                name,
                self.certificate.subject,
                public_key,
                self._key.public_key(),
                hub.uri,
                path_length=0,
            )
            .add_extension(x509.NameConstraints(permitted_subtrees=permitted, excluded_subtrees=None), critical=True)
            .not_valid_before(max(not_before, self.certificate.not_valid_before_utc))
            .not_valid_after(min(not_after, self.certificate.not_valid_after_utc))
            .sign(self._key, hashes.SHA256())
        )

    def issue(
        self,
        node_id: NodeId,
        public_key: ec.EllipticCurvePublicKey,
        *,
        not_before: datetime,
        not_after: datetime,
        ip_addresses: Sequence[IPv4Address | IPv6Address] = (),
        dns_names: Sequence[str] = (),
        binding: Binding | None = None,
    ) -> x509.Certificate:
        """A leaf for that node. RuntimeError for a node of another fleet."""
        if node_id.fleet != self.fleet:
            msg = f"the CA of {self.fleet} does not issue for {node_id.uri}"
            raise RuntimeError(msg)
        names = [*map(x509.DNSName, dns_names), *map(x509.IPAddress, ip_addresses)]
        return _leaf(
            node_id,
            public_key,
            names,
            issuer=self.certificate,
            issuer_key=self._key,
            not_before=not_before,
            not_after=not_after,
            binding=binding,
        )

    def save(self, directory: Path, passphrase: bytes | None = None) -> None:
        """Write ca.key (0600, encrypted where there is a passphrase) and ca.crt."""
        directory.mkdir(parents=True, exist_ok=True)
        write_file(directory / CA_KEY_FILE, key_pem(self._key, passphrase), PRIVATE_MODE)
        write_file(directory / CA_FILE, certificates_pem([self.certificate]), PUBLIC_MODE)

    @classmethod
    def load(cls, directory: Path, passphrase: bytes | None = None) -> FleetCa:
        """Read what ``save`` wrote; raises CaFilesError."""
        key, (certificate, *_) = _load(directory, passphrase)
        scope = authority_scope(certificate)
        if scope is None or scope.region:
            msg = f"{directory / CA_FILE} is not the certificate of a fleet's root; use the offline CA's directory"
            raise CaFilesError(msg)
        return cls(scope.fleet, certificate, key)


@dataclass(frozen=True, slots=True, repr=False)
class RegionCa:
    """The authority of one region: its key, its certificate, and the root that signed that."""

    fleet: str
    region: str
    certificate: x509.Certificate
    root: x509.Certificate
    _key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, ca: FleetCa, region: str, *, not_before: datetime, not_after: datetime) -> RegionCa:
        """Make a key and have the root certify it at once, where both may be in one place (a lab, a test)."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = ca.certify_region(region, key.public_key(), not_before=not_before, not_after=not_after)
        return cls(ca.fleet, region, certificate, ca.certificate, key)

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """The region's own certificate."""
        return (self.certificate,)

    def issue(
        self,
        node_id: NodeId,
        public_key: ec.EllipticCurvePublicKey,
        *,
        not_before: datetime,
        not_after: datetime,
        ip_addresses: Sequence[IPv4Address | IPv6Address] = (),
        dns_names: Sequence[str] = (),
        binding: Binding | None = None,
    ) -> x509.Certificate:
        """A leaf for that node of the region, never valid for longer than the authority itself.

        RuntimeError for a node of elsewhere. Further DNS names would break the name constraints; addresses do not.
        """
        if node_id.fleet != self.fleet or not is_within(node_id.path, f"region/{self.region}"):
            msg = f"the authority of region {self.region} of {self.fleet} does not issue for {node_id.uri}"
            raise RuntimeError(msg)
        if dns_names:
            msg = f"the authority of region {self.region} may name {node_id.dns_name} alone, not {', '.join(dns_names)}"
            raise RuntimeError(msg)
        until = min(not_after, self.certificate.not_valid_after_utc)
        names = [*map(x509.IPAddress, ip_addresses)]
        return _leaf(
            node_id,
            public_key,
            names,
            issuer=self.certificate,
            issuer_key=self._key,
            not_before=not_before,
            not_after=until,
            binding=binding,
        )

    def save(self, directory: Path) -> None:
        """Write ca.key (0600) and ca.crt: the region's certificate, then the root."""
        directory.mkdir(parents=True, exist_ok=True)
        write_file(directory / CA_KEY_FILE, key_pem(self._key), PRIVATE_MODE)
        write_file(directory / CA_FILE, certificates_pem([self.certificate, self.root]))

    @classmethod
    def load(cls, directory: Path) -> RegionCa:
        """Read what ``save`` wrote; raises CaFilesError."""
        key, certificates = _load(directory)
        scope = authority_scope(certificates[0])
        if scope is None or not scope.region or len(certificates) != MAX_CHAIN_CERTIFICATES:
            msg = f"{directory / CA_FILE} is not a region's certificate followed by the root that signed it"
            raise CaFilesError(msg)
        return cls(scope.fleet, scope.region, certificates[0], certificates[1], key)


def write_node(
    directory: Path,
    issuer: Issuer,
    node_id: NodeId,
    *,
    not_before: datetime,
    not_after: datetime,
    ip_addresses: Sequence[IPv4Address | IPv6Address] = (),
    dns_names: Sequence[str] = (),
    binding: Binding | None = None,
) -> NodeCredentials:
    """Make a key and certificate for the node and write node.key (0600), node.crt and ca.crt."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = issuer.issue(
        node_id,
        key.public_key(),
        not_before=not_before,
        not_after=not_after,
        ip_addresses=ip_addresses,
        dns_names=dns_names,
        binding=binding,
    )
    directory.mkdir(parents=True, exist_ok=True)
    write_file(directory / KEY_FILE, key_pem(key), PRIVATE_MODE)
    write_file(directory / CERTIFICATE_FILE, certificates_pem([certificate, *issuer.chain]))
    write_file(directory / CA_FILE, certificates_pem([issuer.root]))
    return NodeCredentials.load(directory)


def certificates_pem(certificates: Sequence[x509.Certificate]) -> bytes:
    """Certificates as they stand in a file, in that order."""
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def _authority(
    name: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    uri: str,
    *,
    path_length: int,
) -> x509.CertificateBuilder:
    """What the root and a region's authority have in common, without their period."""
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(certifies=True), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _leaf(
    node_id: NodeId,
    public_key: ec.EllipticCurvePublicKey,
    further_names: Sequence[x509.GeneralName],
    *,
    issuer: x509.Certificate,
    issuer_key: ec.EllipticCurvePrivateKey,
    not_before: datetime,
    not_after: datetime,
    binding: Binding | None,
) -> x509.Certificate:
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if node_id.role in _SERVING:
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
    names = [x509.UniformResourceIdentifier(node_id.uri), x509.DNSName(node_id.dns_name), *further_names]
    authority = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node_id.name)]))
        .issuer_name(issuer.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        # A start before the issuer's would make a chain that is good at no time its own leaf names.
        .not_valid_before(max(not_before, issuer.not_valid_before_utc))
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(certifies=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority), critical=False)
    )
    if binding is not None:
        builder = builder.add_extension(binding.extension(), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _load(
    directory: Path, passphrase: bytes | None = None
) -> tuple[ec.EllipticCurvePrivateKey, list[x509.Certificate]]:
    """An authority's key and certificates, its own first; raises CaFilesError."""
    try:
        key = serialization.load_pem_private_key((directory / CA_KEY_FILE).read_bytes(), passphrase)
        certificates = x509.load_pem_x509_certificates((directory / CA_FILE).read_bytes())
    except (OSError, ValueError, TypeError) as error:
        msg = f"cannot read the CA in {directory} ({CA_KEY_FILE}, {CA_FILE}): {error}; restore it from its backup"
        raise CaFilesError(msg) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificates[0].public_key():
        msg = f"{directory / CA_KEY_FILE} is not the key of {directory / CA_FILE}; restore both from their backup"
        raise CaFilesError(msg)
    return key, certificates


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
