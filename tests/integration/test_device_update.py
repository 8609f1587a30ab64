"""A device end to end: real agent and supervisor processes, real reboots, a real wire to a stand-in hub (D1 to D9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from device.bootenv import SlotName
from tests.device_kit import NEW_VERSION, DeviceDirectory, HubStandIn, digest_of, image_of
from wavemesh.trust.statements import UpdateState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import CredentialsFactory, TrustKeys
    from wavemesh.identity.ca import FleetCa

pytestmark = pytest.mark.timeout(90)
NEW_SHA256 = digest_of(image_of(NEW_VERSION)).sha256


@pytest.fixture
def device(tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys) -> Iterator[DeviceDirectory]:
    directory = DeviceDirectory(tmp_path / "device", fleet_ca, trust_keys.pinned_root)
    yield directory
    directory.stop()


@pytest.fixture
def hub(trust_keys: TrustKeys, credentials: CredentialsFactory) -> HubStandIn:
    return HubStandIn(trust_keys, credentials)


async def test_updates_through_real_reboots(device: DeviceDirectory, hub: HubStandIn) -> None:
    """D1, D3, D4: staged into the other slot, tried once, healthy, committed; firmware and config in one switch."""
    old = device.slot_sha256("A")
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.start()
        await hub.until_state(UpdateState.COMMITTED)
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("UPDATED", "", 1)]
    assert hub.outcomes()[0].firmware_sha256 == NEW_SHA256 == device.slot_sha256("B")
    assert device.slot_sha256("A") == old
    assert device.boots() == [("A", "power-on"), ("B", "reboot")]
    environment = device.environment()
    assert (environment.active.slot, environment.active.config_generation) == (SlotName.B, 2)
    assert environment.trial is None
    assert hub.statuses[-1].config_version == "12.4.1"
    assert hub.rejected == []
