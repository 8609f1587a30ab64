"""Compliance before seeding, gate by gate (S2)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from superhub.compliance import Bundle, BundleNeeded, Entry, Pass, Refusal, RegionView, assess, decide, entry_key
from tests.conftest import make_manifest
from wavemesh.trust.statements import Hold, HoldList, WaveOrder, WaveState

if TYPE_CHECKING:
    from wavemesh.trust.releases import ReleaseManifest

NOW = datetime(2026, 5, 20, 12, tzinfo=UTC)
MAX_AGE = timedelta(days=14)
RELEASE = make_manifest(signed_at=NOW - timedelta(days=1))
VIEW = RegionView("midwest", MAX_AGE, NOW + timedelta(days=1), None, {})
ENTERED = {entry_key(RELEASE): NOW - timedelta(hours=1)}


def order(**changes: Any) -> WaveOrder:
    fields: dict[str, Any] = {
        "wave_id": "142",
        "generation": 1,
        "state": WaveState.RUNNING,
        "cohort": "c",
        "device_class": "pos-tablet",
        "hardware_revision": "r2",
        "store": "region/midwest/store/store-208",
        "devices": ("pos-01",),
        "release": RELEASE.name,
        "policy_digest": "0" * 64,
        "least_hold_epoch": 0,
        "issued_at": NOW,
        "expires_at": NOW + timedelta(hours=1),
    }
    return WaveOrder(**{**fields, **changes})


def holds(name: str = "", sha256: str = "") -> HoldList:
    return HoldList(1, (Hold(name, sha256, "bad"),), NOW)


def test_a_release_that_is_all_right_passes() -> None:
    assert assess(RELEASE, Bundle.GOOD, [order()], VIEW, NOW) == Pass(RELEASE, Entry.FIRST)
    assert assess(RELEASE, Bundle.GOOD, [], replace(VIEW, entered=ENTERED), NOW) == Pass(RELEASE, Entry.KNOWN)
    assert assess(RELEASE, Bundle.UNREAD, [], VIEW, NOW) == BundleNeeded(RELEASE)
    assert assess(RELEASE, Bundle.GOOD, [], replace(VIEW, holds=holds("another")), NOW) == Pass(RELEASE, Entry.FIRST)


@pytest.mark.parametrize("bundle", list(Bundle))
@pytest.mark.parametrize(
    ("gate", "release", "orders", "view"),
    [
        ("freshness", RELEASE, [], replace(VIEW, trust_expires_at=NOW)),
        ("hold", RELEASE, [], replace(VIEW, holds=holds(RELEASE.name))),
        ("hold", RELEASE, [], replace(VIEW, holds=holds("renamed", RELEASE.main.digest.sha256))),
        ("hold", RELEASE, [], replace(VIEW, holds=holds(RELEASE.name), entered=ENTERED)),
        ("class", replace(RELEASE, regions=("north",)), [], VIEW),
        ("class", RELEASE, [order(), order(wave_id="143", device_class="scanner")], VIEW),
        ("hardware", RELEASE, [order(hardware_revision="r1")], VIEW),
        ("freshness", replace(RELEASE, signed_at=NOW - MAX_AGE - timedelta(seconds=1)), [], VIEW),
        ("freshness", replace(RELEASE, signed_at=NOW + timedelta(hours=1)), [], VIEW),
    ],
)
def test_each_gate_refuses_whatever_the_bundle_says(
    gate: str, release: ReleaseManifest, orders: list[WaveOrder], view: RegionView, bundle: Bundle
) -> None:
    finding = assess(release, bundle, orders, view, NOW)
    assert isinstance(finding, Refusal)
    assert (finding.gate, finding.release) == (gate, release.name)
    assert release.name in finding.reason or "trust metadata" in finding.reason


def test_a_bad_bundle_is_the_signature_gate() -> None:
    finding = assess(RELEASE, Bundle.BAD, [], VIEW, NOW)
    assert isinstance(finding, Refusal)
    assert finding.gate == "signature"


@pytest.mark.parametrize(("age", "passes"), [(MAX_AGE, True), (MAX_AGE + timedelta(seconds=1), False)])
def test_age_is_judged_to_the_second(age: timedelta, passes: bool) -> None:  # noqa: FBT001  # a table's column
    finding = assess(replace(RELEASE, signed_at=NOW - age), Bundle.GOOD, [], VIEW, NOW)
    assert isinstance(finding, Pass) is passes


def test_what_the_region_has_may_grow_old_there() -> None:
    old = replace(RELEASE, signed_at=NOW - timedelta(days=100))
    assert assess(old, Bundle.GOOD, [], replace(VIEW, entered=ENTERED), NOW) == Pass(old, Entry.OVER_AGE)


def test_the_same_name_with_other_bytes_enters_anew() -> None:
    other = make_manifest(firmware=make_manifest("other").firmware, signed_at=NOW - timedelta(days=100))
    assert other.name == RELEASE.name
    assert isinstance(assess(other, Bundle.GOOD, [], replace(VIEW, entered=ENTERED), NOW), Refusal)


def test_orders_of_other_releases_do_not_matter() -> None:
    foreign = order(release="other", device_class="scanner")
    assert isinstance(assess(RELEASE, Bundle.GOOD, [foreign], VIEW, NOW), Pass)


def test_one_release_that_passes_is_enough() -> None:
    passed, needed = Pass(RELEASE, Entry.KNOWN), BundleNeeded(make_manifest("b"))
    refused = [Refusal("c", "hold", ""), Refusal("a", "class", "")]
    assert decide([refused[0], needed, passed]) == passed
    assert decide([*refused, needed]) == needed
    assert decide(refused) == refused[1]
    assert decide([]) is None
