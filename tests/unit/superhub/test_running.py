"""What the region runs, by what its devices say."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from superhub import running
from superhub.running import Running
from wavemesh.trust.statements import DeviceStatus, UpdateState

if TYPE_CHECKING:
    import pytest


def status(device: str, sha256: str, device_class: str = "tablet") -> DeviceStatus:
    now = datetime(2026, 5, 1, tzinfo=UTC)
    return DeviceStatus(device, UpdateState.IDLE, now, firmware_sha256=sha256, device_class=device_class)


def test_what_most_run_comes_first_and_of_the_class_alone() -> None:
    region = Running()
    for device, sha256, kind in (("1", "b", "tablet"), ("2", "a", "tablet"), ("3", "b", "tablet"), ("4", "c", "gate")):
        region.says(device, status(device, sha256, kind))
    assert region.ranked({"tablet"}) == ["b", "a"]
    assert region.ranked({"gate", "tablet"}) == ["b", "a", "c"]
    region.says("1", status("1", "a"))
    assert region.ranked({"tablet"}) == ["a", "b"]
    region.says("2", None)
    region.says("3", status("3", ""))
    assert region.ranked({"tablet"}) == ["a"]
    assert region.ranked(set()) == []


def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "MAX_DEVICES", 2)
    region = Running()
    for number in range(4):
        region.says(str(number), status(str(number), str(number)))
    assert region.ranked({"tablet"}) == ["0", "1"]
    region.says("0", status("0", "9"))
    assert region.ranked({"tablet"}) == ["1", "9"]
