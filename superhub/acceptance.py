"""What the super hub believes of what control sent: each resource verified before it is durable, or refused by gate.

* ``tuf``: a TUF client's full checks from the pinned root, never behind what was accepted before.
* ``holds, policy, order, permit, closed, enrolment``: signed by the role control of that metadata, named as their
  content says, in this region; hold lists, revocations, orders, permits and enrolments never go back: gate ``replay``.
  A wave that was halted or closed stays so.
* ``revocations``: the same, and in force in this process once they are durable (``sink.py``).
* ``intent``: signed by an operator's own certificate.
* A type that is not known here cannot be verified, so it is refused.

After a restart what was durable is believed again as it was accepted then; whether the metadata is still fresh enough
to seed by is compliance's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wavemesh.codec.statements import decode
from wavemesh.errors import GateError, PeerError
from wavemesh.identity.nodes import Role, is_within
from wavemesh.identity.revocations import check_successor as check_revocations
from wavemesh.policy.document import POLICY_PAYLOAD_TYPE, policy_digest, policy_from_json
from wavemesh.policy.gates import Gate
from wavemesh.trust.enrolments import Enrolment
from wavemesh.trust.envelope import SignatureGateError, verify_node, verify_role, verify_role_payload
from wavemesh.trust.holds import check_successor
from wavemesh.trust.metadata import TrustedMetadata, load_trusted, recall_trusted
from wavemesh.trust.statements import (
    Envelope,
    HoldList,
    OperatorIntent,
    Permit,
    RevocationList,
    TrustMetadata,
    WaveClosed,
    WaveOrder,
    WaveState,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from wavemesh.identity.authorities import Authorities
    from wavemesh.session.frames import Resource, ResourceKey

TRUST_TYPE = "tuf"
REVOCATIONS_TYPE = "revocations"
ENROLMENT_TYPE = "enrolment"
CLOSED_TYPE = "closed"


class Acceptance:
    """Verified desired state of one region; ``region_path`` is this super hub's path."""

    def __init__(self, region_path: str, root: bytes, authorities: Authorities) -> None:
        """Start with the pinned TUF root alone."""
        self._region_path = region_path
        self._root = root
        self._authorities = authorities
        self.trusted: TrustedMetadata | None = None
        self.holds: HoldList | None = None
        self.revocations: RevocationList | None = None
        self._orders: dict[ResourceKey, WaveOrder] = {}
        self._permits: dict[ResourceKey, int] = {}
        self._closed: set[str] = set()
        #: Who may join with a token, by path. They stay here: no store has a use for them.
        self.enrolments: dict[str, Enrolment] = {}

    def orders_of(self, store_path: str) -> list[WaveOrder]:
        """The orders held for one store."""
        return [order for order in self._orders.values() if order.store == store_path]

    def orders(self) -> Iterable[WaveOrder]:
        """All orders held."""
        return self._orders.values()

    def accept(self, resource: Resource, now: datetime) -> None:
        """Verify a resource and believe it; raises GateError.

        Resources of one update must come with ``tuf`` first, as it has the others' keys.
        """
        try:
            if resource.key.type == TRUST_TYPE:
                metadata = decode(TrustMetadata, resource.content)
                self.trusted = load_trusted(self._root, metadata, now, self.trusted)
                return
            envelope = decode(Envelope, resource.content)
            if resource.key.type == "intent":
                _, intent = verify_node(envelope, OperatorIntent, self._authorities, now, Role.OPERATOR)
                _check_name(resource.key, intent.intent_id)
            elif self.trusted is None:
                msg = f"{resource.key.type} {resource.key.name!r} came before any trust metadata that vouches for it"
                raise SignatureGateError(msg)
            else:
                self._accept_signed(resource.key, envelope, self.trusted)
        except GateError:
            raise
        except PeerError as error:
            msg = f"{resource.key.type} {resource.key.name!r}: {error}"
            raise SignatureGateError(msg) from error

    def restore(self, resources: Iterable[Resource]) -> list[ResourceKey]:
        """Believe again what was durable; returns what cannot be believed any more, for instance since keys changed."""
        doubtful: list[ResourceKey] = []
        for resource in sorted(resources, key=lambda one: one.key.type != TRUST_TYPE):
            try:
                if resource.key.type == TRUST_TYPE:
                    self.trusted = recall_trusted(self._root, decode(TrustMetadata, resource.content))
                elif resource.key.type == "intent":
                    pass  # its operator's certificate may have expired since, which makes it no less an intent
                elif self.trusted is None:
                    doubtful.append(resource.key)
                else:
                    self._accept_signed(resource.key, decode(Envelope, resource.content), self.trusted)
            except PeerError:
                doubtful.append(resource.key)
        return doubtful

    def enforce(self) -> None:
        """Go by the revocations held, now that they are durable: what they hit ends."""
        if self.revocations is not None:
            self._authorities.take(self.revocations)

    def forget(self, key: ResourceKey) -> None:
        """Control took a resource back. Trust, holds and revocations only ever give way to newer ones."""
        self._orders.pop(key, None)
        self._permits.pop(key, None)
        if key.type == CLOSED_TYPE:
            self._closed.discard(key.name)
        if key.type == ENROLMENT_TYPE:
            self.enrolments.pop(key.name, None)

    def _accept_signed(self, key: ResourceKey, envelope: Envelope, trusted: TrustedMetadata) -> None:
        match key.type:
            case "policy":
                payload = verify_role_payload(envelope, POLICY_PAYLOAD_TYPE, trusted)
                policy_from_json(payload)
                _check_name(key, policy_digest(payload))
            case "holds":
                holds = verify_role(envelope, HoldList, trusted)
                check_successor(holds, self.holds)
                self.holds = holds
            case "revocations":
                revocations = verify_role(envelope, RevocationList, trusted)
                check_revocations(revocations, self.revocations)
                self.revocations = revocations
            case "order":
                self._accept_order(key, verify_role(envelope, WaveOrder, trusted))
            case "permit":
                self._accept_permit(key, verify_role(envelope, Permit, trusted))
            case "enrolment":
                self._accept_enrolment(key, verify_role(envelope, Enrolment, trusted))
            case "closed":
                _check_name(key, verify_role(envelope, WaveClosed, trusted).wave_id)
                self._closed.add(key.name)
            case _:
                msg = f"resources of type {key.type!r} are not known here"
                raise SignatureGateError(msg)

    def _accept_order(self, key: ResourceKey, order: WaveOrder) -> None:
        self._check_place(key, order.store)
        _check_name(key, f"{order.wave_id}/{order.store.rsplit('/', 1)[1]}")
        held = self._orders.get(key)
        if held is not None and (order.generation, order.issued_at) < (held.generation, held.issued_at):
            raise _replay(key, order.generation, held.generation)
        is_halted = held is not None and held.state is WaveState.HALTED
        if order.wave_id in self._closed or (is_halted and order.state is not WaveState.HALTED):
            ended = "closed" if order.wave_id in self._closed else "halted"
            msg = f"order {key.name!r} is about wave {order.wave_id}, which is {ended} for ever"
            raise GateError(Gate.REPLAY.value, msg)
        self._orders[key] = order

    def _accept_permit(self, key: ResourceKey, permit: Permit) -> None:
        self._check_place(key, permit.device)
        names = permit.device.split("/")[3::2]
        _check_name(key, "/".join((permit.wave_id, *names)))
        held = self._permits.get(key, 0)
        if permit.generation < held:
            raise _replay(key, permit.generation, held)
        self._permits[key] = permit.generation

    def _accept_enrolment(self, key: ResourceKey, enrolment: Enrolment) -> None:
        self._check_place(key, enrolment.node)
        _check_name(key, enrolment.node)
        held = self.enrolments.get(key.name)
        if held is not None and enrolment.issued_at < held.issued_at:
            at, since = enrolment.issued_at.isoformat(), held.issued_at.isoformat()
            msg = f"enrolment of {key.name} signed at {at} is older than the one of {since}, which is held"
            raise GateError(Gate.REPLAY.value, msg)
        self.enrolments[key.name] = enrolment

    def _check_place(self, key: ResourceKey, path: str) -> None:
        if path == self._region_path or not is_within(path, self._region_path):
            msg = f"{key.type} {key.name!r} is for {path}, not for {self._region_path}"
            raise SignatureGateError(msg)


def _check_name(key: ResourceKey, name: str) -> None:
    if key.name != name:
        msg = f"{key.type} {name!r} came under the name {key.name!r}"
        raise SignatureGateError(msg)


def _replay(key: ResourceKey, generation: int, held: int) -> GateError:
    msg = f"{key.type} {key.name!r} of generation {generation} is older than generation {held}, which is held"
    return GateError(Gate.REPLAY.value, msg)
