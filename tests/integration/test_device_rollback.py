"""Trials that fail: the device goes back by itself and names exactly one gate (D4, D5, D7)."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from device.bootenv import SlotName
from tests.device_directory import NEW_VERSION, OLD_VERSION, DeviceDirectory
from tests.device_kit import HubStandIn
from wavemesh.session.frames import ResourceKey
from wavemesh.trust.statements import INTENT_REFUSED, ROLLBACK_FAILED, UpdateState, WaveState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import CredentialsFactory, TrustKeys
    from wavemesh.identity.ca import FleetCa

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def device(tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys) -> Iterator[DeviceDirectory]:
    directory = DeviceDirectory(tmp_path / "device", fleet_ca, trust_keys.pinned_root)
    yield directory
    directory.stop()


@pytest.fixture
def hub(trust_keys: TrustKeys, credentials: CredentialsFactory) -> HubStandIn:
    return HubStandIn(trust_keys, credentials)


def trial_tries(device: DeviceDirectory) -> int:
    trial = device.environment().trial
    return trial.tries_left if trial is not None else 0


def assert_back_on_a(device: DeviceDirectory) -> None:
    environment = device.environment()
    assert (environment.active.slot, environment.active.config_generation) == (SlotName.A, 1)
    assert environment.trial is None


async def test_missing_scanner_is_named(device: DeviceDirectory, hub: HubStandIn) -> None:
    """The new slot lost the scanner's driver: back to the old one, gate peripheral:scanner."""
    device.lose_scanner_on("B")
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.start()
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("ROLLED_BACK", "peripheral:scanner", 1)]
    assert "lsusb | grep scanner" in hub.outcomes()[0].evidence
    assert device.boots() == [("A", "power-on"), ("B", "reboot"), ("A", "reboot")]
    assert_back_on_a(device)


async def test_silent_authority_rolls_back(
    device: DeviceDirectory, trust_keys: TrustKeys, credentials: CredentialsFactory
) -> None:
    """Silence of the health authority is the release's fault, unless the hub signs otherwise."""
    hub = HubStandIn(trust_keys, credentials, budget_mins="0.05")
    hub.answer_trials_as = "nothing"
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.start()
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("ROLLED_BACK", "health-authority", 1)]
    assert_back_on_a(device)


async def test_authority_down_is_inconclusive_and_retried(device: DeviceDirectory, hub: HubStandIn) -> None:
    """The hub's signed word that the authority was down keeps the trial out of the ratio; attempt 2 goes through."""
    hub.answer_trials_as = "down"
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.start()
        await hub.until(lambda: bool(hub.outcomes()))
        hub.answer_trials_as = "control"
        await hub.until(lambda: len(hub.outcomes()) == 2)
    assert hub.words() == [("INCONCLUSIVE", "health-authority", 1), ("UPDATED", "", 2)]


async def test_halt_rolls_a_trial_back_for_good(device: DeviceDirectory, hub: HubStandIn) -> None:
    hub.answer_trials_as = "nothing"
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.start()
        await hub.until_state(UpdateState.TRIAL)
        hub.order(WaveState.HALTED, generation=2)
        await hub.until_state(UpdateState.ROLLED_BACK)
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("INCONCLUSIVE", "halted", 1)]
    assert_back_on_a(device)


async def test_image_that_does_not_boot_falls_back(device: DeviceDirectory, hub: HubStandIn) -> None:
    """D3: the bootloader falls back by itself when the boot does not reach the agent."""
    device.write("hardware/unbootable", f"{NEW_VERSION}\n")
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.write(
            "config.toml",
            (device.path / "config.toml").read_text().replace("boot_timer_s = 20.0", "boot_timer_s = 5.0"),
        )
        device.start()
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("ROLLED_BACK", "watchdog", 1)]
    # On a slow machine the short boot timer may also reset the old slot; what counts is one trial and what followed it.
    boots = device.boots()
    assert [boot for boot in boots if boot[0] == "B"] == [("B", "reboot")]
    assert boots[boots.index(("B", "reboot")) + 1] == ("A", "watchdog")
    assert_back_on_a(device)


async def test_hung_agent_falls_back(device: DeviceDirectory, hub: HubStandIn) -> None:
    """The watchdog lives outside the agent."""
    hub.answer_trials_as = "nothing"
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.write(
            "config.toml", (device.path / "config.toml").read_text().replace("watchdog_s = 10.0", "watchdog_s = 1.0")
        )
        device.start()
        await hub.until_state(UpdateState.TRIAL)
        os.kill((await device.tell("status"))["agent_pid"], signal.SIGSTOP)
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.words() == [("ROLLED_BACK", "watchdog", 1)]
    assert_back_on_a(device)


