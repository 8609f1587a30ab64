"""Power cuts and crashes at chosen steps, by the supervisor's injector (D9)."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.device_directory import NEW_VERSION, DeviceDirectory, digest_of, image_of
from tests.device_kit import HubStandIn
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


async def test_power_cut_in_a_write_resumes(device: DeviceDirectory, hub: HubStandIn) -> None:
    """D1, D9: what was not flushed is noise; the download goes on from the last mark, not from the start."""
    async with hub.serving():
        device.configure(hub.port)
        device.start()
        await device.tell("power-cut-at staging:50%")
        hub.order()
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("UPDATED", "", 1)]
    offsets = [offset for sha256, offset in hub.blobs.reads if sha256 == NEW_SHA256]
    assert len(offsets) == 2
    assert 0 < offsets[1] <= 512 * 1024
    assert device.slot_sha256("B") == NEW_SHA256
    assert device.boots() == [("A", "power-on"), ("A", "power-loss"), ("B", "reboot")]


async def test_power_cut_in_the_swap_is_inconclusive_and_retried(device: DeviceDirectory, hub: HubStandIn) -> None:
    """Proven by the reset reason, so outside the ratio; attempt 2 downloads nothing again."""
    async with hub.serving():
        device.configure(hub.port)
        device.start()
        await device.tell("power-cut-at swap")
        hub.order()
        await hub.until(lambda: len(hub.outcomes()) == 2)
    assert hub.words() == [("INCONCLUSIVE", "power-loss", 1), ("UPDATED", "", 2)]
    assert [slot for slot, _ in device.boots()] == ["A", "B", "A", "B"]
    assert len([sha256 for sha256, _ in hub.blobs.reads if sha256 == NEW_SHA256]) == 1


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("state:PREFLIGHT", [("UPDATED", "", 1)]),
        ("staging:100%", [("UPDATED", "", 1)]),
        ("state:VERIFIED", [("UPDATED", "", 1)]),
        ("state:ARMED", [("UPDATED", "", 2)]),
        ("armed", [("UPDATED", "", 1)]),
        ("reboot", [("UPDATED", "", 1)]),
        ("state:TRIAL", [("INCONCLUSIVE", "power-loss", 1), ("UPDATED", "", 2)]),
        ("state:COMMITTING", [("INCONCLUSIVE", "power-loss", 1), ("UPDATED", "", 2)]),
        ("committed", [("UPDATED", "", 1)]),
        ("state:COMMITTED", [("UPDATED", "", 1)]),
    ],
)
async def test_power_cut_at_every_step_ends_updated(
    device: DeviceDirectory, hub: HubStandIn, step: str, words: list[tuple[str, str, int]]
) -> None:
    """D9: wherever the power fails, the device ends on a complete image, with each attempt accounted for."""
    async with hub.serving():
        device.configure(hub.port)
        device.start()
        await device.tell(f"power-cut-at {step}")
        hub.order()
        await hub.until(lambda: bool(hub.outcomes()) and hub.outcomes()[-1].kind.name == "UPDATED")
    assert hub.words() == words
    assert device.slot_sha256("B") == NEW_SHA256
    assert device.environment().trial is None


async def test_killed_agent_goes_on_in_the_same_boot(device: DeviceDirectory, hub: HubStandIn) -> None:
    """A crash of the agent is not a power cut: the trial's budget goes on, the boot stays."""
    hub.answer_trials_as = "nothing"
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.start()
        await hub.until_state(UpdateState.TRIAL)
        os.kill((await device.tell("status"))["agent_pid"], signal.SIGKILL)
        hub.answer_trials_as = "control"
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("UPDATED", "", 1)]
    assert device.boots() == [("A", "power-on"), ("B", "reboot")]


async def test_crash_loop_in_a_trial_falls_back(device: DeviceDirectory, hub: HubStandIn) -> None:
    hub.answer_trials_as = "nothing"
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.start()
        await hub.until_state(UpdateState.TRIAL)
        killed: set[int] = set()
        while len(killed) < 4:
            status = await device.tell("status")
            if status["agent_pid"] is not None and status["agent_pid"] not in killed:
                killed.add(status["agent_pid"])
                os.kill(status["agent_pid"], signal.SIGKILL)
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("ROLLED_BACK", "watchdog", 1)]


async def test_off_and_on(device: DeviceDirectory, hub: HubStandIn) -> None:
    async with hub.serving():
        device.configure(hub.port)
        device.start()
        await hub.until(lambda: bool(hub.statuses))
        assert (await device.tell("off"))["power"] == "off"
        assert (await device.tell("on"))["power"] == "on"
        hub.order()
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("UPDATED", "", 1)]
    assert device.boots()[:2] == [("A", "power-on"), ("A", "power-loss")]
