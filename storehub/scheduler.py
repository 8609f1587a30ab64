"""Carries out what ``swaps.decide`` decides: persists leases, then lets them be served; signs what must be inferred.

One pass looks at the whole hub and writes one transaction. It runs when something changed and once an interval, because
leases and maxima run out by themselves.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from storehub.ledger import Entry
from storehub.records import DeviceRecord, Disposition, SlotRecord
from storehub.schema import from_stamp, to_stamp
from storehub.standing import Standing
from storehub.swaps import (
    Decision,
    DeviceView,
    Group,
    HubView,
    PermitView,
    RollbackWish,
    Timing,
    WaveView,
    Word,
    decide,
)
from wavemesh.codec.statements import encode
from wavemesh.errors import LocalError
from wavemesh.trust.envelope import sign_as_node
from wavemesh.trust.statements import DeviceOutcome, DeviceStatus, IntentKind, Lease, LeaseGrant, UpdateState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from storehub.belief import HeldPermit
    from storehub.hub import Hub
    from storehub.swaps import Inference, Slot, Wait
    from wavemesh.policy.document import Policy
    from wavemesh.runtime.sqlite import Transaction
    from wavemesh.trust.statements import WaveOrder

_LOG = logging.getLogger(__name__)
LEAST_PAUSE_S = 0.1
"""Between two passes, so that a chatty store costs one pass and not one a word."""
INCARNATION_FACT = "incarnation"
SINCE_FACT = "incarnation_since"
NOTHING = Decision((), (), (), ())


_NEVER = datetime(1970, 1, 1, tzinfo=UTC)


def _never_heard(path: str) -> DeviceRecord:
    """A device with a session that has not said its state yet: a witness, and no more."""
    return DeviceRecord(DeviceStatus(path, UpdateState.IDLE, _NEVER), _NEVER)


def _word(entry: Entry) -> Word:
    outcome = entry.outcome
    return Word(outcome.kind, outcome.attempt, outcome.sequence, entry.by_device, entry.received_at, outcome.gate)


def _permit(held: HeldPermit) -> PermitView:
    return PermitView(held.permit.attempts, held.permit.expires_at, held.permit.hub_incarnation)


def _device(
    path: str, record: DeviceRecord, since: datetime | None, left_at: datetime | None, *, is_heard: bool
) -> DeviceView:
    status = record.status
    return DeviceView(
        path=path,
        state=status.state,
        wave_id=status.wave_id,
        attempt=status.attempt,
        said_at=status.at,
        seen_at=record.seen_at,
        connected_since=since,
        heard_in_session=is_heard,
        gate=status.gate,
        left_at=left_at,
    )


class Scheduler:
    """The loop around the decision."""

    def __init__(self, hub: Hub) -> None:
        """Schedule the swaps of that hub."""
        self._hub = hub
        self._occupied = 0
        self._started_at = hub.clock.now()
        self.waits: tuple[Wait, ...] = ()
        self._devices: dict[
            str, tuple[DeviceRecord | None, tuple[datetime | None, datetime | None, bool], DeviceView]
        ] = {}
        self._words: dict[tuple[str, str], tuple[Entry, Word]] = {}
        self._believed_at = -1
        self._permits: dict[tuple[str, str], PermitView] = {}
        self._targets: dict[str, frozenset[str]] = {}

    async def run(self) -> None:
        """Decide for as long as the hub runs."""
        seen = -1
        while True:
            seen = await self._hub.bell.wait(seen, self._hub.config.scheduling_interval_s)
            try:
                await self.step()
            except LocalError as error:
                # A full disk must not end the hub: nothing is granted that could not be made durable.
                _LOG.error("no scheduling this time: %s", error)  # the error says all there is to say
            await asyncio.sleep(LEAST_PAUSE_S)

    async def step(self) -> Decision:
        """One pass. The view is taken inside the transaction, so nothing moves between decision and disk.

        Most passes of a quiet store come to nothing: one look without a transaction tells.
        """
        hub = self._hub
        if self._is_noted() and not hub.clock_guard.is_due(hub.clock.now()):
            decision = decide(self.view())
            if decision == NOTHING:
                self._note(decision)
                return decision
        async with hub.store.database.transaction() as tx:
            await self._note_incarnation(tx)
            await hub.clock_guard.tick(tx, hub.clock.now())
            decision = decide(self.view())
            self._note(decision)
            await self._persist(tx, decision)
        self._tell(decision)
        return decision

    def _note(self, decision: Decision) -> None:
        self._occupied, self.waits = len(decision.inside), decision.waits
        before, self._hub.recalled = self._hub.recalled, decision.recalled
        for device in sorted(before ^ decision.recalled):
            self._hub.changed(device)

    def swaps_active(self) -> int:
        """Devices inside a swap, as of the last pass; each grant causes another."""
        return self._occupied

    # -- looking ----------------------------------------------------------------------------------------------------

    def view(self) -> HubView:
        """Everything a decision looks at."""
        hub, config = self._hub, self._hub.config
        since = hub.store.fact(SINCE_FACT)
        orders = hub.belief.orders
        if self._believed_at != hub.belief.changes:
            self._believed_at = hub.belief.changes
            self._permits = {key: _permit(held) for key, held in hub.belief.permits.items()}
            self._targets = {wave_id: self._paths(order) for wave_id, order in orders.items()}
        targets = self._targets
        return HubView(
            now=hub.clock.now(),
            timing=Timing(config.lease_s, config.watchdog_s, config.witness_s),
            incarnation=hub.log.incarnation,
            incarnation_since=from_stamp(int(since)) if since else hub.clock.now(),
            default_limit=config.max_concurrent_swaps,
            waves=tuple(self._wave(orders[wave_id], targets[wave_id]) for wave_id in sorted(orders)),
            devices=self._see_devices(),
            permits=self._permits,
            slots={device: record.slot for device, record in hub.store.slots.items()},
            words=self._see_words(),
            rollbacks=self._rollbacks(),
            started_at=self._started_at,
        )

    def _open_entries(self) -> Iterator[tuple[tuple[str, str], Entry]]:
        """Outcomes of the waves control has an order for, or a slot is held for: one may close before its slot ends."""
        held = {record.slot.wave_id for record in self._hub.store.slots.values()}
        for wave_id in self._hub.belief.orders.keys() | held:
            for device, entry in self._hub.store.ledger(wave_id).items():
                yield (wave_id, device), entry

    def _paths(self, order: WaveOrder) -> frozenset[str]:
        return frozenset(self._hub.device_path(name) for name in order.devices)

    def _wave(self, order: WaveOrder, devices: frozenset[str]) -> WaveView:
        hub, config = self._hub, self._hub.config
        policy = hub.belief.policies.get(order.policy_digest)
        limit = policy.guardrails.max_concurrent_swaps if policy else config.max_concurrent_swaps
        trial_s = policy.guardrails.rollback_on_health_loss_s if policy else 0.0
        return WaveView(
            wave_id=order.wave_id,
            leasable=hub.standing(order).standing is Standing.LIVE,
            devices=devices,
            expires_at=order.expires_at,
            max_concurrent_swaps=limit,
            trial_s=trial_s + config.trial_allowance_s,
            groups=self._groups(policy) if policy else (),
        )

    def _groups(self, policy: Policy) -> tuple[Group, ...]:
        """The policy's groups by this store's configuration."""
        members = {
            (group.role, group.group): frozenset(self._hub.device_path(name) for name in group.devices)
            for group in self._hub.config.groups
        }
        return tuple(
            Group(members.get((group.role, group.group)), group.min_up, f"{group.role}/{group.group}")
            for group in policy.guardrails.availability
            if members.get((group.role, group.group)) != frozenset()
        )

    def _see_devices(self) -> dict[str, DeviceView]:
        """All devices ever heard or connected; one of which nothing is new since the last pass is seen as it was."""
        records, present, before = self._hub.store.devices, self._hub.present, self._devices
        known = self._devices = {}
        views: dict[str, DeviceView] = {}
        for path in records.keys() | present.keys():
            record, presence = records.get(path), present.get(path)
            since, is_heard = (None, False) if presence is None else (presence.since, presence.is_heard)
            session = (since, self._hub.left_at.get(path), is_heard)
            seen = before.get(path)
            if seen is None or seen[0] is not record or seen[1] != session:
                view = _device(path, record or _never_heard(path), *session[:2], is_heard=is_heard)
                seen = (record, session, view)
            known[path] = seen
            views[path] = seen[2]
        return views

    def _see_words(self) -> dict[tuple[str, str], Word]:
        """All outcomes that count, those that are as they were as they were."""
        before = self._words
        known = self._words = {}
        for key, entry in self._open_entries():
            seen = before.get(key)
            known[key] = seen if seen is not None and seen[0] is entry else (entry, _word(entry))
        return {key: seen[1] for key, seen in known.items()}

    def _rollbacks(self) -> tuple[RollbackWish, ...]:
        relayed = {record.intent_id for record in self._hub.store.slots.values() if record.intent_id}
        waiting = (
            record
            for record in self._hub.store.intents.values()
            if record.intent.kind.is_for_device
            and record.disposition is Disposition.QUEUED
            and not record.counter
            and record.intent.intent_id not in relayed
            and record.device_path
        )
        ordered = sorted(waiting, key=lambda record: (record.received_at, record.intent.intent_id))
        return tuple(
            RollbackWish(
                r.intent_id,
                r.device_path,
                r.intent.wave_id,
                is_signoff=r.intent.kind is IntentKind.APPROVE_ROLLBACK,
                is_rehearsal=r.intent.kind is IntentKind.REHEARSE_DEVICE,
            )
            for r in ordered
        )

    # -- acting -----------------------------------------------------------------------------------------------------

    def _is_noted(self) -> bool:
        return self._hub.store.fact(INCARNATION_FACT) == self._hub.log.incarnation

    async def _note_incarnation(self, tx: Transaction) -> None:
        store, incarnation = self._hub.store, self._hub.log.incarnation
        if not self._is_noted():
            await store.put_fact(tx, INCARNATION_FACT, incarnation)
            await store.put_fact(tx, SINCE_FACT, str(to_stamp(self._hub.clock.now())))

    async def _persist(self, tx: Transaction, decision: Decision) -> None:
        hub = self._hub
        for slot in decision.ended:
            await self._end(tx, slot)
        for inference in decision.inferred:
            await self._infer(tx, inference)
        for wish, place in decision.relayed:
            version = await hub.resources.next_version(tx)
            if place is not None:
                await hub.store.put_slot(tx, SlotRecord(place, intent_id=wish.intent_id))
            record = replace(
                hub.store.intents[wish.intent_id],
                epoch=version.epoch,
                counter=version.counter,
                detail="told the device",
            )
            await hub.store.put_intent(tx, record)
        for slot in decision.granted:
            await self._grant(tx, slot)

    async def _end(self, tx: Transaction, slot: Slot) -> None:
        hub = self._hub
        record = hub.store.slots[slot.device]
        await hub.store.end_slot(tx, slot.device)
        if record.lease_id:
            entry = hub.store.ledger(slot.wave_id).get(slot.device)
            await hub.tracing.ended(tx, slot, record.lease_id, entry.outcome if entry is not None else None)
        intent = hub.store.intents.get(record.intent_id)
        if intent is None or intent.disposition is not Disposition.QUEUED:
            return
        if hub.clock.now() < slot.until:
            await hub.store.change_intent(tx, record.intent_id, Disposition.APPLIED, "the device rolled back")
        else:
            detail = "the device was told and did not answer within the maxima; it still has the intent"
            await hub.store.change_intent(tx, record.intent_id, Disposition.QUEUED, detail, (slot.device,))

    async def _infer(self, tx: Transaction, inference: Inference) -> None:
        hub, now = self._hub, self._hub.clock.now()
        record = hub.store.devices.get(inference.device)
        outcome = DeviceOutcome(
            wave_id=inference.wave_id,
            device=inference.device,
            attempt=inference.attempt,
            sequence=inference.sequence,
            kind=inference.kind,
            gate=inference.gate,
            evidence=inference.evidence,
            boot_id="",
            slot=record.status.slot if record else "",
            firmware_sha256=record.status.firmware_sha256 if record else "",
            firmware_version=record.status.firmware_version if record else "",
            log_sha256="",
            at=now,
        )
        envelope = sign_as_node(outcome, hub.credentials)
        if await hub.store.merge(tx, Entry(outcome, envelope, hub.uri, by_device=False, received_at=now)):
            await hub.report_outcomes(tx, envelope)
            await hub.tracing.inferred(tx, outcome, record.seen_at if record else now)

    async def _grant(self, tx: Transaction, slot: Slot) -> None:
        hub = self._hub
        lease_id = secrets.token_hex(16)
        lease = Lease(slot.wave_id, slot.device, lease_id, slot.attempt, slot.granted_at, slot.expires_at)
        permit = hub.belief.permits[slot.wave_id, slot.device]
        version = await hub.resources.next_version(tx)
        grant = encode(LeaseGrant(sign_as_node(lease, hub.credentials), permit.envelope))
        await hub.store.put_slot(tx, SlotRecord(slot, lease_id, grant, epoch=version.epoch, counter=version.counter))
        await hub.tracing.granted(tx, slot, lease_id, permit.permit)

    def _tell(self, decision: Decision) -> None:
        changed = {slot.device for slot in (*decision.ended, *decision.granted)}
        changed |= {wish.device for wish, _ in decision.relayed}
        for device in sorted(changed):
            self._hub.changed(device)
        if changed or decision.inferred:
            self._hub.bell.ring()
