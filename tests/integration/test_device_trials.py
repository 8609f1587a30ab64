"""Trials in which the new slot's software goes wrong, on a real supervisor (D3, D4, D5, D9).

Each ends on the old slot, within the budget where the agent lives to see it, by the gate that names what happened. What
else goes wrong in a trial: a crash loop in test_device_power.py, a stopped agent, a kernel that never reaches the agent
and an authority that is silent or down in test_device_rollback.py.
"""

from __future__ import annotations

import json
import os
import signal
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from device.bootenv import SlotName
from tests.device_directory import DeviceDirectory
from tests.device_kit import HubStandIn
from wavemesh.trust.statements import UpdateState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import CredentialsFactory, TrustKeys
    from wavemesh.identity.ca import FleetCa

pytestmark = pytest.mark.timeout(90)
BUDGET_S = 3.0
# Starting an agent twice and rebooting, on a busy machine.
AROUND_S = 15.0


@pytest.fixture
def device(tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys) -> Iterator[DeviceDirectory]:
    directory = DeviceDirectory(tmp_path / "device", fleet_ca, trust_keys.pinned_root)
    directory.python_path = [Path(__file__).parents[1] / "faults"]
    yield directory
    directory.stop()


@pytest.fixture
def hub(trust_keys: TrustKeys, credentials: CredentialsFactory) -> HubStandIn:
    hub = HubStandIn(trust_keys, credentials, budget_mins=str(BUDGET_S / 60))
    hub.answer_trials_as = "nothing"
    return hub


def trial_took_s(device: DeviceDirectory) -> float:
    """From the boot of the trial to the boot after it."""
    path = device.path / "run" / "boots.jsonl"
    boots = [datetime.fromisoformat(json.loads(line)["at"]) for line in path.read_text().splitlines()]
    return (boots[2] - boots[1]).total_seconds()


def assert_on_the_old_slot(device: DeviceDirectory) -> None:
    assert [slot for slot, _ in device.boots()] == ["A", "B", "A"]
    environment = device.environment()
    assert environment.active.slot is SlotName.A
    assert environment.trial is None


async def start(device: DeviceDirectory, hub: HubStandIn, watchdog_s: float = 10.0) -> None:
    hub.order()
    device.configure(hub.port)
    device.set("watchdog_s = 10.0", f"watchdog_s = {watchdog_s}")
    device.start()


async def test_a_blocked_event_loop(device: DeviceDirectory, hub: HubStandIn) -> None:
    """The process lives, and so do its other threads; the watchdog is petted by the loop alone."""
    async with hub.serving():
        await start(device, hub, watchdog_s=1.0)
        await hub.until_state(UpdateState.TRIAL)
        os.kill((await device.tell("status"))["agent_pid"], signal.SIGUSR1)
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("ROLLED_BACK", "watchdog", 1)]
    assert_on_the_old_slot(device)


async def test_an_agent_that_dies_before_it_pets(device: DeviceDirectory, hub: HubStandIn) -> None:
    """It is started again a few times, then the board resets; nothing of it was ever heard."""
    device.write("hardware/dies-on", "B")
    async with hub.serving():
        await start(device, hub)
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("ROLLED_BACK", "watchdog", 1)]
    assert "TRIAL" not in {status.state.name for status in hub.statuses}
    assert_on_the_old_slot(device)


@pytest.mark.parametrize(
    ("probe_timeout_s", "gate"),
    [(1.0, "peripheral:scanner"), (60.0, "boot-timer")],
)
async def test_a_probe_that_hangs(device: DeviceDirectory, hub: HubStandIn, probe_timeout_s: float, gate: str) -> None:
    """By its own gate when its time is over, by the trial's timer when that ends first; nothing of it stays."""
    device.script("lsusb", '[ "$WAVEMESH_SLOT" = A ] && echo scanner || exec sleep 86399')
    async with hub.serving():
        await start(device, hub)
        device.set("probe_timeout_s = 5.0", f"probe_timeout_s = {probe_timeout_s}")
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("ROLLED_BACK", gate, 1)]
    assert trial_took_s(device) < BUDGET_S + AROUND_S
    assert_on_the_old_slot(device)
    assert not processes_of(b"sleep\x0086399")


def processes_of(command: bytes) -> list[Path]:
    def read(path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError:
            return b""

    return [path for path in Path("/proc").glob("[0-9]*/cmdline") if command in read(path)]


@pytest.mark.parametrize("jump_s", [-400 * 86_400, 400 * 86_400], ids=["back", "forward"])
async def test_a_clock_that_jumps(device: DeviceDirectory, hub: HubStandIn, jump_s: int) -> None:
    """The budget is the monotonic clock's: a jump neither ends a trial at once nor lets it go on for a year."""
    async with hub.serving():
        await start(device, hub)
        await hub.until_state(UpdateState.TRIAL)
        device.write("hardware/clock", str(jump_s))
        await hub.until(lambda: len(device.boots()) == 3)
        device.write("hardware/clock", "0")
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("ROLLED_BACK", "health-authority", 1)]
    assert BUDGET_S <= trial_took_s(device) < BUDGET_S + AROUND_S
    assert_on_the_old_slot(device)


async def test_hub_and_control_are_gone(device: DeviceDirectory, hub: HubStandIn) -> None:
    """Nobody answers, nobody can be asked: back within the budget, and told when somebody listens again."""
    async with hub.serving():
        await start(device, hub)
        await hub.until_state(UpdateState.TRIAL)
    await hub.until(lambda: len(device.boots()) == 3)
    assert trial_took_s(device) < BUDGET_S + AROUND_S
    async with hub.serving(hub.port):
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("ROLLED_BACK", "health-authority", 1)]
    assert_on_the_old_slot(device)
