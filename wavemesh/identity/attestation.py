"""What a TPM 2.0 signed, and whether it is what is wanted. Pure: who verifies needs no TPM of his own.

Structures are those of the TPM 2.0 Library, part 2: TPMT_PUBLIC (12.2.4) of a P-256 ECDSA key, TPMS_ATTEST (10.12.12)
of TPM2_Quote and TPM2_Certify. Rules.

1. An *attestation key* is restricted: it signs nothing but structures that its TPM made, which begin with
   ``TPM_GENERATED``. It and the node's key were made in the TPM and never leave it (fixedTPM, fixedParent,
   sensitiveDataOrigin). That such a key is in a real TPM is believed of who joins with the token, and of nobody later:
   a renewal, a ping and a quote count by the attestation key that the certificate binds (``binding.py``).
2. *Evidence* covers the certificate request by its SHA-256: the attestation key certifies the very key of the request.
3. A *quote* covers the challenge and what is said with it. One that covers something else is stale, which proves
   nothing against the device; what does not verify, or shows other PCRs than wanted, does.
4. PCRs wanted: those of the running release, where its signed manifest lists them; for the others what the certificate
   binds, which is what they were when the device joined.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from wavemesh.errors import GateError
from wavemesh.identity.binding import Attestation
from wavemesh.policy.gates import Gate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from wavemesh.trust.enrolments import TpmEvidence
    from wavemesh.trust.quotes import Quote
    from wavemesh.trust.releases import ReleaseManifest
    from wavemesh.trust.statements import HealthPing

NODE_KEY_ATTRIBUTES = 0x00040472
"""fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA (a locked-out TPM still signs), sign."""
ATTESTATION_KEY_ATTRIBUTES = NODE_KEY_ATTRIBUTES | 0x00010000
"""The same, restricted."""
PCRS = range(24)
TPM_GENERATED = 0xFF544347
_CERTIFY, _QUOTE = 0x8017, 0x8018
_SHA256 = 0x000B
_PUBLIC_HEAD = struct.Struct(">HHIHHHHHH")
"""Type, name algorithm, attributes, size of the policy, symmetric, scheme, its hash, curve, kdf."""
_ECC, _NULL, _ECDSA, _P256 = 0x0023, 0x0010, 0x0018, 0x0003
_CLOCK_BYTES = 17 + 8
"""TPMS_CLOCK_INFO and the firmware's version."""


class AttestationError(GateError):
    """Gate "attestation": what a TPM signed is malformed, not signed by that TPM, or not what is wanted."""

    def __init__(self, message: str) -> None:
        """Say why."""
        super().__init__(Gate.ATTESTATION.value, message)


def public_template(attributes: int) -> bytes:
    """TPMT_PUBLIC to create a signing key by."""
    head = _PUBLIC_HEAD.pack(_ECC, _SHA256, attributes, 0, _NULL, _ECDSA, _SHA256, _P256, _NULL)
    return head + bytes(4)


def public_key(public: bytes, attributes: int) -> ec.EllipticCurvePublicKey:
    """The key of a TPMT_PUBLIC that has just those attributes; raises AttestationError."""
    reader = _Reader(public)
    head = _PUBLIC_HEAD.unpack(reader.take(_PUBLIC_HEAD.size))
    wanted = (_ECC, _SHA256, attributes, 0, _NULL, _ECDSA, _SHA256, _P256, _NULL)
    if head != wanted:
        msg = f"a key with attributes {head[2]:#x} is no P-256 signing key with {attributes:#x}; join anew"
        raise AttestationError(msg)
    x, y = (int.from_bytes(reader.sized()) for _ in range(2))
    reader.finish()
    try:
        return ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    except ValueError as error:
        msg = f"a TPM's public key is no point of P-256: {error}"
        raise AttestationError(msg) from error


def request_nonce(csr: bytes) -> bytes:
    """What evidence for a certificate request covers."""
    return hashlib.sha256(csr).digest()


def ping_nonce(ping: HealthPing, challenge: bytes) -> bytes:
    """What the quote of a ping covers: the authority's challenge and every other field of the ping."""
    said = [
        "wavemesh-health-ping-v1",
        challenge.hex(),
        ping.device,
        ping.wave_id,
        ping.boot_id,
        ping.slot,
        ping.firmware_sha256,
        ping.counter,
        ping.authority,
    ]
    return hashlib.sha256(json.dumps(said, separators=(",", ":")).encode()).digest()


def attested_by(evidence: TpmEvidence, key: ec.EllipticCurvePublicKey, csr: bytes) -> ec.EllipticCurvePublicKey:
    """The attestation key of the TPM in which the key of that request lives; raises AttestationError."""
    if public_key(evidence.key_public, NODE_KEY_ATTRIBUTES) != key:
        msg = "the evidence is about another key than the certificate request"
        raise AttestationError(msg)
    attestation_key = public_key(evidence.attestation_public, ATTESTATION_KEY_ATTRIBUTES)
    reader = _signed(evidence.certified, evidence.certified_signature, attestation_key, _CERTIFY)
    if reader.nonce != request_nonce(csr):
        msg = "the evidence covers another certificate request"
        raise AttestationError(msg)
    name = struct.pack(">H", _SHA256) + hashlib.sha256(evidence.key_public).digest()
    if reader.rest.sized() != name:
        msg = "the attestation key certifies another key than the one of the certificate request"
        raise AttestationError(msg)
    return attestation_key