async def test_operator_rolls_back_after_commit(device: DeviceDirectory, hub: HubStandIn) -> None:
    """A signed intent needs no permit and no lease; the wave leaves the device alone afterwards."""
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.start()
        await hub.until_state(UpdateState.COMMITTED)
        hub.roll_back("scanner driver missing")
        await hub.until_state(UpdateState.ROLLED_BACK)
        await hub.until(lambda: len(hub.outcomes()) == 2)
        hub.order(generation=2)
        await hub.until(lambda: hub.statuses[-1].state is UpdateState.ROLLED_BACK)
    assert hub.words() == [("UPDATED", "", 1), ("ROLLED_BACK", "operator", 1)]
    assert "scanner driver missing" in hub.outcomes()[1].evidence
    assert_back_on_a(device)


async def committed(device: DeviceDirectory, hub: HubStandIn) -> None:
    hub.order()
    device.configure(hub.port)
    device.start()
    await hub.until_state(UpdateState.COMMITTED)
    await hub.until(lambda: bool(hub.outcomes()))


async def test_a_rotten_old_slot_is_not_gone_back_to(device: DeviceDirectory, hub: HubStandIn) -> None:
    """D5, D9: the old slot is read back first; one that changed while unused is not booted, and the operator hears."""
    async with hub.serving():
        await committed(device, hub)
        device.rot("A")
        intent_id = hub.roll_back("scanner driver missing")
        await hub.until(lambda: bool(hub.answer_to(intent_id)))
        await hub.until_state(UpdateState.COMMITTED)
    assert hub.events()[-1].kind == ROLLBACK_FAILED
    assert hub.answer_to(intent_id).startswith("slot A reads back SHA-256")
    assert hub.words() == [("UPDATED", "", 1)]
    assert [slot for slot, _ in device.boots()] == ["A", "B"]
    environment = device.environment()
    assert (environment.active.slot, environment.trial) == (SlotName.B, None)


async def test_an_old_slot_that_does_not_boot_falls_back(device: DeviceDirectory, hub: HubStandIn) -> None:
    """D5, D9: the way back is a trial as well; the bootloader returns to the new slot, which says why."""
    async with hub.serving():
        await committed(device, hub)
        device.write("hardware/unbootable", f"{OLD_VERSION}\n")
        intent_id = hub.roll_back("scanner driver missing")
        await hub.until(lambda: bool(hub.answer_to(intent_id)))
        await hub.until_state(UpdateState.COMMITTED)
    assert hub.answer_to(intent_id) == "slot A did not reach the agent (watchdog); it falls back by itself"
    assert device.boots()[1:] == [("B", "reboot"), ("A", "reboot"), ("B", "watchdog")]
    assert hub.words() == [("UPDATED", "", 1)]


@pytest.mark.parametrize("step", ["state:ROLLING_BACK", "committed"])
async def test_power_cuts_on_the_way_back(device: DeviceDirectory, hub: HubStandIn, step: str) -> None:
    """D9: wherever the power fails, the rollback is done once, on a complete image."""
    async with hub.serving():
        await committed(device, hub)
        await device.tell(f"power-cut-at {step}")
        intent_id = hub.roll_back("scanner driver missing")
        await hub.until(lambda: len(hub.outcomes()) == 2)
        await hub.until_state(UpdateState.ROLLED_BACK)
    assert hub.words() == [("UPDATED", "", 1), ("ROLLED_BACK", "operator", 1)]
    assert not hub.answer_to(intent_id), "the intent was carried out twice"
    assert "power-loss" in {reason for _, reason in device.boots()}
    assert_back_on_a(device)
    assert device.environment().previous is None


async def test_a_rollback_with_nowhere_to_go_is_answered(device: DeviceDirectory, hub: HubStandIn) -> None:
    """Without a previous slot the operator, and the hub that paces rollbacks, learn that nothing will come of it."""
    async with hub.serving():
        device.configure(hub.port)
        device.start()
        await hub.until_state(UpdateState.IDLE)
        hub.roll_back("just to be safe")
        await hub.until(lambda: bool(hub.events()))
    event = hub.events()[0]
    assert (event.kind, event.gate) == (INTENT_REFUSED, "operator")
    assert f"intent/{event.subject}" in {f"{key.type}/{key.name}" for key in hub.wanted}
    assert event.detail == "there is no previous slot to go back to"
    assert hub.outcomes() == []


