"""The authority of the region at work: nodes join and renew here, also with control out of reach.

Rules. What is issued, the token's mark and the report to control are one transaction, and durable before a certificate
leaves. What issues and what not is decided by ``wavemesh/identity/issuing.py``. A refusal is an answer with its reason,
so that a store hub on the way can pass it on. Without an authority's key here everything else of the hub works.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from superhub import issued as issued_rows
from superhub.issued import UsedToken
from wavemesh.codec.statements import encode
from wavemesh.errors import PeerError
from wavemesh.identity.attestation import AttestationError, attestation_of, attested_by, point_of
from wavemesh.identity.binding import MAX_PCRS, Binding, binding_of, issued_at
from wavemesh.identity.ca import CA_KEY_FILE, CaFilesError, RegionCa
from wavemesh.identity.certificates import load_certificate, validity_problem
from wavemesh.identity.csr import key_of_request, key_sha256
from wavemesh.identity.issuing import (
    Issued,
    NoAuthorityError,
    NotAttestedError,
    ReplayedRequestError,
    WrongNodeError,
    check_fleet,
    check_signer,
    issued_before,
    judge_join,
    terms,
)
from wavemesh.identity.nodes import NodeId
from wavemesh.session.frames import Report
from wavemesh.trust.enrolments import CertificateReport, IssueAnswer, IssuedCertificate, RenewalRequest
from wavemesh.trust.envelope import verify_node

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric import ec

    from superhub.acceptance import Acceptance
    from superhub.store import RegionStore
    from wavemesh.identity.authorities import Authorities
    from wavemesh.identity.binding import Attestation
    from wavemesh.runtime.clock import Clock
    from wavemesh.runtime.sqlite import Transaction
    from wavemesh.session.sqlite import SqliteReportLog
    from wavemesh.trust.enrolments import Enrolment, JoinRequest
    from wavemesh.trust.statements import Envelope

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Wish:
    """A certificate that somebody may have: for which key, replacing what, with what bound to it."""

    node: NodeId
    key: ec.EllipticCurvePublicKey
    device_class: str = ""
    hardware_revision: str = ""
    replaces: x509.Certificate | None = None
    wave_id: str = ""
    secret_sha256: str = ""
    attestation: Attestation | None = None


class Authority:
    """Issues for one region."""

    def __init__(
        self,
        *,
        node_id: NodeId,
        ca: RegionCa | None,
        lifetime: timedelta,
        root: bytes,
        store: RegionStore,
        log: SqliteReportLog,
        acceptance: Acceptance,
        authorities: Authorities,
        clock: Clock,
        appended: Callable[[], None],
    ) -> None:
        """``root`` is the pinned TUF root; ``appended`` is called when a report is on disk and may go up."""
        self._node_id = node_id
        self._ca = ca
        self._lifetime = lifetime
        self._root = root
        self._store = store
        self._log = log
        self._acceptance = acceptance
        self._authorities = authorities
        self._clock = clock
        self._appended = appended

    def enrolment(self, path: str) -> Enrolment | None:
        """By which that node may join; None for none."""
        return self._acceptance.enrolments.get(path)

    async def join(self, parent: NodeId, request: JoinRequest) -> IssueAnswer:
        """A certificate for a node that comes with a token, asked for at ``parent``; or why not."""
        try:
            return await self._join(parent, request)
        except PeerError as error:
            _LOG.warning("%s may not join: %s", request.node[:200], error)
            return _refused(error)

    async def renew(self, child: NodeId, envelope: Envelope) -> IssueAnswer:
        """The next certificate of ``child`` or of a node below it; or why not."""
        try:
            return await self._renew(child, envelope)
        except PeerError as error:
            _LOG.warning("no renewal for %s or a node below it: %s", child.path, error)
            return _refused(error)

    async def renew_own(self, present: x509.Certificate, csr: bytes) -> IssuedCertificate:
        """The super hub's own next certificate. Raises PeerError."""
        wish = _Wish(self._node_id, key_of_request(csr), replaces=present)
        async with self._store.database.transaction() as tx:
            return await self._issue(tx, wish)

    async def _join(self, parent: NodeId, request: JoinRequest) -> IssueAnswer:
        node, key = NodeId(request.fleet, request.node), key_of_request(request.csr)
        check_fleet(request.fleet, self._node_id.fleet)
        if not node.is_child_of(parent):
            msg = f"{node.path} is no child of {parent.path}; join at its own parent"
            raise WrongNodeError(msg, node=node.path)
        secret_sha256, name = hashlib.sha256(request.secret).hexdigest(), key_sha256(key)
        enrolment = self.enrolment(node.path)
        async with self._store.database.transaction() as tx:
            used = await issued_rows.used_token(tx, secret_sha256, node.path)
            used_by = used.key_sha256 if used is not None else None
            judge_join(request, name, enrolment=enrolment, used_by=used_by, now=self._clock.now())
            if used is not None or enrolment is None:
                again = await self._again(tx, node.path, name)
                return IssueAnswer(again, trust_root=self._trust_root(used.trust_root_sha256 if used else ""))
            token = UsedToken(secret_sha256, node.path, name, enrolment.trust_root_sha256)
            await issued_rows.use_token(tx, token, self._clock.now())
            bound = enrolment.device_class, enrolment.hardware_revision
            attestation = _joins_with(request, key)
            issued = await self._issue(
                tx, _Wish(node, key, *bound, secret_sha256=secret_sha256, attestation=attestation)
            )
        return IssueAnswer(issued, trust_root=self._trust_root(token.trust_root_sha256))

    async def _again(self, tx: Transaction, path: str, name: str) -> IssuedCertificate:
        """What the key that used a token got for it: the answer was lost."""
        again = issued_before(await issued_rows.history(tx, path), name)
        if again is None:
            msg = f"the certificate that {path} got for this token was replaced long ago; ask for a new token"
            raise ReplayedRequestError(msg)
        return _shown(load_certificate(again.certificate), self._usable_ca(), self._clock.now())

    async def _renew(self, child: NodeId, envelope: Envelope) -> IssueAnswer:
        signer, request = verify_node(envelope, RenewalRequest, self._authorities, self._clock.now())
        if signer.path != request.node or not (signer == child or signer.is_child_of(child)):
            msg = f"{signer.uri} asks for a certificate of {request.node!r} through {child.path}"
            raise WrongNodeError(msg, node=request.node)
        present = load_certificate(envelope.signatures[0].certificate)
        bound = binding_of(present) or Binding(self._clock.now())
        wish = _Wish(
            signer,
            key_of_request(request.csr),
            bound.device_class,
            bound.hardware_revision,
            replaces=present,
            wave_id=request.wave_id,
            attestation=bound.attestation,
        )
        _check_same_tpm(request, wish)
        async with self._store.database.transaction() as tx:
            return IssueAnswer(await self._issue(tx, wish))

    async def _issue(self, tx: Transaction, wish: _Wish) -> IssuedCertificate:
        """The certificate of that key: the one it has, or a new one, kept and reported."""
        ca, now, path = self._usable_ca(), self._clock.now(), wish.node.path
        before = await issued_rows.history(tx, path)
        name = key_sha256(wish.key)
        again = issued_before(before, name)
        if again is not None:
            return _shown(load_certificate(again.certificate), ca, now)
        signer_start = None if wish.replaces is None else wish.replaces.not_valid_before_utc
        if signer_start is not None:
            check_signer(before, signer_start)
        times = terms(now, self._lifetime, before, signer_start, self._issued_after(wish))
        certificate = ca.issue(
            wish.node,
            wish.key,
            not_before=times.not_before,
            not_after=times.not_after,
            ip_addresses=_addresses(wish.replaces),
            binding=Binding(times.issued_at, wish.device_class, wish.hardware_revision, wish.attestation),
        )
        der = certificate.public_bytes(Encoding.DER)
        start = certificate.not_valid_before_utc
        # Who joined anew has replaced whatever was before: no certificate of before renews from now on.
        least = start if signer_start is None else signer_start
        await issued_rows.keep(tx, path, Issued(name, der, times.issued_at, start, least))
        report = CertificateReport(
            node=path,
            serial=f"{certificate.serial_number:x}",
            issued_at=times.issued_at,
            expires_at=certificate.not_valid_after_utc,
            device_class=wish.device_class,
            hardware_revision=wish.hardware_revision,
            wave_id=wish.wave_id,
            secret_sha256=wish.secret_sha256,
        )
        await self._log.append(tx, Report("certificate", encode(report)))
        tx.on_commit(self._appended)
        _LOG.info("certificate %s for %s until %s", report.serial, path, report.expires_at.isoformat())
        return _shown(certificate, ca, now)

    def _issued_after(self, wish: _Wish) -> datetime | None:
        """Younger than the one to replace, or it would be refused as older; and than what was taken back."""
        revoked_until = self._authorities.issued_after(wish.node.path)
        replaced_at = None if wish.replaces is None else issued_at(wish.replaces) + timedelta(microseconds=1)
        return max(filter(None, [revoked_until, replaced_at]), default=None)

    def _usable_ca(self) -> RegionCa:
        problem = "there is none" if self._ca is None else validity_problem(self._ca.certificate, self._clock.now())
        if self._ca is None or problem is not None:
            msg = f"{self._node_id.path} cannot issue certificates: its authority: {problem}; `edgectl ca request`"
            raise NoAuthorityError(msg)
        return self._ca

    def _trust_root(self, sha256: str) -> bytes:
        """The TUF root of that digest, of those known here; empty if none is."""
        trusted = self._acceptance.trusted
        known = (self._root, *(trusted.source.roots if trusted is not None else ()))
        return next((root for root in known if hashlib.sha256(root).hexdigest() == sha256), b"")


