"""A device's spans: real agent and supervisor processes, real reboots; what was done is told once, whatever happens."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from device.steps import NAMES
from tests.device_directory import DEVICE, HUB, DeviceDirectory
from tests.device_kit import WAVE, HubStandIn
from wavemesh.errors import NotFoundError
from wavemesh.telemetry.spans import Trace
from wavemesh.trust.statements import UpdateState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import CredentialsFactory, TrustKeys
    from wavemesh.identity.ca import FleetCa
    from wavemesh.telemetry.otlp import ShownSpan

pytestmark = pytest.mark.timeout(90)
TRACE = Trace(HUB.fleet, WAVE, DEVICE.path)


@pytest.fixture
def device(tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys) -> Iterator[DeviceDirectory]:
    directory = DeviceDirectory(tmp_path / "device", fleet_ca, trust_keys.pinned_root)
    yield directory
    directory.stop()


@pytest.fixture
def hub(trust_keys: TrustKeys, credentials: CredentialsFactory) -> HubStandIn:
    return HubStandIn(trust_keys, credentials)


def steps(hub: HubStandIn) -> list[ShownSpan]:
    """The spans of states, without their checks; waits that a slow machine makes come and go do not count."""
    return [span for span in hub.spans() if span.name in NAMES.values() and span.name != "device.paused"]


async def test_one_trace_from_preflight_to_commit_across_the_reboot(device: DeviceDirectory, hub: HubStandIn) -> None:
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.start()
        await hub.until(lambda: any(span.name == "device.commit" for span in hub.spans()))
    [outcome] = hub.outcomes()
    found = steps(hub)
    order = ["preflight", "staging", "waiting", "reboot", "trial", "commit"]
    assert [span.name for span in found] == [f"device.{name}" for name in order]
    for before, after in itertools.pairwise(found):
        assert before.ended_at == after.began_at
    by_name = {span.name.removeprefix("device."): span for span in hub.spans()}
    lease = hub.lease_ids[0]
    for name in ("preflight", "staging", "waiting"):
        assert by_name[name].parent_id == TRACE.root().hex()
    for name in ("reboot", "trial", "commit"):
        assert by_name[name].parent_id == TRACE.lease(lease).hex()
        assert by_name[name].attributes["wavemesh.attempt"] == "1"
    reboot, commit = by_name["reboot"], by_name["commit"]
    assert reboot.links == (TRACE.permit(1).hex(),)
    assert reboot.attributes["wavemesh.boot_before"] != reboot.attributes["wavemesh.boot"] == outcome.boot_id
    assert commit.span_id == TRACE.outcome(DEVICE.path, outcome.attempt, outcome.sequence).hex()
    assert (commit.attributes["wavemesh.outcome"], commit.attributes["wavemesh.slot"]) == ("updated", "B")
    assert by_name["verify"].parent_id == by_name["staging"].span_id
    assert by_name["clearance"].parent_id == by_name["waiting"].span_id
    assert by_name["ping"].parent_id == by_name["trial"].span_id
    assert by_name["check peripheral:scanner"].parent_id == by_name["trial"].span_id
    assert not any(span.error for span in hub.spans())


async def test_a_rollback_names_its_gate_where_it_was_found_and_where_it_ended(
    device: DeviceDirectory, hub: HubStandIn
) -> None:
    device.lose_scanner_on("B")
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.start()
        await hub.until(lambda: any(span.name == "device.rollback" for span in hub.spans()))
    by_name = {span.name.removeprefix("device."): span for span in hub.spans()}
    gate = "peripheral:scanner"
    assert (by_name["trial"].gate, by_name["rollback"].gate) == (gate, gate)
    assert by_name["trial"].error.startswith(gate)
    assert by_name["rollback"].error.startswith(f"rolled_back: {gate}")
    assert by_name["rollback"].attributes["wavemesh.boot_before"] == by_name["trial"].attributes["wavemesh.boot"]
    assert by_name[f"check {gate}"].gate == gate
    [outcome] = hub.outcomes()
    assert by_name["rollback"].span_id == TRACE.outcome(DEVICE.path, outcome.attempt, outcome.sequence).hex()


async def test_what_nobody_took_during_the_update_arrives_whole_after_a_power_cut(
    device: DeviceDirectory, hub: HubStandIn
) -> None:
    """The hub takes no telemetry while the device updates; the outcome does not wait for it."""
    hub.telemetry_refusal = NotFoundError("telemetry is off here")
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.start()
        await hub.until_state(UpdateState.COMMITTED)
        await hub.until(lambda: bool(hub.outcomes()) and bool(hub.uploads))
        assert hub.spans() == []
        await device.tell("power-cut")
        hub.telemetry_refusal = None
        await hub.until(lambda: any(span.name == "device.commit" for span in hub.spans()))
    assert [span.name for span in steps(hub)][:2] == ["device.preflight", "device.staging"]
    names = [(batch.incarnation, batch.number) for batch in hub.telemetry]
    assert len(names) == len(set(names))
    assert len({incarnation for incarnation, _ in names}) >= 2


async def test_a_device_with_telemetry_off_says_nothing(device: DeviceDirectory, hub: HubStandIn) -> None:
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        config = (device.path / "config.toml").read_text()
        device.write("config.toml", config.replace("[telemetry]", "[telemetry]\nenabled = false"))
        device.start()
        await hub.until_state(UpdateState.COMMITTED)
        await hub.until(lambda: bool(hub.outcomes()))
    assert hub.uploads == []
