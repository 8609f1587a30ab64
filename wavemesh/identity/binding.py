"""What a certificate binds to its node besides the name: device class, hardware revision, and when it was issued. Pure.

A private, non-critical extension, so that TLS passes over it: OBJECT ``BINDING_OID`` (an arc of a UUID, X.667, which
needs no registry), value a DER UTF8String with a JSON object of the keys ``class``, ``hardware`` and ``issued`` (µs
since 1970); and, if the node's key lives in a TPM, ``attestation`` (``key``: the attestation key, an uncompressed point
in hex; ``pcrs``: SHA-256 values by number, as they were when the node joined). It cannot be a second URI SAN, as a node
has exactly one. ``notBefore`` is not the time of issue: it lies ``CLOCK_SLACK`` before it, so that a node whose clock
is a little behind may use its certificate at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509

from wavemesh.identity.certificates import CERTIFICATE_ERRORS, BadCertificateError

BINDING_OID = x509.ObjectIdentifier("2.25.141061360969079940078453117915374766683")
CLOCK_SLACK = timedelta(minutes=5)
MAX_WORD_CHARACTERS = 100
MAX_PCRS = 8
_MAX_BYTES = 2048
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UTF8_STRING = 0x0C
_SHORT_LENGTH = 0x80


@dataclass(frozen=True, slots=True)
class Attestation:
    """The attestation key of a node's TPM (an uncompressed point) and PCRs as it joined: number and value in hex."""

    key: bytes
    pcrs: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Binding:
    """Class and revision as enrolled, empty for hubs; ``issued_at`` by the issuer's clock."""

    issued_at: datetime
    device_class: str = ""
    hardware_revision: str = ""
    attestation: Attestation | None = None

    def extension(self) -> x509.UnrecognizedExtension:
        """As it stands in a certificate. RuntimeError for words over their bound."""
        if any(len(word) > MAX_WORD_CHARACTERS for word in (self.device_class, self.hardware_revision)):
            msg = f"device class and hardware revision have at most {MAX_WORD_CHARACTERS} characters"
            raise RuntimeError(msg)
        microseconds = (self.issued_at - _EPOCH) // timedelta(microseconds=1)
        content: dict[str, object] = {
            "class": self.device_class,
            "hardware": self.hardware_revision,
            "issued": microseconds,
        }
        if self.attestation is not None:
            pcrs = {str(number): value for number, value in self.attestation.pcrs}
            content["attestation"] = {"key": self.attestation.key.hex(), "pcrs": pcrs}
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        return x509.UnrecognizedExtension(BINDING_OID, bytes([_UTF8_STRING]) + _length(len(text)) + text)


def binding_of(certificate: x509.Certificate) -> Binding | None:
    """What the certificate binds; None for one without the extension. Raises BadCertificateError if malformed."""
    try:
        value = certificate.extensions.get_extension_for_oid(BINDING_OID).value
    except x509.ExtensionNotFound:
        return None
    except CERTIFICATE_ERRORS as error:
        msg = f"certificate with malformed extensions: {error}"
        raise BadCertificateError(msg) from error
    try:
        if not isinstance(value, x509.UnrecognizedExtension):
            raise TypeError
        content = json.loads(_text(value.value))
        words = content["class"], content["hardware"]
        if any(not isinstance(word, str) or len(word) > MAX_WORD_CHARACTERS for word in words):
            raise TypeError
        bound = _attestation(content["attestation"]) if "attestation" in content else None
        return Binding(_EPOCH + timedelta(microseconds=content["issued"]), *words, attestation=bound)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        msg = f"certificate with serial {certificate.serial_number:x} has a malformed binding"
        raise BadCertificateError(msg) from error


def issued_at(certificate: x509.Certificate) -> datetime:
    """When the certificate was issued; its start, for one that does not say. Raises BadCertificateError."""
    binding = binding_of(certificate)
    return certificate.not_valid_before_utc if binding is None else binding.issued_at


def renew_at(certificate: x509.Certificate, share: float) -> datetime:
    """When to renew: at half of the lifetime, plus ``share`` (0 to 1) of a further tenth, so not all ask at once."""
    start = certificate.not_valid_before_utc
    return start + (certificate.not_valid_after_utc - start) * (0.5 + 0.1 * share)


def _attestation(content: dict[str, Any]) -> Attestation:
    """Raises ValueError, TypeError, KeyError, AttributeError."""
    pcrs = tuple(sorted((int(number), str(value)) for number, value in content["pcrs"].items()))
    return Attestation(bytes.fromhex(content["key"]), pcrs)


def _length(count: int) -> bytes:
    """DER: short below 128, else the number of its bytes first."""
    if count < _SHORT_LENGTH:
        return bytes([count])
    size = (count.bit_length() + 7) // 8
    return bytes([_SHORT_LENGTH + size]) + count.to_bytes(size)


def _text(der: bytes) -> bytes:
    """The content of a DER UTF8String that is all there is; raises ValueError."""
    if not 2 < len(der) <= _MAX_BYTES or der[0] != _UTF8_STRING:
        raise ValueError
    count = der[1] - _SHORT_LENGTH if der[1] > _SHORT_LENGTH else 0
    text = der[2 + count :]
    length = int.from_bytes(der[2 : 2 + count]) if count else der[1]
    if length != len(text):
        raise ValueError
    return text
