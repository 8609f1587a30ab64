"""What this hub believes of what its parent sent: every resource verified for itself before it is durable here.

Rules, by type:
- ``tuf``: a TUF client's full checks, from the pinned root, never back behind what was accepted before.
- ``policy``, ``holds``, ``revocations``, ``order``, ``permit``, ``closed``: signed by the keys that the targets
  metadata gives to the role control; the content must be the one its name says and concern this very store.
- ``intent``: signed by an operator's own certificate.
- Orders, permits, hold lists and revocations never go back to a lower generation or epoch: gate ``replay``.
- A wave that was halted or closed stays so: an order that says otherwise is ``replay`` too, whatever its generation.
- What arrives before any TUF metadata waits, held but believed by nobody, until the metadata is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from wavemesh.codec.statements import decode
from wavemesh.errors import GateError, PeerError
from wavemesh.identity.nodes import Role, is_within
from wavemesh.identity.revocations import check_successor as check_revocations
from wavemesh.policy.document import POLICY_PAYLOAD_TYPE, Policy, policy_digest, policy_from_json
from wavemesh.policy.gates import Gate
from wavemesh.trust.envelope import SignatureGateError, verify_node, verify_role, verify_role_payload
from wavemesh.trust.holds import check_successor
from wavemesh.trust.metadata import TrustedMetadata, load_trusted, recall_trusted
from wavemesh.trust.statements import (
    Digest,
    Envelope,
    HoldList,
    IntentCancellation,
    OperatorIntent,
    Permit,
    RevocationList,
    TrustMetadata,
    WaveClosed,
    WaveOrder,
    WaveState,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from wavemesh.identity.authorities import Authorities
    from wavemesh.identity.nodes import NodeId
    from wavemesh.policy.document import Artifacts
    from wavemesh.session.frames import Resource, ResourceKey
    from wavemesh.trust.releases import App, ReleaseManifest


@dataclass(frozen=True, slots=True)
class HeldPolicy:
    """A policy and the digest that names it."""

    digest: str
    policy: Policy


@dataclass(frozen=True, slots=True)
class HeldPermit:
    """A permit and the envelope in which a device gets it."""

    permit: Permit
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class HeldIntent:
    """An operator's intent, as signed, and who signed it."""

    intent: OperatorIntent
    envelope: Envelope
    operator: NodeId


@dataclass(frozen=True, slots=True)
class Unproven:
    """A resource that cannot be judged before TUF metadata is held."""

    resource: Resource


Finding: TypeAlias = (
    TrustedMetadata
    | HeldPolicy
    | HoldList
    | RevocationList
    | WaveOrder
    | HeldPermit
    | WaveClosed
    | HeldIntent
    | Unproven
)


