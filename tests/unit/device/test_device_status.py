"""What the hub is told of a device, and when it is not told again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from device.bootenv import Boot, SlotName
from device.gates.sensors import Reading
from device.progress import Progress
from device.status import StatusReporter
from wavemesh.codec.statements import decode
from wavemesh.trust.statements import DeviceStatus, UpdateState

if TYPE_CHECKING:
    from device.equipment import Equipment
    from wavemesh.session.seams import Upstream

NOW = datetime(2026, 5, 1, tzinfo=UTC)
INTERVAL_S = 0.25


class Device:
    """A reporter, and what it said."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.said: list[DeviceStatus] = []
        facts = SimpleNamespace(
            running=Boot(SlotName.A, 1),
            firmware_version="3.8.1",
            firmware_sha256="a" * 64,
            config_version="12.4.0",
            device_class="pos",
            hardware_revision="r2",
        )
        equipment = SimpleNamespace(
            node_id=SimpleNamespace(path="region/r/store/s/device/d"),
            facts=lambda: facts,
            gates=SimpleNamespace(reading=Reading()),
            clock=SimpleNamespace(now=lambda: NOW + timedelta(seconds=self.now_s), monotonic=lambda: self.now_s),
            config=SimpleNamespace(timing=SimpleNamespace(status_interval_s=INTERVAL_S)),
        )
        upstream = SimpleNamespace(set_status=lambda _, body: self.said.append(decode(DeviceStatus, body)))
        self.reporter = StatusReporter(cast("Equipment", equipment), cast("Upstream", upstream), "0.1.0")


@pytest.fixture
def device() -> Device:
    return Device()


def test_the_same_a_moment_ago_is_not_said_again(device: Device) -> None:
    device.reporter.show(Progress())
    device.now_s += INTERVAL_S / 2
    device.reporter.show(Progress())
    assert len(device.said) == 1


def test_a_change_is_said_at_once(device: Device) -> None:
    device.reporter.show(Progress())
    device.reporter.show(Progress(state=UpdateState.PREFLIGHT))
    assert [status.state for status in device.said] == [UpdateState.IDLE, UpdateState.PREFLIGHT]


def test_the_same_later_is_said_with_its_time(device: Device) -> None:
    """The hub hears from a device that stays as it is, too."""
    device.reporter.show(Progress())
    device.now_s += INTERVAL_S
    device.reporter.show(Progress())
    assert [status.at for status in device.said] == [NOW + timedelta(seconds=100), NOW + timedelta(seconds=100.25)]
