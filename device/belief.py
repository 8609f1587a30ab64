"""What this device believes of what its hub delivered: every resource verified here, end to end.

Rules, by type:
- What there is one of has one name (``tuf/metadata``, ``holds/fleet``, ``revocations/fleet``): a second name would be
  kept for ever beside it, and let a hub use up the room for everything else.
- ``tuf``: a TUF client's full checks from the pinned root, never behind what was accepted before.
- ``policy``, ``holds``, ``revocations``, ``order``, ``closed``: signed by the keys that TUF targets give to the role
  control; the content is the one its name says; orders, hold lists and revocations never go back.
- ``intent``: signed by an operator's own certificate.
- ``lease``: the lease signed by this device's own hub, the permit by control, both about this device and its wave.
Everything that control signed and that waits for TUF metadata is held and believed by nobody until it is there. New
metadata judges everything held again, so a key that control lost stops counting at once. A refusal names its gate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wavemesh.codec.statements import decode
from wavemesh.errors import GateError, PeerError
from wavemesh.identity.nodes import NodeId, Role
from wavemesh.identity.revocations import check_successor as check_revocations
from wavemesh.policy.document import POLICY_PAYLOAD_TYPE, Policy, policy_digest, policy_from_json
from wavemesh.policy.gates import Gate
from wavemesh.trust.envelope import SignatureGateError, verify_node, verify_role, verify_role_payload
from wavemesh.trust.holds import check_successor
from wavemesh.trust.metadata import TrustedMetadata, load_trusted, recall_trusted
from wavemesh.trust.statements import (
    Envelope,
    HoldList,
    Lease,
    LeaseGrant,
    OperatorIntent,
    Permit,
    RevocationList,
    TrustMetadata,
    WaveClosed,
    WaveOrder,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from wavemesh.identity.credentials import Credentials
    from wavemesh.session.frames import ResourceKey

MAX_HELD_RESOURCES = 2000
MAX_HELD_BYTES = 32 * 1024 * 1024
"""Content of all resources held."""
MAX_UNPROVEN = 256
"""How many a device without trust metadata keeps: each costs a flush, and anybody could have made them up."""
_NAMES = {"tuf": "metadata", "holds": "fleet", "revocations": "fleet"}


@dataclass(frozen=True, slots=True)
class Grant:
    """A verified lease with its verified permit."""

    lease: Lease
    permit: Permit


@dataclass(frozen=True, slots=True)
class NamedPolicy:
    """A policy under the digest that names it."""

    digest: str
    policy: Policy


@dataclass(frozen=True, slots=True)
class Unproven:
    """Held, but nothing to verify it against yet."""


Statement = (
    TrustedMetadata
    | NamedPolicy
    | HoldList
    | RevocationList
    | WaveOrder
    | WaveClosed
    | OperatorIntent
    | Grant
    | Unproven
)


class Verifier:
    """Knows the pinned root and who this device is; remembers the trusted metadata."""

    def __init__(self, root: bytes, credentials: Credentials) -> None:
        """``root`` is the pinned TUF root."""
        self._root = root
        self._credentials = credentials
        self._device = credentials.node_id
        self._store_path = self._device.path.rsplit("/", 2)[0]
        self.trusted: TrustedMetadata | None = None

    @property
    def hub(self) -> NodeId:
        """This device's own store hub."""
        return NodeId(self._device.fleet, self._store_path)

    def recall(self, content: bytes) -> TrustedMetadata:
        """Believe again, after a restart, metadata that was verified before; raises GateError."""
        self.trusted = recall_trusted(self._root, decode(TrustMetadata, content))
        return self.trusted

    def enforce(self, revocations: RevocationList) -> None:
        """Go by these revocations, which were verified: no word of a revoked node counts from now on."""
        self._credentials.authorities.take(revocations)

    def verify(self, key: ResourceKey, content: bytes, now: datetime, held: Statement | None) -> Statement:
        """What the content says; ``held`` is what was believed under that key. Raises GateError."""
        try:
            return self._verify(key, content, now, held)
        except GateError:
            raise
        except PeerError as error:
            msg = f"{key.type}/{key.name}: {error}"
            raise SignatureGateError(msg) from error

    def _verify(self, key: ResourceKey, content: bytes, now: datetime, held: Statement | None) -> Statement:
        _expect_name(key, _NAMES.get(key.type, key.name))
        match key.type:
            case "tuf":
                self.trusted = load_trusted(self._root, decode(TrustMetadata, content), now, self.trusted)
                return self.trusted
            case "intent":
                _, intent = verify_node(
                    decode(Envelope, content), OperatorIntent, self._credentials.authorities, now, Role.OPERATOR
                )
                _expect_name(key, intent.intent_id)
                return intent
            case "policy" | "holds" | "revocations" | "order" | "closed" | "lease":
                if self.trusted is None:
                    return Unproven()
                return self._verify_control(key, content, now, held, self.trusted)
            case _:
                msg = f"resource type {key.type!r} is not known to this device"
                raise SignatureGateError(msg)

    def _verify_control(
        self, key: ResourceKey, content: bytes, now: datetime, held: Statement | None, trusted: TrustedMetadata
    ) -> Statement:
        match key.type:
            case "policy":
                payload = verify_role_payload(decode(Envelope, content), POLICY_PAYLOAD_TYPE, trusted)
                _expect_name(key, policy_digest(payload))
                return NamedPolicy(policy_digest(payload), policy_from_json(payload))
            case "holds":
                holds = verify_role(decode(Envelope, content), HoldList, trusted)
                check_successor(holds, held if isinstance(held, HoldList) else None)
                return holds
            case "revocations":
                revocations = verify_role(decode(Envelope, content), RevocationList, trusted)
                check_revocations(revocations, self._credentials.authorities.revocations)
                return revocations
            case "order":
                return self._verify_order(key, verify_role(decode(Envelope, content), WaveOrder, trusted), held)
            case "closed":
                closed = verify_role(decode(Envelope, content), WaveClosed, trusted)
                _expect_name(key, closed.wave_id)
                return closed
            case _:
                return self._verify_grant(key, decode(LeaseGrant, content), now, trusted)

    def _verify_order(self, key: ResourceKey, order: WaveOrder, held: Statement | None) -> WaveOrder:
        _expect_name(key, f"{order.wave_id}/{order.store.rsplit('/', 1)[-1]}")
        if order.store != self._store_path:
            msg = f"order of wave {order.wave_id} is for {order.store}, this device is at {self._store_path}"
            raise GateError(Gate.CLASS.value, msg)
        if isinstance(held, WaveOrder) and order.generation < held.generation:
            msg = f"order of wave {order.wave_id} has generation {order.generation}, {held.generation} is held"
            raise GateError(Gate.REPLAY.value, msg)
        return order

    def _verify_grant(self, key: ResourceKey, grant: LeaseGrant, now: datetime, trusted: TrustedMetadata) -> Grant:
        _, lease = verify_node(grant.lease, Lease, self._credentials.authorities, now, self._store_path)
        permit = verify_role(grant.permit, Permit, trusted)
        for what, wave_id, device in (
            ("lease", lease.wave_id, lease.device),
            ("permit", permit.wave_id, permit.device),
        ):
            if wave_id != key.name or device != self._device.path:
                msg = f"the {what} is for {device} in wave {wave_id}, not for this device in wave {key.name}"
                raise GateError(Gate.PERMIT.value, msg)
        return Grant(lease, permit)


def signed_times(statement: Statement) -> Iterator[datetime]:
    """Times that control signed: they have passed, so the clock cannot be before them."""
    match statement:
        case HoldList() | RevocationList() | WaveOrder():
            yield statement.issued_at
        case WaveClosed():
            yield statement.closed_at
        case Grant():
            yield statement.permit.issued_at
        case _:
            return


def _expect_name(key: ResourceKey, name: str) -> None:
    if key.name != name:
        msg = f"{key.type} resource {key.name!r} holds the {key.type} {name!r}"
        raise SignatureGateError(msg)
