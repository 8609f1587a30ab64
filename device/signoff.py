"""What comes of a rollback that somebody asks for, and of an approval. Pure.

Rules (semantics, "Health", "Trust"). A signed rollback is acted on wherever there is something to go back to. In
supervised mode the wait for a sign-off ends by an approval alone: it names the wave and the attempt, so that an old one
signs off no later trial, and a rollback that was asked for before the failure and delivered late signs off nothing.
Whoever stands before a supervised device has no signature, and is sent to an operator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from device.progress import Asker, Progress, RollbackAsked, SecondRollbackAsked, Step
from device.update import advance
from wavemesh.trust.statements import UpdateState

if TYPE_CHECKING:
    from datetime import datetime

    from wavemesh.trust.statements import OperatorIntent

S = UpdateState
_RETURNED = frozenset({S.ROLLING_BACK, S.ROLLED_BACK})


def why_no_rollback(progress: Progress, asked: RollbackAsked | SecondRollbackAsked, device: str) -> str:
    """Why nothing will come of it, empty if something will."""
    if advance(progress, asked) != Step(progress):
        return ""
    if progress.state is S.AWAITING_SIGNOFF:
        return (
            f"supervised: attempt {progress.attempt} of wave {progress.wave_id} failed at {progress.gate} and waits for"
            f" its approval: edgectl device approve-rollback --id {device} --wave {progress.wave_id} --reason WHY"
        )
    if asked.asker is Asker.LOCAL and progress.leaves_signed_only:
        return (
            "supervised: what runs is left by an operator's signed word alone:"
            f" edgectl device rollback --id {device} --reason WHY"
        )
    if progress.state in _RETURNED:
        way = "is on its way back" if progress.state is S.ROLLING_BACK else "has rolled back"
        return f"the device {way} already{f' from wave {progress.wave_id}' if progress.wave_id else ''}"
    if isinstance(asked, SecondRollbackAsked):
        return f"a second rollback follows a first one; the device is {progress.state.name}"
    return "there is no previous slot to go back to"


def remaining_s(progress: Progress, now: datetime, maximum_s: float) -> float:
    """Seconds until a wait for a sign-off is overdue. It runs on across boots; a clock that jumped never adds to it."""
    waited_s = 0.0 if progress.awaiting_since is None else (now - progress.awaiting_since).total_seconds()
    return min(max(maximum_s - waited_s, 0.0), maximum_s)


def why_not_approved(progress: Progress, intent: OperatorIntent) -> str:
    """Why an approval is for nothing, empty if it signs off what waits."""
    about = (intent.wave_id, intent.attempt)
    named = f"attempt {intent.attempt} of wave {intent.wave_id}"
    if progress.state is not S.AWAITING_SIGNOFF:
        if progress.state in _RETURNED and about == (progress.wave_id, progress.attempt):
            return f"{named} is rolled back already"
        return f"it approves {named}; nothing waits for a sign-off here: the device is {progress.state.name}"
    if about != (progress.wave_id, progress.attempt):
        return f"it approves {named}; what waits is attempt {progress.attempt} of wave {progress.wave_id}"
    return ""