def load_authority(directory: Path, region: NodeId) -> RegionCa | None:
    """The authority whose key is in DIR/authority; None where there is none. Raises CaFilesError."""
    if not (directory / CA_KEY_FILE).exists():
        return None
    ca = RegionCa.load(directory)
    if (ca.fleet, ca.region) != (region.fleet, region.name):
        msg = f"{directory} is the authority of region {ca.region} of {ca.fleet}, not of {region.uri}"
        raise CaFilesError(msg)
    return ca


def _refused(error: PeerError) -> IssueAnswer:
    return IssueAnswer(None, error.reason, str(error)[:1000])


def _joins_with(request: JoinRequest, key: ec.EllipticCurvePublicKey) -> Attestation | None:
    """What the certificate of who joins binds; None for a key in a file. Raises NotAttestedError."""
    if request.evidence is None:
        return None
    try:
        found = attestation_of(request.evidence, key, request.csr)
    except AttestationError as error:
        msg = f"{request.node} does not prove that its key is in a TPM: {error}"
        raise NotAttestedError(msg) from error
    if len(found.pcrs) > MAX_PCRS:
        msg = f"{request.node} wants {len(found.pcrs)} PCRs bound; at most {MAX_PCRS} are"
        raise NotAttestedError(msg)
    return found


