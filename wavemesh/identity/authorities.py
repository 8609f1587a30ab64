"""Whose certificates this process believes: the one place where a certificate becomes a node id.

A tier has one ``Authorities`` for its life, made of its own ca.crt, and asks it about the TLS certificate of every peer
and about every signer's. What a peer shows beside its leaf, in TLS or in an envelope, may link the leaf to a root held
here and is never an anchor itself. A certificate that control took back (``revocations.py``) proves nothing, in TLS no
more than in an envelope; whoever serves is told when the list changes, so that live streams end too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from wavemesh.identity.binding import issued_at
from wavemesh.identity.certificates import (
    CERTIFICATE_ERRORS,
    MAX_CHAIN_CERTIFICATES,
    BadCertificateError,
    Proof,
    is_root,
    load_certificate,
    verify_certificate,
)
from wavemesh.identity.revocations import RevocationIndex, check_successor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from wavemesh.identity.nodes import NodeId
    from wavemesh.trust.statements import RevocationList

MAX_CHAIN_PEM_BYTES = 64 * 1024
MAX_PROOFS_KEPT = 4096


class Authorities:
    """The fleet's roots, the authorities of regions that this node knows itself, and what was taken back."""

    def __init__(self, certificates: Sequence[x509.Certificate]) -> None:
        """``certificates`` as ca.crt has them, and those of the node's own chain."""
        self.certificates = tuple(certificates)
        self._revocations: RevocationIndex | None = None
        self._listeners: list[Callable[[], None]] = []
        # Verifying a chain takes 0.3 ms, and the same few certificates come again with every call and every envelope.
        self._proofs: dict[bytes, Proof] = {}

    # -- what was taken back -----------------------------------------------------------------------------------------

    @property
    def revocations(self) -> RevocationList | None:
        """The list in force; None when nothing was ever taken back, as far as is known here."""
        return self._revocations.listed if self._revocations is not None else None

    def take(self, listed: RevocationList) -> None:
        """Go by this list from now on; it was verified, and is durable. Raises GateError (replay) for an older one.

        Called in the event loop; whoever listens is called before it returns.
        """
        check_successor(listed, self.revocations)
        self._revocations = RevocationIndex(listed)
        for heard in self._listeners:
            heard()

    def on_change(self, heard: Callable[[], None]) -> None:
        """Call back after each change of the list, for as long as this object lives."""
        self._listeners.append(heard)

    def check_not_revoked(self, proof: Proof) -> None:
        """Raise RevokedError if the certificate behind a proof has been taken back since."""
        if self._revocations is not None:
            self._revocations.check(proof)

    def issued_after(self, path: str) -> datetime | None:
        """Since when a certificate of that node must be issued to be believed; None: any time."""
        return self._revocations.issued_after(path) if self._revocations is not None else None

    # -- what a certificate proves -----------------------------------------------------------------------------------

    def prove(self, leaf: x509.Certificate, now: datetime, shown: Sequence[x509.Certificate] = ()) -> Proof:
        """What the leaf proves at ``now``, with what was shown beside it.

        Raises BadCertificateError (RevokedError for one that was taken back) or BadNodeIdError.
        """
        if len(shown) > MAX_CHAIN_CERTIFICATES:
            msg = f"{len(shown)} certificates shown beside the leaf; at most {MAX_CHAIN_CERTIFICATES} are accepted"
            raise BadCertificateError(msg)
        name = b"".join(one.fingerprint(SHA256()) for one in (leaf, *shown))
        proof = self._proofs.get(name)
        if proof is None or not proof.starts_at <= now <= proof.expires_at:
            linking = [certificate for certificate in shown if not is_root(certificate)]
            proof = replace(verify_certificate(leaf, [*self.certificates, *linking], now), issued_at=issued_at(leaf))
            if len(self._proofs) >= MAX_PROOFS_KEPT:
                self._proofs.clear()
            self._proofs[name] = proof
        self.check_not_revoked(proof)
        return proof

    def prove_pem(self, leaf: bytes, now: datetime, shown: bytes = b"") -> Proof:
        """The same for PEM as TLS hands it over."""
        if len(leaf) + len(shown) > MAX_CHAIN_PEM_BYTES:
            msg = f"certificates of {len(leaf) + len(shown)} bytes; at most {MAX_CHAIN_PEM_BYTES} are accepted"
            raise BadCertificateError(msg)
        try:
            certificate = x509.load_pem_x509_certificate(leaf)
            chain = x509.load_pem_x509_certificates(shown) if shown else []
        except CERTIFICATE_ERRORS as error:
            msg = f"not a certificate in PEM: {error}"
            raise BadCertificateError(msg) from error
        return self.prove(certificate, now, chain)

    def verify(self, leaf: x509.Certificate, now: datetime, shown: Sequence[x509.Certificate] = ()) -> NodeId:
        """The node that the leaf proves; raises as ``prove``."""
        return self.prove(leaf, now, shown).node_id

    def verify_der(self, leaf: bytes, now: datetime, shown: Sequence[bytes] = ()) -> tuple[NodeId, x509.Certificate]:
        """The same for DER as it stands in an envelope; the leaf too, for its key."""
        certificate = load_certificate(leaf)
        return self.verify(certificate, now, [load_certificate(one) for one in shown]), certificate
