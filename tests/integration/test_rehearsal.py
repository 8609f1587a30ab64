"""A rehearsal of what is staged (O4): what it finds, and that it leaves no byte changed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.device_directory import NEW_VERSION, DeviceDirectory
from tests.device_kit import HubStandIn
from tests.integration.test_first_fleet import Shell, steps
from tests.session_kit import Fleet
from tests.storehub_kit import OPERATOR, STORE, Control, SuperHub, eventually, lay_out, running, till, wan
from wavemesh.codec.statements import encode, to_proto
from wavemesh.runtime.grpc import make_channel
from wavemesh.session.frames import ResourceKey
from wavemesh.trust.statements import INTENT_REFUSED, REHEARSED, EventReport, IntentKind, UpdateState
from wavemesh.v1 import operator_pb2 as pb
from wavemesh.v1.operator_pb2_grpc import OperatorServiceStub

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import CredentialsFactory, TrustKeys
    from wavemesh.identity.ca import FleetCa

pytestmark = pytest.mark.timeout(90)
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "devices.md"
KEXEC = '[rehearsal]\nkexec_load = ["{bin}/kexec", "-l", "{{slot}}"]\nkexec_unload = ["{bin}/kexec", "-u"]\n'


@pytest.fixture
def device(tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys) -> Iterator[DeviceDirectory]:
    device = DeviceDirectory(tmp_path / "device", fleet_ca, trust_keys.pinned_root)
    device.script("kexec", f'echo "$@" >> {device.path}/kexec.log')
    yield device
    device.stop()


@pytest.fixture
def hub(trust_keys: TrustKeys, credentials: CredentialsFactory) -> HubStandIn:
    return HubStandIn(trust_keys, credentials)


async def stage(device: DeviceDirectory, hub: HubStandIn, kexec: str = KEXEC) -> None:
    """Up to a staged slot; no lease comes, and nothing else that is written down (pings, logs, spans) goes on."""
    hub.grants_leases = False
    hub.order()
    device.configure(hub.port)
    device.set("ping_interval_s = 0.3", "ping_interval_s = 500.0")
    device.set("recheck_interval_s = 0.5", "recheck_interval_s = 500.0")
    device.set("log_upload_interval_s = 0.2", "log_upload_interval_s = 500.0")
    device.set("[telemetry]\n", "[telemetry]\nenabled = false\n")
    text = (device.path / "config.toml").read_text()
    device.write("config.toml", text + kexec.format(bin=device.path / "hardware" / "bin"))
    device.start()
    await hub.until_state(UpdateState.VERIFIED)
    await hub.until(lambda: bool(hub.pings))


def bytes_of(device: DeviceDirectory) -> dict[str, str]:
    """Slots, boot environment and state, all but the log."""
    files = [
        path
        for root in ("slots", "state")
        for path in sorted((device.path / root).rglob("*"))
        if path.is_file() and "state/log/" not in str(path)
    ]
    assert {"A.img", "B.img", "bootenv.json", "state.json"} <= {path.name for path in files}
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


async def rehearse(device: DeviceDirectory) -> dict[str, Any]:
    return await device.tell("rehearse", "agent.sock")


async def test_a_staged_slot_is_rehearsed_and_nothing_is_changed(device: DeviceDirectory, hub: HubStandIn) -> None:
    async with hub.serving():
        await stage(device, hub)
        before = bytes_of(device)
        answer = await rehearse(device)
        assert bytes_of(device) == before
        assert (answer["ok"], answer["passes"], answer["release"], answer["slot"]) == (
            True,
            True,
            "firmware-v3.8.2",
            "B",
        )
        assert [check["name"] for check in answer["checks"]] == [
            "checksum",
            "config",
            "environment",
            "boot-probe",
            "kexec",
        ]
        assert answer["checks"][2]["detail"].startswith("would try slot B with config 2 once, and fall back to slot A")
        assert (device.path / "kexec.log").read_text() == f"-l {device.path}/slots/B.img\n-u\n"
        # What it finds is what is there now, not what was staged once.
        device.script("systemd-analyze", f'[ "$WAVEMESH_STAGED_VERSION" != {NEW_VERSION} ] || (echo no init; exit 1)')
        device.script("kexec", '[ "$1" = -u ] || (echo not a kernel; exit 255)')
        with (device.path / "slots" / "B.img").open("r+b") as image:
            image.write(b"rotten")
        answer = await rehearse(device)
    failed = {check["name"]: check["detail"] for check in answer["checks"] if not check["passes"]}
    assert (answer["ok"], answer["passes"], set(failed)) == (True, False, {"checksum", "boot-probe", "kexec"})
    assert "its label says" in failed["checksum"]
    assert "no init" in failed["boot-probe"]
    assert "not a kernel" in failed["kexec"]
    assert device.environment().trial is None


async def test_a_kill_in_the_middle_changes_nothing(device: DeviceDirectory, hub: HubStandIn) -> None:
    """Kill -9 while the kernel is being loaded, the last of all checks."""
    async with hub.serving():
        await stage(device, hub)
        before = bytes_of(device)
        device.script("kexec", f"echo $$ > {device.path}/loading; exec sleep 300")
        async with asyncio.TaskGroup() as group:
            asked = group.create_task(asyncio.wait_for(_unanswered(device), 30))
            await hub.until((device.path / "loading").exists)
            os.kill((await device.tell("status"))["agent_pid"], signal.SIGKILL)
            await asked
        assert bytes_of(device) == before
        os.kill(int((device.path / "loading").read_text()), signal.SIGKILL)


async def _unanswered(device: DeviceDirectory) -> None:
    with pytest.raises((ConnectionResetError, ValueError)):
        await rehearse(device)


async def test_the_wrong_state_is_refused_by_name(
    device: DeviceDirectory, trust_keys: TrustKeys, credentials: CredentialsFactory
) -> None:
    hub = HubStandIn(trust_keys, credentials, budget_mins="5")
    hub.answer_trials_as = "nothing"
    async with hub.serving():
        device.configure(hub.port)
        device.start()
        await hub.until_state(UpdateState.IDLE)
        assert await rehearse(device) == {"ok": False, "error": "nothing is staged (the device is IDLE)"}
        hub.order()
        await hub.until_state(UpdateState.TRIAL)
        answer = await rehearse(device)
        assert answer == {"ok": False, "error": "the device is in a swap (TRIAL): rehearse before it, or after it"}
        intent = hub.rehearse()
        await hub.until(lambda: any(event.subject == intent for event in hub.events()))
    event = next(event for event in hub.events() if event.subject == intent)
    assert (event.kind, event.detail) == (INTENT_REFUSED, answer["error"])


async def test_an_operator_rehearses_through_the_mesh(device: DeviceDirectory, hub: HubStandIn) -> None:
    """A signed intent, answered once by an event for the audit; asked for another device, nothing happens."""
    async with hub.serving():
        await stage(device, hub)
        hub.rehearse(device="pos-99")
        intent = hub.rehearse()
        await hub.until(lambda: bool(hub.events()))
        device.script("systemd-analyze", "echo no init; exit 1")
        again = hub.rehearse()
        await hub.until(lambda: len(hub.events()) == 2)
    first, second = hub.events()
    assert (first.kind, first.subject, first.gate) == (REHEARSED, intent, "")
    assert first.detail == "firmware-v3.8.2 on slot B passes: checksum, config, environment, boot-probe, kexec"
    assert (second.kind, second.subject, second.gate) == (REHEARSED, again, "boot-probe")
    assert "boot-probe: 'systemd-analyze verify /boot/inactive': exit code 1; output: no init" in second.detail
    assert device.environment().trial is None


async def test_the_guide_rehearses(device: DeviceDirectory, hub: HubStandIn, tmp_path: Path) -> None:
    """docs/guide/devices.md, "Rehearsal": what a person types before the device, and what it shows."""
    section = GUIDE.read_text().partition("## Rehearsal\n")[2].partition("\n## ")[0]
    [step] = steps(section)
    (tmp_path / "pos-17").symlink_to(device.path)
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    shell = Shell(tmp_path, {"PATH": path, "LANG": "C.UTF-8", "HOME": str(tmp_path)})
    async with hub.serving():
        await stage(device, hub, kexec="")
        await asyncio.to_thread(shell.follow, step)
        device.script("systemd-analyze", "echo no init; exit 1")
        code, told = await asyncio.to_thread(shell.types, step.commands)
        assert (code, "FAILS boot-probe" in told, "no init" in told) == (1, True, True)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet.create(tmp_path_factory.mktemp("fleet"))


async def test_a_store_hub_passes_it_on_and_shows_what_came_of_it(fleet: Fleet, tmp_path: Path) -> None:
    """M5, H6: queued until the device is there, without a swap slot; the device's word is the intent's end."""
    control = Control(fleet)
    super_hub = SuperHub(control)
    async with (
        wan(super_hub) as parent,
        running(lay_out(tmp_path / "hub", control, parent)) as app,
        make_channel(fleet.credentials(OPERATOR), f"127.0.0.1:{app.port}", STORE) as channel,
    ):
        stub: Any = OperatorServiceStub(channel)
        async with till(control, "pos-12", f"127.0.0.1:{app.port}") as one:
            one.say(UpdateState.VERIFIED)
            await eventually(lambda: one.node.path in app.hub.store.devices)
        wish = control.intent(IntentKind.REHEARSE_DEVICE, device="pos-12", wave_id="", reason="")
        request = pb.SubmitIntentRequest(intent=to_proto(wish))
        answer: pb.SubmitIntentResponse = await stub.SubmitIntent(request)
        assert (answer.record.disposition, list(answer.record.waiting_for)) == (pb.DISPOSITION_QUEUED, [one.node.path])
        async with till(control, "pos-12", f"127.0.0.1:{app.port}") as one:
            await eventually(partial(one.holds, ResourceKey("intent", "i-1")))
            assert not app.hub.store.slots
            detail = "firmware-v3.8.2 on slot B fails: boot-probe: no init"
            said = EventReport("e", one.node.path, REHEARSED, "boot-probe", "", "i-1", detail, datetime.now(UTC))
            one.child.log.append(encode(said))
            one.child.upstream.wake()
            await eventually(lambda: app.hub.store.intents["i-1"].disposition.name == "APPLIED")
            assert app.hub.store.intents["i-1"].detail == detail
            await eventually(lambda: not one.holds(ResourceKey("intent", "i-1")))
