"""Role keys as files: Ed25519, PKCS#8 in PEM, mode 0600.

Release and root keys live with the people who sign releases and are never on control; control has its own key and the
online keys (snapshot, timestamp). Whoever keeps keys in an HSM or a KMS gives any securesystemslib signer where a
signer is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from securesystemslib.signer import CryptoSigner

from wavemesh.errors import LocalError
from wavemesh.runtime.durable import write_file

if TYPE_CHECKING:
    from pathlib import Path

_PRIVATE = 0o600
_MAX_KEY_BYTES = 64 * 1024


class KeyFileError(LocalError):
    """A file with a role key is missing or malformed."""

    reason = "KEY_FILE"


def create_signer(path: Path) -> CryptoSigner:
    """Make a new Ed25519 key and write it; KeyFileError if the file exists, for a key is never overwritten."""
    if path.exists():
        msg = f"{path} exists; a key is never overwritten: choose another name"
        raise KeyFileError(msg)
    signer = CryptoSigner.generate_ed25519()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, signer.private_bytes, _PRIVATE)
    return signer


def load_signer(path: Path) -> CryptoSigner:
    """Read a private key (Ed25519 or EC P-256); raises KeyFileError."""
    try:
        with path.open("rb") as file:
            key = serialization.load_pem_private_key(file.read(_MAX_KEY_BYTES), password=None)
    except OSError as error:
        msg = f"cannot read key {path}: {error.strerror}"
        raise KeyFileError(msg) from error
    except (ValueError, TypeError) as error:
        msg = f"{path} is not an unencrypted private key in PEM (PKCS#8): {error}"
        raise KeyFileError(msg) from error
    if not isinstance(key, (ed25519.Ed25519PrivateKey, ec.EllipticCurvePrivateKey)):
        msg = f"{path} is neither an Ed25519 nor an EC key"
        raise KeyFileError(msg)
    return CryptoSigner(key)
