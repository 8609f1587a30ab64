"""Whether a blob may be seeded to a store now (S2).

A blob is judged through the releases it belongs to; one release that may be seeded is enough, because a config that two
releases share is not held with one of them. A release may be seeded when, in this order,

1.  the trust metadata has not expired                                                      gate ``freshness``
2.  it is not on hold, by name or by the digest of its firmware                             gate ``hold``
3.  it is for this region and, where the store has an order for it, for the order's class
    and hardware revision                                                                   gates ``class, hardware``
4.  it entered this region before, or was signed at most ``max_age`` ago. One that is older
    by now still goes to replacement devices and laggards, and that is audited              gate ``freshness``
5.  its signature bundle carries the threshold of release signatures over its manifest      gate ``signature``

What release keys revoked is not in the metadata any more: a blob that only such releases had is refused with
``revoked``, one that nobody ever named is not known. The bundle is looked at last: it may have to be fetched first.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from wavemesh.errors import GateError
from wavemesh.policy.gates import Gate
from wavemesh.trust.freshness import check_release_age
from wavemesh.trust.holds import check_not_held

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime, timedelta

    from wavemesh.trust.releases import ReleaseManifest
    from wavemesh.trust.statements import HoldList, WaveOrder


class Bundle(enum.Enum):
    """What is known of a release's signature bundle."""

    UNREAD = "unread"
    GOOD = "good"
    BAD = "bad"


class Entry(enum.Enum):
    """How a release that may be seeded stands to the region."""

    FIRST = "first"
    """It has not been here: its entry must be durable before its first byte leaves."""
    KNOWN = "known"
    OVER_AGE = "over-age"
    """It has been here, and would be too old to enter now: audited."""


@dataclass(frozen=True, slots=True)
class RegionView:
    """What compliance is judged by. ``entered`` has when each release, by name and main digest, entered the region."""

    region: str
    max_age: timedelta
    trust_expires_at: datetime
    holds: HoldList | None
    entered: Mapping[tuple[str, str], datetime]


@dataclass(frozen=True, slots=True)
class Pass:
    """The release may be seeded."""

    release: ReleaseManifest
    entry: Entry


@dataclass(frozen=True, slots=True)
class BundleNeeded:
    """All is well so far, but the signature bundle must be read."""

    release: ReleaseManifest


@dataclass(frozen=True, slots=True)
class Refusal:
    """The release may not be seeded: the gate and a sentence."""

    release: str
    gate: str
    reason: str


Finding: TypeAlias = Pass | BundleNeeded | Refusal


def entry_key(release: ReleaseManifest) -> tuple[str, str]:
    """What names a release's entry into the region: a name that comes back with other bytes enters anew."""
    return release.name, release.main.digest.sha256


def assess(
    release: ReleaseManifest, bundle: Bundle, orders: Iterable[WaveOrder], view: RegionView, now: datetime
) -> Finding:
    """Judge one release for one store, whose orders are given; others than those for the release do not matter."""
    try:
        _check_trust(view, now)
        if view.holds is not None:
            check_not_held(release, view.holds)
        _check_place(release, orders, view.region)
        entry = _entry(release, view, now)
    except GateError as error:
        return Refusal(release.name, error.gate, str(error))
    if bundle is Bundle.BAD:
        reason = (
            f"signature bundle {release.signature.name} of release {release.name} is not signed by its release keys"
        )
        return Refusal(release.name, Gate.SIGNATURE.value, reason)
    return BundleNeeded(release) if bundle is Bundle.UNREAD else Pass(release, entry)


def decide(findings: Iterable[Finding]) -> Finding | None:
    """The finding that counts for a blob of several releases: a pass, else one that may become a pass, else the first
    refusal by name of its release. None: no release has the blob.
    """
    ordered = sorted(findings, key=lambda finding: (_RANK[type(finding)], _name(finding)))
    return ordered[0] if ordered else None


_RANK: Mapping[type, int] = {Pass: 0, BundleNeeded: 1, Refusal: 2}


def _name(finding: Finding) -> str:
    return finding.release if isinstance(finding, Refusal) else finding.release.name


def _check_trust(view: RegionView, now: datetime) -> None:
    if now >= view.trust_expires_at:
        msg = f"the trust metadata expired at {view.trust_expires_at.isoformat()}: it must be refreshed by control"
        raise GateError(Gate.FRESHNESS.value, msg)


def _check_place(release: ReleaseManifest, orders: Iterable[WaveOrder], region: str) -> None:
    if release.regions and region not in release.regions:
        msg = f"release {release.name} is for regions {', '.join(release.regions)}, not {region}"
        raise GateError(Gate.CLASS.value, msg)
    for order in orders:
        if order.release != release.name:
            continue
        if order.device_class != release.device_class:
            msg = f"release {release.name} is for class {release.device_class}, wave {order.wave_id} for "
            raise GateError(Gate.CLASS.value, msg + order.device_class)
        if order.hardware_revision not in release.hardware_revisions:
            revisions = ", ".join(release.hardware_revisions)
            msg = f"release {release.name} is for hardware {revisions}, wave {order.wave_id} for "
            raise GateError(Gate.HARDWARE.value, msg + order.hardware_revision)


def _entry(release: ReleaseManifest, view: RegionView, now: datetime) -> Entry:
    try:
        check_release_age(release, now, view.max_age)
    except GateError:
        if entry_key(release) not in view.entered:
            raise
        return Entry.OVER_AGE
    return Entry.KNOWN if entry_key(release) in view.entered else Entry.FIRST
