"""Freshness and clocks (S2, H5, P6)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from wavemesh.errors import GateError
from wavemesh.policy.gates import Gate
from wavemesh.trust.freshness import (
    CLOCK_SKEW,
    ClockSource,
    check_not_expired,
    check_release_age,
    check_time_trusted,
    confirms,
    is_time_trusted,
    raise_floor,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from wavemesh.trust.releases import ReleaseManifest

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def test_a_release_ages(make_manifest: Callable[..., ReleaseManifest]) -> None:
    release = make_manifest(signed_at=NOW)
    check_release_age(release, NOW + timedelta(days=14))
    check_release_age(release, NOW - CLOCK_SKEW)
    check_release_age(release, NOW + timedelta(days=20), timedelta(days=30))
    for now in (NOW + timedelta(days=14) + SECOND, NOW - CLOCK_SKEW - SECOND):
        with pytest.raises(GateError) as refusal:
            check_release_age(release, now)
        assert refusal.value.gate == "freshness"


def test_a_refusal_says_what_was_observed_and_required(make_manifest: Callable[..., ReleaseManifest]) -> None:
    """D8: evidence is compared by programs, not read out of sentences."""
    floor = NOW + SECOND
    cases: list[tuple[Callable[[], None], str, str]] = [
        (
            lambda: check_release_age(make_manifest(signed_at=NOW), NOW + timedelta(days=20)),
            "20 days",
            "at most 14 days",
        ),
        (lambda: check_not_expired(Gate.PERMIT, "it", NOW, NOW), NOW.isoformat(), f"before {NOW.isoformat()}"),
        (
            lambda: check_time_trusted(NOW, floor, ClockSource.HARDWARE),
            NOW.isoformat(),
            f"at least {floor.isoformat()}",
        ),
        (lambda: check_time_trusted(NOW, NOW, ClockSource.UNCONFIRMED), "unconfirmed", "confirmed, or hardware"),
    ]
    for check, observed, required in cases:
        with pytest.raises(GateError) as refusal:
            check()
        assert (refusal.value.observed, refusal.value.required) == (observed, required)


def test_what_expires_names_its_own_gate() -> None:
    check_not_expired(Gate.PERMIT, "permit for pos-03", NOW + SECOND, NOW)
    with pytest.raises(GateError, match="permit for pos-03 expired") as refusal:
        check_not_expired(Gate.PERMIT, "permit for pos-03", NOW, NOW)
    assert refusal.value.gate == "permit"


@pytest.mark.parametrize(
    ("now", "source", "trusted"),
    [
        (NOW, ClockSource.HARDWARE, True),
        (NOW, ClockSource.CONFIRMED, True),
        (NOW, ClockSource.UNCONFIRMED, False),
        (NOW - SECOND, ClockSource.HARDWARE, False),
    ],
)
def test_whose_clock_is_trusted(now: datetime, source: ClockSource, trusted: bool) -> None:  # noqa: FBT001 - a table
    assert is_time_trusted(now, NOW, source) is trusted
    if trusted:
        check_time_trusted(now, NOW, source)
        return
    with pytest.raises(GateError) as refusal:
        check_time_trusted(now, NOW, source)
    assert refusal.value.gate == "clock"


def test_the_floor_only_rises() -> None:
    assert raise_floor(NOW) == NOW
    assert raise_floor(NOW, NOW + CLOCK_SKEW - SECOND) == NOW
    assert raise_floor(NOW, NOW - SECOND, NOW + CLOCK_SKEW + SECOND) == NOW + SECOND
    assert confirms(NOW, NOW + CLOCK_SKEW)
    assert not confirms(NOW, NOW + CLOCK_SKEW + SECOND)
