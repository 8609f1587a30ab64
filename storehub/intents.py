"""What operators want, and what becomes of it at this hub.

What lowers risk is done at once, WAN or no WAN, and told to control: a pause or halt is in force here from the moment
it is durable; a rollback goes to its device as soon as a slot is free, the approval of one at once, for its device is
inside a swap already; a prefetch is queued for the cache. What raises
risk (start, resume, override) is queued for control, because a hub sees one store and control sees the fleet.

Everything is idempotent twice over: by the intent's id for ever, and by effect while the effect is in force.

An intent that nobody has acted on can be taken back by any operator: it is CANCELLED here, its report that waits to go
up is replaced by one that carries the cancellation, and that report goes up once more behind whatever has gone.

A pause given here stays until control's order carries the same origin, or says that control has acted on its intent
(from then on control's word counts: it may have lifted it while this hub was dark, or a disk of that day came back), or
until its own origin's resume was handed to control. A halt given here stays until control's order says so as well.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from storehub.records import Disposition, IntentRecord, IntentSource
from storehub.standing import PauseEffect, PauseHere
from wavemesh.codec.statements import encode
from wavemesh.errors import BusyError, ConflictError, ForbiddenError, NotFoundError, PeerError
from wavemesh.identity.nodes import BadNodeIdError, NodeId
from wavemesh.policy.reader import parse_policy
from wavemesh.policy.windows import Window
from wavemesh.queueing import refuse_applied, why_done
from wavemesh.session.frames import Report
from wavemesh.trust.statements import IntentKind, IntentReport, WaveState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from storehub.belief import HeldIntent
    from storehub.hub import Hub
    from storehub.store import HubStore
    from wavemesh.runtime.sqlite import Transaction
    from wavemesh.trust.statements import Digest, Envelope, IntentCancellation, OperatorIntent, WaveOrder

CONTROL = "control"
MAX_QUEUED = 1000
MAX_DETAIL = 1000
HANDED = "handed to control"
_HANDED_ON = frozenset({IntentKind.START_WAVE, IntentKind.RESUME_WAVE})
_NEEDS_REASON = frozenset(
    {IntentKind.PAUSE_WAVE, IntentKind.HALT_WAVE, IntentKind.ROLLBACK_DEVICE, IntentKind.APPROVE_ROLLBACK}
)
_ABOUT_WAVE = frozenset({IntentKind.START_WAVE, IntentKind.PAUSE_WAVE, IntentKind.RESUME_WAVE, IntentKind.HALT_WAVE})


class AskControlError(ConflictError):
    """Only control knows or may do this."""

    reason = "ASK_CONTROL"


class Intents:
    """Takes intents from operators and from the parent."""

    def __init__(self, hub: Hub) -> None:
        """Take intents for that hub."""
        self._hub = hub

    # -- from operators ---------------------------------------------------------------------------------------------

    async def submit(self, envelope: Envelope, caller: NodeId) -> tuple[IntentRecord, bool]:
        """Take an intent; returns its record and whether it, or its effect, was there before.

        Raises GateError, ForbiddenError, ConflictError, NotFoundError, BusyError, PolicyError.
        """
        held = self._held(envelope, caller)
        async with self._hub.store.database.transaction() as tx:
            record, shown, duplicate = await self._decide(tx, held)
            if record is not None:
                await self._hub.store.put_intent(tx, record)
        self._told()
        return shown, duplicate

    async def preview(self, envelope: Envelope, caller: NodeId) -> tuple[IntentRecord, bool]:
        """What ``submit`` would answer; nothing of it stays. Raises the same."""
        held = self._held(envelope, caller)
        async with self._hub.store.database.rehearsal() as tx:
            _, shown, duplicate = await self._decide(tx, held)
        return shown, duplicate

    def _held(self, envelope: Envelope, caller: NodeId) -> HeldIntent:
        held = self._hub.belief.judge_intent(envelope, self._hub.clock.now())
        _check_own_word(held.operator, caller)
        self._check(held.intent)
        return held

    async def _decide(self, tx: Transaction, held: HeldIntent) -> tuple[IntentRecord | None, IntentRecord, bool]:
        """The record to keep, the one to show, and whether it was so before."""
        known = self._hub.store.intents.get(held.intent.intent_id)
        if known is not None:
            if not known.intent.asks_the_same(held.intent):
                msg = f"intent id {held.intent.intent_id!r} was used for another intent already"
                raise ConflictError(msg)
            return None, known, True
        in_force, open_record = self._in_force(held), self._asked_before(held)
        if in_force:
            record = self._record(held, Disposition.APPLIED, in_force)
            return record, record, True
        if open_record is not None:
            # Nothing waits for the second asking itself; who asks is shown what the first one waits for.
            detail = f"asked before as {open_record.intent_id}"
            return self._record(held, Disposition.APPLIED, detail), open_record, True
        record = await self._act(tx, held)
        return record, record, False

    # -- taken back -------------------------------------------------------------------------------------------------

    async def cancel(self, envelope: Envelope, caller: NodeId) -> tuple[IntentRecord, bool]:
        """Take an intent back that nobody has acted on; returns its record and whether it was taken back before.

        Raises GateError, ForbiddenError, NotFoundError, ConflictError, AskControlError, IntentAppliedError.
        """
        by, word = self._judge_cancellation(envelope, caller)
        async with self._hub.store.database.transaction() as tx:
            record, duplicate = await self._cancel(tx, envelope, by, word)
            if not duplicate:
                await self._hub.store.put_intent(tx, record)
        self._told()
        return record, duplicate

    async def preview_cancel(self, envelope: Envelope, caller: NodeId) -> tuple[IntentRecord, bool]:
        """What ``cancel`` would answer; nothing of it stays. Raises the same."""
        by, word = self._judge_cancellation(envelope, caller)
        async with self._hub.store.database.rehearsal() as tx:
            return await self._cancel(tx, envelope, by, word)

    def _judge_cancellation(self, envelope: Envelope, caller: NodeId) -> tuple[NodeId, IntentCancellation]:
        by, word = self._hub.belief.judge_cancellation(envelope, self._hub.clock.now())
        _check_own_word(by, caller)
        return by, word

    async def _cancel(
        self, tx: Transaction, envelope: Envelope, by: NodeId, word: IntentCancellation
    ) -> tuple[IntentRecord, bool]:
        """The record afterwards. What still waits to go up is replaced, and what may have gone is told of as well."""
        hub = self._hub
        record = hub.store.intents.get(word.intent_id)
        if record is None:
            msg = f"no intent {word.intent_id[:80]!r} is known at {hub.path}; `edgectl intent list` shows them"
            raise NotFoundError(msg, intent=word.intent_id[:80])
        if record.disposition is Disposition.CANCELLED:
            return record, True
        if record.source is IntentSource.PARENT:
            msg = f"intent {record.intent_id} came from control: cancel it there"
            raise AskControlError(msg)
        if record.disposition is Disposition.REFUSED:
            msg = f"intent {record.intent_id} was refused: {record.detail}; there is nothing to cancel"
            raise ConflictError(msg, intent=record.intent_id)
        acted = self._acted_on(record)
        if acted:
            raise refuse_applied(record.intent_id, record.intent.kind, record.intent.wave_id, acted)
        before = IntentReport(record.envelope, hub.path)
        after = Report("intent", encode(replace(before, cancellation=envelope)))
        await hub.log.replace(tx, Report("intent", encode(before)), after)
        unless = "" if _is_open(record) else ", which drops it unless it has acted"
        detail = f"cancelled by {by.name}; control is told{unless}" + (f": {word.reason}" if word.reason else "")
        cancelled = replace(
            record,
            disposition=Disposition.CANCELLED,
            waiting_for=(CONTROL,),
            detail=detail[:MAX_DETAIL],
            report_number=await hub.report(tx, after),
        )
        return cancelled, False

    def _acted_on(self, record: IntentRecord) -> str:
        """Who has acted on an intent, as far as is known here; empty when nobody has."""
        intent = record.intent
        if intent.kind.is_for_device and record.counter:
            return "the device was told"
        if _is_open(record):
            return ""
        order = self._hub.belief.orders.get(intent.wave_id)
        handed = intent.kind in _HANDED_ON and record.detail == HANDED
        if handed and intent.kind is IntentKind.START_WAVE and (order is None or order.state is WaveState.PLANNED):
            return ""
        origin = origin_of(NodeId.parse(record.operator))
        pauses = {pause.origin for pause in order.pauses} if order is not None else set()
        if handed and intent.kind is IntentKind.RESUME_WAVE and origin in pauses:
            return ""
        return f"it is applied ({record.detail})" if record.detail else "it is applied"

    def _told(self) -> None:
        self._hub.changed(None)
        self._hub.bell.ring()

    def _check(self, intent: OperatorIntent) -> None:
        name = self._hub.credentials.node_id.name
        if intent.stores and name not in intent.stores:
            msg = f"the intent is for {', '.join(intent.stores)}; this is {name}"
            raise AskControlError(msg)
        if intent.kind in _NEEDS_REASON and not intent.reason:
            msg = f"{intent.kind.name} needs a reason"
            raise ConflictError(msg)
        approves = intent.kind is IntentKind.APPROVE_ROLLBACK
        if (approves or intent.kind in _ABOUT_WAVE) and not intent.wave_id:
            msg = f"{intent.kind.name} needs a wave"
            raise ConflictError(msg)
        if approves and not intent.attempt:
            msg = f"{intent.kind.name} needs the attempt that it is about"
            raise ConflictError(msg)
        queued = sum(record.disposition is Disposition.QUEUED for record in self._hub.store.intents.values())
        if queued >= MAX_QUEUED:
            msg = f"{queued} intents wait here already"
            raise BusyError(msg, retry_after_s=60.0)

    def _asked_before(self, held: HeldIntent) -> IntentRecord | None:
        """The record of an intent that waits here and wants the same."""
        for other in self._hub.store.intents.values():
            if _is_open(other) and _effect(other.intent, other.operator) == _effect(held.intent, held.operator.uri):
                return other
        return None

    def _in_force(self, held: HeldIntent) -> str:
        """Why there is nothing to do, since the effect is in force already; empty when there is."""
        intent, hub = held.intent, self._hub
        order = hub.belief.orders.get(intent.wave_id)
        origin = origin_of(held.operator)
        at_control = order is not None and any(one.origin == origin for one in order.pauses)
        is_paused = at_control or (intent.wave_id, origin) in hub.store.pauses
        halted = self._is_halted(intent.wave_id)
        why = ""
        match intent.kind:
            case IntentKind.PAUSE_WAVE | IntentKind.HALT_WAVE if halted:
                why = "the wave is halted already"
            case IntentKind.PAUSE_WAVE if is_paused:
                why = f"{origin} has paused the wave already"
            case IntentKind.START_WAVE if order is not None and order.state is not WaveState.PLANNED:
                why = f"the wave was started: it is {order.state.name}"
            case IntentKind.RESUME_WAVE if order is not None and not halted and not is_paused:
                why = f"no pause of {origin} is in force"
            case IntentKind.ROLLBACK_DEVICE | IntentKind.APPROVE_ROLLBACK | IntentKind.REHEARSE_DEVICE:
                known = hub.store.devices.get(self._device(intent))
                why = why_done(intent, known.status if known is not None else None)
            case IntentKind.PREFETCH if (wanted := self._wanted(intent)) and all(map(hub.is_cached, wanted)):
                why = "all of it is cached and verified already"
        return why

    def _is_halted(self, wave_id: str) -> bool:
        order = self._hub.belief.orders.get(wave_id)
        here = any(p.wave_id == wave_id and p.effect is PauseEffect.HALT for p in self._hub.store.pauses.values())
        return here or (order is not None and order.state is WaveState.HALTED)

    async def _act(self, tx: Transaction, held: HeldIntent) -> IntentRecord:
        """Do what may be done here, and pass the intent on to control."""
        intent = held.intent
        wave = self._hub.store.waves.get(intent.wave_id)
        if intent.kind in _ABOUT_WAVE and wave is not None and wave.closed_state is not None:
            return self._record(held, Disposition.REFUSED, f"wave {intent.wave_id} is {wave.closed_state.name}")
        if intent.kind is IntentKind.RESUME_WAVE and self._is_halted(intent.wave_id):
            return self._record(held, Disposition.REFUSED, "a halt is for ever: plan a new wave")
        match intent.kind:
            case IntentKind.PAUSE_WAVE | IntentKind.HALT_WAVE:
                await self._pause(tx, held)
                record = self._record(held, Disposition.APPLIED, "in force at this hub", (CONTROL,))
            case IntentKind.ROLLBACK_DEVICE | IntentKind.APPROVE_ROLLBACK | IntentKind.REHEARSE_DEVICE:
                path, paced = self._device(intent), intent.kind is IntentKind.ROLLBACK_DEVICE
                detail = "waits for a swap slot and the device" if paced else "waits for the device"
                record = self._record(held, Disposition.QUEUED, detail, (path,))
                record = replace(record, device_path=path)
            case IntentKind.PREFETCH:
                record = self._prefetch(held)
            case _:
                record = self._record(held, Disposition.QUEUED, "raises risk: control decides", (CONTROL,))
        report = Report("intent", encode(IntentReport(held.envelope, self._hub.path)))
        return replace(record, report_number=await self._hub.report(tx, report))

    async def _pause(self, tx: Transaction, held: HeldIntent) -> None:
        effect = PauseEffect.HALT if held.intent.kind is IntentKind.HALT_WAVE else PauseEffect.PAUSE
        intent = held.intent
        pause = PauseHere(intent.wave_id, origin_of(held.operator), intent.reason, effect, intent.intent_id)
        await self._hub.store.put_pause(tx, pause)

    def _device(self, intent: OperatorIntent) -> str:
        """Path of the device meant; raises NotFoundError, AskControlError."""
        hub = self._hub
        given = intent.device
        path = given if "/" in given else hub.device_path(given)
        try:
            node = NodeId(hub.credentials.node_id.fleet, path)
        except BadNodeIdError as error:
            raise NotFoundError(str(error)) from error
        if not node.is_child_of(hub.credentials.node_id):
            msg = f"{path} is no device of this store"
            raise AskControlError(msg)
        targets = {name for record in hub.store.waves.values() for name in record.order.devices}
        if path not in hub.store.devices and node.name not in targets:
            msg = f"no device {given!r} was ever heard here"
            raise NotFoundError(msg, device=given)
        return path

    def _prefetch(self, held: HeldIntent) -> IntentRecord:
        digests = self._wanted(held.intent)
        if not digests:
            detail = "the release of this policy is not known here yet"
            return self._record(held, Disposition.QUEUED, detail, (CONTROL,))
        record = self._record(held, Disposition.QUEUED, "the cache fetches it", (self._hub.path,))
        return replace(record, digests=digests)

    def _wanted(self, intent: OperatorIntent) -> tuple[Digest, ...]:
        """The artifacts that the policy names, by verified releases; empty when one is not known. PolicyError."""
        policy = parse_policy(intent.policy_yaml, "policy.yaml")
        if intent.window:
            Window.parse(intent.window)
        return self._hub.belief.blobs_named(policy.artifacts)

    def _record(
        self, held: HeldIntent, disposition: Disposition, detail: str, waiting_for: tuple[str, ...] = ()
    ) -> IntentRecord:
        return IntentRecord(
            intent=held.intent,
            envelope=held.envelope,
            operator=held.operator.uri,
            source=IntentSource.OPERATOR,
            disposition=disposition,
            received_at=self._hub.clock.now(),
            waiting_for=waiting_for,
            detail=detail,
        )

    # -- from the parent --------------------------------------------------------------------------------------------

    async def take(self, tx: Transaction, held: HeldIntent) -> None:
        """Do what control passed down; once, whoever gave the same intent here before."""
        intent, hub = held.intent, self._hub
        name = hub.credentials.node_id.name
        if intent.intent_id in hub.store.intents or (intent.stores and name not in intent.stores):
            return
        record = self._record(held, Disposition.APPLIED, "control passed it down")
        match intent.kind:
            case IntentKind.PAUSE_WAVE | IntentKind.HALT_WAVE:
                await self._pause(tx, held)
            case IntentKind.ROLLBACK_DEVICE | IntentKind.APPROVE_ROLLBACK | IntentKind.REHEARSE_DEVICE:
                try:
                    path = self._device(intent)
                except (NotFoundError, AskControlError):
                    return
                record = replace(record, disposition=Disposition.QUEUED, device_path=path, waiting_for=(path,))
            case IntentKind.PREFETCH:
                try:
                    record = self._prefetch(held)
                except PeerError as error:
                    record = self._record(held, Disposition.REFUSED, str(error)[:MAX_DETAIL])
            case _:
                return
        await hub.store.put_intent(tx, replace(record, source=IntentSource.PARENT))

    async def withdraw(self, tx: Transaction, intent_id: str) -> None:
        """Control took an intent back: a pause it passed down is lifted, a rollback not yet done does not happen."""
        record = self._hub.store.intents.get(intent_id)
        if record is None:
            return
        if record.intent.kind is IntentKind.PAUSE_WAVE and record.source is IntentSource.PARENT:
            await self._hub.store.drop_pause(tx, record.intent.wave_id, origin_of(NodeId.parse(record.operator)))
        # What was given here, and told to its device, is the device's to answer.
        was_told = record.source is IntentSource.OPERATOR and record.counter
        if record.disposition is Disposition.QUEUED and not was_told:
            await self._hub.store.change_intent(tx, intent_id, Disposition.CANCELLED, "control took it back")

    async def order_arrived(self, tx: Transaction, order: WaveOrder) -> None:
        """Control's word on a wave takes the place of the pauses here that it carries, or has acted on before."""
        origins = {pause.origin for pause in order.pauses}
        for here in list(self._hub.store.pauses.values()):
            if here.effect is PauseEffect.HALT:
                gives_way = order.state is WaveState.HALTED
            else:
                gives_way = here.origin in origins or here.intent_id in order.pauses_taken
            if here.wave_id == order.wave_id and gives_way:
                await self._hub.store.drop_pause(tx, here.wave_id, here.origin)

    async def resolve_prefetches(self, tx: Transaction) -> None:
        """Trust metadata changed: prefetches whose release was not known may be now."""
        for record in list(self._hub.store.intents.values()):
            if record.intent.kind is IntentKind.PREFETCH and _is_open(record) and not record.digests:
                digests = self._wanted(record.intent)
                if digests:
                    waiting = (self._hub.path,)
                    found = replace(record, digests=digests, detail="the cache fetches it", waiting_for=waiting)
                    await self._hub.store.put_intent(tx, found)

    # -- reports ----------------------------------------------------------------------------------------------------

    async def acknowledged(self, through: int) -> None:
        """Reports up to that number are safe with the parent: what waited for control is handed over."""
        handed = [
            record
            for record in self._hub.store.intents.values()
            if 0 < record.report_number <= through and CONTROL in record.waiting_for
        ]
        if not handed:
            return
        async with self._hub.store.database.transaction() as tx:
            for record in handed:
                await self._hand_over(tx, record)
        self._told()

    async def _hand_over(self, tx: Transaction, record: IntentRecord) -> None:
        intent = record.intent
        waiting = tuple(who for who in record.waiting_for if who != CONTROL)
        keeps_waiting = intent.kind is IntentKind.PREFETCH
        disposition = record.disposition if keeps_waiting else Disposition.APPLIED
        if record.disposition is Disposition.CANCELLED:
            await self._hub.store.put_intent(tx, replace(record, waiting_for=waiting, report_number=0))
            return
        detail = "in force at this hub; handed to control" if intent.kind.lowers_risk else HANDED
        await self._hub.store.put_intent(
            tx,
            replace(
                record,
                disposition=disposition,
                detail=record.detail if keeps_waiting else detail,
                waiting_for=record.waiting_for if keeps_waiting else waiting,
                report_number=0,
            ),
        )
        if intent.kind is IntentKind.RESUME_WAVE:
            await self._hub.store.drop_pause(tx, intent.wave_id, origin_of(NodeId.parse(record.operator)))


async def renumber(tx: Transaction, store: HubStore, numbers: Mapping[int, int]) -> None:
    """The report log started anew: intents not handed over yet are carried by other numbers (old to new)."""
    for record in list(store.intents.values()):
        if record.report_number in numbers:
            await store.put_intent(tx, replace(record, report_number=numbers[record.report_number]))


def origin_of(operator: NodeId) -> str:
    """The origin under which an operator's pauses are kept: "operator:alice"."""
    return f"operator:{operator.name}"


def _check_own_word(signer: NodeId, caller: NodeId) -> None:
    if signer != caller:
        msg = f"it is signed by {signer.uri}, but {caller.uri} gave it: sign it yourself"
        raise ForbiddenError(msg, peer=caller.uri)


def _is_open(record: IntentRecord) -> bool:
    return record.disposition is Disposition.QUEUED


def _effect(intent: OperatorIntent, operator: str) -> tuple[object, ...]:
    """What an intent would change; equal effects that both wait are one wish."""
    who = operator if intent.kind is IntentKind.RESUME_WAVE else ""
    device = (intent.device.rsplit("/", 1)[-1], intent.attempt)
    return (intent.kind, intent.wave_id, device, intent.policy_yaml, intent.window, who)