class Belief:
    """Verified desired state; ``store`` is this hub's path, ``root`` the pinned TUF root."""

    def __init__(self, store: str, root: bytes, authorities: Authorities) -> None:
        """Start with nothing."""
        self._store = store
        self._root = root
        self._authorities = authorities
        self._found: dict[ResourceKey, Finding] = {}
        self._generations: dict[str, int] = {}
        self._over: dict[str, WaveState] = {}
        self._hold_epoch = 0
        self.trusted: TrustedMetadata | None = None
        self.holds: HoldList | None = None
        self.revocations: RevocationList | None = None
        self.orders: dict[str, WaveOrder] = {}
        self.policies: dict[str, Policy] = {}
        self.permits: dict[tuple[str, str], HeldPermit] = {}
        self.closed: dict[str, WaveClosed] = {}
        self.intents: dict[str, HeldIntent] = {}
        self.changes = 0
        """How often what is believed changed: what was made of it may be kept until then."""

    # -- judging ----------------------------------------------------------------------------------------------------

    def judge(self, resource: Resource, now: datetime) -> Finding:
        """Verify one resource against what is believed now; raises GateError."""
        kind = resource.key.type
        try:
            if kind == "tuf":
                return self._judge_trust(resource, now)
            if kind == "intent":
                return self._judge_intent(resource, now)
            if kind not in {"policy", "holds", "revocations", "order", "permit", "closed"}:
                raise SignatureGateError(f"resources of type {kind!r} are not known here")
            if self.trusted is None:
                return Unproven(resource)
            return self._judge_control(resource, self.trusted)
        except GateError:
            raise
        except (PeerError, KeyError) as error:
            raise SignatureGateError(f"{kind} {resource.key.name!r}: {error}") from error

    def _judge_trust(self, resource: Resource, now: datetime) -> TrustedMetadata:
        return load_trusted(self._root, decode(TrustMetadata, resource.content), now, self.trusted)

    def _judge_intent(self, resource: Resource, now: datetime) -> HeldIntent:
        held = self.judge_intent(decode(Envelope, resource.content), now)
        if held.intent.intent_id != resource.key.name:
            raise SignatureGateError(f"intent {held.intent.intent_id!r} came under the name {resource.key.name!r}")
        return held

    def judge_intent(self, envelope: Envelope, now: datetime) -> HeldIntent:
        """Verify an intent wherever it came from; raises GateError."""
        operator, intent = verify_node(envelope, OperatorIntent, self._authorities, now, Role.OPERATOR)
        return HeldIntent(intent, envelope, operator)

    def judge_cancellation(self, envelope: Envelope, now: datetime) -> tuple[NodeId, IntentCancellation]:
        """Who takes which intent back; raises GateError."""
        return verify_node(envelope, IntentCancellation, self._authorities, now, Role.OPERATOR)

    def _judge_control(self, resource: Resource, trusted: TrustedMetadata) -> Finding:
        envelope = decode(Envelope, resource.content)
        name = resource.key.name
        match resource.key.type:
            case "policy":
                payload = verify_role_payload(envelope, POLICY_PAYLOAD_TYPE, trusted)
                _expect_name(name, policy_digest(payload))
                return HeldPolicy(name, policy_from_json(payload))
            case "holds":
                return self._newer_holds(verify_role(envelope, HoldList, trusted))
            case "revocations":
                revocations = verify_role(envelope, RevocationList, trusted)
                check_revocations(revocations, self.revocations)
                return revocations
            case "order":
                return self._newer_order(name, verify_role(envelope, WaveOrder, trusted))
            case "permit":
                return self._newer_permit(name, HeldPermit(verify_role(envelope, Permit, trusted), envelope))
            case _:
                closed = verify_role(envelope, WaveClosed, trusted)
                _expect_name(name, closed.wave_id)
                return closed

    def _newer_holds(self, holds: HoldList) -> HoldList:
        if holds.epoch < self._hold_epoch:
            raise _replay(f"hold list of epoch {holds.epoch} after {self._hold_epoch}")
        check_successor(holds, self.holds)
        return holds

    def _newer_order(self, name: str, order: WaveOrder) -> WaveOrder:
        _expect_name(name, f"{order.wave_id}/{self._store.rsplit('/', 1)[1]}")
        if order.store != self._store:
            raise SignatureGateError(f"order of wave {order.wave_id} is for {order.store}")
        least = self._generations.get(order.wave_id, 0)
        if order.generation < least:
            raise _replay(f"order of wave {order.wave_id}: generation {order.generation} after {least}")
        held = self.orders.get(order.wave_id)
        if held is not None and (order.generation, order.issued_at) < (held.generation, held.issued_at):
            raise _replay(f"order of wave {order.wave_id}: generation {order.generation} after {held.generation}")
        over = self._over.get(order.wave_id)
        if over is not None and order.state is not WaveState.HALTED:
            raise _replay(f"order of wave {order.wave_id}, which is {over.name.lower()} for ever")
        return order

    def _newer_permit(self, name: str, found: HeldPermit) -> HeldPermit:
        permit = found.permit
        if not is_within(permit.device, self._store):
            raise SignatureGateError(f"permit of wave {permit.wave_id} is for {permit.device}")
        parts = (permit.wave_id, self._store.rsplit("/", 1)[1], permit.device.rsplit("/", 1)[1])
        _expect_name(name, "/".join(parts))
        held = self.permits.get((permit.wave_id, permit.device))
        if held is not None and permit.generation < held.permit.generation:
            raise _replay(f"permit {name}: generation {permit.generation} after {held.permit.generation}")
        return found

    # -- believing --------------------------------------------------------------------------------------------------

    def accept(self, key: ResourceKey, finding: Finding) -> None:
        """Believe what was judged; what only waited for trust is judged by ``reconsider``."""
        self._found[key] = finding
        self.changes += 1
        match finding:
            case TrustedMetadata():
                self.trusted = finding
            case HeldPolicy():
                self.policies[finding.digest] = finding.policy
            case HoldList():
                self.holds = finding
                self._hold_epoch = max(self._hold_epoch, finding.epoch)
            case RevocationList():
                self.revocations = finding
            case WaveOrder():
                self._accept_order(finding)
            case HeldPermit():
                self.permits[finding.permit.wave_id, finding.permit.device] = finding
            case WaveClosed():
                self.closed[finding.wave_id] = finding
                self._over[finding.wave_id] = finding.state
            case HeldIntent():
                self.intents[finding.intent.intent_id] = finding
            case Unproven():
                pass

    def _accept_order(self, order: WaveOrder) -> None:
        self.orders[order.wave_id] = order
        self._generations[order.wave_id] = order.generation
        if order.state is WaveState.HALTED:
            self._over.setdefault(order.wave_id, order.state)

    def enforce(self) -> None:
        """Go by the revocations held, now that they are durable: what they hit ends."""
        if self.revocations is not None:
            self._authorities.take(self.revocations)

    def forget(self, key: ResourceKey) -> None:
        """Stop believing what the parent took back; trust, holds and revocations only ever change for newer ones."""
        self.changes += 1
        match self._found.pop(key, None):
            case HeldPolicy(digest=digest):
                self.policies.pop(digest, None)
            case WaveOrder(wave_id=wave_id):
                self.orders.pop(wave_id, None)
            case HeldPermit(permit=permit):
                self.permits.pop((permit.wave_id, permit.device), None)
            case WaveClosed(wave_id=wave_id):
                self.closed.pop(wave_id, None)
            case HeldIntent(intent=intent):
                self.intents.pop(intent.intent_id, None)
            case _:
                pass

    def reconsider(self, now: datetime) -> list[tuple[ResourceKey, Finding | GateError]]:
        """Judge what waited for trust; believed is what holds. Returns each with its finding or its refusal."""
        verdicts: list[tuple[ResourceKey, Finding | GateError]] = []
        for key, finding in list(self._found.items()):
            if not isinstance(finding, Unproven) or self.trusted is None:
                continue
            try:
                found = self.judge(finding.resource, now)
            except GateError as error:
                del self._found[key]
                verdicts.append((key, error))
            else:
                self.accept(key, found)
                verdicts.append((key, found))
        return verdicts

    def remember(self, generations: Mapping[str, int], over: Mapping[str, WaveState], hold_epoch: int) -> None:
        """Never go back behind these, though the resources that said so may be gone; ``over`` are waves that ended."""
        self._generations.update(generations)
        self._over.update(over)
        self._hold_epoch = hold_epoch

    def restore(self, resources: Iterable[Resource], now: datetime) -> list[GateError]:
        """Believe again what was durable before a restart; returns what no longer holds.

        TUF metadata is believed expired or not, so that a dark hub keeps its keys; freshness is the gates' business.
        """
        refused: list[GateError] = []
        for resource in sorted(resources, key=lambda one: one.key.type != "tuf"):
            try:
                if resource.key.type == "tuf":
                    self.accept(resource.key, recall_trusted(self._root, decode(TrustMetadata, resource.content)))
                else:
                    self.accept(resource.key, self.judge(resource, now))
            except GateError as error:
                refused.append(error)
        return refused

    def is_believed(self, key: ResourceKey) -> bool:
        """Whether the resource was verified, so that children may have it."""
        return key in self._found and not isinstance(self._found[key], Unproven)

    # -- what follows -----------------------------------------------------------------------------------------------

    def release(self, name: str) -> ReleaseManifest | None:
        """The verified manifest of a release."""
        return self.trusted.releases().get(name) if self.trusted is not None else None

    def blobs_of_release(self, name: str) -> tuple[Digest, ...]:
        """What a release consists of; empty while its manifest is not known."""
        manifest = self.release(name)
        return blobs_of(manifest) if manifest is not None else ()

    def bundles_of(self, firmware: str) -> tuple[Digest, ...]:
        """RAUC bundles of the firmware with that name; none for an empty name."""
        releases = self.trusted.releases().values() if self.trusted is not None and firmware else ()
        packed = [(one.firmware, one.bundle) for one in releases]
        return tuple(bundle.digest for image, bundle in packed if image and bundle and image.name == firmware)

    def blobs_named(self, artifacts: Artifacts) -> tuple[Digest, ...]:
        """What a policy names, with an app's layers and the firmware's RAUC bundles; empty while one is not known."""
        known = {name: digest for digest, found in self.known_blobs().items() for name in found}
        app = self._app_named(artifacts.app) if artifacts.app else None
        wanted = [name for name in (artifacts.signature, artifacts.config, artifacts.app, artifacts.firmware) if name]
        if not all(name in known for name in wanted):
            return ()
        layers = app.blobs if app else ()
        return (*(known[name] for name in wanted), *layers, *self.bundles_of(artifacts.firmware or ""))

    def _app_named(self, name: str) -> App | None:
        releases = self.trusted.releases().values() if self.trusted is not None else ()
        return next((one.app for one in releases if one.app and one.app.root.name == name), None)

    def known_blobs(self) -> Mapping[Digest, tuple[str, ...]]:
        """Every blob that some verified release names, and its names."""
        names: dict[Digest, list[str]] = {}
        for manifest in self.trusted.releases().values() if self.trusted is not None else ():
            for artifact in manifest.artifacts:
                if artifact.name not in names.setdefault(artifact.digest, []):
                    names[artifact.digest].append(artifact.name)
        return {digest: tuple(sorted(found)) for digest, found in names.items()}


def blobs_of(manifest: ReleaseManifest) -> tuple[Digest, ...]:
    """Every artifact of a release, as far as it has them; the signature first, it is small."""
    app = manifest.app.artifacts if manifest.app else ()
    artifacts = (manifest.signature, manifest.config, *app, manifest.firmware, manifest.bundle)
    return tuple(artifact.digest for artifact in artifacts if artifact is not None)


def _expect_name(name: str, expected: str) -> None:
    if name != expected:
        raise SignatureGateError(f"a resource named {name!r} has the content of {expected!r}")


def _replay(what: str) -> GateError:
    return GateError(Gate.REPLAY.value, f"{what}: an older word was played again")
