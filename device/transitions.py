"""The few steps that both tables of the machine are made of. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from device.progress import Disarm, Effect, Event, Outcome, Persist, Progress, Reboot, Step
from wavemesh.trust.statements import OutcomeKind, UpdateState

S = UpdateState


def stay(progress: Progress, _event: Event) -> Step:
    """Nothing happens."""
    return Step(progress)


def to(progress: Progress, state: UpdateState, *effects: Effect, **changes: Any) -> Step:
    """Go to a state: forget the gate unless it is given, persist, then the other effects."""
    outcome = changes.pop("outcome", None)
    changes = {"gate": "", "evidence": "", "observed": "", "required": "", **changes}
    return Step(replace(progress, state=state, **changes), (Persist(outcome), *effects))


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
        outcome=Outcome(OutcomeKind.UPDATED),
    )
