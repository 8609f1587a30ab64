"""Decides whether a wave may lease at this hub now, and which word its trials are told.

A wave is LIVE when its order says RUNNING, has not expired, names a policy that is held and verified and a hold epoch
that is reached, and nothing local stands against it. Checks run from the gravest to the most passing, so the one gate
shown is the one to act on. Pauses are kept per origin, control's in the order and this hub's beside it; none may be in
force. A halt is for ever, a local one included: it stays in force here until control closes the wave.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from wavemesh.errors import GateError
from wavemesh.policy.gates import Gate
from wavemesh.trust.freshness import check_not_expired
from wavemesh.trust.holds import check_hold_view, check_not_held
from wavemesh.trust.statements import WaveState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from zoneinfo import ZoneInfo

    from wavemesh.policy.document import Policy
    from wavemesh.trust.metadata import TrustedMetadata
    from wavemesh.trust.statements import HoldList, WaveOrder


class Standing(enum.Enum):
    """Where a wave stands at this hub."""

    LIVE = "live"
    WAITING = "waiting"
    PAUSED = "paused"
    HALTED = "halted"
    CLOSED = "closed"


class PauseEffect(enum.Enum):
    """What a local pause does."""

    PAUSE = "pause"
    HALT = "halt"


@dataclass(frozen=True, slots=True)
class PauseHere:
    """A pause or halt of one origin, given at this hub; by which intent, unless the hub paused by itself."""

    wave_id: str
    origin: str
    reason: str
    effect: PauseEffect
    intent_id: str = ""


@dataclass(frozen=True, slots=True)
class WaveStanding:
    """Where a wave stands, by which gate, and for people why; the gate is empty when it is live."""

    standing: Standing
    gate: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a wave is judged against. ``clock_gate`` says why time is not trusted, empty when it is."""

    now: datetime
    zone: ZoneInfo
    trusted: TrustedMetadata | None
    policy: Policy | None
    holds: HoldList | None
    pauses: Sequence[PauseHere]
    clock_gate: str = ""


def standing_of(order: WaveOrder, around: Surroundings) -> WaveStanding:
    """Where the wave of that order stands; ``pauses`` may hold those of other waves too."""
    mine = [pause for pause in around.pauses if pause.wave_id == order.wave_id]
    halts = [pause for pause in mine if pause.effect is PauseEffect.HALT]
    if order.state is WaveState.HALTED or halts:
        return WaveStanding(
            Standing.HALTED, "halted", _by([(p.origin, p.reason) for p in halts]) or "halted by control"
        )
    if order.state is WaveState.CLOSED:
        return WaveStanding(Standing.CLOSED, "", "closed by control")
    pauses = [(p.origin, p.reason) for p in order.pauses] + [(p.origin, p.reason) for p in mine]
    if order.state is WaveState.PAUSED or pauses:
        return WaveStanding(Standing.PAUSED, "", _by(pauses) or "paused by control")
    if order.state is not WaveState.RUNNING:
        return WaveStanding(Standing.WAITING, "", "planned, not started")
    try:
        _check_circumstances(order, around)
    except GateError as error:
        return WaveStanding(Standing.WAITING, error.gate, str(error))
    return WaveStanding(Standing.LIVE)


def _by(pauses: Sequence[tuple[str, str]]) -> str:
    return "; ".join(f"{origin}: {reason}" for origin, reason in sorted(set(pauses)))


def _check_circumstances(order: WaveOrder, around: Surroundings) -> None:
    """Raise the GateError that keeps a running wave from leasing for now."""
    now, policy = around.now, around.policy
    if around.clock_gate:
        raise GateError(Gate.CLOCK.value, around.clock_gate)
    check_not_expired(Gate.PERMIT, f"the order of wave {order.wave_id}", order.expires_at, now)
    if around.trusted is None or policy is None:
        missing = "trust metadata" if around.trusted is None else f"the policy {order.policy_digest}"
        raise GateError(Gate.SIGNATURE.value, f"{missing} is not held yet")
    release = around.trusted.require_release(order.release)
    check_hold_view(around.holds, now, timedelta(seconds=policy.guardrails.hold_max_age_s), order.least_hold_epoch)
    if around.holds is not None:
        check_not_held(release, around.holds)
    window = policy.windows.swap
    if window is not None and not window.contains(now, around.zone):
        raise GateError(Gate.WINDOW.value, f"outside the swap window {window}")
