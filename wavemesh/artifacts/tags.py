"""What was verified once is recognised again: a keyed tag for each step of a blob, far cheaper than its SHA-256.

Whoever has hashed a whole blob and found its digest right has also made a tag of each ``READ_STEP_BYTES`` of it. Later
reads check each step against its tag before it is given out. The tag is GMAC (NIST SP 800-38D: AES-128-GCM over
associated data alone, 128 bits) under a key that this process drew and never shows. For bytes that changed by accident,
or by the hand of somebody who knows neither key nor tags, it comes out the same with a chance below 2^-100. GMAC's rule
that a nonce is used once protects tags that others see; these never leave the process, so one nonce serves.

Tags live in memory: a new process hashes each blob in full once before it has any. 16 bytes for each step.
"""

from __future__ import annotations

import secrets

from cryptography.hazmat.primitives.ciphers import AEADEncryptionContext, Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from wavemesh.artifacts.digests import STEP_BYTES

READ_STEP_BYTES = STEP_BYTES // 2
"""Half a step: one frame on the wire."""

_KEY = secrets.token_bytes(16)
_NONCE = bytes(12)
_GCM = AESGCM(_KEY)
_CIPHER = Cipher(algorithms.AES(_KEY), modes.GCM(_NONCE))


def tag_of(step: bytes) -> bytes:
    """The tag of one whole step, or of the shorter last one."""
    return _GCM.encrypt(_NONCE, b"", step)


class Tagger:
    """Makes the tags of a blob whose bytes come in pieces of any length, in order."""

    def __init__(self) -> None:
        """Nothing was tagged."""
        self._tags: list[bytes] = []
        self._context: AEADEncryptionContext = _CIPHER.encryptor()
        self._room = READ_STEP_BYTES

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes in."""
        rest = memoryview(data)
        while rest:
            part = rest[: self._room]
            self._context.authenticate_additional_data(part)
            self._room -= len(part)
            if not self._room:
                self._close()
            rest = rest[len(part) :]

    def tags(self) -> tuple[bytes, ...]:
        """The tags of all bytes taken in; nothing may be added afterwards."""
        if self._room < READ_STEP_BYTES:
            self._close()
        return tuple(self._tags)

    def _close(self) -> None:
        self._context.finalize()
        self._tags.append(self._context.tag)
        self._context, self._room = _CIPHER.encryptor(), READ_STEP_BYTES
