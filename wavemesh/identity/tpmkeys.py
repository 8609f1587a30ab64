"""A node's keys in a TPM 2.0: made there, used there, never anywhere else (``tpm.py`` speaks to it).

A key's file refers to it and is no secret: JSON with the ``parent`` it is wrapped for (hex handle), its ``public`` part
(TPMT_PUBLIC) and its ``private`` part as the TPM encrypted it, both hex. Removing the file is the end of the key. The
attestation key is one for as long as the node is enrolled, in ``identity/attestation.key``, of the same form.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, NoReturn

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from wavemesh.errors import PeerError
from wavemesh.identity.attestation import (
    ATTESTATION_KEY_ATTRIBUTES,
    NODE_KEY_ATTRIBUTES,
    AttestationError,
    public_key,
    public_template,
    read_quote,
    request_nonce,
)
from wavemesh.identity.files import PRIVATE_MODE
from wavemesh.identity.keys import CredentialsError, refers_to_tpm
from wavemesh.identity.tpm import Tpm, Wrapped
from wavemesh.runtime.durable import Disk, disk_errors
from wavemesh.trust.enrolments import TpmEvidence
from wavemesh.trust.quotes import Quote

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
    from cryptography.utils import Buffer

ATTESTATION_FILE = "attestation.key"
DEFAULT_PCRS = (0, 7)
"""The platform's firmware and the secure-boot policy: what no release of ours changes."""
MAX_QUOTES = 5


class TpmKey(ec.EllipticCurvePrivateKey):
    """A P-256 key that signs in its TPM and cannot leave it."""

    def __init__(self, tpm: Tpm, wrapped: Wrapped, public: ec.EllipticCurvePublicKey) -> None:
        """``public`` is the public part of ``wrapped``."""
        self._tpm = tpm
        self.wrapped = wrapped
        self._public = public

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public part."""
        return self._public

    def sign(self, data: Buffer, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """ECDSA with SHA-256, ASN.1 DER. Raises TpmError."""
        if not isinstance(_hash_of(signature_algorithm), hashes.SHA256):
            msg = "a TPM's key signs ECDSA with SHA-256 alone"
            raise RuntimeError(msg)  # noqa: TRY004  # a misuse here, of whatever type
        with self._tpm.using() as tpm:
            return tpm.sign(self.wrapped, hashlib.sha256(data).digest())

    @property
    def curve(self) -> ec.EllipticCurve:
        """P-256."""
        return self._public.curve

    @property
    def key_size(self) -> int:
        """256."""
        return self._public.key_size

    def exchange(self, *_: object) -> bytes:
        """It signs, and no more."""
        self._refuse()

    def private_numbers(self) -> ec.EllipticCurvePrivateNumbers:
        """Nobody has them."""
        self._refuse()

    def private_bytes(self, *_: object) -> bytes:
        """Nobody has them."""
        self._refuse()

    def __copy__(self) -> TpmKey:
        """Itself: it is immutable."""
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> TpmKey:
        """Itself: it is immutable."""
        return self

    @staticmethod
    def _refuse() -> NoReturn:
        msg = "a key in a TPM signs, and never leaves it"
        raise RuntimeError(msg)


class TpmKeys:
    """Implements ``Keys``; the attestation key's file is in ``directory``."""

    def __init__(self, tpm: Tpm, directory: Path, disk: Disk, pcrs: Sequence[int] = DEFAULT_PCRS) -> None:
        """``pcrs`` are quoted to join: the certificate binds what they hold then."""
        self._tpm = tpm
        self._file = directory / ATTESTATION_FILE
        self._disk = disk
        self._pcrs = tuple(pcrs)

    def create(self) -> TpmKey:
        """A new key in the TPM; nothing of it stays there. Raises TpmError."""
        return self._made(NODE_KEY_ATTRIBUTES)

    def keep(self, key: ec.EllipticCurvePrivateKey) -> bytes:
        """What refers to the key."""
        if not isinstance(key, TpmKey):
            msg = f"{type(key).__name__} is no key of a TPM"
            raise RuntimeError(msg)  # noqa: TRY004  # a misuse here, of whatever type
        one = key.wrapped
        content = {"parent": f"{one.parent:#010x}", "public": one.public.hex(), "private": one.private.hex()}
        return json.dumps(content, indent=1).encode() + b"\n"

    def load(self, path: Path, data: bytes) -> TpmKey:
        """The key a file refers to; the TPM is asked when it signs. Raises CredentialsError."""
        return self._loaded(path, data, NODE_KEY_ATTRIBUTES)

    def evidence(self, key: ec.EllipticCurvePrivateKey, csr: bytes) -> TpmEvidence | None:
        """That the key of that request lives in this TPM, and what was booted. Raises LocalError."""
        if not isinstance(key, TpmKey):
            return None
        own, nonce = self._attestation_key(), request_nonce(csr)
        with self._tpm.using() as tpm:
            certified, signature = tpm.certify(key.wrapped, own.wrapped, nonce)
        quote = self._quote(own, nonce, self._pcrs)
        return TpmEvidence(key.wrapped.public, own.wrapped.public, certified, signature, quote)

    def quote(self, nonce: bytes, pcrs: Sequence[int]) -> Quote:
        """What those PCRs hold, signed by the attestation key that the certificate binds. Raises LocalError."""
        return self._quote(self._attestation_key(), nonce, pcrs)

    def _quote(self, own: TpmKey, nonce: bytes, pcrs: Sequence[int]) -> Quote:
        """Values and signature come of two commands: a PCR that is extended in between means once more."""
        with self._tpm.using() as tpm:
            for _ in range(MAX_QUOTES):
                values = tpm.read_pcrs(pcrs)
                made = Quote(*tpm.quote(own.wrapped, nonce, pcrs), values)
                try:
                    read_quote(made, own.public_key())
                except AttestationError:
                    continue
                return made
        raise self._tpm.error(f"PCRs {sorted(pcrs)} do not stay the same for one quote")

    def _attestation_key(self) -> TpmKey:
        """The one there is, or a new one, durable before anybody hears of it."""
        with disk_errors(self._file):
            data = self._file.read_bytes() if self._file.exists() else None
        if data is not None:
            return self._loaded(self._file, data, ATTESTATION_KEY_ATTRIBUTES)
        key = self._made(ATTESTATION_KEY_ATTRIBUTES)
        self._disk.write_atomic(self._file, self.keep(key), PRIVATE_MODE)
        return key

    def _made(self, attributes: int) -> TpmKey:
        with self._tpm.using() as tpm:
            wrapped = tpm.create(public_template(attributes))
        return TpmKey(self._tpm, wrapped, public_key(wrapped.public, attributes))

    def _loaded(self, path: Path, data: bytes, attributes: int) -> TpmKey:
        if not refers_to_tpm(data):
            msg = f'{path} is no key in a TPM, but the configuration wants one; join with --tcti, or set key = "file"'
            raise CredentialsError(msg)
        try:
            content = json.loads(data)
            public, private = (bytes.fromhex(content[name]) for name in ("public", "private"))
            wrapped = Wrapped(int(content["parent"], 16), public, private)
            return TpmKey(self._tpm, wrapped, public_key(public, attributes))
        except (ValueError, TypeError, KeyError, RecursionError, PeerError) as error:
            msg = f"{path} does not refer to a key in a TPM: {error!r}; enrol the node again"
            raise CredentialsError(msg) from error


def _hash_of(algorithm: ec.EllipticCurveSignatureAlgorithm) -> hashes.HashAlgorithm | Prehashed | None:
    return algorithm.algorithm if isinstance(algorithm, ec.ECDSA) else None
