"""Every gate of a device fires from its real source, on a real agent, and the signed word names it (D2, D3, D7, D8).

The agent is the production one on a simulated board in this process; hub and wire are as in ``device_kit``. ``CASES``
has one entry for each gate that a device can say; a test fails for a gate without one.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from bench.agents import HostedDevice
from tests.device_directory import DEVICE, NEW_VERSION, DeviceDirectory, digest_of, image_of
from tests.device_kit import WAVE, HubStandIn
from wavemesh.codec.statements import decode, encode
from wavemesh.errors import GateError
from wavemesh.policy.gates import Gate
from wavemesh.policy.sources import SOURCES
from wavemesh.trust.envelope import verify_node
from wavemesh.trust.files import sign_metadata
from wavemesh.trust.repository import publish_targets, revoke_release
from wavemesh.trust.statements import (
    DeviceOutcome,
    Hold,
    HoldList,
    OutcomeKind,
    OutcomeReport,
    TrustMetadata,
    UpdateState,
    WaveState,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.conftest import CredentialsFactory, TrustKeys
    from wavemesh.identity.ca import FleetCa

pytestmark = pytest.mark.timeout(90)
REFUSED, ROLLED_BACK, INCONCLUSIVE = OutcomeKind.REFUSED, OutcomeKind.ROLLED_BACK, OutcomeKind.INCONCLUSIVE
OLD_SHA256 = digest_of(image_of("3.8.1")).sha256


@dataclass(frozen=True, slots=True)
class Bench:
    """A device that is switched off, and its hub; ``settings`` are written when it is configured."""

    device: DeviceDirectory
    hub: HubStandIn

    def set(self, key: str, value: str, section: str = "timing") -> None:
        self.device.set(f"[{section}]\n", f"[{section}]\n{key} = {value}\n")

    def retime(self, key: str, value: str) -> None:
        text = (self.device.path / "config.toml").read_text().splitlines()
        self.device.write("config.toml", "\n".join(x for x in text if not x.startswith(key)))
        self.set(key, value)

    def order(self) -> None:
        self.hub.order()


@dataclass(frozen=True, slots=True)
class Case:
    """What makes a gate fire: before the device is switched on, after that, and what its signed word has to say."""

    observed: str
    required: str
    before: Callable[[Bench], None] = Bench.order
    after: Callable[[Bench], Awaitable[None]] | None = None
    name: str = ""
    kind: OutcomeKind = REFUSED
    policy: dict[str, str] = field(default_factory=dict)


def ordered(prepare: Callable[[Bench], object]) -> Callable[[Bench], None]:
    """``prepare``, then the order."""

    def before(bench: Bench) -> None:
        prepare(bench)
        bench.hub.order()

    return before


def has_vendor_hook(bench: Bench) -> None:
    bench.set("gates", '"hardware/gates"', "board")
    bench.device.write("hardware/gates/dock", "#!/bin/sh\necho 'the dock is unlocked'\nexit 1\n")
    (bench.device.path / "hardware/gates/dock").chmod(0o755)


def serves_wrong_bytes(bench: Bench) -> None:
    sha256 = digest_of(image_of(NEW_VERSION)).sha256
    bench.hub.blobs.content[sha256] = bench.hub.blobs.content[sha256][:-1] + b"?"


def refuses_downloads(gate: Gate) -> Callable[[Bench], None]:
    def prepare(bench: Bench) -> None:
        words = {"observed": "9 GiB", "required": "at most 8 GiB"}
        bench.hub.blobs.refusal = GateError(gate.value, "not now", **words)

    return ordered(prepare)


def said_at(bench: Bench, moment: datetime) -> None:
    bench.hub._serve_signed("holds", "fleet", HoldList(1, (), moment))


def has_an_old_view_of_holds(bench: Bench) -> None:
    said_at(bench, datetime.now(UTC) - timedelta(days=2))
    bench.set("pause_bound_s", "0.2")


def revokes(bench: Bench) -> None:
    keys, now = bench.hub.keys, datetime.now(UTC)
    held = next(one for key, one in bench.hub.wanted.items() if key.type == "tuf")
    published = decode(TrustMetadata, held.content)
    targets = revoke_release(published.targets, bench.hub.release.name, "a bad image", now)
    revoked = publish_targets(published, sign_metadata(targets, *keys.releases[:2]), keys.online, now)
    bench.hub.serve("tuf", "metadata", encode(revoked))


def is_newer(bench: Bench) -> None:
    label = bench.device.path / "slots" / "A.json"
    label.write_text(label.read_text().replace('"version": "3.8.1"', '"version": "3.9.0"'))


def has_no_confirmed_clock(bench: Bench) -> None:
    """Nothing that control signed within the clock's tolerance, and no word of it now."""
    bench.hub.answer_pings_as = "nothing"
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    bench.set("clock", '"network"', "device")
    said_at(bench, hour_ago)
    bench.hub.order(issued_at=hour_ago)


