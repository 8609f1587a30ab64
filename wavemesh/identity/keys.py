"""Where a node's key lives: in a file, or in a place that signs and never shows it. What a key's file says, either way.

A file with a private key has it in PEM (PKCS#8). A file that refers to a key in a TPM is JSON (``tpmkeys.py``). Which
of both a node uses is configuration; a file of the other kind is an error, never a reason to use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from wavemesh.errors import LocalError

if TYPE_CHECKING:
    from pathlib import Path

    from wavemesh.trust.enrolments import TpmEvidence


class CredentialsError(LocalError):
    """A file of this node's identity is missing, malformed, expired or does not fit the others."""

    reason = "CREDENTIALS"


class Keys(Protocol):
    """Where a node's keys are made and used. May wait for hardware: not to be called where nothing may block."""

    def create(self) -> ec.EllipticCurvePrivateKey:
        """A new P-256 key. Raises LocalError."""
        ...

    def keep(self, key: ec.EllipticCurvePrivateKey) -> bytes:
        """What the file of a key that was made here says."""
        ...

    def load(self, path: Path, data: bytes) -> ec.EllipticCurvePrivateKey:
        """The key that a file is about; asks no hardware. Raises CredentialsError."""
        ...

    def evidence(self, key: ec.EllipticCurvePrivateKey, csr: bytes) -> TpmEvidence | None:
        """What proves to an issuer where the key of that request lives; None for a key in a file. Raises LocalError."""
        ...


class SoftwareKeys:
    """Keys in memory, kept in files."""

    def create(self) -> ec.EllipticCurvePrivateKey:
        """A new P-256 key."""
        return ec.generate_private_key(ec.SECP256R1())

    def keep(self, key: ec.EllipticCurvePrivateKey) -> bytes:
        """The key itself, PEM."""
        return key_pem(key)

    def load(self, path: Path, data: bytes) -> ec.EllipticCurvePrivateKey:
        """The key in the file; raises CredentialsError."""
        if refers_to_tpm(data):
            msg = f'{path} refers to a key in a TPM; set key = "tpm" and tcti under [identity] in the configuration'
            raise CredentialsError(msg)
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError) as error:
            msg = f"{path} is not an unencrypted private key in PEM (PKCS#8): {error}"
            raise CredentialsError(msg) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            msg = f"{path} is not an EC P-256 key: create it anew"
            raise CredentialsError(msg)
        return key

    def evidence(self, key: ec.EllipticCurvePrivateKey, csr: bytes) -> TpmEvidence | None:  # noqa: ARG002  # none to give
        """None."""
        return None


def refers_to_tpm(data: bytes) -> bool:
    """Whether a key's file refers to a key in a TPM, and does not hold it."""
    return data.lstrip().startswith(b"{")


def key_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    """A private key as it is kept in a file: PKCS#8, encrypted where there is a passphrase."""
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