def attestation_of(evidence: TpmEvidence, key: ec.EllipticCurvePublicKey, csr: bytes) -> Attestation:
    """What a certificate binds for a node that joins with that evidence; raises AttestationError."""
    attestation_key = attested_by(evidence, key, csr)
    if evidence.quote is None:
        msg = "the evidence has no quote of what was booted, which joining needs"
        raise AttestationError(msg)
    quoted = read_quote(evidence.quote, attestation_key)
    if quoted.nonce != request_nonce(csr):
        msg = "the quote covers another certificate request"
        raise AttestationError(msg)
    return Attestation(point_of(attestation_key), tuple(sorted(evidence.quote.pcrs.items())))


@dataclass(frozen=True, slots=True)
class Quoted:
    """What a good quote covers and shows."""

    nonce: bytes
    pcrs: Mapping[int, str]


def read_quote(quote: Quote, attestation_key: ec.EllipticCurvePublicKey) -> Quoted:
    """What that key's TPM quoted; raises AttestationError."""
    signed = _signed(quote.quoted, quote.signature, attestation_key, _QUOTE)
    selected = signed.rest.selection()
    digest = signed.rest.sized()
    if selected != sorted(quote.pcrs):
        msg = f"the quote is of PCRs {selected}, what came along of {sorted(quote.pcrs)}"
        raise AttestationError(msg)
    try:
        values = b"".join(bytes.fromhex(quote.pcrs[number]) for number in selected)
    except ValueError as error:
        msg = f"a PCR's value is no hex: {error}"
        raise AttestationError(msg) from error
    if hashlib.sha256(values).digest() != digest:
        msg = "the PCR values that came along are not those that the TPM signed"
        raise AttestationError(msg)
    return Quoted(signed.nonce, quote.pcrs)


def releases_of(firmware_sha256: str, releases: Iterable[ReleaseManifest]) -> list[Mapping[int, str]]:
    """What the releases with that firmware say of PCRs, those that say something."""
    return [
        dict(release.attestation)
        for release in releases
        if release.attestation and release.firmware is not None and release.firmware.digest.sha256 == firmware_sha256
    ]


def wanted_pcrs(bound: Attestation, firmware_sha256: str, releases: Iterable[ReleaseManifest]) -> list[dict[int, str]]:
    """The sets of PCRs of which one has to be shown; rule 4."""
    listed = releases_of(firmware_sha256, releases)
    return [{**dict(bound.pcrs), **one} for one in listed] or [dict(bound.pcrs)]


def check_pcrs(shown: Mapping[int, str], wanted: list[dict[int, str]]) -> None:
    """Raise AttestationError unless one of the wanted sets is shown; names the first PCR that differs."""
    problems = [problem for problem in (_difference(shown, one) for one in wanted) if problem]
    if len(problems) == len(wanted):
        raise AttestationError(problems[0])


def _difference(shown: Mapping[int, str], wanted: Mapping[int, str]) -> str:
    for number, value in sorted(wanted.items()):
        if number not in shown:
            return f"PCR {number} is not quoted, {value} required"
        if shown[number] != value:
            return f"PCR {number} is {shown[number]}, {value} required"
    return ""


def point_of(key: ec.EllipticCurvePublicKey) -> bytes:
    """A public key as a certificate binds it."""
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)


def key_of_point(point: bytes) -> ec.EllipticCurvePublicKey:
    """The public key that a certificate binds; raises AttestationError."""
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError as error:
        msg = f"the certificate binds an attestation key that is no point of P-256: {error}"
        raise AttestationError(msg) from error


@dataclass(frozen=True, slots=True)
class _Signed:
    """A TPMS_ATTEST that its signature fits: what it covers, and a reader at its last part."""

    nonce: bytes
    rest: _Reader


def _signed(attest: bytes, signature: bytes, key: ec.EllipticCurvePublicKey, kind: int) -> _Signed:
    try:
        key.verify(signature, attest, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        msg = "the attestation key of this node's TPM did not sign what came along"
        raise AttestationError(msg) from error
    reader = _Reader(attest)
    magic, found = struct.unpack(">IH", reader.take(6))
    if magic != TPM_GENERATED or found != kind:
        msg = f"a statement of kind {found:#06x} that begins with {magic:#010x}, {kind:#06x} of a TPM wanted"
        raise AttestationError(msg)
    reader.sized()
    nonce = reader.sized()
    reader.take(_CLOCK_BYTES)
    return _Signed(nonce, reader)


class _Reader:
    """Reads a TPM's big-endian structures; raises AttestationError at their end."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def take(self, count: int) -> bytes:
        if len(self._data) < count:
            msg = f"a TPM's structure ends {count - len(self._data)} bytes early"
            raise AttestationError(msg)
        taken, self._data = self._data[:count], self._data[count:]
        return taken

    def sized(self) -> bytes:
        return self.take(int.from_bytes(self.take(2)))

    def selection(self) -> list[int]:
        """TPML_PCR_SELECTION of one bank, SHA-256."""
        count, bank, size = struct.unpack(">IHB", self.take(7))
        bits = int.from_bytes(self.take(size), "little")
        if count != 1 or bank != _SHA256 or size > 4:
            msg = f"the quote is of {count} PCR banks, the first {bank:#06x}; SHA-256 alone is accepted"
            raise AttestationError(msg)
        return [number for number in range(8 * size) if bits >> number & 1]

    def finish(self) -> None:
        if self._data:
            msg = f"a TPM's structure has {len(self._data)} bytes too many"
            raise AttestationError(msg)
