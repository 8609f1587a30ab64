"""Looks at everything held (orders, intents, closings) and says what it means to the machine now.

Levels, not edges: the answer depends on what is held and on the progress alone, so a message that was lost, doubled or
overtaken changes nothing. The wave under way keeps its device until it is through with it; otherwise the newest order
that names this device and on which it has not said its last word is taken up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from device.orders import Actionable, Done, Gone, Refused, Stopped
from device.progress import (
    Declined,
    Event,
    Halted,
    Ordered,
    Outcome,
    RollbackAsked,
    SecondRollbackAsked,
    SignedOff,
    Withdrawn,
)
from device.signoff import why_no_rollback, why_not_approved
from device.update import BEFORE_ARM, IN_SWAP
from wavemesh.errors import WavemeshError
from wavemesh.trust.statements import INTENT_REFUSED, IntentKind, OutcomeKind, UpdateState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from device.equipment import Equipment
    from device.progress import Progress
    from wavemesh.trust.statements import OperatorIntent, WaveOrder

_FOR_MACHINE = frozenset({IntentKind.ROLLBACK_DEVICE, IntentKind.APPROVE_ROLLBACK})


def events_of(equipment: Equipment, progress: Progress) -> Iterator[Event]:
    """The events that the present levels amount to; intents are noted as carried out when they are told."""
    yield from _intents(equipment, progress)
    closed = {one.wave_id for one in equipment.sink.closed()}
    for wave_id in closed:
        equipment.store.close_wave(wave_id)
    if progress.wave_id in closed and progress.state not in IN_SWAP:
        yield Withdrawn()
        return
    orders = [order for order in equipment.sink.orders() if order.wave_id not in closed]
    current = next((order for order in orders if order.wave_id == progress.wave_id), None)
    if progress.state in BEFORE_ARM or progress.state is UpdateState.TRIAL:
        yield from _current(equipment, progress, current)
    elif progress.state not in IN_SWAP:
        yield from _next(equipment, progress, orders)


def _current(equipment: Equipment, progress: Progress, order: WaveOrder | None) -> Iterator[Event]:
    """The wave under way."""
    judgement = Gone() if order is None else equipment.judge(order)
    match judgement:
        case Stopped():
            yield Halted(f"wave {progress.wave_id} is halted")
        case Gone() if progress.state in BEFORE_ARM:
            yield Withdrawn()
        case Refused() if progress.state in BEFORE_ARM:
            yield _declined(judgement, progress.wave_id, progress.attempt)
        case Actionable(target) if progress.state in BEFORE_ARM:
            yield Ordered(target, equipment.store.burned(target.wave_id))


def _next(equipment: Equipment, progress: Progress, orders: list[WaveOrder]) -> Iterator[Event]:
    """At rest: the newest order with something left to do."""
    store = equipment.store
    for order in orders:
        if store.is_finished(order.wave_id):
            continue
        judgement = equipment.judge(order)
        burned = store.burned(order.wave_id)
        match judgement:
            case Actionable(target):
                yield Ordered(target, burned)
                return
            case Refused():
                yield _declined(judgement, order.wave_id, burned)
                return
            case Done():
                outcome = Outcome(OutcomeKind.UPDATED, evidence="the release runs already")
                store.say(order.wave_id, outcome, equipment.record.boot_id, equipment.facts())
            case Stopped() if order.wave_id == progress.wave_id:
                yield Halted(f"wave {order.wave_id} is halted")
                return


def _declined(refused: Refused, wave_id: str, burned: int) -> Declined:
    return Declined(wave_id, burned, refused.gate, refused.evidence, refused.observed, refused.required)


def _intents(equipment: Equipment, progress: Progress) -> Iterator[Event]:
    """An operator who asks this device gets an answer: what is done ends in an outcome, all else in an event."""
    document, node_id = equipment.store.document, equipment.node_id
    for intent in equipment.sink.intents():
        # A rehearsal is none of the machine's business: device/rehearsing.py answers it.
        if intent.intent_id in document.intents or intent.kind not in _FOR_MACHINE:
            continue
        # Others' intents are not noted: a hub that collects them must not make this device forget its own.
        if intent.device in {node_id.name, node_id.path}:
            yield from _asked_by(equipment, progress, intent)


def _asked_by(equipment: Equipment, progress: Progress, intent: OperatorIntent) -> Iterator[Event]:
    """What an intent about this device comes to. The machine notes one that it acts on, in the same write."""
    store = equipment.store
    approves = intent.kind is IntentKind.APPROVE_ROLLBACK
    asked, refusal = _approval(progress, intent) if approves else _rollback(equipment, progress, intent)
    if refusal or asked is None:
        equipment.log.fail(f"nothing comes of intent {intent.intent_id}: {refusal}")
        store.append_event(INTENT_REFUSED, "operator", intent.intent_id, refusal)
        store.note_intent(intent.intent_id)
        return
    what = intent.kind.name.lower().replace("_", " ")
    detail = f"{what} for intent {intent.intent_id} in state {progress.state.name}: {intent.reason}"
    store.append_event("intent-applied", "operator", equipment.node_id.path, detail)
    yield asked


def _approval(progress: Progress, intent: OperatorIntent) -> tuple[Event, str]:
    """The event of an approval, and why nothing will come of it."""
    signed_off = SignedOff(f"signed off: {intent.reason} (intent {intent.intent_id})", intent.intent_id)
    return signed_off, why_not_approved(progress, intent)


def _rollback(equipment: Equipment, progress: Progress, intent: OperatorIntent) -> tuple[Event | None, str]:
    """The event of a rollback, and why nothing will come of it."""
    try:
        environment = equipment.boot_control.read()
    except WavemeshError as error:
        return None, f"the boot environment cannot be read: {error}"
    evidence, packed = f"operator: {intent.reason}", equipment.packed_boot()
    asked: RollbackAsked | SecondRollbackAsked
    asked = RollbackAsked(evidence, environment, intent_id=intent.intent_id, packed=packed)
    if intent.wave_id and progress.wave_id and intent.wave_id != progress.wave_id:
        installed_by = equipment.store.document.installed_by.get(equipment.facts().firmware_sha256)
        if progress.state is not UpdateState.ROLLED_BACK or installed_by != intent.wave_id or packed is None:
            return None, f"it is about wave {intent.wave_id}, the device is in wave {progress.wave_id}"
        asked = SecondRollbackAsked(evidence, packed, intent_id=intent.intent_id)
    return asked, why_no_rollback(progress, asked, equipment.node_id.name)
