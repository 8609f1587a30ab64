"""Ceremonies that make certificates, with files a person can carry: request on the machine that will own the key, sign
on the offline one, install back. A key never leaves the machine it was made on.

    request (PEM, PKCS#10)  →  ca sign  →  answer (PEM: the certificate, what it is shown with, the root last)

Each step repeated changes nothing. What is signed is what the person who signs names, never what a request says.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from edgectl.exits import UsageError
from edgectl.files import read_file
from wavemesh.errors import ConflictError, LocalError, PeerError
from wavemesh.identity.binding import CLOCK_SLACK, Binding, binding_of
from wavemesh.identity.ca import (
    CA_KEY_FILE,
    NODE_LIFETIME,
    REGION_LIFETIME,
    FleetCa,
    RegionCa,
    certificates_pem,
    write_node,
)
from wavemesh.identity.certificates import CERTIFICATE_ERRORS, authority_scope, is_root, node_id_of
from wavemesh.identity.csr import key_of_request, make_request
from wavemesh.identity.files import CA_FILE, PRIVATE_MODE, PUBLIC_MODE, install_pair
from wavemesh.identity.keys import SoftwareKeys, key_pem
from wavemesh.identity.live import verify_issued
from wavemesh.identity.nodes import NodeId, Role
from wavemesh.runtime.durable import Disk, write_file
from wavemesh.trust.enrolments import IssuedCertificate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Address, IPv6Address
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric import ec

PASSPHRASE_VARIABLE = "WAVEMESH_CA_PASSPHRASE"  # noqa: S105  # the variable's name
REQUEST_FILE = "request.pem"
PENDING_KEY = "request.key"
_BY_CEREMONY = frozenset({Role.CONTROL, Role.OPERATOR})


@dataclass(frozen=True, slots=True)
class Extras:
    """Further names of a certificate, and its lifetime; None for the usual one."""

    ip_addresses: Sequence[IPv4Address | IPv6Address] = ()
    dns_names: Sequence[str] = ()
    lifetime: timedelta | None = None


def passphrase() -> bytes | None:
    """The passphrase of the root's key, from the environment; None without one."""
    text = os.environ.get(PASSPHRASE_VARIABLE, "")
    return text.encode() if text else None


def create_root(directory: Path, fleet: str) -> FleetCa:
    """The fleet's root; one that is there already stays. Raises CaFilesError, ConflictError, BadNodeIdError."""
    NodeId(fleet, "control/any")
    if (directory / CA_KEY_FILE).exists():
        ca = FleetCa.load(directory, passphrase())
        if ca.fleet != fleet:
            msg = f"{directory} has the root of {ca.fleet}; choose another directory for {fleet}"
            raise ConflictError(msg)
        return ca
    ca = FleetCa.create(fleet, now())
    ca.save(directory, passphrase())
    return ca


def request(directory: Path, key_file: str, name: str) -> Path:
    """Make a key in ``directory``, where there is none, and a request for it; the request's file."""
    path = directory / key_file
    if path.exists():
        key = _key(path)
    else:
        key = SoftwareKeys().create()
        Disk().make_dir(directory)
        write_file(path, key_pem(key), PRIVATE_MODE)
    pem = x509.load_der_x509_csr(make_request(key, name)).public_bytes(Encoding.PEM)
    write_file(directory / REQUEST_FILE, pem, PUBLIC_MODE)
    return directory / REQUEST_FILE


def sign_region(ca: FleetCa, request_file: Path, region: str, extras: Extras) -> bytes:
    """The answer to a region's request. Raises UsageError, BadCsrError, BadNodeIdError."""
    NodeId(ca.fleet, f"region/{region}")
    certificate = ca.certify_region(
        region,
        _requested(request_file),
        not_before=now() - CLOCK_SLACK,
        not_after=now() + (extras.lifetime or REGION_LIFETIME),
    )
    return certificates_pem([certificate, ca.certificate])


def sign_node(ca: FleetCa, request_file: Path, path: str, extras: Extras) -> bytes:
    """The answer to a request of control or of an operator. Raises UsageError, BadCsrError, BadNodeIdError."""
    node = NodeId(ca.fleet, path)
    if node.role not in _BY_CEREMONY:
        msg = f"{path}: the root signs for control/NAME and operator/NAME; regions enrol their own nodes: node token"
        raise UsageError(msg)
    certificate = ca.issue(
        node,
        _requested(request_file),
        not_before=now() - CLOCK_SLACK,
        not_after=now() + (extras.lifetime or NODE_LIFETIME),
        ip_addresses=extras.ip_addresses,
        dns_names=extras.dns_names,
        binding=Binding(now()),
    )
    return certificates_pem([certificate, ca.certificate])


