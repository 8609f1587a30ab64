"""Control's own keys and what it says with them.

``DIR/keys/control.pem`` speaks as the role ``control``, to which the release keys delegate in targets.json: orders,
permits, holds, policies, last words, acknowledgements of health. ``DIR/keys/online.pem`` signs TUF snapshot and
timestamp. Neither can make a release. Signing is CPU work and happens in threads.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wavemesh.codec.statements import encode
from wavemesh.policy.document import POLICY_PAYLOAD_TYPE
from wavemesh.trust.envelope import sign_statement, sign_with_keys
from wavemesh.trust.keys import load_signer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from securesystemslib.signer import Signer

    from wavemesh.trust.envelope import Statement
    from wavemesh.trust.statements import Envelope

CONTROL_KEY_FILE = "control.pem"
ONLINE_KEY_FILE = "online.pem"


@dataclass(frozen=True, slots=True, repr=False)
class Signing:
    """The keys; ``uri`` is this replica's SPIFFE id, by which the audit names it."""

    uri: str
    control: Signer
    online: Signer

    @classmethod
    def load(cls, directory: Path, uri: str) -> Signing:
        """Read both keys; raises KeyFileError."""
        return cls(uri, load_signer(directory / CONTROL_KEY_FILE), load_signer(directory / ONLINE_KEY_FILE))

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
