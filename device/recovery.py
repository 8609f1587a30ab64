"""What the machine does after a start: the pair (progress, boot environment) brought back on the path. Pure.

Theory. A start finds the device in one of five *positions*, told by the running boot and the environment alone. With
the persisted state that decides everything, whatever happened in between: an agent that crashed, a power cut between
any two steps, a bootloader that fell back. The environment outranks the progress: TRIAL with the target active means
committed. A state that a position does not name keeps still; where that would leave a trial unaccounted for, the
position's default ends the trial.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from device.bootenv import Boot, ResetReason
from device.progress import Disarm, KeepTrying, Outcome, Progress, Reboot, Revert, Started, Step
from device.transitions import committed, roll_back, stay, to
from wavemesh.trust.statements import OutcomeKind, UpdateState

S = UpdateState

# Inconclusive gates after which the wave does not try again.
_NO_RETRY = frozenset({"halted"})


class Position(enum.Enum):
    """Where a boot stands to the boot environment."""

    SETTLED = "settled"  # the active boot runs, nothing is on trial
    ON_TRIAL = "on-trial"  # the boot on trial runs
    FELL_BACK = "fell-back"  # the active boot runs because the trial used up its tries
    NOT_TRIED = "not-tried"  # try-once is set, the board was not reset yet
    STRAY = "stray"  # another boot runs than the environment wants: only a reset is missing


def position(record_boot: Boot, event: Started) -> Position:
    """Where this boot stands."""
    environment = event.environment
    trial = environment.trial
    if trial is None:
        return Position.SETTLED if record_boot == environment.active else Position.STRAY
    if record_boot == trial.boot:
        return Position.ON_TRIAL
    if record_boot != environment.active:
        return Position.STRAY
    return Position.NOT_TRIED if trial.tries_left > 0 else Position.FELL_BACK


def start(progress: Progress, event: Started) -> Step:
    """The rule of this state at this position."""
    where = position(event.record.boot, event)
    return STARTS[where].get(progress.state, _DEFAULT_START[where])(progress, event)


def _begin_trial(progress: Progress, event: Started) -> Step:
    return to(progress, S.TRIAL, trial_boot_id=event.record.boot_id, trial_began_s=event.monotonic_s)


def _go_on_with_trial(progress: Progress, event: Started) -> Step:
    """The agent alone was restarted: the budget of this boot goes on. Another boot must not extend a trial."""
    if progress.trial_boot_id == event.record.boot_id:
        return to(progress, S.TRIAL)
    return roll_back(progress, "watchdog", "the trial slot was booted a second time", OutcomeKind.ROLLED_BACK)


def _go_on_waiting(progress: Progress, _event: Started) -> Step:
    return Step(progress, (KeepTrying(),))


def _unknown_trial(progress: Progress, _event: Started) -> Step:
    """A trial that the agent has no record of: its attempt cannot be accounted for, so it must not commit."""
    return roll_back(progress, "permit", "no record of the attempt that booted this slot", OutcomeKind.ROLLED_BACK)


def _go_back_again(progress: Progress, _event: Started) -> Step:
    return Step(progress, (Disarm(), Reboot()))


def _fell_back(progress: Progress, event: Started) -> Step:
    """The board ended the trial: a proven power loss is inconclusive, anything else is the release's fault."""
    trial = event.environment.trial
    reason = event.record.reset_reason if trial is None else trial.end(event.record.reset_reason)
    if reason is ResetReason.POWER_LOSS:
        failed = replace(progress, verdict=OutcomeKind.INCONCLUSIVE, gate="power-loss")
    else:
        failed = replace(progress, verdict=OutcomeKind.ROLLED_BACK, gate="watchdog")
    return _finish(replace(failed, evidence=f"the trial of attempt {progress.attempt} ended by {reason.value}"))


def _back(progress: Progress, _event: Started) -> Step:
    return _finish(progress)


