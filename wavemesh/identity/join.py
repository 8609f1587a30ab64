"""A node without a certificate joins: ``python -m wavemesh.identity.join --dir DIR --token-file FILE``.

Needs the base dependencies alone. With ``--tcti`` the key is made in a TPM and stays there (``tpmkeys.py``). The key is
made and kept here before anybody is asked, so that after a lost answer or a cut the same command gets the same
certificate. The token's root is the only authority believed; the secret leaves over a connection that the node's own
parent has proved itself on. What is laid into DIR, the pair in use last:

    trust/root.json       the TUF root that the token names by its digest
    config.toml           a starting configuration, where there is none
    identity/ca.crt       the fleet's root
    identity/…            key and certificate (``files.py``)
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from wavemesh.codec.statements import from_proto, to_proto
from wavemesh.errors import ConflictError, LinkDownError, LocalError, WavemeshError
from wavemesh.identity.attestation import ATTESTATION_KEY_ATTRIBUTES, PCRS, point_of, public_key
from wavemesh.identity.authorities import Authorities
from wavemesh.identity.binding import MAX_PCRS, binding_of
from wavemesh.identity.ca import certificates_pem
from wavemesh.identity.certificates import load_certificate, validity_problem
from wavemesh.identity.csr import make_request
from wavemesh.identity.files import CA_FILE, PRIVATE_MODE, PUBLIC_MODE, install_pair
from wavemesh.identity.keys import CredentialsError, SoftwareKeys
from wavemesh.identity.live import BadIssueError, CertificateClockError, check_attested, verify_issued
from wavemesh.identity.nodes import Role
from wavemesh.identity.tokens import MAX_TOKEN_CHARACTERS, BadTokenError, parse_token
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.durable import Disk, disk_errors
from wavemesh.runtime.grpc import SESSION_OPTIONS
from wavemesh.runtime.status import error_from_rpc
from wavemesh.trust.enrolments import JoinRequest, JoinResponse
from wavemesh.v1.enrolment_pb2_grpc import EnrolmentServiceStub

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    from wavemesh.identity.keys import Keys
    from wavemesh.identity.nodes import NodeId
    from wavemesh.identity.tokens import Token
    from wavemesh.runtime.clock import Clock

TIMEOUT_S = 30.0
DEFAULT_LISTEN = "0.0.0.0:7443"
_PENDING_KEY = "joining.key"
_JOINED = "joined"


class NoAddressError(LocalError):
    """Neither the token nor the command says where to join."""

    reason = "NO_ADDRESS"


@dataclass(frozen=True, slots=True)
class Joined:
    """What came of it; ``again`` when this very token had been used here before."""

    node: NodeId
    expires_at: str
    again: bool
    config: Path


@dataclass(frozen=True, slots=True)
class Joining:
    """Where a node joins, and with what."""

    directory: Path
    token: Token
    addresses: Sequence[str] = ()
    listen: str = DEFAULT_LISTEN
    tcti: str = ""
    """Where the TPM is that is to hold the key; empty for a key in a file."""
    pcrs: Sequence[int] = ()
    """PCRs that no release changes, for the certificate to bind; by default the firmware's and secure boot's."""

    async def run(self, clock: Clock, keys: Keys | None = None, disk: Disk | None = None) -> Joined:
        """Join. Raises PeerError, LocalError; run again, it goes on where it stopped."""
        disk = disk or Disk()
        identity = self.directory / "identity"
        disk.make_dir(identity)
        mark = hashlib.sha256(self.token.secret).hexdigest()
        if _read(identity / _JOINED) == mark.encode():
            return self._joined(again=True)
        root = load_certificate(self.token.root)
        self._check_clock(root, clock)
        keys = keys or self._keys(identity, disk)
        key = self._key(identity / _PENDING_KEY, keys, disk)
        request = self._request(key, keys)
        response, address = await self._ask(root, request)
        chain = verify_issued(Authorities([root]), self.token.node, key, response.issued, clock.now())
        if hashlib.sha256(response.trust_root).hexdigest() != self.token.trust_root_sha256:
            msg = f"{address} gave another TUF root than the one the token names; make the token anew"
            raise BadIssueError(msg)
        check_attested(chain[0], _attestation_key(request))
        self._lay(response, chain[0], address, disk)
        disk.write_atomic(identity / CA_FILE, certificates_pem([root]), PUBLIC_MODE)
        install_pair(identity, f"{chain[0].serial_number:x}", keys.keep(key), certificates_pem(chain), disk)
        disk.write_atomic(identity / _JOINED, mark.encode(), PRIVATE_MODE)
        disk.remove(identity / _PENDING_KEY)
        return self._joined(again=False, until=chain[0].not_valid_after_utc.isoformat())

    def _keys(self, identity: Path, disk: Disk) -> Keys:
        if not self.tcti:
            return SoftwareKeys()
        if self.token.node.role is not Role.DEVICE:
            msg = f"{self.token.node.path} serves, and servers sign with keys in files alone; join without --tcti"
            raise CredentialsError(msg)
        from wavemesh.identity.tpm import Tpm
        from wavemesh.identity.tpmkeys import DEFAULT_PCRS, TpmKeys

        return TpmKeys(Tpm(self.tcti), identity, disk, self.pcrs or DEFAULT_PCRS)

    def _joined(self, *, again: bool, until: str = "") -> Joined:
        return Joined(self.token.node, until, again, self.directory / "config.toml")

    def _check_clock(self, root: x509.Certificate, clock: Clock) -> None:
        """TLS would fail, and not say why."""
        problem = validity_problem(root, clock.now())
        if problem is not None:
            msg = f"the fleet's root is {problem}, but the clock here says {clock.now().isoformat()}; set the clock"
            raise CertificateClockError(msg)

    def _key(self, path: Path, keys: Keys, disk: Disk) -> ec.EllipticCurvePrivateKey:
        """The key that is to have the certificate: durable before anybody is asked."""
        kept = _read(path)
        if kept is not None:
            return keys.load(path, kept)
        key = keys.create()
        disk.write_atomic(path, keys.keep(key), PRIVATE_MODE)
        return key

    def _request(self, key: ec.EllipticCurvePrivateKey, keys: Keys) -> JoinRequest:
        node = self.token.node
        csr = make_request(key, node.name)
        return JoinRequest(node.fleet, node.path, self.token.secret, csr, keys.evidence(key, csr))

    async def _ask(self, root: x509.Certificate, request: JoinRequest) -> tuple[JoinResponse, str]:
        """Ask at each address until one can be reached."""
        addresses = tuple(self.addresses) or self.token.addresses
        if not addresses:
            msg = (
                f"the token of {self.token.node.path} has no address; say where its parent listens: --address HOST:PORT"
            )
            raise NoAddressError(msg)
        for address in addresses[:-1]:
            try:
                return await self._ask_at(address, root, request), address
            except LinkDownError:
                continue
        return await self._ask_at(addresses[-1], root, request), addresses[-1]

    async def _ask_at(self, address: str, root: x509.Certificate, request: JoinRequest) -> JoinResponse:
        parent = self.token.parent
        options = [*SESSION_OPTIONS, ("grpc.ssl_target_name_override", parent.dns_name)]
        credentials = grpc.ssl_channel_credentials(root_certificates=certificates_pem([root]))
        async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
            try:
                message = await EnrolmentServiceStub(channel).Join(to_proto(request), timeout=TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                found = error_from_rpc(error)
                if isinstance(found, LinkDownError) and "reason" not in found.details:
                    msg = f"{address}: {found}; is {parent.path} there, does it listen for joins, is the clock right?"
                    raise LinkDownError(msg) from error
                raise found from error
        return from_proto(JoinResponse, message)

    def _lay(self, response: JoinResponse, leaf: x509.Certificate, address: str, disk: Disk) -> None:
        """The TUF root, and a configuration to start with."""
        pinned = self.directory / "trust" / "root.json"
        held = _read(pinned)
        if held is not None and held != response.trust_root:
            msg = f"{pinned} is another TUF root than the token names; remove it if this node changes fleets"
            raise ConflictError(msg)
        disk.make_dir(pinned.parent)
        disk.write_atomic(pinned, response.trust_root, PUBLIC_MODE)
        config = self.directory / "config.toml"
        if not config.exists():
            host = address.rsplit(":", 1)[0]
            disk.write_atomic(config, self._config(f"{host}:{response.session_port}", leaf).encode(), PUBLIC_MODE)

    def _config(self, parent: str, leaf: x509.Certificate) -> str:
        """A starting configuration; JSON's strings are TOML's."""
        if self.token.node.role is Role.STORE_HUB:
            return f"listen = {json.dumps(self.listen)}\nparent = {json.dumps(parent)}\n"
        bound = binding_of(leaf)
        words = ("", "") if bound is None else (bound.device_class, bound.hardware_revision)
        identity = f'\n[identity]\nkey = "tpm"\ntcti = {json.dumps(self.tcti)}\n' if self.tcti else ""
        return (
            f"[device]\ndevice_class = {json.dumps(words[0])}\nhardware_revision = {json.dumps(words[1])}\n\n"
            f"[hub]\naddress = {json.dumps(parent)}\n{identity}"
        )


def read_token(path: Path) -> Token:
    """The token in a file; raises BadTokenError."""
    try:
        with path.open(encoding="ascii") as file:
            text = file.read(MAX_TOKEN_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path}: {error}; it holds the token that `edgectl node token` printed"
        raise BadTokenError(msg) from error
    return parse_token(text)


def _attestation_key(request: JoinRequest) -> bytes:
    """The attestation key that was shown, as a certificate binds it; empty for none."""
    evidence = request.evidence
    return b"" if evidence is None else point_of(public_key(evidence.attestation_public, ATTESTATION_KEY_ATTRIBUTES))


def _read(path: Path) -> bytes | None:
    with disk_errors(path):
        return path.read_bytes() if path.exists() else None


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    parser = argparse.ArgumentParser(prog="wavemesh.identity.join", description="Join a fleet with a one-time token.")
    parser.add_argument("--dir", type=Path, required=True, help="the node's directory")
    parser.add_argument("--token-file", type=Path, required=True, help="the token, as `edgectl node token` printed it")
    parser.add_argument("--address", action="append", default=[], help="where the parent listens for joins; repeatable")
    parser.add_argument("--listen", default=DEFAULT_LISTEN, help="where a store hub is to listen")
    parser.add_argument("--tcti", default="", help="make the key in the TPM 2.0 there, as device:/dev/tpmrm0")
    parser.add_argument(
        "--pcr",
        action="append",
        type=int,
        choices=PCRS,
        default=[],
        metavar="N",
        help=f"a PCR that no release changes, for the certificate to bind; repeatable, at most {MAX_PCRS}; 0 and 7",
    )
    options = parser.parse_args(arguments)
    if len(options.pcr) > MAX_PCRS:
        parser.error(f"at most {MAX_PCRS} --pcr")
    try:
        token = read_token(options.token_file)
        joining = Joining(options.dir, token, options.address, options.listen, options.tcti, options.pcr)
        joined = asyncio.run(joining.run(SystemClock()))
    except WavemeshError as error:
        sys.stderr.write(f"join: {error.details.get('reason', error.reason)}: {error}\n")
        return 1
    state = "had joined before" if joined.again else f"joined, certificate until {joined.expires_at}"
    sys.stdout.write(f"{joined.node.path} {state}; start it with --dir {options.dir}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
