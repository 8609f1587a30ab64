"""Freshness, judged apart from authenticity: age of releases, expiry of orders and permits, and whose clock to trust.

A node keeps a *clock floor*: the latest time it has good reason to believe has passed. Time is trusted when the clock
is not below the floor and either comes from hardware that keeps it (a hub's default) or was confirmed by
control-signed time in this boot (semantics, "Permits and leases"). The floor only rises, and only by signed times or
by trusted clocks.
"""

from __future__ import annotations

import enum
from datetime import timedelta
from typing import TYPE_CHECKING

from wavemesh.errors import GateError
from wavemesh.policy.gates import Gate

if TYPE_CHECKING:
    from datetime import datetime

    from wavemesh.trust.releases import ReleaseManifest

RELEASE_MAX_AGE = timedelta(days=14)
CLOCK_SKEW = timedelta(minutes=5)
"""How far clocks of the mesh may be apart before one of them counts as wrong."""


class ClockSource(enum.Enum):
    """Why a clock may be believed."""

    HARDWARE = "hardware"
    CONFIRMED = "confirmed"
    UNCONFIRMED = "unconfirmed"


def check_release_age(release: ReleaseManifest, now: datetime, max_age: timedelta = RELEASE_MAX_AGE) -> None:
    """Raise GateError (freshness) if the release was signed too long ago, or in the future, to enter a region now."""
    age = now - release.signed_at
    if age > max_age:
        msg = (
            f"release {release.name} was signed {age.days} days ago; at most {max_age.days} are allowed: sign it again"
        )
        ages = {"observed": f"{age.days} days", "required": f"at most {max_age.days} days"}
        raise GateError(Gate.FRESHNESS.value, msg, release=release.name, **ages)
    if age < -CLOCK_SKEW:
        msg = f"release {release.name} claims to be signed at {release.signed_at.isoformat()}, which is in the future"
        raise GateError(Gate.FRESHNESS.value, msg, release=release.name)


def check_not_expired(gate: Gate, what: str, expires_at: datetime, now: datetime) -> None:
    """Raise GateError of that gate if ``expires_at`` has passed; ``what`` names the thing ("permit for pos-03")."""
    if now >= expires_at:
        msg = f"{what} expired at {expires_at.isoformat()}"
        times = {"observed": now.isoformat(), "required": f"before {expires_at.isoformat()}"}
        raise GateError(gate.value, msg, **times)


def is_time_trusted(now: datetime, floor: datetime, source: ClockSource) -> bool:
    """Whether expiries may be judged by ``now``."""
    return now >= floor and source is not ClockSource.UNCONFIRMED


def check_time_trusted(now: datetime, floor: datetime, source: ClockSource) -> None:
    """Raise GateError (clock) unless time is trusted."""
    if now < floor:
        msg = f"the clock says {now.isoformat()}, before {floor.isoformat()}, which is known to have passed"
        times = {"observed": now.isoformat(), "required": f"at least {floor.isoformat()}"}
        raise GateError(Gate.CLOCK.value, msg, **times)
    if not is_time_trusted(now, floor, source):
        msg = "nobody has confirmed the clock since the last boot"
        sources = {
            "observed": source.value,
            "required": f"{ClockSource.CONFIRMED.value}, or {ClockSource.HARDWARE.value}",
        }
        raise GateError(Gate.CLOCK.value, msg, **sources)


def confirms(now: datetime, signed_at: datetime) -> bool:
    """Whether a time that control has just signed agrees with the clock."""
    return abs(now - signed_at) <= CLOCK_SKEW


def raise_floor(floor: datetime, *signed_times: datetime) -> datetime:
    """The floor after hearing times that control signed.

    Clocks may be apart by CLOCK_SKEW; a floor at control's own time would distrust every clock behind it.
    """
    return max([floor, *(signed - CLOCK_SKEW for signed in signed_times)])
