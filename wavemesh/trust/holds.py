"""Holds: control's operational pause of releases, by monotonic epoch (semantics, "Trust").

A hold list replaces the one before it; a lower epoch than the one held is a replay. A release is held by its name or by
the digest of its firmware, so that renaming an image does not lift its hold. Control signs the list anew while it is
online, so the age of the list is the age of the view: too old a view forbids ARM, whatever it says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wavemesh.errors import GateError
from wavemesh.policy.gates import Gate

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from wavemesh.trust.releases import ReleaseManifest
    from wavemesh.trust.statements import Hold, HoldList


def check_successor(new: HoldList, held: HoldList | None) -> None:
    """Raise GateError (replay) if ``new`` is older than the list held, or says something else at the same epoch."""
    if held is None or new.epoch > held.epoch:
        return
    if new.epoch < held.epoch or new.issued_at < held.issued_at:
        msg = (
            f"hold list of epoch {new.epoch} ({new.issued_at.isoformat()}) is older than epoch {held.epoch}, held here"
        )
        raise GateError(Gate.REPLAY.value, msg)
    if new.holds != held.holds:
        msg = f"two different hold lists of epoch {new.epoch}"
        raise GateError(Gate.REPLAY.value, msg)


def find_hold(release: ReleaseManifest, holds: HoldList) -> Hold | None:
    """The hold on that release, if there is one."""
    firmware = release.firmware.digest.sha256 if release.firmware else ""
    for hold in holds.holds:
        if hold.release == release.name or (firmware and hold.firmware_sha256 == firmware):
            return hold
    return None


def check_not_held(release: ReleaseManifest, holds: HoldList) -> None:
    """Raise GateError (hold) if the release is on hold."""
    hold = find_hold(release, holds)
    if hold is not None:
        msg = (
            f"release {release.name} is on hold since epoch {holds.epoch} or before: {hold.reason or 'no reason given'}"
        )
        states = {"observed": f"on hold at epoch {holds.epoch}", "required": "no hold"}
        raise GateError(Gate.HOLD.value, msg, release=release.name, **states)


def check_hold_view(holds: HoldList | None, now: datetime, max_age: timedelta, least_epoch: int = 0) -> None:
    """Raise GateError (freshness) unless a list of at least that epoch is held that is not older than ``max_age``."""
    if holds is None:
        msg = "no hold list is held: nothing can be known not to be on hold"
        raise GateError(Gate.FRESHNESS.value, msg)
    if holds.epoch < least_epoch:
        msg = f"hold list of epoch {holds.epoch} is held; the order needs {least_epoch}"
        raise GateError(Gate.FRESHNESS.value, msg)
    age = now - holds.issued_at
    if age > max_age:
        msg = f"the view of holds is {age} old; at most {max_age} is allowed (holdMaxAgeHours)"
        raise GateError(Gate.FRESHNESS.value, msg, observed=str(age), required=f"at most {max_age}")