def is_inhibited(bench: Bench) -> None:
    bench.device.write("hardware/inhibit", "payment open\n")
    bench.retime("inhibit_bound_s", "0.2")


def gets_expired_leases(bench: Bench) -> None:
    bench.hub.lease_s = -1.0
    bench.set("pause_bound_s", "0.2")


async def halt(bench: Bench) -> None:
    await bench.hub.until_state(UpdateState.VERIFIED)
    bench.hub.order(WaveState.HALTED, generation=2)


async def roll_back(bench: Bench) -> None:
    await bench.hub.until_state(UpdateState.VERIFIED)
    bench.hub.roll_back("scanner driver missing")


def arms_nothing(bench: Bench) -> None:
    bench.hub.grants_leases = False


def hangs_on_the_new_slot(bench: Bench) -> None:
    bench.device.script("systemd-analyze", '[ "$WAVEMESH_SLOT" = A ] || sleep 60')
    bench.retime("probe_timeout_s", "30.0")


def is_not_acknowledged(bench: Bench) -> None:
    bench.hub.answer_trials_as = "nothing"


def does_not_boot(bench: Bench) -> None:
    bench.device.write("hardware/unbootable", f"{NEW_VERSION}\n")
    bench.device.set("boot_timer_s = 20.0", "boot_timer_s = 1.5")


async def cut_the_power(bench: Bench) -> None:
    await bench.hub.until_state(UpdateState.TRIAL)
    await bench.device.tell("power-cut")


CASES: dict[Gate, Case] = {
    Gate.BATTERY: Case(
        "5 %", "at least 40 %", ordered(lambda b: b.device.write("hardware/power_supply/BAT0/capacity", "5\n"))
    ),
    Gate.TEMPERATURE: Case(
        "95.0 °C", "at most 70.0 °C", ordered(lambda b: b.device.write("hardware/hwmon/hwmon1/temp2_input", "95000\n"))
    ),
    Gate.DISK: Case(
        "0 bytes free", "bytes free", ordered(lambda b: b.set("reserved_disk_bytes", str(1 << 59), "board"))
    ),
    Gate.DUAL_PARTITION: Case("one slot", "two slots", ordered(lambda b: (b.device.path / "slots" / "B.img").unlink())),
    Gate.PERIPHERAL: Case(
        "exit code 1", "exit code 0", ordered(lambda b: b.device.script("lsusb", "exit 0")), name="scanner"
    ),
    Gate.VENDOR: Case("exit code 1", "exit code 0", ordered(has_vendor_hook), name="dock"),
    Gate.BOOT_PROBE: Case(
        "exit code 3", "exit code 0", ordered(lambda b: b.device.script("systemd-analyze", "echo bad unit; exit 3"))
    ),
    Gate.BOOT_TIMER: Case(
        "probes not finished",
        "within 1.2 s",
        ordered(hangs_on_the_new_slot),
        kind=ROLLED_BACK,
        policy={"budget_mins": "0.02"},
    ),
    Gate.WATCHDOG: Case("reset: watchdog", "a commit", ordered(does_not_boot), kind=ROLLED_BACK),
    Gate.HEALTH_AUTHORITY: Case(
        "no acknowledgement",
        "one within 1.2 s",
        ordered(is_not_acknowledged),
        kind=ROLLED_BACK,
        policy={"budget_mins": "0.02"},
    ),
    Gate.CHECKSUM: Case("", "", ordered(serves_wrong_bytes)),
    Gate.SIGNATURE: Case("", "", ordered(lambda b: b.hub.publish_asking_for("unsigned | grep scanner"))),
    Gate.FRESHNESS: Case("2 days", "at most 1 day", ordered(has_an_old_view_of_holds)),
    Gate.HOLD: Case(
        "on hold at epoch 2",
        "no hold",
        ordered(lambda b: b.hub.hold(Hold(b.hub.release.name, "", "bad scanner"), epoch=2)),
    ),
    Gate.REVOKED: Case("revoked", "vouched for", ordered(revokes)),
    Gate.CLASS: Case("pos-tablet", "gateway", lambda b: b.hub.order(device_class="gateway")),
    Gate.HARDWARE: Case("r2", "r9", lambda b: b.hub.order(hardware_revision="r9")),
    Gate.CONFIG_VERSION: Case(
        "12.3.0", ">=12.4.0", ordered(lambda b: b.hub.publish_without("config: pos-app-12.4.1.tar.gz, "))
    ),
    Gate.CLOCK: Case("unconfirmed", "confirmed, or hardware", has_no_confirmed_clock),
    Gate.POWER_LOSS: Case(
        "reset: power-loss", "a commit", ordered(is_not_acknowledged), cut_the_power, kind=INCONCLUSIVE
    ),
    Gate.BYTE_BUDGET: Case("9 GiB", "at most 8 GiB", refuses_downloads(Gate.BYTE_BUDGET)),
    Gate.CACHE_QUOTA: Case("9 GiB", "at most 8 GiB", refuses_downloads(Gate.CACHE_QUOTA)),
    Gate.WINDOW: Case("9 GiB", "at most 8 GiB", refuses_downloads(Gate.WINDOW)),
    Gate.INHIBITED: Case("inhibited", "no inhibitor", ordered(is_inhibited)),
    Gate.LEASE_EXPIRED: Case("20", "before 20", ordered(gets_expired_leases)),
    Gate.PERMIT: Case("attempt 1", "at most 0", ordered(lambda b: setattr(b.hub, "attempts_allowed", 0))),
    Gate.HALTED: Case("halted", "running", ordered(arms_nothing), halt),
    Gate.ROLLBACK_FLOOR: Case("3.8.2", "at least 3.9.0", ordered(is_newer)),
    Gate.OPERATOR: Case("", "", ordered(arms_nothing), roll_back, kind=ROLLED_BACK),
}
REFUSALS_OF_RESOURCES = {Gate.REPLAY}
"""What was played again is refused before it means anything to an update; the session carries that refusal upwards."""
ELSEWHERE = {Gate.ATTESTATION}
"""What takes a TPM is in test_device_attestation.py."""


