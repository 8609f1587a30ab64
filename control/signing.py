"""Control's own keys and what it says with them.

``DIR/keys/control.pem`` speaks as the role ``control``, to which the release keys delegate in targets.json: orders,
permits, holds, policies, last words, acknowledgements of health. ``DIR/keys/online.pem`` signs TUF snapshot and
timestamp. Neither can make a release. Where the key is in a token, ``control.json`` or ``online.json`` refers to it
(``edgectl keys create``). Beside each there may be a next one (``control-next.pem``): as soon as published metadata
gives it the role, it is used instead. Signing is CPU work and happens in threads.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from wavemesh.codec.statements import decode, encode
from wavemesh.errors import ConflictError
from wavemesh.policy.document import POLICY_PAYLOAD_TYPE
from wavemesh.trust.ceremony import ONLINE_ROLES, keys_of, read_root
from wavemesh.trust.envelope import CONTROL_ROLE, sign_statement, sign_with_keys
from wavemesh.trust.keys import KeyFileError, load_signer
from wavemesh.trust.statements import Envelope

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from securesystemslib.signer import Signer

    from wavemesh.trust.envelope import Statement
    from wavemesh.trust.metadata import RoleKeys, TrustedMetadata

CONTROL_KEY = "control"
ONLINE_KEY = "online"
_FORMS = ("-next.pem", "-next.json", ".pem", ".json")
"""Names of a key's file by preference."""


class Signing:
    """The keys; ``uri`` is this replica's SPIFFE id, by which the audit names it."""

    def __init__(self, uri: str, control: Sequence[Signer], online: Sequence[Signer]) -> None:
        """Keys by preference; which one counts is for ``follow`` and ``online_for`` to say."""
        self.uri = uri
        self.control = control[-1]
        self._controls = control
        self._onlines = online

    @classmethod
    def load(cls, directory: Path, uri: str) -> Signing:
        """Read all keys; raises KeyFileError, KeyTokenError."""
        return cls(uri, _load(directory, CONTROL_KEY), _load(directory, ONLINE_KEY))

    def choose(self, trusted: TrustedMetadata) -> Signer:
        """The key that may speak as control by that metadata; raises ConflictError if none of those here may."""
        return _choose(self._controls, trusted.role_keys(CONTROL_ROLE), CONTROL_KEY)

    def online_for(self, root: bytes) -> Signer:
        """The key that may sign snapshot and timestamp by that root; raises ConflictError if none of those here may."""
        role = read_root(root)
        return _choose(self._onlines, keys_of(role.roles[ONLINE_ROLES[0]], role.keys), ONLINE_KEY)

    async def sign(self, statement: Statement) -> Envelope:
        """A statement signed as control."""
        return await asyncio.to_thread(sign_statement, statement, [self.control])

    async def seal(self, statements: Sequence[Statement]) -> list[bytes]:
        """Each statement in an envelope signed as control, as a resource carries it."""
        if not statements:
            return []
        return await asyncio.to_thread(lambda: [encode(sign_statement(one, [self.control])) for one in statements])

    async def seal_policy(self, payload: bytes) -> bytes:
        """A policy's canonical JSON in an envelope signed as control, as a resource carries it."""
        return encode(await asyncio.to_thread(sign_with_keys, POLICY_PAYLOAD_TYPE, payload, [self.control]))

    async def reseal(self, contents: Sequence[bytes]) -> list[bytes]:
        """Envelopes that control signed before, signed with the key that speaks as control now."""

        def sign_anew(content: bytes) -> bytes:
            envelope = decode(Envelope, content)
            return encode(sign_with_keys(envelope.payload_type, envelope.payload, [self.control]))

        return await asyncio.to_thread(lambda: [sign_anew(content) for content in contents])


def _load(directory: Path, name: str) -> Sequence[Signer]:
    found = [load_signer(path) for form in _FORMS if (path := directory / f"{name}{form}").exists()]
    if not found:
        msg = f"{directory} has no key {name}.pem, nor {name}.json that refers to one in a token"
        raise KeyFileError(msg)
    return found


def _choose(signers: Sequence[Signer], role: RoleKeys, name: str) -> Signer:
    for signer in signers:
        if signer.public_key.keyid in role.keys and role.threshold == 1:
            return signer
    held = ", ".join(signer.public_key.keyid[:16] for signer in signers)
    wanted = ", ".join(sorted(keyid[:16] for keyid in role.keys))
    msg = (
        f"role {name} is for {role.threshold} of the keys {wanted} to sign, control has {held}: put the key into "
        f"keys/{name}-next.pem and start control again before such metadata is published"
    )
    raise ConflictError(msg)
