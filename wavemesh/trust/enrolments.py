"""What is said about certificates, as values: enrolments, requests to join and to renew, and what became of them.

The wire form is in enrolment.proto; bytes come from and go to ``wavemesh/codec/statements.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wavemesh.trust.quotes import Quote  # noqa: TC001  # the codec reads the fields' types

if TYPE_CHECKING:
    from datetime import datetime

_PREFIX = "application/vnd.wavemesh."


@dataclass(frozen=True, slots=True)
class Enrolment:
    """Control's leave for one node to join once; class and revision are empty for hubs."""

    payload_type: ClassVar[str] = _PREFIX + "enrolment.v1"
    node: str
    secret_sha256: str
    trust_root_sha256: str
    issued_at: datetime
    expires_at: datetime
    device_class: str = ""
    hardware_revision: str = ""


@dataclass(frozen=True, slots=True)
class TpmEvidence:
    """That the key of a certificate request lives in a TPM: public areas, TPM2_Certify, and a quote to join with."""

    key_public: bytes
    attestation_public: bytes
    certified: bytes
    certified_signature: bytes
    quote: Quote | None = None


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """A node without a certificate wants one. Not itself signed, but its ``csr`` is."""

    fleet: str
    node: str
    secret: bytes
    csr: bytes
    evidence: TpmEvidence | None = None


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A certificate and what stands between it and the root, DER; ``at`` is the issuer's time."""

    certificate: bytes
    intermediates: tuple[bytes, ...]
    at: datetime


@dataclass(frozen=True, slots=True)
class JoinResponse:
    """What a node that joined is given."""

    issued: IssuedCertificate
    trust_root: bytes
    session_port: int = 0


@dataclass(frozen=True, slots=True)
class RenewalRequest:
    """A node wants its next certificate; signed by the present one."""

    payload_type: ClassVar[str] = _PREFIX + "renewal.v1"
    node: str
    csr: bytes
    issued_at: datetime
    wave_id: str = ""
    evidence: TpmEvidence | None = None


@dataclass(frozen=True, slots=True)
class IssueAnswer:
    """A certificate, or the reason why there is none. Not itself signed: the certificate is."""

    issued: IssuedCertificate | None
    refused: str = ""
    detail: str = ""
    trust_root: bytes = b""


@dataclass(frozen=True, slots=True)
class CertificateReport:
    """Body of a report of kind "certificate". Not itself signed."""

    node: str
    serial: str
    issued_at: datetime
    expires_at: datetime
    device_class: str = ""
    hardware_revision: str = ""
    wave_id: str = ""
    secret_sha256: str = ""