@pytest.fixture
def device(tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys) -> DeviceDirectory:
    return DeviceDirectory(tmp_path / "device", fleet_ca, trust_keys.pinned_root)


@pytest.fixture
def hub(trust_keys: TrustKeys, credentials: CredentialsFactory) -> HubStandIn:
    return HubStandIn(trust_keys, credentials)


@asynccontextmanager
async def switched_on(device: DeviceDirectory, gate: Gate | None = None) -> AsyncIterator[None]:
    """The production agent on a board in this process; a power cut needs processes."""
    if gate is Gate.POWER_LOSS:
        device.start()
        try:
            yield
        finally:
            device.stop()
        return
    stop = asyncio.Event()
    hosted = HostedDevice(device.path, stop)
    async with asyncio.TaskGroup() as group:
        group.create_task(hosted.run())
        try:
            yield
        finally:
            stop.set()
            hosted.stopped()


def test_every_gate_of_a_device_has_a_case() -> None:
    assert set(CASES) | REFUSALS_OF_RESOURCES | ELSEWHERE == set(SOURCES)


@pytest.mark.parametrize("gate", CASES, ids=lambda gate: gate.value)
async def test_gate_fires_and_is_named_in_the_signed_outcome(
    gate: Gate, device: DeviceDirectory, trust_keys: TrustKeys, credentials: CredentialsFactory
) -> None:
    """D7: exactly one gate, with both values, the slots, the boot and the log, signed by the device."""
    case = CASES[gate]
    hub = HubStandIn(trust_keys, credentials, **case.policy)
    async with hub.serving():
        device.configure(hub.port)
        bench = Bench(device, hub)
        case.before(bench)
        async with switched_on(device, gate):
            if case.after is not None:
                await case.after(bench)
            await hub.until(lambda: bool(hub.outcomes()))
    first = decode(OutcomeReport, next(one.body for one in hub.reports if one.kind == "outcome")).outcomes[0]
    signer, outcome = verify_node(first, DeviceOutcome, hub.me.authorities, datetime.now(UTC), DEVICE.path)
    assert signer.path == DEVICE.path
    assert (outcome.kind, outcome.gate) == (case.kind, f"{gate.value}:{case.name}" if case.name else gate.value)
    assert (case.observed in outcome.observed, case.required in outcome.required) == (True, True), outcome
    assert bool(outcome.observed) is bool(case.observed)
    assert outcome.evidence
    assert [slot.slot for slot in outcome.slots] == ["A", "B"]
    assert outcome.slots[0].sha256 == OLD_SHA256
    assert len(outcome.boot_id) == 32
    assert len(outcome.log_sha256) == 64
    assert hub.statuses[0].temperature_celsius is not None


async def test_an_order_played_again_is_refused_as_replay(device: DeviceDirectory, hub: HubStandIn) -> None:
    """D11: the refusal goes up by name; nothing else comes of it."""
    async with hub.serving():
        device.configure(hub.port)
        hub.pause(2)
        async with switched_on(device):
            await hub.until(lambda: ("order", 2) in hub.accepted)
            hub.order(generation=1)
            await hub.until(lambda: bool(hub.rejected))
    assert {one.gate for one in hub.rejected} == {Gate.REPLAY.value}
    assert hub.outcomes() == []


