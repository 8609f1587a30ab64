"""What operators list at a store hub beside waves and devices: stores, policies, permits, holds, effects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storehub.views import FINAL, stamp
from wavemesh.codec.statements import to_proto
from wavemesh.errors import NotFoundError, PeerError
from wavemesh.listing import is_named
from wavemesh.policy.document import policy_to_json
from wavemesh.trust.statements import IntentKind, WaveState
from wavemesh.v1 import operator_pb2, rollout_pb2

if TYPE_CHECKING:
    from storehub.belief import HeldPermit
    from storehub.hub import Hub
    from storehub.records import IntentRecord
    from storehub.views import Views

_LEAST_DIGEST_DIGITS = 6
_AFTER = {IntentKind.PAUSE_WAVE: WaveState.PAUSED, IntentKind.HALT_WAVE: WaveState.HALTED}


class Listings:
    """Builds the lists from what the hub knows."""

    def __init__(self, hub: Hub, views: Views) -> None:
        """List what that hub knows."""
        self._hub = hub
        self._views = views

    def store(self) -> operator_pb2.Store:
        """This store; its hub's ``connected`` is the session with the super hub."""
        hub = self._hub
        waves = [self._views.wave(record) for record in hub.store.waves.values() if record.closed_at is None]
        return operator_pb2.Store(
            path=hub.path,
            time_zone=hub.config.time_zone,
            hub=self._views.fleet().hubs[0],
            devices=len(self._views.device_paths()),
            devices_connected=len(hub.present),
            wave_ids=[wave.wave_id for wave in waves],
            exposure=sum(wave.exposure for wave in waves),
            intents_waiting=sum(bool(record.waiting_for) for record in hub.store.intents.values()),
        )

    def policies(self) -> list[operator_pb2.Policy]:
        """Policies held here, by digest."""
        waves = self._hub.store.waves.values()
        return [
            operator_pb2.Policy(
                digest=digest,
                wave_ids=[wave.order.wave_id for wave in waves if wave.order.policy_digest == digest],
            )
            for digest in sorted(self._hub.belief.policies)
        ]

    def policy(self, request: operator_pb2.GetPolicyRequest) -> operator_pb2.Policy:
        """One policy in full; raises NotFoundError, PeerError for a digest that means several."""
        wanted = request.digest
        found = [
            policy
            for policy in self.policies()
            if (request.wave_id in policy.wave_ids if request.wave_id else policy.digest.startswith(wanted))
        ]
        if not request.wave_id and (len(wanted) < _LEAST_DIGEST_DIGITS or len(found) > 1):
            msg = f"digest {wanted[:64]!r}: give at least {_LEAST_DIGEST_DIGITS} digits that begin one policy only"
            raise PeerError(msg)
        if not found:
            msg = f"no such policy is held at {self._hub.path}; `edgectl policy list` shows them"
            raise NotFoundError(msg, wave=request.wave_id, digest=wanted[:64])
        [policy] = found
        policy.json = policy_to_json(self._hub.belief.policies[policy.digest])
        return policy

    def permits(self, request: operator_pb2.ListPermitsRequest) -> list[operator_pb2.DevicePermit]:
        """Permits held here, by wave and device."""
        messages = [self._permit(held) for _, held in sorted(self._hub.belief.permits.items())]
        return [
            one
            for one in messages
            if request.wave_id in {"", one.wave_id}
            and is_named(one.device, request.device)
            and (not request.states or one.state in request.states)
        ]

    def _permit(self, held: HeldPermit) -> operator_pb2.DevicePermit:
        hub, permit = self._hub, held.permit
        entry = hub.store.ledger(permit.wave_id).get(permit.device)
        wave = hub.store.waves.get(permit.wave_id)
        state = operator_pb2.PERMIT_STATE_OUTSTANDING
        if permit.hub_incarnation != hub.log.incarnation:
            state = operator_pb2.PERMIT_STATE_WRITTEN_OFF
        elif entry is not None and entry.outcome.kind in FINAL:
            state = operator_pb2.PERMIT_STATE_SPENT
        elif wave is not None and self._views.wave(wave).state in {WaveState.HALTED.value, WaveState.CLOSED.value}:
            state = operator_pb2.PERMIT_STATE_VOID
        return operator_pb2.DevicePermit(
            wave_id=permit.wave_id,
            device=permit.device,
            generation=permit.generation,
            attempts=permit.attempts,
            state=state,
            hub_incarnation=permit.hub_incarnation,
            issued_at=stamp(permit.issued_at),
            expires_at=stamp(permit.expires_at),
        )

    def holds(self) -> operator_pb2.ListHoldsResponse:
        """The hold list held here; epoch 0 when none ever came."""
        holds = self._hub.belief.holds
        if holds is None:
            return operator_pb2.ListHoldsResponse()
        waves = [record.order for record in self._hub.store.waves.values() if record.closed_at is None]
        answer = operator_pb2.ListHoldsResponse(epoch=holds.epoch, issued_at=stamp(holds.issued_at))
        for hold in sorted(holds.holds, key=lambda one: one.release):
            answer.holds.add(
                release=hold.release,
                firmware_sha256=hold.firmware_sha256,
                reason=hold.reason,
                wave_ids=[order.wave_id for order in waves if order.release == hold.release],
            )
        return answer

    def effect(self, record: IntentRecord, *, duplicate: bool) -> operator_pb2.IntentEffect:
        """What an intent does here at once; what is queued for control does nothing before control decides."""
        hub, kind = self._hub, record.intent.kind
        if kind.is_for_device:
            devices = [record.device_path] if record.device_path else []
            return operator_pb2.IntentEffect(devices=devices, device_count=len(devices), stores=[hub.path])
        if kind is IntentKind.PREFETCH:
            return operator_pb2.IntentEffect(stores=[hub.path], artifacts=map(to_proto, record.digests))
        known = hub.store.waves.get(record.intent.wave_id)
        if known is None:
            return operator_pb2.IntentEffect(stores=[hub.path])
        wave = self._views.wave(known)
        after = wave.state if duplicate or kind not in _AFTER else rollout_pb2.WaveState.ValueType(_AFTER[kind].value)
        voided = wave.exposure if after == WaveState.HALTED.value else 0
        return operator_pb2.IntentEffect(
            devices=[hub.device_path(name) for name in known.order.devices],
            device_count=len(known.order.devices),
            stores=[hub.path],
            state_before=wave.state,
            state_after=after,
            exposure_before=wave.exposure,
            exposure_after=wave.exposure - voided,
            permits_voided=voided,
        )