def install_region(directory: Path, answer_file: Path) -> RegionCa:
    """Put the authority of a region into a super hub's directory, and give the super hub itself a certificate by it.

    Raises UsageError, CaFilesError, ConflictError.
    """
    certificate, *rest = _certificates(answer_file)
    scope = authority_scope(certificate)
    if scope is None or not scope.region or len(rest) != 1 or not is_root(rest[0]):
        msg = f"{answer_file} is not what `edgectl ca sign --region` wrote"
        raise UsageError(msg)
    _check_root(directory / "identity", rest[0])
    authority = directory / "authority"
    if _key(authority / CA_KEY_FILE).public_key() != certificate.public_key():
        msg = f"{answer_file} is not for the key in {authority}; sign {authority / REQUEST_FILE}"
        raise ConflictError(msg)
    write_file(authority / CA_FILE, certificates_pem([certificate, rest[0]]), PUBLIC_MODE)
    ca = RegionCa.load(authority)
    identity = directory / "identity"
    if not (identity / CA_FILE).exists():
        write_node(
            identity,
            ca,
            NodeId(ca.fleet, f"region/{ca.region}"),
            not_before=now() - CLOCK_SLACK,
            not_after=now() + NODE_LIFETIME,
            binding=Binding(now()),
        )
    return ca


def install_node(directory: Path, answer_file: Path) -> NodeId:
    """Put a certificate of control or an operator beside its key. Raises UsageError, PeerError, LocalError."""
    from wavemesh.identity.authorities import Authorities

    leaf, *rest = _certificates(answer_file)
    if not rest or not is_root(rest[-1]):
        msg = f"{answer_file} is not what `edgectl ca sign --node` wrote: it does not end with the root"
        raise UsageError(msg)
    _check_root(directory, rest[-1])
    key, node = _key(directory / PENDING_KEY), node_id_of(leaf)
    chain = tuple(one.public_bytes(Encoding.DER) for one in rest[:-1])
    issued = IssuedCertificate(leaf.public_bytes(Encoding.DER), chain, now())
    shown = verify_issued(Authorities([rest[-1]]), node, key, issued, now())
    disk = Disk()
    disk.write_atomic(directory / CA_FILE, certificates_pem([rest[-1]]), PUBLIC_MODE)
    install_pair(directory, f"{leaf.serial_number:x}", key_pem(key), certificates_pem(shown), disk)
    disk.remove(directory / PENDING_KEY)
    return node


def describe(path: Path) -> list[dict[str, str]]:
    """What is in a file of certificates or a request, one dictionary each. Raises UsageError."""
    pem = read_file(path)
    if b"CERTIFICATE REQUEST" in pem:
        return [{"what": "certificate request", "key": _fingerprint_of_key(_requested(path))}]
    return [_describe(certificate) for certificate in _certificates(path)]


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate, as people compare it."""
    return certificate.fingerprint(hashes.SHA256()).hex(":")


def now() -> datetime:
    """The machine's time."""
    return datetime.now(UTC)


def _describe(certificate: x509.Certificate) -> dict[str, str]:
    scope = authority_scope(certificate)
    is_authority = scope is not None and (not scope.region or _certifies(certificate))
    who = f"authority of {scope.region or 'all'} in {scope.fleet}" if scope and is_authority else _node(certificate)
    bound = binding_of(certificate)
    words = f"{bound.device_class} {bound.hardware_revision}".strip() if bound is not None else ""
    return {
        "what": "root" if is_root(certificate) else "certificate",
        "who": who,
        "binds": words,
        "serial": f"{certificate.serial_number:x}",
        "from": certificate.not_valid_before_utc.isoformat(),
        "until": certificate.not_valid_after_utc.isoformat(),
        "fingerprint": fingerprint(certificate),
    }


def _certifies(certificate: x509.Certificate) -> bool:
    return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def _node(certificate: x509.Certificate) -> str:
    try:
        return node_id_of(certificate).uri
    except PeerError as error:
        return f"no node: {error}"


def _fingerprint_of_key(key: ec.EllipticCurvePublicKey) -> str:
    from wavemesh.identity.csr import key_sha256

    return key_sha256(key)


def _requested(path: Path) -> ec.EllipticCurvePublicKey:
    try:
        der = x509.load_pem_x509_csr(read_file(path)).public_bytes(Encoding.DER)
    except CERTIFICATE_ERRORS as error:
        msg = f"{path} is no certificate request in PEM: {error}"
        raise UsageError(msg) from error
    return key_of_request(der)


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(read_file(path))
    except CERTIFICATE_ERRORS as error:
        msg = f"{path} holds no certificates in PEM: {error}"
        raise UsageError(msg) from error


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        msg = f"cannot read the key {path}: {error}; make the request on this machine first"
        raise KeyMissingError(msg) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        msg = f"{path} is not an EC key; make the request again"
        raise KeyMissingError(msg)
    return key


def _check_root(identity: Path, root: x509.Certificate) -> None:
    """A node that has a root already takes no other from a file."""
    held = identity / CA_FILE
    if held.exists() and root not in _certificates(held):
        msg = f"{held} is another fleet's root than the answer's; compare both with `edgectl ca show`"
        raise ConflictError(msg)


class KeyMissingError(LocalError):
    """The key that a certificate is for is not on this machine."""

    reason = "KEY_MISSING"
