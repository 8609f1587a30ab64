"""The device's update machine, as tables. Pure: a progress and an event give a progress and ordered effects.

Theory. The boot environment is the only truth of commit; ``Progress`` is intent and memory. Every transition persists
first and acts afterwards, and every act is safe to repeat, so a power cut between any two of them leaves a pair
(progress, boot environment) that ``Started`` brings back on the path:

    IDLE ─Ordered→ PREFLIGHT ─GatesPassed→ STAGING ─Staged→ VERIFIED ─Cleared→ ARMED ─(reboot)→ TRIAL ─Healthy→
    COMMITTING ─CommitRead→ COMMITTED
    STAGING ⇄ PAUSED; anything before ARMED ─GateRefused→ REFUSED ─RecheckDue→ PREFLIGHT (transient gates only)
    ARMED, TRIAL, COMMITTING ─any failure→ ROLLING_BACK ─(reboot)→ ROLLED_BACK, or STAGING again if inconclusive
    COMMITTED ─RollbackAsked→ ROLLING_BACK ─ReturnVerified→ (try-once of the old slot) ─CommitRead→ ROLLED_BACK
                              ROLLING_BACK ─ReturnRefused, or the old slot fell back→ COMMITTED
    supervised: TRIAL ─failure→ AWAITING_SIGNOFF, left only by SignedOff or by a slot that cannot boot

Rules. An attempt is burned (persisted as ARMED with its number) before try-once is set; try-once and the reboot are the
last two acts. A rollback is reported only from the slot it returned to, with the one gate that caused it. One after the
commit is a trial itself: the old slot is read back, tried once, and made active by the agent that runs there; should it
not get that far, the bootloader returns to the slot that was left. What happens while the machine is in a state is
decided by the state alone (``ACTIVITY``); the shell stops one activity before it begins the next. Every (state, event)
and every (state, position) has an entry: ``stay`` where nothing shall happen.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from device.progress import (
    Arm,
    Asker,
    Cleared,
    CommitBoot,
    CommitRead,
    Declined,
    Disarm,
    Event,
    GateRefused,
    GatesPassed,
    Halted,
    Healthy,
    KeepTrying,
    Obstructed,
    Ordered,
    Outcome,
    Persist,
    Progress,
    Reboot,
    RecheckDue,
    ReturnRefused,
    ReturnVerified,
    RollbackAsked,
    SecondRollbackAsked,
    SignedOff,
    SignoffBegan,
    SignoffOverdue,
    Staged,
    Started,
    Step,
    Unhealthy,
    Unobstructed,
    Withdrawn,
)
from device.recovery import finish, start
from device.transitions import committed, fresh, roll_back, said_by_gate, stay, stay_put, to
from wavemesh.policy.gates import parse_gate
from wavemesh.trust.statements import OutcomeKind, UpdateState

if TYPE_CHECKING:
    from device.bootenv import Boot

S = UpdateState


class Activity(enum.Enum):
    """What the shell does for as long as the machine is in a state."""

    NOTHING = "nothing"
    PREFLIGHT = "preflight"
    STAGE = "stage"
    WAIT_FOR_GATE = "wait-for-gate"
    CLEAR = "clear"
    TRIAL = "trial"
    COUNT_SIGNOFF = "count-signoff"
    READ_BACK = "read-back"
    RECHECK = "recheck"


ACTIVITY: Mapping[UpdateState, Activity] = {
    S.IDLE: Activity.NOTHING,
    S.PREFLIGHT: Activity.PREFLIGHT,
    S.STAGING: Activity.STAGE,
    S.PAUSED: Activity.WAIT_FOR_GATE,
    S.VERIFIED: Activity.CLEAR,
    S.ARMED: Activity.NOTHING,
    S.TRIAL: Activity.TRIAL,
    S.COMMITTING: Activity.NOTHING,
    S.COMMITTED: Activity.NOTHING,
    S.ROLLING_BACK: Activity.READ_BACK,
    S.ROLLED_BACK: Activity.NOTHING,
    S.AWAITING_SIGNOFF: Activity.COUNT_SIGNOFF,
    S.REFUSED: Activity.RECHECK,
}

BEFORE_ARM = frozenset({S.PREFLIGHT, S.STAGING, S.PAUSED, S.VERIFIED})
IN_SWAP = frozenset({S.ARMED, S.TRIAL, S.COMMITTING, S.ROLLING_BACK, S.AWAITING_SIGNOFF})


def is_transient(gate: str) -> bool:
    """Whether a gate ("peripheral:scanner") may pass later within the wave."""
    return parse_gate(gate).gate.is_transient if gate else False


def advance(progress: Progress, event: Event) -> Step:
    """The machine: where an event leads, and what to do in which order."""
    return TRANSITIONS[progress.state][type(event)](progress, event)


# --- rules of (state, event) -----------------------------------------------------------------------------------------


def _reconsider(progress: Progress, event: Ordered) -> Step:
    """REFUSED: a new generation of the same order does not lift what the device itself refused."""
    if progress.target is not None and progress.target.same_bytes(event.target):
        return Step(replace(progress, target=event.target))
    return _accept(progress, event)


def _accept(progress: Progress, event: Ordered) -> Step:
    """Take up a wave; the one that just ended is not taken up again (the shell offers only unfinished waves)."""
    if event.target == progress.target:
        return Step(progress)
    taken_up = fresh(progress, wave_id=event.target.wave_id, target=event.target, attempt=event.burned)
    return to(taken_up, S.PREFLIGHT)


def _renew(progress: Progress, event: Ordered) -> Step:
    """The order changed under way: go on if it is the same work, else start over."""
    if progress.target is None or not progress.target.same_bytes(event.target):
        return _accept(progress, event)
    if progress.target == event.target:
        return Step(progress)
    return Step(replace(progress, target=event.target), (Persist(),))


def _drop(progress: Progress, _event: Event) -> Step:
    return to(fresh(progress), S.IDLE)


def _pass(progress: Progress, _event: GatesPassed) -> Step:
    return to(progress, S.STAGING)


def _refuse(progress: Progress, event: GateRefused) -> Step:
    """REFUSED, reported; the shell leaves out a word that it has said already."""
    return to(
        progress,
        S.REFUSED,
        **said_by_gate(event),
        verdict=OutcomeKind.REFUSED,
        outcome=Outcome(OutcomeKind.REFUSED, **said_by_gate(event)),
    )


def _decline(progress: Progress, event: Declined) -> Step:
    """REFUSED before or under way; what is staged stays, should the gate pass later."""
    if progress.state is S.REFUSED and (progress.wave_id, progress.gate) == (event.wave_id, event.gate):
        return Step(progress)
    if event.wave_id != progress.wave_id:
        progress = fresh(progress, wave_id=event.wave_id, attempt=event.burned)
    return _refuse(progress, GateRefused(event.gate, event.evidence, event.observed, event.required))


def _halt_before_arm(progress: Progress, event: Halted) -> Step:
    if progress.state is S.REFUSED and not is_transient(progress.gate):
        return Step(progress)
    return _refuse(progress, GateRefused("halted", event.evidence, "halted", "running"))


def _pause_writing(progress: Progress, event: Obstructed) -> Step:
    return to(
        progress,
        S.PAUSED,
        **said_by_gate(event),
    )


def _note_obstacle(progress: Progress, event: Obstructed) -> Step:
    """VERIFIED and PAUSED stay what they are; the gate is shown, nothing durable depends on it."""
    return Step(
        replace(
            progress,
            **said_by_gate(event),
        )
    )


def _resume_writing(progress: Progress, _event: Unobstructed) -> Step:
    return to(progress, S.STAGING)


def _clear_obstacle(progress: Progress, _event: Unobstructed) -> Step:
    return Step(replace(progress, gate="", evidence="", observed="", required=""))


def _verified(progress: Progress, _event: Staged) -> Step:
    return to(progress, S.VERIFIED)


def _arm(progress: Progress, event: Cleared) -> Step:
    """Burn, try once, reboot. An attempt that was burned before is not burned again."""
    if progress.target is None or event.attempt != progress.attempt + 1:
        return Step(progress)
    return to(
        progress,
        S.ARMED,
        Arm(progress.target.boot),
        Reboot(),
        attempt=event.attempt,
        lease_expires_at=event.lease_expires_at,
        lease_id=event.lease_id,
        permit_generation=event.permit_generation,
        verdict=OutcomeKind.PENDING,
    )


def _commit(progress: Progress, _event: Healthy) -> Step:
    return to(progress, S.COMMITTING, CommitBoot())


def _confirm(progress: Progress, event: CommitRead) -> Step:
    """COMMITTED only if the environment says so after it was read back."""
    if progress.target is not None and event.environment.active == progress.target.boot:
        return committed(progress)
    return roll_back(progress, "boot-probe", "the boot environment did not take the commit", OutcomeKind.ROLLED_BACK)


def _fail(progress: Progress, event: Unhealthy) -> Step:
    if progress.target is not None and progress.target.rules.supervised:
        return to(
            progress,
            S.AWAITING_SIGNOFF,
            KeepTrying(),
            **said_by_gate(event),
            verdict=event.verdict,
            awaiting_since=None,
        )
    compared = {"observed": event.observed, "required": event.required}
    return roll_back(progress, event.gate, event.evidence, event.verdict, **compared)


def _halt_trial(progress: Progress, event: Halted) -> Step:
    return _fail(progress, Unhealthy("halted", event.evidence, OutcomeKind.INCONCLUSIVE, "halted", "running"))


def _operator_from_trial(progress: Progress, event: RollbackAsked) -> Step:
    if _lacks_signature(progress, event):
        return Step(progress)
    target = progress.target
    if target is not None and event.environment.active == target.boot:
        return _operator_after_commit(progress, event)
    asked = replace(progress, intent_id=event.intent_id)
    return roll_back(asked, "operator", event.evidence, OutcomeKind.ROLLED_BACK)


def _operator_before_arm(progress: Progress, event: RollbackAsked) -> Step:
    """Nothing of the new slot runs: staying where it is is the rollback, and the wave leaves the device alone."""
    evidence = f"{event.evidence} (nothing was swapped yet)"
    return to(
        progress,
        S.ROLLED_BACK,
        Disarm(),
        gate="operator",
        evidence=evidence,
        verdict=OutcomeKind.ROLLED_BACK,
        intent_id=event.intent_id,
        outcome=Outcome(OutcomeKind.ROLLED_BACK, "operator", evidence),
    )


def _operator_after_commit(progress: Progress, event: RollbackAsked) -> Step:
    """What is gone back to is read back first: nothing but that has been done when this is durable."""
    return_to = event.environment.previous or event.packed
    if return_to is None or _lacks_signature(progress, event):
        return Step(progress)
    return _return(progress, event, return_to)


def _second_rollback(progress: Progress, event: SecondRollbackAsked) -> Step:
    """The wave that the device rolled back is over for it: what it leaves now, an earlier one installed."""
    if _lacks_signature(progress, event):
        return Step(progress)
    return _return(fresh(progress), event, event.packed)


def _return(progress: Progress, event: RollbackAsked | SecondRollbackAsked, return_to: Boot) -> Step:
    return to(
        progress,
        S.ROLLING_BACK,
        gate="operator",
        evidence=event.evidence,
        verdict=OutcomeKind.ROLLED_BACK,
        return_to=return_to,
        returns=0,
        intent_id=event.intent_id,
    )


def _lacks_signature(progress: Progress, event: RollbackAsked | SecondRollbackAsked) -> bool:
    return event.asker is Asker.LOCAL and progress.leaves_signed_only


def _try_return(progress: Progress, _event: ReturnVerified) -> Step:
    """Count the try, try once, reboot."""
    if progress.return_to is None:
        return Step(progress)
    return to(
        progress,
        S.ROLLING_BACK,
        Arm(progress.return_to),
        Reboot(),
        gate=progress.gate,
        evidence=progress.evidence,
        returns=progress.returns + 1,
    )


def _refuse_return(progress: Progress, event: ReturnRefused) -> Step:
    return stay_put(progress, event.environment.active, event.evidence)


def _confirm_return(progress: Progress, event: CommitRead) -> Step:
    """ROLLED_BACK only if the environment says so; else leave the slot again, as a commit that did not take."""
    if event.environment.active == progress.return_to:
        return finish(progress)
    return Step(progress, (Disarm(), Reboot()))


def _sign_off(progress: Progress, event: SignedOff) -> Step:
    """A human agreed: the trial ends by the gate that failed it."""
    overdue = progress.verdict is OutcomeKind.FAILED
    verdict = OutcomeKind.ROLLED_BACK if overdue else progress.verdict
    signed = replace(progress, intent_id=event.intent_id)
    compared = {"observed": progress.observed, "required": progress.required}
    return roll_back(signed, progress.gate, f"{progress.evidence}; {event.evidence}", verdict, **compared)


def _note_wait(progress: Progress, event: SignoffBegan) -> Step:
    return Step(replace(progress, awaiting_since=event.at), (Persist(),))


def _overdue(progress: Progress, _event: SignoffOverdue) -> Step:
    """FAILED is reported once; the slot stays as it is."""
    if progress.verdict is OutcomeKind.FAILED:
        return Step(progress)
    return to(
        progress,
        S.AWAITING_SIGNOFF,
        **said_by_gate(progress),
        verdict=OutcomeKind.FAILED,
        outcome=Outcome(OutcomeKind.FAILED, **said_by_gate(progress)),
    )


def _recheck(progress: Progress, _event: RecheckDue) -> Step:
    """Look again; an order that was declined as such is judged again by the shell instead."""
    again = progress.target is not None and is_transient(progress.gate)
    return to(progress, S.PREFLIGHT) if again else Step(progress)


Rule = Callable[[Progress, Any], Step]


def _table(rows: Mapping[UpdateState, Mapping[type, Rule]]) -> Mapping[UpdateState, Mapping[type, Rule]]:
    """Fill every hole with ``stay``: an event that a state does not name changes nothing there."""
    events: tuple[type, ...] = Event.__args__
    return {state: {**dict.fromkeys(events, stay), Started: start, **rows[state]} for state in UpdateState}


_ENDED: Mapping[type, Rule] = {Ordered: _accept, Declined: _decline, Withdrawn: _drop}

TRANSITIONS: Mapping[UpdateState, Mapping[type, Rule]] = _table(
    {
        S.IDLE: {Ordered: _accept, Declined: _decline, RollbackAsked: _operator_after_commit},
        S.PREFLIGHT: {
            Ordered: _renew,
            Declined: _decline,
            Withdrawn: _drop,
            Halted: _halt_before_arm,
            GatesPassed: _pass,
            GateRefused: _refuse,
            RollbackAsked: _operator_before_arm,
        },
        S.STAGING: {
            Ordered: _renew,
            Declined: _decline,
            Withdrawn: _drop,
            Halted: _halt_before_arm,
            GateRefused: _refuse,
            Obstructed: _pause_writing,
            Staged: _verified,
            RollbackAsked: _operator_before_arm,
        },
        S.PAUSED: {
            Ordered: _renew,
            Declined: _decline,
            Withdrawn: _drop,
            Halted: _halt_before_arm,
            GateRefused: _refuse,
            Obstructed: _note_obstacle,
            Unobstructed: _resume_writing,
            RollbackAsked: _operator_before_arm,
        },
        S.VERIFIED: {
            Ordered: _renew,
            Declined: _decline,
            Withdrawn: _drop,
            Halted: _halt_before_arm,
            GateRefused: _refuse,
            Obstructed: _note_obstacle,
            Unobstructed: _clear_obstacle,
            Cleared: _arm,
            RollbackAsked: _operator_before_arm,
        },
        S.ARMED: {RollbackAsked: _operator_before_arm},
        S.TRIAL: {
            Halted: _halt_trial,
            Healthy: _commit,
            Unhealthy: _fail,
            RollbackAsked: _operator_from_trial,
        },
        S.COMMITTING: {CommitRead: _confirm, RollbackAsked: _operator_from_trial},
        S.COMMITTED: {**_ENDED, RollbackAsked: _operator_after_commit},
        S.ROLLING_BACK: {ReturnVerified: _try_return, ReturnRefused: _refuse_return, CommitRead: _confirm_return},
        S.ROLLED_BACK: {**_ENDED, SecondRollbackAsked: _second_rollback},
        S.AWAITING_SIGNOFF: {SignedOff: _sign_off, SignoffBegan: _note_wait, SignoffOverdue: _overdue},
        S.REFUSED: {
            **_ENDED,
            Ordered: _reconsider,
            Halted: _halt_before_arm,
            RecheckDue: _recheck,
            RollbackAsked: _operator_before_arm,
        },
    }
)
