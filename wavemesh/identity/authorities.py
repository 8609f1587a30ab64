"""Whose certificates this process believes: the one place where a certificate becomes a node id.

A tier has one ``Authorities`` for its life, made of its own ca.crt, and asks it about the TLS certificate of every peer
and about every signer's. What a peer shows beside its leaf, in TLS or in an envelope, may link the leaf to a root held
here and is never an anchor itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography import x509

from wavemesh.identity.certificates import (
    CERTIFICATE_ERRORS,
    MAX_CHAIN_CERTIFICATES,
    BadCertificateError,
    is_root,
    load_certificate,
    verify_certificate,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from wavemesh.identity.nodes import NodeId

MAX_CHAIN_PEM_BYTES = 64 * 1024


class Authorities:
    """The fleet's roots, and the authorities of regions that this node knows itself."""

    def __init__(self, certificates: Sequence[x509.Certificate]) -> None:
        """``certificates`` as ca.crt has them, and those of the node's own chain."""
        self.certificates = tuple(certificates)

    def verify(self, leaf: x509.Certificate, now: datetime, shown: Sequence[x509.Certificate] = ()) -> NodeId:
        """The node that the leaf proves at ``now``, with what was shown beside it.

        Raises BadCertificateError or BadNodeIdError.
        """
        if len(shown) > MAX_CHAIN_CERTIFICATES:
            msg = f"{len(shown)} certificates shown beside the leaf; at most {MAX_CHAIN_CERTIFICATES} are accepted"
            raise BadCertificateError(msg)
        linking = [certificate for certificate in shown if not is_root(certificate)]
        return verify_certificate(leaf, [*self.certificates, *linking], now)

    def verify_der(self, leaf: bytes, now: datetime, shown: Sequence[bytes] = ()) -> tuple[NodeId, x509.Certificate]:
        """The same for DER as it stands in an envelope; the leaf too, for its key."""
        certificate = load_certificate(leaf)
        return self.verify(certificate, now, [load_certificate(one) for one in shown]), certificate

    def verify_pem(self, leaf: bytes, now: datetime, shown: bytes = b"") -> NodeId:
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
        return self.verify(certificate, now, chain)
