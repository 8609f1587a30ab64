"""A second rollback from the packed last known good, and rollbacks on a disk that is really full (D5, D6)."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from device.bootenv import SlotName
from tests.device_directory import OLD_VERSION, DeviceDirectory, digest_of, image_of
from tests.device_kit import WAVE, HubStandIn
from wavemesh.trust.statements import ROLLBACK_DONE, UpdateState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import CredentialsFactory, TrustKeys
    from wavemesh.identity.ca import FleetCa

pytestmark = pytest.mark.timeout(120)
FIRST_VERSION, EARLIER_WAVE = "3.8.0", "141"
DATA_BYTES = 4 * 1024 * 1024


@pytest.fixture
def device(tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys) -> Iterator[DeviceDirectory]:
    directory = DeviceDirectory(tmp_path / "device", fleet_ca, trust_keys.pinned_root)
    with small(directory.path / "state"):
        yield directory
        directory.stop()


@contextmanager
def small(state: Path) -> Iterator[None]:
    """The data partition is a file system of its own, and a small one."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts a file system that can be filled")
    kept = state.with_name("state.kept")
    shutil.copytree(state, kept)
    run("mount", "-t", "tmpfs", "-o", f"size={DATA_BYTES}", "tmpfs", state)
    try:
        shutil.copytree(kept, state, dirs_exist_ok=True)
        yield
    finally:
        run("umount", state)


def run(program: str, *arguments: str | Path) -> None:
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert found is not None
    subprocess.run([found, *arguments], check=True)


def fill(state: Path) -> None:
    """Not one more byte."""
    with (state / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert os.statvfs(state).f_bavail == 0


def hub_of(trust_keys: TrustKeys, credentials: CredentialsFactory, **policy: str) -> HubStandIn:
    return HubStandIn(trust_keys, credentials, min_free_disk="0", **policy)


async def updated(device: DeviceDirectory, hub: HubStandIn) -> None:
    hub.order()
    device.configure(hub.port)
    device.start()
    await hub.until_state(UpdateState.COMMITTED)
    await hub.until(lambda: bool(hub.outcomes()))


async def test_a_second_rollback_is_from_the_pack(
    device: DeviceDirectory, trust_keys: TrustKeys, credentials: CredentialsFactory
) -> None:
    """D6: 3.8.0 was packed before 3.8.2 took its slot; it is restored there once 3.8.1 is to be left as well.

    The second one names the wave that brought what the first returned to, so that nobody asks for it unawares.
    """
    hub = hub_of(trust_keys, credentials)
    device.had_before(FIRST_VERSION, EARLIER_WAVE)
    async with hub.serving():
        await updated(device, hub)
        assert (await device.tell("status", "agent.sock"))["packed_version"] == FIRST_VERSION
        hub.roll_back("scanner driver missing")
        await hub.until_state(UpdateState.ROLLED_BACK)
        unaware = [hub.roll_back("same again"), hub.roll_back("same again", wave_id=WAVE)]
        await hub.until(lambda: all(map(hub.answer_to, unaware)))
        again = hub.roll_back("3.8.1 is no good either", wave_id=EARLIER_WAVE)
        await hub.until(lambda: bool(hub.answer_to(again)))
        await hub.until(lambda: hub.statuses[-1].firmware_version == FIRST_VERSION)
        third = await device.tell("rollback-again no end to it", "agent.sock")
    assert [hub.answer_to(one) for one in unaware] == ["the device has rolled back already from wave 142"] * 2
    assert next(event.kind for event in hub.events() if event.subject == again) == ROLLBACK_DONE
    assert device.slot_sha256("B") == digest_of(image_of(FIRST_VERSION)).sha256
    environment = device.environment()
    assert (environment.active.slot, environment.previous, environment.trial) == (SlotName.B, None, None)
    assert third == {"ok": False, "error": "no earlier image is packed"}
    assert hub.words() == [("UPDATED", "", 1), ("ROLLED_BACK", "operator", 1)]


async def test_a_trial_rolls_back_on_a_full_disk(
    device: DeviceDirectory, trust_keys: TrustKeys, credentials: CredentialsFactory
) -> None:
    """Semantics: space for one rollback and one evidence record is set aside."""
    hub = hub_of(trust_keys, credentials, budget_mins="0.03")
    hub.answer_trials_as = "nothing"
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.start()
        await hub.until_state(UpdateState.TRIAL)
        fill(device.path / "state")
        await hub.until(lambda: bool(hub.outcomes()))
        await hub.until_state(UpdateState.ROLLED_BACK)
    assert hub.words() == [("ROLLED_BACK", "health-authority", 1)]
    assert [slot for slot, _ in device.boots()] == ["A", "B", "A"]


async def test_an_operator_rolls_back_on_a_full_disk(
    device: DeviceDirectory, trust_keys: TrustKeys, credentials: CredentialsFactory
) -> None:
    """The intent itself has to be kept as well; what is read back and tried needs no space on the data partition."""
    hub = hub_of(trust_keys, credentials)
    async with hub.serving():
        await updated(device, hub)
        fill(device.path / "state")
        hub.roll_back("scanner driver missing")
        await hub.until(lambda: len(hub.outcomes()) == 2)
        await hub.until_state(UpdateState.ROLLED_BACK)
    assert hub.words() == [("UPDATED", "", 1), ("ROLLED_BACK", "operator", 1)]
    assert hub.statuses[-1].firmware_version == OLD_VERSION
