"""The agent on a Linux board, started as systemd starts it; kernel files, watchdog and reboots are played.

D3, D4, D9, D10: the running slot is certain or the agent does not start; a hung or crashing trial ends on the old slot.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from device.bootenv import SlotName
from tests.device_directory import NEW_VERSION, digest_of, image_of
from tests.device_kit import HubStandIn
from tests.linux_board_kit import MOUNTINFO, LinuxDevice
from wavemesh.trust.statements import UpdateState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import CredentialsFactory, TrustKeys
    from wavemesh.identity.ca import FleetCa

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def device(tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys) -> Iterator[LinuxDevice]:
    device = LinuxDevice(tmp_path / "device", fleet_ca, trust_keys.pinned_root)
    yield device
    device.stop()


@pytest.fixture
def hub(trust_keys: TrustKeys, credentials: CredentialsFactory) -> HubStandIn:
    return HubStandIn(trust_keys, credentials, budget_mins="5")


def boot_record(device: LinuxDevice) -> dict[str, object]:
    found: dict[str, object] = json.loads((device.path / "run" / "boot.json").read_bytes())
    return found


async def until_petted(device: LinuxDevice) -> None:
    await device.until(lambda: b"\0" in device.read_watchdog())


async def reach_trial(device: LinuxDevice, hub: HubStandIn) -> None:
    """Up to the boot of the trial, which is not acknowledged."""
    hub.answer_trials_as = "nothing"
    hub.order()
    device.configure(hub.port)
    device.boot()
    await device.until_asked()
    device.boot()
    await hub.until_state(UpdateState.TRIAL)


async def test_started_and_stopped_as_systemd_does(device: LinuxDevice, hub: HubStandIn) -> None:
    """READY, pets for systemd and for the watchdog, and an orderly end that stops the watchdog."""
    async with hub.serving():
        device.configure(hub.port)
        device.boot(reset_reason="POR")
        await device.until_notified("READY=1")
        await device.until_notified("WATCHDOG=1")
        device.notified.clear()
        await device.until_notified("WATCHDOG=1")  # and again: by systemd's 0.4 s, not by the board's 10 s
        await until_petted(device)
        await hub.until_state(UpdateState.IDLE)
        record = boot_record(device)
        assert (record["slot"], record["config_generation"], record["reset_reason"]) == ("A", 1, "power-loss")
        assert device.agent is not None
        device.agent.send_signal(signal.SIGTERM)
        assert await device.ends() == 0
        assert device.read_watchdog().endswith(b"V")
        device.boot()
        await device.until_notified("READY=1")
        await hub.until(lambda: boot_record(device)["boot_id"] != record["boot_id"])
    assert boot_record(device)["reset_reason"] == "power-on"


async def test_an_update_goes_through_real_reboots(device: LinuxDevice, hub: HubStandIn) -> None:
    """The whole way; what the agent asked for is a reboot, and the watchdog is never stopped on it."""
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.boot()
        await device.until_asked()
        assert b"V" not in device.read_watchdog()
        device.boot()
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("UPDATED", "", 1)]
    assert device.environment().active.slot is SlotName.B
    assert device.slot_sha256("B") == digest_of(image_of(NEW_VERSION)).sha256
    assert boot_record(device)["reset_reason"] == "reboot"


@pytest.mark.parametrize(
    ("command_line", "mountinfo", "names"),
    [
        ("quiet", MOUNTINFO, ("wavemesh.slot", "cmdline")),
        ("wavemesh.slot=A wavemesh.slot=B wavemesh.config=1", MOUNTINFO, ("wavemesh.slot=B",)),
    ],
)
async def test_an_uncertain_slot_stops_the_agent(
    device: LinuxDevice, command_line: str, mountinfo: str, names: tuple[str, ...]
) -> None:
    """Q2: it names each source and writes nothing; the watchdog is not taken, so whoever armed it resets the board."""
    device.configure(1)
    device.write("proc/cmdline", command_line)
    device.write("proc/self/mountinfo", mountinfo)
    device.write("proc/sys/kernel/random/boot_id", "8f0d2f0e-0c3c-4f0e-9d41-0d2b6e5c7a11\n")
    device.start_agent()
    assert await device.ends() == 1
    for name in ("RUNNING_SLOT", *names):
        assert name in device.errors()
    assert device.read_watchdog() == b""
    assert not (device.path / "run" / "boot.json").exists()


def some_block_device() -> tuple[Path, str]:
    for entry in sorted(Path("/sys/class/block").iterdir()):
        if (Path("/dev") / entry.name).is_block_device():
            return Path("/dev") / entry.name, (entry / "dev").read_text().strip()
    pytest.fail("this machine has no block device at all")


async def test_the_root_contradicts_the_command_line(device: LinuxDevice) -> None:
    """The bootloader says A, but the root file system is on B, below a mapping: nobody may write either."""
    node, number = some_block_device()
    slot = device.path / "slots" / "B.img"
    slot.unlink()
    slot.symlink_to(node)
    device.configure(1)
    device.write("proc/cmdline", "wavemesh.slot=A wavemesh.config=1")
    device.write("proc/self/mountinfo", "27 1 253:7 / / ro,relatime - ext4 /dev/mapper/root ro\n")
    device.write("sys/dev/block/253:7/slaves/below/dev", f"{number}\n")
    device.write("proc/sys/kernel/random/boot_id", "8f0d2f0e-0c3c-4f0e-9d41-0d2b6e5c7a11\n")
    device.start_agent()
    assert await device.ends() == 1
    assert "the root rests on slot B: mend root= in the bootloader's script" in device.errors()
    assert f"253:7 over {number}" in device.errors()


@pytest.mark.parametrize(
    ("reset_reason", "bootstatus", "word"),
    [
        ("POR", 0x20, ("ROLLED_BACK", "watchdog", 1)),
        ("POR", 0, ("INCONCLUSIVE", "power-loss", 1)),
    ],
)
async def test_a_trial_that_hangs_falls_back(
    device: LinuxDevice, hub: HubStandIn, reset_reason: str, bootstatus: int, word: tuple[str, str, int]
) -> None:
    """A stopped agent pets nobody; what the board says of the reset decides, and power-loss must be proven."""
    async with hub.serving():
        await reach_trial(device, hub)
        await until_petted(device)
        assert device.agent is not None
        device.agent.send_signal(signal.SIGSTOP)
        device.read_watchdog()
        device.boot(reset_reason, bootstatus)
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words()[0] == word
    assert device.environment().active.slot is SlotName.A


async def test_a_trial_is_never_disarmed(device: LinuxDevice, hub: HubStandIn) -> None:
    """`systemctl stop` in a trial leaves the watchdog running: an unwatched trial must not go on."""
    async with hub.serving():
        await reach_trial(device, hub)
        await until_petted(device)
        assert device.agent is not None
        device.agent.send_signal(signal.SIGTERM)
        assert await device.ends() == 0
        assert b"V" not in device.read_watchdog()


async def test_a_crash_loop_in_a_trial_reboots(device: LinuxDevice, hub: HubStandIn) -> None:
    """Systemd starts it again for ever; in a trial the agent counts, and the bootloader falls back."""
    async with hub.serving():
        await reach_trial(device, hub)
        for _ in range(3):
            device.kill()
            device.start_agent()
            await until_petted(device)
        device.kill()
        device.start_agent()
        await device.until_asked()
        device.boot()
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("ROLLED_BACK", "watchdog", 1)]
    assert device.environment().active.slot is SlotName.A


async def test_a_reboot_that_does_not_come_about_is_forced(device: LinuxDevice, hub: HubStandIn) -> None:
    """Then the harder command, and from the first one on no pet, so that the watchdog has the last word.

    A kernel that a rehearsal may have left loaded is unloaded at the start and before: a reboot would go to it, past
    the bootloader.
    """
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.boot()
        await device.until_asked("reboot")
        device.read_watchdog()
        await device.until_asked("force")
        assert device.asked() == ["unload", "unload", "reboot", "force"]
        assert device.read_watchdog() == b""
