"""A whole update on slots with a real bootloader's environment: real agent and supervisor, power cuts (D4, D9, D10)."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from device.backend import SlotSystem, open_slots
from device.bootenv import Boot, SlotName
from device.config import load_device_config
from device.factory import Equipment, equip
from tests.device_directory import NEW_VERSION, OLD_VERSION, DeviceDirectory, digest_of, image_of
from tests.device_kit import HubStandIn
from wavemesh.runtime.durable import Disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import CredentialsFactory, TrustKeys
    from wavemesh.identity.ca import FleetCa

pytestmark = pytest.mark.timeout(90)
A, B = SlotName.A, SlotName.B
OLD, NEW = digest_of(image_of(OLD_VERSION)), digest_of(image_of(NEW_VERSION))


@pytest.fixture
def device(tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys) -> Iterator[DeviceDirectory]:
    directory = DeviceDirectory(tmp_path / "device", fleet_ca, trust_keys.pinned_root)
    yield directory
    directory.stop()


@pytest.fixture
def hub(trust_keys: TrustKeys, credentials: CredentialsFactory) -> HubStandIn:
    return HubStandIn(trust_keys, credentials)


def configure(device: DeviceDirectory, port: int, backend: str) -> None:
    """Make it a device of that back-end, as a factory does."""
    device.configure(port)
    device.set("[board]\n", f'[board]\nbackend = "{backend}"\n')
    shutil.rmtree(device.path / "slots")
    device.write("old.img", "")
    (device.path / "old.img").write_bytes(image_of(OLD_VERSION))
    release = f"firmware-v{OLD_VERSION}"
    equip(device.path, Equipment(device.path / "old.img", release, OLD_VERSION, b"old config", "12.3.0"))


def system_of(device: DeviceDirectory) -> SlotSystem:
    return open_slots(device.path, load_device_config(device.path), Disk())


@pytest.mark.parametrize("backend", ["grub", "uboot"])
async def test_cuts_in_the_write_and_in_the_swap_end_updated(
    device: DeviceDirectory, hub: HubStandIn, backend: str
) -> None:
    """The write goes on from its mark; the trial that lost power is proven so, and tried again."""
    async with hub.serving():
        configure(device, hub.port, backend)
        device.start()
        for step in ("staging:50%", "swap"):
            await device.tell(f"power-cut-at {step}")
        hub.order()
        await hub.until(lambda: len(hub.outcomes()) == 2)
    assert hub.words() == [("INCONCLUSIVE", "power-loss", 1), ("UPDATED", "", 2)]
    assert len([offset for sha256, offset in hub.blobs.reads if sha256 == NEW.sha256 and offset]) == 1
    boots = [("A", "power-on"), ("A", "power-loss"), ("B", "reboot"), ("A", "power-loss"), ("B", "reboot")]
    assert device.boots() == boots
    system = system_of(device)
    environment = system.boot_control.read()
    assert (environment.active, environment.previous, environment.trial) == (Boot(B, 2), Boot(A, 1), None)
    assert [await system.slots.digest(A, OLD.size_bytes), await system.slots.digest(B, NEW.size_bytes)] == [
        OLD.sha256,
        NEW.sha256,
    ]
    assert hub.rejected == []


@pytest.mark.parametrize("backend", ["uboot"])
async def test_a_trial_that_fails_goes_back_to_the_untouched_slot(
    device: DeviceDirectory, hub: HubStandIn, backend: str
) -> None:
    device.lose_scanner_on("B")
    async with hub.serving():
        configure(device, hub.port, backend)
        device.start()
        hub.order()
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("ROLLED_BACK", "peripheral:scanner", 1)]
    system = system_of(device)
    environment = system.boot_control.read()
    assert (environment.active, environment.previous, environment.trial) == (Boot(A, 1), None, None)
    assert await system.slots.digest(A, OLD.size_bytes) == OLD.sha256


@pytest.mark.parametrize("backend", ["grub"])
async def test_an_image_that_never_starts_its_agent_is_the_watchdog(
    device: DeviceDirectory, hub: HubStandIn, backend: str
) -> None:
    """The bootloader counts the fall-back; the reset reason of that boot says that it was no power loss."""
    device.write("hardware/unbootable", f"{NEW_VERSION}\n")
    async with hub.serving():
        configure(device, hub.port, backend)
        device.set("boot_timer_s = 20.0", "boot_timer_s = 4.0")
        device.start()
        hub.order()
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("ROLLED_BACK", "watchdog", 1)]
    assert device.boots() == [("A", "power-on"), ("B", "reboot"), ("A", "watchdog")]