def _finish(progress: Progress) -> Step:
    """Back on the old slot: report why, and try again if that proved nothing about the release."""
    if progress.target is None:
        return to(Progress(), S.IDLE, Disarm())
    verdict = OutcomeKind.ROLLED_BACK if progress.verdict is OutcomeKind.FAILED else progress.verdict
    outcome = Outcome(verdict, progress.gate, progress.evidence)
    if verdict is OutcomeKind.INCONCLUSIVE and progress.gate not in _NO_RETRY:
        return to(progress, S.STAGING, Disarm(), verdict=verdict, return_to=None, outcome=outcome)
    return to(
        progress,
        S.ROLLED_BACK,
        Disarm(),
        gate=progress.gate,
        evidence=progress.evidence,
        verdict=verdict,
        return_to=None,
        outcome=outcome,
    )


def _settled_while_returning(progress: Progress, event: Started) -> Step:
    """ROLLING_BACK with nothing on trial: back already, or the revert after a commit is still to be written."""
    if progress.return_to is not None and event.record.boot != progress.return_to:
        if event.environment.previous != progress.return_to:
            return to(progress, S.COMMITTED, return_to=None, verdict=OutcomeKind.UPDATED)
        return Step(progress, (Revert(), Reboot()))
    return _finish(progress)


def _settled_after_trial(progress: Progress, event: Started) -> Step:
    """TRIAL or COMMITTING with nothing on trial: the environment says whether it was committed."""
    if progress.target is not None and event.environment.active == progress.target.boot:
        return committed(progress)
    return _fell_back(progress, event)


def _settled_while_armed(progress: Progress, _event: Started) -> Step:
    """Burned, but try-once was never set: a burn without a trial boot."""
    return to(progress, S.STAGING)


def _disarm_and_restage(progress: Progress, _event: Started) -> Step:
    return to(progress, S.STAGING, Disarm())


def _restage(progress: Progress, _event: Started) -> Step:
    """What a slot held before a power cut is believed only after it was read again."""
    return to(progress, S.STAGING)


def _disarm(progress: Progress, _event: Started) -> Step:
    return Step(progress, (Disarm(),))


def _reset(progress: Progress, _event: Started) -> Step:
    return Step(progress, (Reboot(),))


Rule = Callable[[Progress, Any], Step]

_DEFAULT_START: Mapping[Position, Rule] = {
    Position.SETTLED: stay,
    Position.ON_TRIAL: _unknown_trial,
    Position.FELL_BACK: _disarm,
    Position.NOT_TRIED: _disarm,
    Position.STRAY: _reset,
}

STARTS: Mapping[Position, Mapping[UpdateState, Rule]] = {
    Position.SETTLED: {
        S.STAGING: _restage,
        S.PAUSED: _restage,
        S.VERIFIED: _restage,
        S.ARMED: _settled_while_armed,
        S.TRIAL: _settled_after_trial,
        S.COMMITTING: _settled_after_trial,
        S.AWAITING_SIGNOFF: _back,
        S.ROLLING_BACK: _settled_while_returning,
    },
    Position.ON_TRIAL: {
        S.ARMED: _begin_trial,
        S.TRIAL: _go_on_with_trial,
        S.COMMITTING: _go_on_with_trial,
        S.AWAITING_SIGNOFF: _go_on_waiting,
        S.ROLLING_BACK: _go_back_again,
    },
    Position.FELL_BACK: {
        S.STAGING: _disarm_and_restage,
        S.PAUSED: _disarm_and_restage,
        S.VERIFIED: _disarm_and_restage,
        S.ARMED: _fell_back,
        S.TRIAL: _fell_back,
        S.COMMITTING: _fell_back,
        S.AWAITING_SIGNOFF: _back,
        S.ROLLING_BACK: _back,
    },
    Position.NOT_TRIED: {
        S.STAGING: _disarm_and_restage,
        S.PAUSED: _disarm_and_restage,
        S.VERIFIED: _disarm_and_restage,
        S.ARMED: _disarm_and_restage,
        S.ROLLING_BACK: _back,
    },
    Position.STRAY: {},
}