def _check_same_tpm(request: RenewalRequest, wish: _Wish) -> None:
    """A node whose certificate binds an attestation key gets the next one for a key in the same TPM alone."""
    if wish.attestation is None:
        return
    try:
        if request.evidence is None:
            raise AttestationError("there is no evidence")
        found = attested_by(request.evidence, wish.key, request.csr)
    except AttestationError as error:
        msg = f"the next key of {request.node} is not proven to be in its TPM: {error}"
        raise NotAttestedError(msg) from error
    if point_of(found) != wish.attestation.key:
        msg = f"the next key of {request.node} is in another TPM than its certificate binds; enrol it anew"
        raise NotAttestedError(msg)


def _shown(certificate: x509.Certificate, ca: RegionCa, now: datetime) -> IssuedCertificate:
    chain = tuple(one.public_bytes(Encoding.DER) for one in ca.chain)
    return IssuedCertificate(certificate.public_bytes(Encoding.DER), chain, now)


def _addresses(certificate: x509.Certificate | None) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The addresses that the certificate to replace names; verified before, so its SANs can be read."""
    if certificate is None:
        return []
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    found = names.get_values_for_type(x509.IPAddress)
    return [one for one in found if isinstance(one, ipaddress.IPv4Address | ipaddress.IPv6Address)]
