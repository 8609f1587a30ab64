"""A device end to end: real agent and supervisor processes, real reboots, a real wire to a stand-in hub (D1 to D9)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from device.bootenv import Boot, SlotName
from tests.device_directory import NEW_VERSION, DeviceDirectory, digest_of, image_of
from tests.device_kit import WAVE, HubStandIn
from wavemesh.trust.statements import UpdateState, WaveState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import CredentialsFactory, TrustKeys
    from wavemesh.identity.ca import FleetCa

pytestmark = pytest.mark.timeout(90)
NEW_SHA256 = digest_of(image_of(NEW_VERSION)).sha256


@dataclass(frozen=True, slots=True)
class Look:
    """A process as the kernel sees it."""

    resident_kib: int
    own_threads: int
    files: tuple[str, ...]


def look_at(pid: int) -> Look:
    process = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    names = [(task / "comm").read_text() for task in (process / "task").iterdir()]
    files = tuple(str(file.readlink()) for file in (process / "fd").iterdir())
    return Look(int(status["VmRSS"].split()[0]), names.count((process / "comm").read_text()), files)


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


async def test_config_alone_is_switched_without_a_slot(device: DeviceDirectory, hub: HubStandIn) -> None:
    """The same path without a slot switch; the old generation stays to go back to."""
    hub.publish_without("firmware: firmware-v3.8.2.img, ")
    hub.permit_firmware = False
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.start()
        await hub.until(lambda: bool(hub.outcomes()))
        assert hub.words() == [("UPDATED", "", 1)]
        environment = device.environment()
        assert (environment.active, environment.previous) == (Boot(SlotName.A, 2), Boot(SlotName.A, 1))
        hub.roll_back("wrong prices")
        await hub.until(lambda: len(hub.outcomes()) == 2)
    assert device.environment().active == Boot(SlotName.A, 1)


async def test_a_paused_wave_arms_nothing(device: DeviceDirectory, hub: HubStandIn) -> None:
    """Staging goes on under a pause, ARM does not, even with a lease in hand."""
    async with hub.serving():
        hub.pause(1)
        device.configure(hub.port)
        device.start()
        await hub.until_state(UpdateState.VERIFIED)
        count = len(hub.pings)
        await hub.until(lambda: len(hub.pings) > count + 2)
        assert hub.statuses[-1].state is UpdateState.VERIFIED
        hub.order(generation=2)
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("UPDATED", "", 1)]


async def test_no_arm_without_the_health_authority(device: DeviceDirectory, hub: HubStandIn) -> None:
    """A store whose authority is out of reach finishes staging and arms nothing; the gate is shown."""
    hub.answer_pings_as = "down"
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.start()
        await hub.until(lambda: bool(hub.statuses) and hub.statuses[-1].gate == "health-authority")
        assert hub.statuses[-1].state is UpdateState.VERIFIED
        hub.answer_pings_as = "control"
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("UPDATED", "", 1)]


async def test_transient_refusals_pass_within_the_wave(device: DeviceDirectory, hub: HubStandIn) -> None:
    """D2, D7: refused by the one gate, with evidence, and taken up again once it passes."""
    device.write("hardware/power_supply/BAT0/capacity", "5\n")
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.start()
        await hub.until(lambda: len(hub.outcomes()) == 1)
        device.write("hardware/power_supply/BAT0/capacity", "90\n")
        device.write("hardware/inhibit", "payment open\n")
        await hub.until(lambda: len(hub.outcomes()) == 2)
        (device.path / "hardware" / "inhibit").unlink()
        await hub.until(lambda: len(hub.outcomes()) == 3)
    assert hub.words() == [("REFUSED", "battery", 0), ("REFUSED", "inhibited", 0), ("UPDATED", "", 1)]
    assert hub.outcomes()[0].evidence == "battery at 5 %, 40 % required"
    assert "payment open" in hub.outcomes()[1].evidence


async def test_heat_pauses_the_write(device: DeviceDirectory, hub: HubStandIn) -> None:
    """D2: thermal trouble while flashing pauses it, and it goes on where it was."""
    hub.blobs.stall_after = 600_000
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.start()
        await hub.until(hub.blobs.stalled.is_set)
        device.write("hardware/thermal/thermal_zone0/temp", "95000\n")
        await hub.until_state(UpdateState.PAUSED)
        assert hub.statuses[-1].gate == "temperature"
        hub.blobs.stall_after = None
        device.write("hardware/thermal/thermal_zone0/temp", "40000\n")
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("UPDATED", "", 1)]
    offsets = [offset for sha256, offset in hub.blobs.reads if sha256 == NEW_SHA256]
    assert offsets[-1] >= 512 * 1024


async def test_a_lost_link_costs_no_byte_that_arrived(device: DeviceDirectory, hub: HubStandIn) -> None:
    """D1: the write goes on after the last byte that came, not after the last regular flush."""
    hub.blobs.stall_after = 600_000
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.set("fsync_step_bytes = 131072", "fsync_step_bytes = 8388608")
        device.start()
        await hub.until(lambda: bool(hub.statuses) and hub.statuses[-1].staged_bytes >= 600_000)
    hub.blobs.stall_after = None
    async with hub.serving(hub.port):
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("UPDATED", "", 1)]
    offsets = [offset for sha256, offset in hub.blobs.reads if sha256 == NEW_SHA256]
    assert offsets[0] == 0
    assert offsets[-1] >= 600_000
    others = [sha256 for sha256, _ in hub.blobs.reads if sha256 != NEW_SHA256]
    assert len(others) == len(set(others)) > 0, "the signature bundle was fetched again"


async def test_wrong_bytes_are_refused_as_checksum(device: DeviceDirectory, hub: HubStandIn) -> None:
    """P2, D3: what is read back from the slot must be what was signed, whoever served it."""
    right = hub.blobs.content[NEW_SHA256]
    hub.blobs.content[NEW_SHA256] = right[:-1] + b"?"
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.start()
        await hub.until(lambda: bool(hub.outcomes()))
        assert hub.words() == [("REFUSED", "checksum", 0)]
        hub.blobs.content[NEW_SHA256] = right
        await hub.until(lambda: len(hub.outcomes()) == 2)
    assert hub.words()[1] == ("UPDATED", "", 1)


async def test_the_hub_gets_the_log(device: DeviceDirectory, hub: HubStandIn) -> None:
    async with hub.serving():
        device.configure(hub.port)
        device.start()
        await hub.until(lambda: any("agent starts on slot A" in line for line in hub.log_lines))


async def test_an_idle_agent_is_small(device: DeviceDirectory, hub: HubStandIn) -> None:
    """No thread but grpcio's and the loop's own, no database, a bounded resident size."""
    async with hub.serving():
        device.configure(hub.port)
        device.start()
        await hub.until(lambda: bool(hub.statuses))
        idle = look_at((await device.tell("status"))["agent_pid"])
    assert idle.resident_kib < 100 * 1024
    # grpcio's poller is one thread under the process's own name, beside the loop.
    assert idle.own_threads <= 2
    assert not [file for file in idle.files if file.endswith((".db", ".sqlite", "-wal"))]


async def test_an_expired_lease_arms_nothing(device: DeviceDirectory, hub: HubStandIn) -> None:
    """The device enforces its lease; a new one lets it go on."""
    hub.lease_s = -1.0
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.start()
        await hub.until(lambda: bool(hub.statuses) and hub.statuses[-1].gate == "lease-expired")
        assert hub.statuses[-1].state is UpdateState.VERIFIED
        hub.lease_s = 60.0
        hub.grant(1)
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("UPDATED", "", 1)]


async def test_a_permit_bounds_the_attempts(device: DeviceDirectory, hub: HubStandIn) -> None:
    """P6: the device itself counts: attempt 2 is refused when the permit allows one."""
    hub.attempts_allowed = 1
    hub.answer_trials_as = "nothing"
    hub.lease_state = "live"
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.start()
        await hub.until_state(UpdateState.TRIAL)
        await device.tell("power-cut")
        await hub.until(lambda: len(hub.outcomes()) == 2)
    assert hub.words() == [("INCONCLUSIVE", "power-loss", 1), ("REFUSED", "permit", 1)]
    assert [slot for slot, _ in device.boots()] == ["A", "B", "A"]


async def test_a_halt_before_arm_is_final(device: DeviceDirectory, hub: HubStandIn) -> None:
    hub.grants_leases = False
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.start()
        await hub.until_state(UpdateState.VERIFIED)
        hub.order(WaveState.HALTED, generation=2)
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("REFUSED", "halted", 0)]


async def test_a_closed_wave_is_never_taken_up_again(device: DeviceDirectory, hub: HubStandIn) -> None:
    """A hub that plays an old order again after the wave was closed gets nothing for it."""
    device.lose_scanner_on("B")
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.start()
        await hub.until(lambda: bool(hub.outcomes()))
        hub.close_wave()
        await hub.until_state(UpdateState.IDLE)
        hub.forget("closed", WAVE)
        hub.order(generation=2)
        await hub.until(lambda: ("order", 2) in hub.accepted)
    assert hub.words() == [("ROLLED_BACK", "peripheral:scanner", 1)]
    assert hub.statuses[-1].state is UpdateState.IDLE


async def test_a_probe_that_release_keys_did_not_sign_never_runs(device: DeviceDirectory, hub: HubStandIn) -> None:
    """Acceptance 4: a signed policy and a signed order ask for it; the device refuses before it runs anything."""
    device.script("unsigned-check", "echo scanner")
    hub.publish_asking_for("unsigned-check | grep scanner")
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.start()
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("REFUSED", "signature", 0)]
    assert "does not sign: 'unsigned-check | grep scanner'" in hub.outcomes()[0].evidence
    assert {status.state for status in hub.statuses} <= {UpdateState.IDLE, UpdateState.REFUSED}
