"""Looks at everything held (orders, intents, closings) and says what it means to the machine now.

Levels, not edges: the answer depends on what is held and on the progress alone, so a message that was lost, doubled or
overtaken changes nothing. The wave under way keeps its device until it is through with it; otherwise the newest order
that names this device and on which it has not said its last word is taken up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from device.orders import Actionable, Done, Gone, Judgement, Refused, Stopped, judge
from device.progress import Declined, Event, Halted, Ordered, Outcome, RollbackAsked, Step, Withdrawn
from device.update import BEFORE_ARM, IN_SWAP, advance
from wavemesh.errors import WavemeshError
from wavemesh.trust.statements import INTENT_REFUSED, IntentKind, OutcomeKind, UpdateState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from device.equipment import Equipment
    from device.progress import Progress
    from wavemesh.trust.statements import OperatorIntent, WaveOrder


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
    judgement = Gone() if order is None else _judge(equipment, order)
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
        judgement = _judge(equipment, order)
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


def _judge(equipment: Equipment, order: WaveOrder) -> Judgement:
    return judge(order, equipment.sink.belief, equipment.facts(), equipment.clock.now())


def _intents(equipment: Equipment, progress: Progress) -> Iterator[Event]:
    """An operator who asks this device gets an answer: what is done ends in an outcome, all else in an event."""
    document, node_id = equipment.store.document, equipment.node_id
    for intent in equipment.sink.intents():
        if intent.intent_id in document.intents or intent.kind is not IntentKind.ROLLBACK_DEVICE:
            continue
        if intent.device in {node_id.name, node_id.path}:
            yield from _rollback(equipment, progress, intent)
        else:
            equipment.store.note_intent(intent.intent_id)


def _rollback(equipment: Equipment, progress: Progress, intent: OperatorIntent) -> Iterator[Event]:
    store, path = equipment.store, equipment.node_id.path
    try:
        asked = RollbackAsked(f"operator: {intent.reason}", equipment.boot_control.read())
        refusal = _refusal(intent, progress, asked)
    except WavemeshError as error:
        refusal = f"the boot environment cannot be read: {error}"
    if refusal:
        equipment.log.fail(f"no rollback for intent {intent.intent_id}: {refusal}")
        store.append_event(INTENT_REFUSED, "operator", intent.intent_id, refusal)
        store.note_intent(intent.intent_id)
        return
    detail = f"rollback for intent {intent.intent_id} in state {progress.state.name}: {intent.reason}"
    # Noted before it is done: an old intent must not undo what came after it.
    store.note_intent(intent.intent_id)
    store.append_event("intent-applied", "operator", path, detail)
    yield asked


def _refusal(intent: OperatorIntent, progress: Progress, asked: RollbackAsked) -> str:
    """Why nothing will come of the intent, empty if something will."""
    if intent.wave_id and progress.wave_id and intent.wave_id != progress.wave_id:
        return f"it is about wave {intent.wave_id}, the device is in wave {progress.wave_id}"
    if progress.state is UpdateState.ROLLED_BACK:
        return "the device has rolled back already"
    if progress.state is not UpdateState.ROLLING_BACK and advance(progress, asked) == Step(progress):
        return "there is no previous slot to go back to"
    return ""