async def test_a_config_that_needs_newer_firmware_is_refused(device: DeviceDirectory, hub: HubStandIn) -> None:
    """D8, the other way round: the config alone, on firmware that is older than it requires."""
    hub.changes = {"requires_firmware": ">=3.8.2"}
    hub.publish_without("firmware: firmware-v3.8.2.img, ")
    async with hub.serving():
        device.configure(hub.port)
        hub.order()
        async with switched_on(device):
            await hub.until(lambda: bool(hub.outcomes()))
    [outcome] = hub.outcomes()
    assert (outcome.kind, outcome.gate) == (REFUSED, "config-version")
    assert (outcome.observed, outcome.required) == ("3.8.1", ">=3.8.2")


# --- vendor hooks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "mode", "says"),
    [
        ("exit 7", 0o755, "exit code 7"),
        ("sleep 60", 0o755, "did not end within 0.5 s"),
        ("exit 0", 0o644, "not an executable file"),
    ],
)
async def test_a_hook_that_cannot_tell_refuses(
    device: DeviceDirectory, hub: HubStandIn, script: str, mode: int, says: str
) -> None:
    """What cannot tell does not pass, unless the policy says so."""
    async with hub.serving():
        device.configure(hub.port)
        bench = Bench(device, hub)
        bench.set("gates", '"hardware/gates"', "board")
        bench.retime("probe_timeout_s", "0.5")
        device.write("hardware/gates/dock", f"#!/bin/sh\n{script}\n")
        (device.path / "hardware/gates/dock").chmod(mode)
        hub.order()
        async with switched_on(device):
            await hub.until(lambda: bool(hub.outcomes()))
    outcome = hub.outcomes()[0]
    assert (outcome.kind, outcome.gate, outcome.observed) == (REFUSED, "vendor:dock", "cannot tell")
    assert says in outcome.evidence


async def test_the_policy_lets_gates_pass_that_cannot_tell(device: DeviceDirectory, hub: HubStandIn) -> None:
    """A broken sensor and a broken hook hold nobody up where control signed that they shall not; the log says so."""
    hub.publish_with_guardrail("passWhenCannotTell: [temperature, vendor]")
    async with hub.serving():
        device.configure(hub.port)
        bench = Bench(device, hub)
        bench.set("gates", '"hardware/gates"', "board")
        device.write("hardware/gates/dock", "#!/bin/sh\nexit 7\n")
        (device.path / "hardware/gates/dock").chmod(0o755)
        device.write("hardware/thermal/thermal_zone0/temp", "garbage\n")
        hub.order()
        async with switched_on(device):
            await hub.until(lambda: bool(hub.outcomes()))
            await hub.until(lambda: any("vendor:dock passes by policy" in line for line in hub.log_lines))
    assert hub.words() == [("UPDATED", "", 1)]


# --- while flashing --------------------------------------------------------------------------------------------------


async def test_a_paused_write_does_not_flap_and_is_given_up(device: DeviceDirectory, hub: HubStandIn) -> None:
    """D2: at the edge of the limit it stays paused; past the bound the gate refuses; well within, it is done.

    D7: the evidence is kept until control closes the wave.
    """
    hub.blobs.stall_after = 600_000
    async with hub.serving():
        device.configure(hub.port)
        Bench(device, hub).set("pause_bound_s", "0.8")
        hub.order()
        async with switched_on(device):
            await hub.until(hub.blobs.stalled.is_set)
            device.write("hardware/power_supply/BAT0/capacity", "39\n")
            await hub.until_state(UpdateState.PAUSED)
            assert hub.statuses[-1].evidence.startswith("battery at 39 %, ")
            hub.blobs.stall_after = None
            device.write("hardware/power_supply/BAT0/capacity", "41\n")
            await hub.until(lambda: bool(hub.outcomes()))
            device.write("hardware/power_supply/BAT0/capacity", "90\n")
            await hub.until(lambda: len(hub.outcomes()) == 2)
            kept = (await device.tell("evidence", "agent.sock"))["outcomes"]
            assert [(word["kind"], word["observed"]) for word in kept] == [("REFUSED", "41 %"), ("UPDATED", "")]
            hub.close_wave()
            await hub.until_state(UpdateState.IDLE)
            assert (await device.tell(f"evidence {WAVE}", "agent.sock"))["outcomes"] == []
    assert hub.words() == [("REFUSED", "battery", 0), ("UPDATED", "", 1)]
    assert "paused for 0.8 s" in hub.outcomes()[0].evidence
    assert hub.outcomes()[0].required == "at least 45 %"
    states = [status.state for status in hub.statuses]
    between = states[states.index(UpdateState.PAUSED) : states.index(UpdateState.REFUSED)]
    assert set(between) == {UpdateState.PAUSED}