async def test_local_rollback_needs_no_hub(device: DeviceDirectory, hub: HubStandIn) -> None:
    """D5: the local socket rolls back with the hub gone; the outcome is told when it is back."""
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.start()
        await hub.until_state(UpdateState.COMMITTED)
        await hub.until(lambda: bool(hub.outcomes()))
    assert (await device.tell("rollback till frozen", "agent.sock"))["ok"]
    async with hub.serving(hub.port):
        await hub.until(lambda: len(hub.outcomes()) == 2)
    assert hub.words()[1] == ("ROLLED_BACK", "operator", 1)
    assert "till frozen" in hub.outcomes()[1].evidence
    assert_back_on_a(device)


async def test_supervised_trial_waits_for_a_human(
    device: DeviceDirectory, trust_keys: TrustKeys, credentials: CredentialsFactory
) -> None:
    """D5, supervised mode: a failed trial keeps the new slot running, through power cuts, until it is signed off.

    Only an approval of that attempt of that wave by an operator in good standing does that, given after the failure.
    """
    hub = HubStandIn(trust_keys, credentials, offline_rollback="false")
    device.lose_scanner_on("B")
    async with hub.serving():
        device.configure(hub.port)
        device.start()
        early = hub.approve()
        await hub.until(lambda: bool(hub.answer_to(early)))
        hub.order()
        await hub.until_state(UpdateState.AWAITING_SIGNOFF)
        await hub.until(lambda: trial_tries(device) == 3)
        await device.tell("power-cut")
        await hub.until(lambda: hub.statuses[-1].state is UpdateState.AWAITING_SIGNOFF and len(device.boots()) == 3)
        assert device.boots()[2] == ("B", "power-loss")
        hub.approve(device="pos-02")
        wrong = [hub.approve(wave_id="141"), hub.approve(attempt=2), hub.roll_back("just go back")]
        await hub.until(lambda: all(map(hub.answer_to, wrong)))
        local = await device.tell("rollback till frozen", "agent.sock")
        hub.revoke("operator/mallory")
        forged = ResourceKey("intent", hub.approve(operator="mallory"))
        await hub.until(lambda: any(rejection.key == forged for rejection in hub.rejected))
        assert hub.outcomes() == []
        hub.approve(reason="seen on site")
        await hub.until(lambda: bool(hub.outcomes()))
        again = hub.approve()
        await hub.until(lambda: bool(hub.answer_to(again)))
    assert hub.answer_to(early).endswith("nothing waits for a sign-off here: the device is IDLE")
    assert [hub.answer_to(one).split(":")[0] for one in wrong] == [
        "it approves attempt 1 of wave 141; what waits is attempt 1 of wave 142",
        "it approves attempt 2 of wave 142; what waits is attempt 1 of wave 142",
        "supervised",
    ]
    assert (local["ok"], "approve-rollback --id pos-01 --wave 142" in local["error"]) == (False, True)
    assert hub.answer_to(again) == "attempt 1 of wave 142 is rolled back already"
    assert hub.words() == [("ROLLED_BACK", "peripheral:scanner", 1)]
    assert "seen on site" in hub.outcomes()[0].evidence
    assert_back_on_a(device)


async def test_nobody_signs_off_in_time(
    device: DeviceDirectory, trust_keys: TrustKeys, credentials: CredentialsFactory
) -> None:
    """Past the maxima the device is `failed`, once, and still waits: a late approval ends it all the same."""
    hub = HubStandIn(trust_keys, credentials, offline_rollback="false")
    device.lose_scanner_on("B")
    async with hub.serving():
        device.configure(hub.port)
        device.set("[timing]", "[timing]\nsignoff_maximum_s = 0.3")
        device.start()
        hub.order()
        await hub.until(lambda: bool(hub.outcomes()))
        await device.tell("power-cut")
        await hub.until(lambda: len(device.boots()) == 3 and hub.statuses[-1].state is UpdateState.AWAITING_SIGNOFF)
        hub.approve()
        await hub.until_state(UpdateState.ROLLED_BACK)
        await hub.until(lambda: len(hub.outcomes()) == 2)
    assert hub.words() == [("FAILED", "peripheral:scanner", 1), ("ROLLED_BACK", "peripheral:scanner", 1)]


async def test_what_is_supervised_is_left_by_a_signed_word(
    device: DeviceDirectory, trust_keys: TrustKeys, credentials: CredentialsFactory
) -> None:
    """D5: after the commit as well, the local socket has no signature, and an operator's intent has."""
    hub = HubStandIn(trust_keys, credentials, offline_rollback="false")
    async with hub.serving():
        await committed(device, hub)
        local = await device.tell("rollback till frozen", "agent.sock")
        assert (local["ok"], local["error"].split(":")[0]) == (False, "supervised")
        hub.roll_back("seen on site")
        await hub.until_state(UpdateState.ROLLED_BACK)
    assert_back_on_a(device)
