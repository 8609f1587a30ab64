"""What control's own word comes to, when a region shows it and control does not remember having said it (ADR 20). Pure.

Control was restored from a backup. Its regions hold what it signed since, and refuse what it signs now as replays. Each
number works as in a compare-and-swap: who comes with an older one is shown what is there, and says the next on top of
that. So nothing is lifted by a number alone, neither a halt nor a hold that control forgot.

Rules:
- Newer is what has a higher generation or epoch. A halt or a last word counts whatever its number.
- What an operator said to the restored control, after the word that is shown, stays: a pause since then, and any hold.
- A hold that was lifted after the backup comes back if control has signed its list since: that errs to the safe side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wavemesh.trust.statements import HoldList, Pause, WaveState

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from wavemesh.trust.statements import Hold, WaveOrder

_ENDED = frozenset({WaveState.HALTED, WaveState.CLOSED})


@dataclass(frozen=True, slots=True)
class PauseSince:
    """A pause as control has it."""

    origin: str
    reason: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Regained:
    """Where a wave stands after its order was shown: the number that the next order is above, state and pauses."""

    generation: int
    state: WaveState
    pauses: tuple[Pause, ...]


def wave_after(generation: int, state: WaveState, pauses: Sequence[PauseSince], shown: WaveOrder) -> Regained | None:
    """Where the wave stands; None when the order shown is no news. ``state`` is never PAUSED."""
    if state in _ENDED:
        return None
    if shown.state is WaveState.HALTED:
        return Regained(max(generation, shown.generation), WaveState.HALTED, shown.pauses)
    if shown.generation <= generation:
        return None
    said = {pause.origin for pause in shown.pauses}
    since = [Pause(one.origin, one.reason) for one in pauses if one.since > shown.issued_at and one.origin not in said]
    is_started = WaveState.RUNNING in {state, shown.state} or shown.state is WaveState.PAUSED
    return Regained(shown.generation, WaveState.RUNNING if is_started else WaveState.PLANNED, (*shown.pauses, *since))


def holds_after(own: HoldList, shown: HoldList, now: datetime) -> HoldList | None:
    """The list to sign, above both; None when the one shown is no news."""
    if shown.epoch < own.epoch or (shown.epoch == own.epoch and shown.holds == own.holds):
        return None
    if shown.epoch > own.epoch and own.issued_at <= shown.issued_at:
        holds = shown.holds
    else:
        holds = _both(own.holds, shown.holds)
    return HoldList(shown.epoch + 1, holds, now)


def _both(own: Iterable[Hold], shown: Iterable[Hold]) -> tuple[Hold, ...]:
    by_release = {one.release: one for one in (*shown, *own)}
    return tuple(by_release[name] for name in sorted(by_release))


def changed_releases(before: HoldList, after: HoldList) -> tuple[str, ...]:
    """Releases that are held by one of the lists and not by the other, by name."""
    return tuple(sorted({one.release for one in before.holds} ^ {one.release for one in after.holds}))


def ended_by(shown: WaveState) -> WaveState:
    """What a wave is recorded as whose last word is shown: it was halted, or closed in any other way."""
    return shown if shown in _ENDED else WaveState.CLOSED
