"""Signatures and codec, left out: a statement travels as a value behind a short byte string that stands for it.

What the product does with words stays the product's: who signed, what role may say what, generations, epochs, expiry.
``patched`` puts these functions in the place of the cryptography and the codec in the modules that use them, and a
counter in the place of random names, so that a seed gives the same bytes everywhere.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import device.belief
import device.clearance
import device.sink
import device.status
import device.store
import storehub.belief
import storehub.hub
import storehub.intents
import storehub.scheduler
import storehub.service
import storehub.statuses
import storehub.store
import storehub.upstream
import superhub.acceptance
import superhub.events
import superhub.intake
import superhub.service
import superhub.sink
import superhub.store
import wavemesh.session.downstream
import wavemesh.session.showing
import wavemesh.session.sqlite
from wavemesh.codec.statements import MalformedStatementError
from wavemesh.errors import GateError
from wavemesh.identity.nodes import NodeId, Role, is_within
from wavemesh.policy.gates import Gate
from wavemesh.trust.envelope import SignatureGateError
from wavemesh.trust.statements import Envelope, Signature

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime

    from wavemesh.trust.releases import ReleaseManifest

_MODULES = (
    device.belief,
    device.clearance,
    device.sink,
    device.status,
    device.store,
    storehub.belief,
    storehub.hub,
    storehub.intents,
    storehub.scheduler,
    storehub.service,
    storehub.statuses,
    storehub.store,
    storehub.upstream,
    superhub.acceptance,
    superhub.events,
    superhub.intake,
    superhub.service,
    superhub.sink,
    superhub.store,
    wavemesh.session.downstream,
    wavemesh.session.showing,
    wavemesh.session.sqlite,
)
CONTROL_KEY = "control"
WEIGHT_BYTES = 300
"""How much room a statement takes in frames and snapshots."""


@dataclass(frozen=True, eq=False)
class Trust:
    """What a node believes of TUF: the releases vouched for and those taken back, by version of the set."""

    version: int
    known: Mapping[str, ReleaseManifest]
    revoked: frozenset[str]
    expires: datetime

    def releases(self) -> Mapping[str, ReleaseManifest]:
        return {name: one for name, one in self.known.items() if name not in self.revoked}

    def is_revoked(self, name: str) -> bool:
        return name in self.revoked

    def expires_at(self, release: str = "") -> datetime:
        return self.expires

    def require_release(self, name: str) -> ReleaseManifest:
        if name in self.revoked:
            raise GateError(Gate.REVOKED.value, f"release {name} is revoked")
        if name not in self.known:
            raise SignatureGateError(f"nobody vouches for release {name}")
        return self.known[name]


class Mint:
    """Gives each statement its bytes, the same ones each time, and names that nobody had before."""

    def __init__(self) -> None:
        self._said: dict[bytes, Any] = {}
        self._bytes: dict[Any, bytes] = {}
        self._same: dict[int, tuple[Any, bytes]] = {}
        self._names = 0

    def encode(self, statement: Any) -> bytes:
        """The bytes that stand for a statement; a value is hashed once, and not each time it is passed on."""
        same = self._same.get(id(statement))
        if same is not None and same[0] is statement:
            return same[1]
        data = self._bytes.get(statement)
        if data is None:
            data = f"{type(statement).__name__}:{len(self._said)}".encode().ljust(WEIGHT_BYTES)
            self._bytes[statement] = data
            self._said[data] = statement
        self._same[id(statement)] = (statement, data)
        return data

    def decode(self, cls: type, data: bytes) -> Any:
        statement = self._said.get(bytes(data))
        if statement is None or (not isinstance(statement, (cls, Trust))):
            raise MalformedStatementError(f"no {cls.__name__}")
        return statement

    def name(self) -> str:
        self._names += 1
        return hashlib.sha256(b"%d" % self._names).hexdigest()[:32]


MINT = Mint()


def fresh() -> None:
    """Forget all words: another world begins."""
    MINT.__init__()  # type: ignore[misc]  # everybody holds this one


encode = MINT.encode
decode = MINT.decode


def sign(statement: Any, key: str = CONTROL_KEY) -> Envelope:
    """The statement in the envelope of a signer: a node's SPIFFE id, or control's role keys."""
    return Envelope(statement.payload_type, encode(statement), (Signature(key, b""),))


class _Secrets:
    @staticmethod
    def token_hex(_: int = 16) -> str:
        return MINT.name()


@cache
def node_of(uri: str) -> NodeId:
    """The node with that SPIFFE id, parsed once."""
    return NodeId.parse(uri)


def _sign_as_node(statement: Any, credentials: Any) -> Envelope:
    return sign(statement, credentials.node_id.uri)


def _verify_node(
    envelope: Envelope, cls: type, authorities: Any, now: datetime, expect: Role | str | None = None
) -> tuple[NodeId, Any]:
    signer, statement = node_of(envelope.signatures[0].keyid), decode(cls, envelope.payload)
    if isinstance(expect, Role) and signer.role is not expect:
        raise SignatureGateError(f"signed by {signer.uri}, which is no {expect.value}")
    if isinstance(expect, str) and signer.path != expect:
        raise SignatureGateError(f"signed by {signer.uri} instead of {expect!r}")
    about = getattr(statement, "device", "")
    if signer.role is not Role.OPERATOR and about and not is_within(about, signer.path):
        raise SignatureGateError(f"{signer.uri} speaks for {about!r}")
    return signer, statement


def _verify_role(envelope: Envelope, cls: type, trusted: Any, role: str = CONTROL_KEY) -> Any:
    if envelope.signatures[0].keyid != role:
        raise SignatureGateError(f"not signed by {role}")
    return decode(cls, envelope.payload)


def _verify_role_payload(envelope: Envelope, payload_type: str, trusted: Any, role: str = CONTROL_KEY) -> bytes:
    if envelope.signatures[0].keyid != role or envelope.payload_type != payload_type:
        raise SignatureGateError(f"not signed by {role}")
    return envelope.payload


def _load_trusted(root: bytes, metadata: Trust, now: datetime, previous: Trust | None) -> Trust:
    if previous is not None and metadata.version < previous.version:
        raise GateError(Gate.REPLAY.value, f"version {metadata.version} after {previous.version}")
    _check_expiry(metadata, now)
    return metadata


def _recall_trusted(root: bytes, metadata: Trust) -> Trust:
    return metadata


def _check_expiry(trusted: Trust, now: datetime, release: str = "") -> None:
    if now >= trusted.expires:
        raise GateError(Gate.FRESHNESS.value, "the trust metadata expired")


def _policy_from_json(payload: bytes) -> Any:
    return decode(object, payload)


async def _in_thread(work: Callable[..., Any], *arguments: Any) -> Any:
    return work(*arguments)


_STAND_INS: Mapping[str, Any] = {
    "encode": encode,
    "decode": decode,
    "sign_as_node": _sign_as_node,
    "verify_node": _verify_node,
    "verify_role": _verify_role,
    "verify_role_payload": _verify_role_payload,
    "load_trusted": _load_trusted,
    "recall_trusted": _recall_trusted,
    "check_expiry": _check_expiry,
    "policy_from_json": _policy_from_json,
    "in_thread": _in_thread,
    "secrets": _Secrets,
    "TrustedMetadata": Trust,
}


@cache
def _places() -> tuple[tuple[Any, str, Any, Any], ...]:
    """Module, name, what is there and what stands in for it."""
    return tuple(
        (module, name, getattr(module, name), stand_in)
        for module in _MODULES
        for name, stand_in in _STAND_INS.items()
        if hasattr(module, name)
    )


@contextmanager
def patched() -> Iterator[None]:
    """The product's modules speak these words inside the block."""
    places = _places()
    try:
        for module, name, _, stand_in in places:
            setattr(module, name, stand_in)
        yield
    finally:
        for module, name, genuine, _ in places:
            setattr(module, name, genuine)
