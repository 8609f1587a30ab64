"""A device whose slots RAUC writes, end to end: real agent, supervisor, bus, service, bundles (D1 to D4, D9)."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from device.bootenv import Boot, SlotName
from tests.device_directory import NEW_VERSION, DeviceDirectory, digest_of, image_of
from tests.device_kit import HubStandIn
from tests.rauc_kit import BundleKey, give_rauc, hold_handler, needs_root, rauc, rauc_pid, service
from wavemesh.trust.statements import UpdateState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import CredentialsFactory, TrustKeys
    from wavemesh.identity.ca import FleetCa

pytestmark = [pytest.mark.timeout(90), needs_root]
IMAGE = image_of(NEW_VERSION)
NEW_SHA256 = digest_of(IMAGE).sha256


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> BundleKey:
    return BundleKey.make(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def bundle(key: BundleKey, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return key.bundle(tmp_path_factory.mktemp("bundle") / "b", IMAGE)


@pytest.fixture
def hub(trust_keys: TrustKeys, credentials: CredentialsFactory, bundle: bytes) -> HubStandIn:
    hub = HubStandIn(trust_keys, credentials)
    hub.publish_with_bundle(bundle)
    return hub


@pytest.fixture
def device(tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys) -> Iterator[DeviceDirectory]:
    directory = DeviceDirectory(tmp_path / "device", fleet_ca, trust_keys.pinned_root)
    yield directory
    directory.stop()


def slot_head(device: DeviceDirectory, slot: str) -> str:
    """SHA-256 of as much of a slot as an image has."""
    return hashlib.sha256((device.path / "slots" / f"{slot}.img").read_bytes()[: len(IMAGE)]).hexdigest()


async def test_rauc_installs_and_the_agent_arms_and_commits(
    device: DeviceDirectory, hub: HubStandIn, key: BundleKey, bundle: bytes
) -> None:
    """D1, D3, D4: the bundle is fetched, not the image; RAUC's marks switch slot and config in one write."""
    old = slot_head(device, "A")
    async with hub.serving():
        device.configure(hub.port)
        give_rauc(device, key)
        hub.order()
        device.start()
        await hub.until(lambda: bool(hub.outcomes()))
        await hub.until_state(UpdateState.COMMITTED)
    assert hub.words() == [("UPDATED", "", 1)]
    assert slot_head(device, "B") == NEW_SHA256
    assert slot_head(device, "A") == old
    assert device.boots() == [("A", "power-on"), ("B", "reboot")]
    environment = device.environment()
    assert (environment.active, environment.previous, environment.trial) == (
        Boot(SlotName.B, 2),
        Boot(SlotName.A, 1),
        None,
    )
    read = {sha256 for sha256, _ in hub.blobs.reads}
    assert digest_of(bundle).sha256 in read
    assert NEW_SHA256 not in read
    assert not list((device.path / "rauc").glob("update.*"))


async def test_an_agent_killed_while_rauc_installs_goes_on_without_fetching_again(
    device: DeviceDirectory, hub: HubStandIn, key: BundleKey, bundle: bytes
) -> None:
    """D9: kill -9; RAUC goes on alone, the next agent waits for its end and installs again before it believes."""
    async with hub.serving():
        device.configure(hub.port)
        give_rauc(device, key)
        held = hold_handler(device)
        hub.order()
        device.start()
        await hub.until((device.path / "rauc" / "waiting").exists)
        first = (await device.tell("status"))["agent_pid"]
        os.kill(first, signal.SIGKILL)
        await hub.until(lambda: device.steps().count("state:STAGING") == 2)
        held.unlink()
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("UPDATED", "", 1)]
    assert slot_head(device, "B") == NEW_SHA256
    offsets = [offset for sha256, offset in hub.blobs.reads if sha256 == digest_of(bundle).sha256]
    assert offsets in ([0], [0, len(bundle)])


async def test_a_power_cut_while_rauc_installs(
    device: DeviceDirectory, hub: HubStandIn, key: BundleKey, bundle: bytes
) -> None:
    """D9: agent, service and whatever was not flushed are gone; the slot had no label and is installed again."""
    async with hub.serving():
        device.configure(hub.port)
        give_rauc(device, key)
        held = hold_handler(device)
        device.start()
        await device.tell("power-cut-at staging:51%")
        hub.order()
        await hub.until(lambda: ("A", "power-loss") in device.boots())
        held.unlink()
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("UPDATED", "", 1)]
    assert slot_head(device, "B") == NEW_SHA256
    assert device.boots() == [("A", "power-on"), ("A", "power-loss"), ("B", "reboot")]
    offsets = [offset for sha256, offset in hub.blobs.reads if sha256 == digest_of(bundle).sha256]
    assert offsets in ([0], [0, len(bundle)])


async def test_a_service_that_dies_refuses_and_is_tried_again(
    device: DeviceDirectory, hub: HubStandIn, key: BundleKey
) -> None:
    """D2: the refusal names RAUC; the gate is transient, so the device updates once the service is back."""
    async with hub.serving():
        device.configure(hub.port)
        give_rauc(device, key)
        held = hold_handler(device)
        hub.order()
        device.start()
        await hub.until((device.path / "rauc" / "waiting").exists)
        os.kill(rauc_pid(device), signal.SIGKILL)
        await hub.until(lambda: bool(hub.outcomes()))
        assert hub.words() == [("REFUSED", "disk", 0)]
        assert "systemctl status rauc" in hub.outcomes()[0].evidence
        held.unlink()
        with service(device, SlotName.A):
            await hub.until(lambda: hub.words()[-1] == ("UPDATED", "", 1))
    assert slot_head(device, "B") == NEW_SHA256


async def test_an_unhealthy_trial_comes_back(device: DeviceDirectory, hub: HubStandIn, key: BundleKey) -> None:
    """D5, D9: the rollback asks nobody; RAUC agrees afterwards."""
    async with hub.serving():
        device.configure(hub.port)
        give_rauc(device, key)
        device.lose_scanner_on("B")
        hub.order()
        device.start()
        await hub.until(lambda: bool(hub.outcomes()))
        await hub.until_state(UpdateState.ROLLED_BACK)
        status = rauc(device, "status", "--output-format=json").stdout
    assert hub.words() == [("ROLLED_BACK", "peripheral:scanner", 1)]
    assert device.environment().active == Boot(SlotName.A, 1)
    assert device.environment().trial is None
    shown = json.loads(status)
    assert (shown["booted"], shown["boot_primary"]) == ("A", "system.0")


@pytest.mark.parametrize(("wrong", "gate"), [("another image", "checksum"), ("no bundle", "hardware")])
async def test_what_rauc_would_install_is_refused_by_us(
    *, wrong: str, gate: str, device: DeviceDirectory, hub: HubStandIn, key: BundleKey, tmp_path: Path
) -> None:
    """D2, P2: a good bundle, well signed, with other bytes than the release's image is not believed."""
    hub.publish_with_bundle(key.bundle(tmp_path / "b", IMAGE[::-1]) if wrong == "another image" else b"")
    async with hub.serving():
        device.configure(hub.port)
        give_rauc(device, key)
        hub.order()
        device.start()
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("REFUSED", gate, 0)]
    assert device.environment().trial is None
    assert not (device.path / "slots" / "B.json").exists()
