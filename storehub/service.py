"""What this hub is to its devices: the child registry of their sessions.

Only devices of this very store are admitted. A device is served what concerns it: trust metadata, the hold list, the
revocations, the orders that name it with their policies, the closing words of waves, a rollback asked of it, and its
lease. Permits stay here until a lease carries them. A hub that was never settled takes nothing back (``unsettled.py``).

Reports: a device's outcome is verified against its certificate and its path, merged, and passed on unchanged in the
transaction that moves its cursor. What cannot be believed is not passed on: an event says so and the cursor moves, so
that one bad report does not hold up the good ones behind it. But a certificate that is not valid yet means that our
clock is behind: that ends the session, and the report is told again.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING

from storehub.hub import Presence
from storehub.ledger import Entry
from storehub.records import DeviceRecord, Disposition
from storehub.standing import Standing
from storehub.store import MAX_DEVICES
from storehub.swaps import IN_SWAP, SlotUse
from wavemesh.codec.statements import MalformedStatementError, decode, encode
from wavemesh.errors import BusyError, ForbiddenError, GateError, PeerError
from wavemesh.identity.nodes import is_for
from wavemesh.policy.gates import Gate
from wavemesh.replacement import replaced
from wavemesh.session.frames import Resource, ResourceKey, ResourceVersion
from wavemesh.trust.envelope import EarlySignatureError, verify_node
from wavemesh.trust.statements import (
    INTENT_REFUSED,
    REHEARSED,
    ROLLBACK_DONE,
    ROLLBACK_FAILED,
    DeviceOutcome,
    DeviceStatus,
    EventReport,
    IntentKind,
    OutcomeKind,
    OutcomeReport,
    SnapshotReport,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from storehub.asks import Asks
    from storehub.hub import Hub
    from storehub.records import IntentRecord, SlotRecord
    from wavemesh.identity.nodes import NodeId
    from wavemesh.runtime.sqlite import Transaction
    from wavemesh.session.frames import Hello, Rejection, Report, StatusEntry
    from wavemesh.trust.statements import Envelope, OperatorIntent, WaveOrder

_LOG = logging.getLogger(__name__)
_FOR_ALL = frozenset({"tuf", "holds", "revocations", "closed"})
_SHARED = _FOR_ALL | {"order", "policy"}
_DIGESTS_CACHED = 2048


class DeviceRegistry:
    """Implements ``wavemesh.session.seams.ChildRegistry`` for devices."""

    def __init__(self, hub: Hub, asks: Asks, status_changed: Callable[[str], None]) -> None:
        """``status_changed`` is told the path of a device whose status should go up."""
        self._hub = hub
        self._asks = asks
        self._status_changed = status_changed
        self._picked_at = -1
        self._picked: tuple[Resource, ...] = ()
        self._own: OrderedDict[tuple[ResourceKey, int], Resource] = OrderedDict()

    @property
    def epoch(self) -> str:
        """This hub's epoch for versions."""
        return self._hub.resources.epoch

    async def admit(self, child: NodeId, hello: Hello) -> int:
        """Cursor of a device of this store; raises ForbiddenError, BusyError."""
        if not child.is_child_of(self._hub.credentials.node_id):
            msg = f"{child.uri} is no device of {self._hub.path}; connect to your own store's hub"
            raise ForbiddenError(msg, peer=child.uri)
        if child.path not in self._hub.store.devices and len(self._hub.store.devices) >= MAX_DEVICES:
            msg = f"this hub knows {MAX_DEVICES} devices already and takes no further one"
            raise BusyError(msg, retry_after_s=60.0)
        return await self._hub.cursors.admission(child.path, hello.incarnation, hello.next_report_number)

    # -- downwards --------------------------------------------------------------------------------------------------

    def desired(self, child: NodeId) -> Mapping[ResourceKey, Resource]:
        """What the device should hold now."""
        hub = self._hub
        path, name = hub.path, child.name
        orders = {wave: o for wave, o in hub.belief.orders.items() if path == o.store and name in o.devices}
        policies = {order.policy_digest for order in orders.values()}
        wanted: dict[ResourceKey, Resource] = {}
        for resource in self._shared():
            if self._concerns(resource, child, orders, policies):
                wanted[resource.key] = resource
        slot = hub.store.slots.get(child.path)
        if slot is not None and self._is_lease_served(slot, orders.get(slot.slot.wave_id)):
            lease = self._make("lease", slot.slot.wave_id, slot.grant, child, slot)
            wanted[lease.key] = lease
        for intent in hub.store.intents.values():
            if intent.counter and intent.device_path == child.path and intent.disposition is Disposition.QUEUED:
                rollback = self._make("intent", intent.intent.intent_id, encode(intent.envelope), child, intent)
                wanted[rollback.key] = rollback
        return wanted if hub.has_settled else {**hub.unsettled.stand_ins(child.path, wanted), **wanted}

    def _shared(self) -> tuple[Resource, ...]:
        """What may concern several devices; picked out once a change, as a store has a permit for each device too."""
        hub = self._hub
        if self._picked_at != hub.resources_changed:
            self._picked_at = hub.resources_changed
            self._picked = tuple(
                resource
                for resource in hub.resources.all().values()
                if resource.key.type in _SHARED and hub.belief.is_believed(resource.key)
            )
        return self._picked

    def _concerns(self, resource: Resource, child: NodeId, orders: Mapping[str, WaveOrder], policies: set[str]) -> bool:
        kind, name = resource.key.type, resource.key.name
        if kind in _FOR_ALL:
            return is_for(resource.audience, child.path)
        if kind == "order":
            return name.split("/", 1)[0] in orders
        return kind == "policy" and name in policies

    def _is_lease_served(self, record: SlotRecord, order: WaveOrder | None) -> bool:
        """A lease not armed under is taken back when its wave is paused or halted, or the device's group is short."""
        if record.slot.use is not SlotUse.SWAP or order is None:
            return False
        device = self._hub.store.devices.get(record.slot.device)
        is_inside = device is not None and device.status.state in IN_SWAP
        may_arm = record.slot.device not in self._hub.recalled
        return is_inside or (may_arm and self._hub.standing(order).standing in {Standing.LIVE, Standing.WAITING})

    def _make(self, kind: str, name: str, content: bytes, child: NodeId, record: SlotRecord | IntentRecord) -> Resource:
        """A resource of this hub's own making, under the version that was given to it when it was made durable."""
        key = (ResourceKey(kind, f"{name}"), record.counter)
        cached = self._own.get(key)
        if cached is None or cached.content != content:
            version = ResourceVersion(record.epoch, record.counter)
            cached = Resource(key[0], version, _sha256(content), content, (child.path,), urgent=kind == "intent")
            self._own[key] = cached
            while len(self._own) > _DIGESTS_CACHED:
                self._own.popitem(last=False)
        return cached

    async def verdict(self, child: NodeId, accepted: Sequence[Resource], rejected: Sequence[Rejection]) -> None:
        """Tell upstream what a device refused; a refused rollback is answered to who asked for it."""
        hub = self._hub
        _LOG.debug("%s accepted %d resources", child.path, len(accepted))
        if not rejected:
            return
        async with hub.store.database.transaction() as tx:
            for one in rejected:
                subject = f"{one.key.type}/{one.key.name} at {child.path}"
                await hub.report_event(tx, "resource-refused", gate=one.gate, subject=subject, detail=one.reason)
                if one.key.type == "intent":
                    await self._refuse_intent(tx, child, one.key.name, f"{one.gate}: {one.reason}")

    # -- upwards ----------------------------------------------------------------------------------------------------

    async def apply_reports(
        self, child: NodeId, incarnation: str, first_number: int, reports: Sequence[Report]
    ) -> None:
        """Merge, pass on and move the cursor, in one transaction."""
        hub = self._hub
        async with hub.store.database.transaction() as tx:
            for report in reports:
                try:
                    await self._apply(tx, child, report)
                except EarlySignatureError:
                    raise  # our clock is behind: the session ends, and it is told again
                except (GateError, MalformedStatementError) as error:
                    gate = error.gate if isinstance(error, GateError) else ""
                    await hub.report_event(tx, "report-refused", gate=gate, subject=child.path, detail=str(error))
            await hub.cursors.advance(tx, child.path, incarnation, first_number + len(reports) - 1)
        hub.bell.ring()

    async def _apply(self, tx: Transaction, child: NodeId, report: Report) -> None:
        match report.kind:
            case "outcome":
                await self._take_outcomes(tx, child, decode(OutcomeReport, report.body).outcomes)
            case "snapshot":
                await self._take_outcomes(tx, child, decode(SnapshotReport, report.body).outcomes)
            case "event":
                event = decode(EventReport, report.body)
                if event.node != child.path:
                    raise MalformedStatementError(f"event of {event.node} reported by {child.path}")
                await self._hub.report(tx, report)
                if event.kind in {INTENT_REFUSED, ROLLBACK_FAILED}:
                    await self._refuse_intent(tx, child, event.subject, event.detail)
                if event.kind == ROLLBACK_DONE:
                    await self._settle(tx, child, event.subject, Disposition.APPLIED, "the device rolled back")
                if event.kind == REHEARSED:
                    await self._settle(tx, child, event.subject, Disposition.APPLIED, event.detail)
            case _:
                raise MalformedStatementError(f"reports of kind {report.kind!r} are not known here")

    async def _refuse_intent(self, tx: Transaction, child: NodeId, intent_id: str, reason: str) -> None:
        """The device says that nothing will come of an intent: it is answered, and its slot is free."""
        await self._settle(tx, child, intent_id, Disposition.REFUSED, f"refused by the device: {reason}")

    async def _settle(self, tx: Transaction, child: NodeId, intent_id: str, end: Disposition, detail: str) -> None:
        """The device says what came of an intent of which there is no outcome."""
        store = self._hub.store
        record, slot = store.intents.get(intent_id), store.slots.get(child.path)
        if record is None or record.device_path != child.path or record.disposition is not Disposition.QUEUED:
            return
        await store.change_intent(tx, intent_id, end, detail)
        if slot is not None and slot.intent_id == intent_id:
            await store.end_slot(tx, child.path)
        tx.on_commit(lambda: self._hub.changed(child.path))

    async def _take_outcomes(self, tx: Transaction, child: NodeId, envelopes: tuple[Envelope, ...]) -> None:
        hub, now = self._hub, self._hub.clock.now()
        for envelope in envelopes:
            signer, outcome = verify_node(envelope, DeviceOutcome, hub.credentials.authorities, now, child.path)
            entry = Entry(outcome, envelope, signer.uri, signer.path == outcome.device, now)
            if await hub.store.merge(tx, entry):
                await hub.report_outcomes(tx, envelope)
                await hub.tracing.merged(tx, outcome, signer.path)
            await self._finish_rollbacks(tx, child, outcome)

    async def _finish_rollbacks(self, tx: Transaction, child: NodeId, outcome: DeviceOutcome) -> None:
        """The device says that an operator's rollback was done, or the one that an operator approved."""
        for intent_id, record in self._hub.store.intents.items():
            is_open = record.disposition is Disposition.QUEUED and record.counter
            if is_open and record.device_path == child.path and _answers(outcome, record.intent):
                await self._hub.store.change_intent(tx, intent_id, Disposition.APPLIED, "the device rolled back")

    async def status(self, child: NodeId, entries: Sequence[StatusEntry]) -> None:
        """Keep the device's last state; only what a restart must know goes to disk."""
        for entry in entries:
            if entry.key != "device" or entry.body is None:
                continue
            try:
                status = decode(DeviceStatus, entry.body)
            except MalformedStatementError as error:
                # A newer agent may be in a state this hub does not know; there will be another status.
                _LOG.warning("status of %s passed over: %s", child.path, error)
                continue
            if status.device != child.path:
                msg = f"status of {status.device} sent by {child.path}"
                raise PeerError(msg)
            await self._keep(replaced(status, connected=True))

    async def _keep(self, status: DeviceStatus) -> None:
        hub = self._hub
        old = hub.store.devices.get(status.device)
        record = DeviceRecord(status, hub.clock.now(), _last_known_good(old, status))
        presence = hub.present.get(status.device)
        is_news = old is None or _durable_part(old.status) != _durable_part(status)
        if is_news:
            async with hub.store.database.transaction() as tx:
                await hub.store.put_device(tx, record)
        else:
            hub.store.touch_device(record)
        if presence is not None and not presence.is_heard:
            presence.is_heard = is_news = True
        self._status_changed(status.device)
        if is_news:
            hub.bell.ring()

    async def answer(self, child: NodeId, kind: str, body: bytes) -> bytes:
        """Answer a health ping or take a piece of log."""
        return await self._asks.answer(child, kind, body)

    async def child_connected(self, child: NodeId, hello: Hello) -> None:
        """The device's session is open."""
        hub = self._hub
        hub.present[child.path] = Presence(hub.clock.now(), hello.incarnation)
        if not hub.has_settled:
            hub.unsettled.came(child.path, hello.held)
        self._note_connection(child)

    async def child_disconnected(self, child: NodeId, reason: str) -> None:
        """The device's session ended."""
        _LOG.debug("%s left: %s", child.path, reason)
        self._hub.present.pop(child.path, None)
        self._hub.left_at[child.path] = self._hub.clock.now()
        self._hub.unsettled.left(child.path)
        self._note_connection(child)

    def _note_connection(self, child: NodeId) -> None:
        record = self._hub.store.devices.get(child.path)
        connected = child.path in self._hub.present
        if record is not None:
            self._hub.store.touch_device(replaced(record, status=replaced(record.status, connected=connected)))
            self._status_changed(child.path)
        self._hub.bell.ring()


def _durable_part(status: DeviceStatus) -> tuple[object, ...]:
    return (status.state, status.wave_id, status.attempt, status.gate, status.slot, status.firmware_sha256)


def _answers(outcome: DeviceOutcome, intent: OperatorIntent) -> bool:
    """Whether an outcome of its device tells that the intent was done."""
    if intent.kind is not IntentKind.APPROVE_ROLLBACK:
        return intent.kind is IntentKind.ROLLBACK_DEVICE and outcome.gate == Gate.OPERATOR.value
    left = outcome.kind in {OutcomeKind.ROLLED_BACK, OutcomeKind.INCONCLUSIVE}
    return left and (outcome.wave_id, outcome.attempt) == (intent.wave_id, intent.attempt)


def _last_known_good(old: DeviceRecord | None, status: DeviceStatus) -> str:
    """What the device ran before what it runs now."""
    if old is None:
        return ""
    was = old.status.firmware_sha256
    return was if was and was != status.firmware_sha256 else old.last_known_good_sha256


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
