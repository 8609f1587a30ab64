"""The few steps that both tables of the machine are made of. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from device.progress import (
    Disarm,
    Effect,
    Event,
    GateRefused,
    Notice,
    Obstructed,
    Outcome,
    Persist,
    Progress,
    Reboot,
    Step,
    Unhealthy,
)
from wavemesh.replacement import replaced
from wavemesh.trust.statements import ROLLBACK_FAILED, OutcomeKind, UpdateState

if TYPE_CHECKING:
    from device.bootenv import Boot

S = UpdateState


def stay(progress: Progress, _event: Event) -> Step:
    """Nothing happens."""
    return Step(progress)


def to(progress: Progress, state: UpdateState, *effects: Effect, **changes: Any) -> Step:
    """Go to a state: forget the gate unless it is given, persist, then the other effects."""
    outcome, notice = changes.pop("outcome", None), changes.pop("notice", None)
    changes = {"gate": "", "evidence": "", "observed": "", "required": "", **changes}
    return Step(replaced(progress, state=state, **changes), (Persist(outcome, notice), *effects))


def said_by_gate(said: Progress | GateRefused | Obstructed | Unhealthy) -> dict[str, Any]:
    """A gate's name and words, to be carried on into a progress or an outcome."""
    return {"gate": said.gate, "evidence": said.evidence, "observed": said.observed, "required": said.required}


def fresh(progress: Progress, **changes: Any) -> Progress:
    """Nothing under way; what holds beyond a wave is kept."""
    return Progress(intent_id=progress.intent_id, supervised=progress.supervised, **changes)


def roll_back(progress: Progress, gate: str, evidence: str, verdict: OutcomeKind, **compared: str) -> Step:
    """Leave the trial: by itself the environment boots the old slot again. ``compared``: observed and required."""
    return to(progress, S.ROLLING_BACK, Disarm(), Reboot(), gate=gate, evidence=evidence, verdict=verdict, **compared)


def committed(progress: Progress) -> Step:
    """The environment says that the target is the active boot."""
    return to(
        progress,
        S.COMMITTED,
        verdict=OutcomeKind.UPDATED,
        return_to=None,
        supervised=progress.target is not None and progress.target.rules.supervised,
        outcome=Outcome(OutcomeKind.UPDATED),
    )


def stay_put(progress: Progress, active: Boot, why: str) -> Step:
    """The way back is barred: the device runs on where it is, and says why to whoever asked."""
    notice = Notice(ROLLBACK_FAILED, "operator", progress.intent_id, why)
    evidence = f"rollback failed: {why}"
    if progress.target is None:
        return to(fresh(progress), S.IDLE, Disarm(), evidence=evidence, notice=notice)
    settled = replaced(progress, return_to=None, returns=0)
    if progress.target.boot != active:
        return to(settled, S.ROLLED_BACK, Disarm(), gate=progress.gate, evidence=evidence, notice=notice)
    return to(
        settled,
        S.COMMITTED,
        Disarm(),
        evidence=evidence,
        verdict=OutcomeKind.UPDATED,
        outcome=Outcome(OutcomeKind.UPDATED),
        notice=notice,
    )
