"""Holds (S2): by name or firmware, by epoch, and not by an old view."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from wavemesh.errors import GateError
from wavemesh.trust.holds import check_hold_view, check_not_held, check_successor
from wavemesh.trust.statements import Hold, HoldList

if TYPE_CHECKING:
    from collections.abc import Callable

    from wavemesh.trust.releases import ReleaseManifest

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def holds(epoch: int, *held: Hold, at: datetime = NOW) -> HoldList:
    return HoldList(epoch, held, at)


@pytest.mark.parametrize("by", ["name", "firmware"])
def test_a_release_is_held_by_name_or_firmware(make_manifest: Callable[..., ReleaseManifest], by: str) -> None:
    release = make_manifest()
    assert release.firmware is not None
    hold = Hold(
        release.name if by == "name" else "renamed", release.firmware.digest.sha256 if by != "name" else "", "bad"
    )
    with pytest.raises(GateError, match=r"on hold .*: bad") as refusal:
        check_not_held(release, holds(3, hold))
    assert refusal.value.gate == "hold"
    assert (refusal.value.observed, refusal.value.required) == ("on hold at epoch 3", "no hold")
    check_not_held(release, holds(3, Hold("other", "00" * 32, "")))
    check_not_held(make_manifest(firmware=None), holds(3, Hold("other", "", "")))


def test_epochs_do_not_go_back() -> None:
    held = holds(5, Hold("a", "", ""))
    check_successor(held, None)
    check_successor(holds(6), held)
    check_successor(holds(5, Hold("a", "", ""), at=NOW + timedelta(hours=1)), held)
    for old in (holds(4), holds(5, Hold("a", "", ""), at=NOW - timedelta(hours=1)), holds(5)):
        with pytest.raises(GateError) as refusal:
            check_successor(old, held)
        assert refusal.value.gate == "replay"


def test_an_old_or_missing_view_is_no_view() -> None:
    day = timedelta(hours=24)
    check_hold_view(holds(5), NOW + day, day, 5)
    check_hold_view(holds(0), NOW, day)
    for view, now, least in ((None, NOW, 0), (holds(5), NOW + day + timedelta(seconds=1), 0), (holds(5), NOW, 6)):
        with pytest.raises(GateError) as refusal:
            check_hold_view(view, now, day, least)
        assert refusal.value.gate == "freshness"
