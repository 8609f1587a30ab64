"""A device's class and revision are its certificate's; its configuration may repeat them, and no more."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from device.app import _check_binding
from device.config import Device, DeviceConfig, Hub
from tests.conftest import FLEET
from wavemesh.identity.binding import Binding
from wavemesh.identity.ca import write_node
from wavemesh.identity.live import LiveCredentials
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.config import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from wavemesh.identity.ca import FleetCa

CONFIG = DeviceConfig(Device("pos-tablet", "r2"), Hub("127.0.0.1:1"))


def enrolled(directory: Path, ca: FleetCa, binding: Binding | None) -> LiveCredentials:
    now = datetime.now(UTC)
    node = NodeId(FLEET, "region/midwest/store/store-208/device/pos-01")
    until = now + timedelta(days=1)
    write_node(directory, ca, node, not_before=now - timedelta(hours=1), not_after=until, binding=binding)
    return LiveCredentials.load(directory)


@pytest.mark.parametrize(
    ("device", "key"),
    [
        (Device("pos-tablet", "r2"), ""),
        (Device("scanner", "r2"), "device.device_class"),
        (Device("pos-tablet", "r3"), "device.hardware_revision"),
    ],
)
def test_the_configuration_is_held_against_the_certificate(
    tmp_path: Path, fleet_ca: FleetCa, device: Device, key: str
) -> None:
    live = enrolled(tmp_path, fleet_ca, Binding(datetime.now(UTC), "pos-tablet", "r2"))
    config = replace(CONFIG, device=device)
    if not key:
        _check_binding(tmp_path, config, live)
        return
    with pytest.raises(ConfigError, match="was enrolled with") as caught:
        _check_binding(tmp_path, config, live)
    assert caught.value.details["key"] == key


def test_a_certificate_of_before_binds_nothing(tmp_path: Path, fleet_ca: FleetCa) -> None:
    _check_binding(tmp_path, CONFIG, enrolled(tmp_path, fleet_ca, None))
