"""The one-time token that an operator carries to a node that has nothing yet. Pure.

Text: ``wm1.`` and base64url of a JSON object: fleet, path of the node, secret, the fleet's root certificate, the digest
of the TUF root to pin, where to join. It carries the root itself and not its fingerprint, so that the node's very first
connection is verified: an unverified one to fetch the root by is not needed. Whoever has the token can join as that
node, once, until it ends: carry it like a key.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass

from wavemesh.errors import PeerError
from wavemesh.identity.nodes import NodeId, Role

PREFIX = "wm1."
SECRET_BYTES = 32
MAX_TOKEN_CHARACTERS = 16 * 1024
MAX_ADDRESSES = 8
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ADDRESS = re.compile(r"[^\s,]{1,255}:[0-9]{1,5}")
_JOINS = frozenset({Role.STORE_HUB, Role.DEVICE})


class BadTokenError(PeerError):
    """A token is not of the form described: cut off, mistyped, or no token at all."""

    reason = "BAD_TOKEN"


@dataclass(frozen=True, slots=True, repr=False)
class Token:
    """What the text says; ``root`` is the fleet's root certificate in DER, ``addresses`` are "host:port"."""

    node: NodeId
    secret: bytes
    root: bytes
    trust_root_sha256: str
    addresses: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be a token."""
        problem = ""
        if self.node.role not in _JOINS:
            problem = f"{self.node.path} is neither a store hub nor a device"
        elif len(self.secret) != SECRET_BYTES:
            problem = f"its secret has {len(self.secret)} bytes, not {SECRET_BYTES}"
        elif not _SHA256.fullmatch(self.trust_root_sha256):
            problem = "its digest of the TUF root is none"
        elif len(self.addresses) > MAX_ADDRESSES or not all(_ADDRESS.fullmatch(one) for one in self.addresses):
            problem = f"its addresses are not at most {MAX_ADDRESSES} of the form host:port"
        if problem:
            msg = f"token: {problem}; ask for a new one"
            raise BadTokenError(msg)

    def __repr__(self) -> str:
        """Never show the secret."""
        return f"Token({self.node.uri})"

    @property
    def parent(self) -> NodeId:
        """Whom the node joins at."""
        return NodeId(self.node.fleet, self.node.path.rsplit("/", 2)[0])

    def text(self) -> str:
        """The token as it is carried."""
        content = {
            "fleet": self.node.fleet,
            "node": self.node.path,
            "secret": _b64(self.secret),
            "root": _b64(self.root),
            "trust": self.trust_root_sha256,
            "at": list(self.addresses),
        }
        return PREFIX + _b64(json.dumps(content, separators=(",", ":")).encode())


def parse_token(text: str) -> Token:
    """Read a token; raises BadTokenError."""
    text = text.strip()
    if not text.startswith(PREFIX) or len(text) > MAX_TOKEN_CHARACTERS:
        msg = f"not a token: it begins with {PREFIX!r} and has at most {MAX_TOKEN_CHARACTERS} characters"
        raise BadTokenError(msg)
    try:
        content = json.loads(_bytes(text.removeprefix(PREFIX)))
        addresses = tuple(str(one) for one in content["at"])
        node = NodeId(content["fleet"], content["node"])
        secret, root = _bytes(content["secret"]), _bytes(content["root"])
        trust = str(content["trust"])
    except BadTokenError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, PeerError) as error:
        msg = f"the token is cut off or mistyped ({type(error).__name__}); copy it again as a whole"
        raise BadTokenError(msg) from error
    return Token(node, secret, root, trust, addresses)


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
