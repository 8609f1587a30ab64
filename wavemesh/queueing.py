"""Intents that wait: their place in the queue, and what can be taken back. Pure.

Rules:
- Among all that waits for the same node the earlier taken comes first; the id decides between equals. An intent that
  waits for several nodes has its place in the queue of the first.
- An intent can be taken back while nobody has acted on it, by any operator: whoever is on call must be able to, and the
  audit names who did. It then never happens. Pauses and halts act at once, so taking back never lifts a protection.
- What was acted on is not undone by taking its intent back; the opposite intent does that, where there is one.
- What a device has done already is not asked of it again, whoever asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from wavemesh.errors import ConflictError
from wavemesh.policy.gates import Gate
from wavemesh.trust.statements import IntentKind, UpdateState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from wavemesh.trust.statements import DeviceStatus, OperatorIntent


class IntentAppliedError(ConflictError):
    """An intent was acted on, so it cannot be taken back; the message names what undoes it."""

    reason = "INTENT_APPLIED"


class Waiting(Protocol):
    """What of an intent's record a queue is made of."""

    @property
    def intent_id(self) -> str:
        """Its id."""

    @property
    def received_at(self) -> datetime:
        """When the node took it."""

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """Whom it waits for, by path."""


_INSTEAD: Mapping[IntentKind, str] = {
    IntentKind.START_WAVE: "`edgectl wave pause --wave {wave} --reason WHY` stops it for now, `wave halt` for ever",
    IntentKind.PAUSE_WAVE: "`edgectl wave resume --wave {wave}` lifts your pause",
    IntentKind.RESUME_WAVE: "`edgectl wave pause --wave {wave} --reason WHY` pauses it again",
    IntentKind.HALT_WAVE: "a halt is for ever: plan a new wave with `edgectl wave plan`",
    IntentKind.ROLLBACK_DEVICE: "the device has it: a new wave updates it again",
    IntentKind.APPROVE_ROLLBACK: "the device has it: a new wave updates it again",
    IntentKind.REHEARSE_DEVICE: "a rehearsal changes nothing, so there is nothing to undo",
    IntentKind.PREFETCH: "what is cached is evicted when it is not needed any more",
    IntentKind.OVERRIDE_HOLD_AGE: "bring the store's WAN back: a fresh hold list ends the override",
}


def place_in_queue(one: Waiting, others: Iterable[Waiting]) -> int:
    """The place of an intent, from 1, among the others that wait for the first node it waits for; 0 if for none."""
    if not one.waiting_for:
        return 0
    first, rank = one.waiting_for[0], (one.received_at, one.intent_id)
    return 1 + sum(first in other.waiting_for and (other.received_at, other.intent_id) < rank for other in others)


def why_done(intent: OperatorIntent, status: DeviceStatus | None) -> str:
    """Why there is nothing to do for an intent about one device, by its last status; empty when there may be."""
    if status is None:
        return ""
    name, is_back = status.device.rsplit("/", 1)[-1], status.state is UpdateState.ROLLED_BACK
    # One that names an earlier wave is a second rollback: the device leaves what it returned to as well.
    is_same = intent.wave_id in {"", status.wave_id}
    if intent.kind is IntentKind.ROLLBACK_DEVICE and is_back and is_same and status.gate == Gate.OPERATOR.value:
        return f"{name} is back on its previous slot already"
    about = (intent.wave_id, intent.attempt)
    if intent.kind is IntentKind.APPROVE_ROLLBACK and is_back and about == (status.wave_id, status.attempt):
        return f"{name} rolled attempt {status.attempt} back already"
    return ""


def refuse_applied(intent_id: str, kind: IntentKind, wave_id: str, what: str) -> IntentAppliedError:
    """The refusal to take back an intent of which ``what`` says how far it got."""
    instead = _INSTEAD[kind].format(wave=wave_id or "WAVE")
    return IntentAppliedError(f"intent {intent_id} cannot be cancelled: {what}; {instead}", intent=intent_id)
