"""A wave of a device with a TPM: what it booted is shown before ARM and in the trial, and decides (D2, D4, D11).

Real agent and supervisor processes, a real swtpm, a real wire to a stand-in hub that judges as the real ones do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.device_directory import DEVICE, DeviceDirectory
from tests.device_kit import HubStandIn
from tests.tpm_kit import ZEROS, software_tpm
from wavemesh.trust.statements import UpdateState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import CredentialsFactory, TrustKeys
    from tests.tpm_kit import SoftwareTpm
    from wavemesh.identity.ca import FleetCa

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def tpm() -> Iterator[SoftwareTpm]:
    with software_tpm() as one:
        yield one


@pytest.fixture
def device(tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys, tpm: SoftwareTpm) -> Iterator[DeviceDirectory]:
    directory = DeviceDirectory(tmp_path / "device", fleet_ca, trust_keys.pinned_root)
    tpm.enrol(directory.path / "identity", fleet_ca, DEVICE)
    yield directory
    directory.stop()


@pytest.fixture
def hub(trust_keys: TrustKeys, credentials: CredentialsFactory) -> HubStandIn:
    return HubStandIn(trust_keys, credentials, budget_mins="0.5")


def start(device: DeviceDirectory, hub: HubStandIn, tpm: SoftwareTpm) -> None:
    device.configure(hub.port)
    device.set("[hub]", f'[identity]\nkey = "tpm"\ntcti = "{tpm.tcti}"\n[hub]')
    device.start()


def has_key_in_a_file(device: DeviceDirectory) -> bool:
    files = (device.path / "identity").rglob("*")
    return any(b"PRIVATE KEY" in one.read_bytes() for one in files if one.is_file())


async def test_a_wave_with_a_tpm(device: DeviceDirectory, hub: HubStandIn, tpm: SoftwareTpm) -> None:
    """Joined, staged, shown before ARM and after the boot, committed; the release says what one of its PCRs is."""
    hub.publish_with(attestation=((4, ZEROS),))
    async with hub.serving():
        hub.order()
        start(device, hub, tpm)
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("UPDATED", "", 1)]
    quoted = {ping.slot: sorted(ping.quote.pcrs) for ping in hub.pings if ping.quote is not None}
    assert quoted == {"A": [0, 7], "B": [0, 4, 7]}
    assert all(ping.quote is not None for ping in hub.pings)
    assert not has_key_in_a_file(device)


async def test_what_was_not_expected_is_refused_before_flashing(
    device: DeviceDirectory, hub: HubStandIn, tpm: SoftwareTpm
) -> None:
    """Something else has booted since it joined: refused by its gate, nothing written."""
    tpm.extend(7)
    async with hub.serving():
        hub.order()
        start(device, hub, tpm)
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("REFUSED", "attestation", 0)]
    assert "PCR 7 is " in hub.outcomes()[0].evidence
    assert device.boots() == [("A", "power-on")]
    assert "state:STAGING" not in device.steps()


async def test_what_changed_since_is_refused_before_arm(
    device: DeviceDirectory, hub: HubStandIn, tpm: SoftwareTpm
) -> None:
    """It was as expected before flashing, and is not any more."""
    hub.grants_leases = False
    async with hub.serving():
        hub.order()
        start(device, hub, tpm)
        await hub.until_state(UpdateState.VERIFIED)
        tpm.extend(0)
        seen = len(hub.pings)
        await hub.until(lambda: len(hub.pings) > seen + 1)
        hub.grant(1)
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("REFUSED", "attestation", 0)]
    assert "PCR 0 is " in hub.outcomes()[0].evidence
    assert device.boots() == [("A", "power-on")]


async def test_another_image_than_the_release_is_rolled_back(
    device: DeviceDirectory, hub: HubStandIn, tpm: SoftwareTpm
) -> None:
    """What the new slot measured is not what the release keys signed: back, by gate, without waiting for the budget."""
    hub.publish_with(attestation=((4, "ab" * 32),))
    async with hub.serving():
        hub.order()
        start(device, hub, tpm)
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("ROLLED_BACK", "attestation", 1)]
    assert f"PCR 4 is {ZEROS}, {'ab' * 32} required" in hub.outcomes()[0].evidence
    assert [slot for slot, _ in device.boots()] == ["A", "B", "A"]


async def test_a_tpm_lost_in_the_trial_rolls_back_and_is_told_when_it_is_back(
    device: DeviceDirectory, trust_keys: TrustKeys, credentials: CredentialsFactory, tpm: SoftwareTpm
) -> None:
    """D5: rolling back asks no TPM. The word about it does: the agent ends with the error, and says it later."""
    hub = HubStandIn(trust_keys, credentials, budget_mins="0.1")
    hub.answer_trials_as = "nothing"
    async with hub.serving():
        hub.order()
        start(device, hub, tpm)
        await hub.until(lambda: any(ping.slot == "B" for ping in hub.pings))
        tpm.stop()
        await hub.until(lambda: f"TPM: TPM {tpm.tcti}: " in (device.path / "run" / "stderr.log").read_text())
        assert hub.outcomes() == []
        assert device.environment().trial is None
        assert [slot for slot, _ in device.boots()][:3] == ["A", "B", "A"]
        tpm.start()
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("ROLLED_BACK", "attestation", 1)]
    assert f"TPM {tpm.tcti}: " in hub.outcomes()[0].evidence
    assert not has_key_in_a_file(device)


async def test_a_tpm_lost_before_arm_is_waited_for(device: DeviceDirectory, hub: HubStandIn, tpm: SoftwareTpm) -> None:
    """Without it nobody can be asked: the gate is shown and nothing is armed; with it the update goes on."""
    hub.answer_pings_as = "nothing"
    async with hub.serving():
        hub.order()
        start(device, hub, tpm)
        await hub.until_state(UpdateState.VERIFIED)
        tpm.stop()
        await hub.until(lambda: bool(hub.statuses) and hub.statuses[-1].gate == "attestation")
        assert hub.statuses[-1].state is UpdateState.VERIFIED
        tpm.start()
        hub.answer_pings_as = "control"
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("UPDATED", "", 1)]


async def test_the_agent_starts_with_no_other_kind_of_key(
    device: DeviceDirectory, hub: HubStandIn, tpm: SoftwareTpm
) -> None:
    """A reference to a TPM under a configuration without one is an error that says what to set; nothing is dialled."""
    async with hub.serving():
        device.configure(hub.port)
        device.start()
        log = device.path / "run" / "stderr.log"
        await hub.until(lambda: 'refers to a key in a TPM; set key = "tpm"' in log.read_text())
    assert hub.statuses == []
