"""What the machine does after a start: the pair (progress, boot environment) brought back on the path. Pure.

Theory. A start finds the device in one of five *positions*, told by the running boot and the environment alone. With
the persisted state that decides everything, whatever happened in between: an agent that crashed, a power cut between
any two steps, a bootloader that fell back. The environment outranks the progress: TRIAL with the target active means
committed. A state that a position does not name keeps still; where that would leave a trial unaccounted for, the
position's default ends the trial.

A rollback after the commit (ROLLING_BACK with ``return_to``) is a trial of the old slot: running there on trial, the
agent makes it active; back on the slot it left, it starts over after a power cut, ``RETURN_TRIES`` times in all, and
stays after anything else. A trial of what the environment names as previous is such a rollback even without a record.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from device.bootenv import Boot, ResetReason
from device.progress import Disarm, KeepTrying, Notice, Outcome, Persist, Progress, Reboot, Revert, Started, Step
from device.transitions import committed, fresh, roll_back, said_by_gate, stay, stay_put, to
from wavemesh.trust.statements import ROLLBACK_DONE, OutcomeKind, UpdateState

S = UpdateState
RETURN_TRIES = 3

# Resets in a row that did not bring the boot which the environment wants.
MAX_STRAYS = 3

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
    if where is not Position.STRAY:
        progress = replace(progress, strays=0)
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


def _unknown_trial(progress: Progress, event: Started) -> Step:
    """A trial that the agent has no record of: its attempt cannot be accounted for, so it must not commit.

    Only a rollback tries the previous boot, and that one is good: it is made active although the disk kept no record.
    """
    if event.record.boot == event.environment.previous:
        return to(
            progress,
            S.ROLLING_BACK,
            Revert(),
            gate="operator",
            evidence="a rollback of which there is no record",
            verdict=OutcomeKind.ROLLED_BACK,
            return_to=event.record.boot,
        )
    return roll_back(progress, "permit", "no record of the attempt that booted this slot", OutcomeKind.ROLLED_BACK)


def _go_back_again(progress: Progress, event: Started) -> Step:
    """Still on the trial that is left; or on the slot gone back to, and the agent that runs there is all it takes."""
    if progress.return_to == event.record.boot:
        return Step(progress, (Revert(),))
    return Step(progress, (Disarm(), Reboot()))


def _fell_back(progress: Progress, event: Started) -> Step:
    """The board ended the trial: a proven power loss is inconclusive, anything else is the release's fault."""
    reason = _ended_by(event)
    if reason is ResetReason.POWER_LOSS:
        failed = replace(progress, verdict=OutcomeKind.INCONCLUSIVE, gate="power-loss")
    else:
        failed = replace(progress, verdict=OutcomeKind.ROLLED_BACK, gate="watchdog")
    evidence = f"the trial of attempt {progress.attempt} ended by {reason.value}"
    return finish(replace(failed, evidence=evidence, observed=f"reset: {reason.value}", required="a commit"))


def _ended_by(event: Started) -> ResetReason:
    trial = event.environment.trial
    return event.record.reset_reason if trial is None else trial.end(event.record.reset_reason)


def _back(progress: Progress, _event: Started) -> Step:
    return finish(progress)


def _fell_back_unsigned(progress: Progress, event: Started) -> Step:
    """Nobody signed off, but the bootloader asks nobody either: the new slot does not boot any more."""
    evidence = f"{progress.evidence}; the slot did not boot again ({_ended_by(event).value}) and fell back unsigned"
    return finish(replace(progress, evidence=evidence))


def finish(progress: Progress) -> Step:
    """Back on the old slot: report why, and try again if that proved nothing about the release."""
    progress = replace(progress, return_to=None, returns=0, awaiting_since=None)
    if progress.target is None:
        notice = Notice(ROLLBACK_DONE, progress.gate, progress.intent_id, progress.evidence)
        return to(fresh(progress), S.IDLE, Disarm(), notice=notice)
    verdict = OutcomeKind.ROLLED_BACK if progress.verdict is OutcomeKind.FAILED else progress.verdict
    outcome = Outcome(verdict, **said_by_gate(progress))
    if verdict is OutcomeKind.INCONCLUSIVE and progress.gate not in _NO_RETRY:
        return to(progress, S.STAGING, Disarm(), verdict=verdict, outcome=outcome)
    return to(
        progress,
        S.ROLLED_BACK,
        Disarm(),
        **said_by_gate(progress),
        verdict=verdict,
        outcome=outcome,
    )


def _settled_while_returning(progress: Progress, event: Started) -> Step:
    """ROLLING_BACK with nothing on trial: back already, or a power cut came before the old slot was on trial."""
    if progress.return_to in {None, event.record.boot}:
        return finish(progress)
    return _return_once_more(progress, event, "did not become the active slot")


def _fell_back_while_returning(progress: Progress, event: Started) -> Step:
    """The old slot did not reach the agent: only a proven power loss is worth another try."""
    if progress.return_to is None:
        return finish(progress)
    reason = _ended_by(event)
    if reason is ResetReason.POWER_LOSS:
        return _return_once_more(progress, event, "lost power each time")
    why = f"slot {progress.return_to.slot.value} did not reach the agent ({reason.value}); it falls back by itself"
    return stay_put(progress, event.environment.active, why)


def _return_once_more(progress: Progress, event: Started, what: str) -> Step:
    """The activity of ROLLING_BACK starts over, unless that was tried often enough."""
    if progress.return_to is None or progress.returns < RETURN_TRIES:
        return Step(progress, (Disarm(),))
    why = f"slot {progress.return_to.slot.value} was tried {progress.returns} times and {what}"
    return stay_put(progress, event.environment.active, why)


def _reset_or_back(progress: Progress, _event: Started) -> Step:
    """Try-once is set and was not used: for a rollback after the commit only the reset is missing."""
    return finish(progress) if progress.return_to is None else Step(progress, (Reboot(),))


def _went_back(progress: Progress, event: Started) -> Step:
    """COMMITTED, but the environment went back since: a rollback whose record the disk did not take."""
    if progress.target is None or event.environment.active == progress.target.boot:
        return Step(progress)
    evidence = "the boot environment went back; there is no record of who asked"
    return finish(replace(progress, gate="operator", evidence=evidence, verdict=OutcomeKind.ROLLED_BACK))


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
    return Step(replace(progress, strays=progress.strays + 1), (Persist(), Reboot()))


def ignored_by_bootloader(progress: Progress, event: Started) -> str:
    """Why no further reset will bring the wanted boot, empty while one may."""
    if position(event.record.boot, event) is not Position.STRAY or progress.strays < MAX_STRAYS:
        return ""
    runs, wants = event.record.boot, event.environment.active
    return (
        f"slot {runs.slot.value} with config {runs.config_generation} was booted {MAX_STRAYS + 1} times, the boot"
        f" environment wants slot {wants.slot.value} with config {wants.config_generation}: the bootloader does not"
        " go by it. Correct its script or its command line; until then the agent does not start, and nothing is updated"
    )


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
        S.COMMITTED: _went_back,
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
        S.AWAITING_SIGNOFF: _fell_back_unsigned,
        S.ROLLING_BACK: _fell_back_while_returning,
    },
    Position.NOT_TRIED: {
        S.STAGING: _disarm_and_restage,
        S.PAUSED: _disarm_and_restage,
        S.VERIFIED: _disarm_and_restage,
        S.ARMED: _disarm_and_restage,
        S.ROLLING_BACK: _reset_or_back,
    },
    Position.STRAY: {},
}
