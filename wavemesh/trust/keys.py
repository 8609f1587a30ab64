"""Role keys as files: private keys in PEM (Ed25519, PKCS#8, mode 0600), public keys, references to keys in tokens.

Release and root keys live with the people who sign releases and are never on control; control has its own key and the
online keys (snapshot, timestamp). Where a key is asked for, these are taken:

* a file with a private key;
* a URI of a key in a PKCS#11 token (``hsm:2?label=TOKEN``, ``pkcs11:token=TOKEN;id=%02``; tokens.py);
* a file that refers to one: JSON ``{"uri": …, "public": PEM}``, so that the token is only needed to sign.

A public key's file carries nothing but the key: its id is computed, so that nobody can put a key under another's id.
What people call it is the file's name, and goes along into what is signed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from securesystemslib.signer import CryptoSigner, SSlibKey

from wavemesh.errors import LocalError
from wavemesh.runtime.durable import write_file
from wavemesh.trust.ceremony import NAME_FIELD

if TYPE_CHECKING:
    from collections.abc import Callable

    from securesystemslib.signer import Key, Signer

    from wavemesh.trust.tokens import TokenSigner

PUBLIC_SUFFIX = ".pub"
_PRIVATE = 0o600
_PUBLIC = 0o644
_MAX_KEY_BYTES = 64 * 1024
_SCHEMES = ("hsm:", "pkcs11:")


class KeyFileError(LocalError):
    """A file with a role key is missing or malformed."""

    reason = "KEY_FILE"


def is_token_uri(key: str) -> bool:
    """Whether a key is given as the URI of one in a token, and not as a file."""
    return key.startswith(_SCHEMES)


def create_signer(path: Path) -> CryptoSigner:
    """Make a new Ed25519 key and write it; KeyFileError if the file exists, for a key is never overwritten."""
    if path.exists():
        msg = f"{path} exists; a key is never overwritten: choose another name"
        raise KeyFileError(msg)
    signer = CryptoSigner.generate_ed25519()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, signer.private_bytes, _PRIVATE)
    return signer


def load_signer(key: Path | str, pin: Callable[[], str] | None = None) -> Signer:
    """The key of a file or a URI; ``pin`` gives the PIN of a token, by default from the environment.

    Raises KeyFileError, KeyTokenError. A token that is missing is an error, never a reason to take another key.
    """
    if isinstance(key, str) and is_token_uri(key):
        return _token_signer(key, None, pin)
    path = Path(key)
    data = _read(path)
    if data.lstrip().startswith(b"{"):
        uri, public = _read_reference(path, data)
        return _token_signer(uri, public, pin)
    try:
        private = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        msg = f"{path} is not an unencrypted private key in PEM (PKCS#8): {error}"
        raise KeyFileError(msg) from error
    if not isinstance(private, (ed25519.Ed25519PrivateKey, ec.EllipticCurvePrivateKey)):
        msg = f"{path} is neither an Ed25519 nor an EC key"
        raise KeyFileError(msg)
    return CryptoSigner(private)


def load_public(path: Path) -> Key:
    """The public key of a file: a public key in PEM, or a reference; raises KeyFileError, also for a private key."""
    data = _read(path)
    if data.lstrip().startswith(b"{"):
        key = _read_reference(path, data)[1]
    elif b"PRIVATE KEY" in data:
        msg = f"{path} is a private key; give the public one that was made with it: {path.with_suffix(PUBLIC_SUFFIX)}"
        raise KeyFileError(msg)
    else:
        key = _public_from_pem(data, path)
    key.unrecognized_fields[NAME_FIELD] = path.stem
    return key


def write_public(key: Key, path: Path) -> None:
    """Write a public key in PEM; KeyFileError if the file holds another one."""
    data = _public_pem(key)
    if path.exists() and path.read_bytes() != data:
        msg = f"{path} holds another key; choose another name"
        raise KeyFileError(msg)
    write_file(path, data, _PUBLIC)


def write_reference(signer: TokenSigner, path: Path) -> None:
    """Write a file that refers to a key in a token; KeyFileError if the file says something else."""
    value = {"uri": signer.uri, "public": _public_pem(signer.public_key).decode()}
    data = json.dumps(value, indent=1).encode() + b"\n"
    if path.exists() and path.read_bytes() != data:
        msg = f"{path} holds something else; choose another name"
        raise KeyFileError(msg)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, data, _PUBLIC)


def _token_signer(uri: str, public: SSlibKey | None, pin: Callable[[], str] | None) -> TokenSigner:
    from wavemesh.trust.tokens import TokenSigner, pin_from_environment

    return TokenSigner.open(uri, public, pin or pin_from_environment)


def _read_reference(path: Path, data: bytes) -> tuple[str, SSlibKey]:
    try:
        value = json.loads(data)
        uri, public = str(value["uri"]), str(value["public"])
    except (ValueError, KeyError, TypeError) as error:
        msg = f'{path} is no reference to a key, {{"uri": "hsm:…", "public": PEM}}: {error!r}'
        raise KeyFileError(msg) from error
    return uri, _public_from_pem(public.encode(), path)


def _public_from_pem(data: bytes, path: Path) -> SSlibKey:
    try:
        public = serialization.load_pem_public_key(data)
    except (ValueError, TypeError) as error:
        msg = f"{path} is no public key in PEM: {error}"
        raise KeyFileError(msg) from error
    if not isinstance(public, (ed25519.Ed25519PublicKey, ec.EllipticCurvePublicKey)):
        msg = f"{path} is neither an Ed25519 nor an EC key"
        raise KeyFileError(msg)
    return SSlibKey.from_crypto(public)


def _public_pem(key: Key) -> bytes:
    value = str(key.keyval["public"])
    if key.keytype == "ed25519":
        public = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(value))
        return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return value.encode()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_KEY_BYTES)
    except OSError as error:
        msg = f"cannot read key {path}: {error.strerror}"
        raise KeyFileError(msg) from error
