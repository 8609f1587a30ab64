"""Desired state is verified on the device itself, end to end, and refused by gate (P2, D7)."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from device.belief import MAX_HELD_BYTES, MAX_UNPROVEN, Grant, Verifier
from device.bootenv import Boot, SlotName
from device.config import Telemetry
from device.logs import DeviceLog, read_lines
from device.orders import Actionable, Done, Facts, Gone, NotYet, Refused, Stopped, judge
from device.progress import Outcome, Persist, Progress
from device.sink import MAX_ALERTS_PER_UPDATE, DeviceSink
from device.state import MAX_WAVES, StateFile
from device.store import MAX_REPORTS, DeviceStore
from device.tracing import Tracing
from tests.device_directory import DEVICE, HUB, digest_of, image_of
from tests.device_kit import WAVE, HubStandIn
from wavemesh.codec.statements import decode, encode
from wavemesh.errors import GateError
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.durable import Disk
from wavemesh.session.frames import Resource, ResourceKey, ResourceVersion
from wavemesh.session.seams import SentMark
from wavemesh.trust.envelope import sign_as_node, sign_statement
from wavemesh.trust.freshness import ClockSource, check_time_trusted
from wavemesh.trust.statements import (
    DeviceOutcome,
    Envelope,
    Hold,
    Lease,
    LeaseGrant,
    OutcomeKind,
    OutcomeReport,
    Permit,
    RevocationList,
    SnapshotReport,
    UpdateState,
    WaveState,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import CredentialsFactory, TrustKeys
    from wavemesh.runtime.clock import Clock

FACTS = Facts(
    store=HUB.path,
    name=DEVICE.name,
    device_class="pos-tablet",
    hardware_revision="r2",
    region="midwest",
    running=Boot(SlotName.A, 1),
    firmware_version="3.8.1",
    firmware_sha256="0" * 64,
    config_version="12.3.0",
    config_sha256="0" * 64,
    configs={1: "0" * 64},
    rollback_floor="",
    redundant_bootloader=False,
)


class Kit:
    """A sink over real files, fed by a stand-in hub."""

    def __init__(self, path: Path, keys: TrustKeys, credentials: CredentialsFactory, **policy: str) -> None:
        self.path = path
        self.keys = keys
        self.hub = HubStandIn(keys, credentials, **policy)
        self.me = credentials(DEVICE.path)
        self._log: DeviceLog | None = None
        self.clock: Clock = SystemClock()
        self.open()

    def close(self) -> None:
        if self._log is not None:
            self._log.close()

    def open(self) -> None:
        clock = self.clock
        self.close()
        log = self._log = DeviceLog(self.path / "log", clock, timedelta(hours=24), 1 << 20)
        file = StateFile(self.path, Disk(), secrets.token_hex(16))
        file.load(clock.now())
        self.store = DeviceStore(file, self.me, clock, log, Tracing(self.me.node_id, clock, Telemetry()))
        self.sink = DeviceSink(
            store=self.store,
            verifier=Verifier(self.keys.pinned_root, self.me),
            clock=clock,
            log=log,
            source=ClockSource.UNCONFIRMED,
            changed=lambda: None,
        )

    def log_lines(self) -> list[str]:
        return [line.text for line in read_lines(self.path / "log", 0)]

    async def deliver(self, *kinds: str) -> dict[str, str]:
        """Everything the hub serves of those types; the gates of what was refused, by type."""
        resources = [one for one in self.hub.wanted.values() if not kinds or one.key.type in kinds]
        return {one.key.type: one.gate for one in await self.sink.apply(resources, [])}

    def judge(self, facts: Facts = FACTS, now: datetime | None = None) -> Any:
        [order] = self.sink.orders()
        return judge(order, self.sink.belief, facts, now or datetime.now(UTC))


@pytest.fixture
def kit(tmp_path: Path, trust_keys: TrustKeys, credentials: CredentialsFactory) -> Iterator[Kit]:
    kit = Kit(tmp_path, trust_keys, credentials)
    yield kit
    kit.close()


async def test_an_order_is_actionable_once_all_it_needs_is_held(kit: Kit) -> None:
    kit.hub.order()
    assert await kit.deliver("order", "tuf") == {}
    assert isinstance(kit.judge(), NotYet)
    assert await kit.deliver("policy") == {}
    assert isinstance(kit.judge(), NotYet)
    assert await kit.deliver("holds") == {}
    judgement = kit.judge()
    assert isinstance(judgement, Actionable)
    assert judgement.target.boot == Boot(SlotName.B, 2)
    assert judgement.target.firmware == digest_of(image_of("3.8.2"))


async def test_what_comes_together_is_one_change(kit: Kit) -> None:
    """Each change of the document is flushed; the order's generation is part of the change that brings the order."""
    kit.hub.order(generation=3)
    before = kit.store.document.serial
    await kit.deliver()
    assert kit.store.document.serial == before + 1
    assert kit.store.document.waves["142"].generation == 3
    await kit.deliver("policy")
    assert kit.store.document.serial == before + 1


async def test_what_came_before_the_metadata_waits_for_it(kit: Kit) -> None:
    kit.hub.order()
    assert await kit.deliver("order", "policy", "holds") == {}
    assert kit.sink.orders() == ()
    assert await kit.deliver("tuf") == {}
    assert isinstance(kit.judge(), Actionable)


async def test_what_is_believed_survives_a_restart(kit: Kit) -> None:
    kit.hub.order()
    await kit.deliver()
    kit.open()
    assert isinstance(kit.judge(), Actionable)
    assert {one.key.type for one in kit.sink.held()} == {"tuf", "policy", "holds", "order"}


@pytest.mark.parametrize(
    ("facts", "gate"),
    [
        ({"device_class": "scanner"}, "class"),
        ({"hardware_revision": "r9"}, "hardware"),
        ({"firmware_version": "3.9.0"}, "rollback-floor"),
        ({"rollback_floor": "4.0.0"}, "rollback-floor"),
        ({"config_version": "13.0.0"}, "rollback-floor"),
    ],
)
async def test_what_does_not_fit_the_device_is_refused(kit: Kit, facts: dict[str, Any], gate: str) -> None:
    kit.hub.order()
    await kit.deliver()
    judgement = kit.judge(replace(FACTS, **facts))
    assert isinstance(judgement, Refused)
    assert judgement.gate == gate


async def test_firmware_needs_its_config(kit: Kit) -> None:
    """D8: a policy that leaves the config out is refused while the running config is older than required."""
    kit.hub._policy_text = kit.hub._policy_text.replace(b"config: pos-app-12.4.1.tar.gz, ", b"")
    kit.hub._publish()
    kit.hub.order()
    await kit.deliver()
    judgement = kit.judge()
    assert isinstance(judgement, Refused)
    assert judgement.gate == "config-version"
    assert isinstance(kit.judge(replace(FACTS, config_version="12.5.0")), Actionable)


async def test_a_policy_cannot_bring_a_command_of_its_own(kit: Kit) -> None:
    """P2: a stolen control key cannot run code: only probes that release keys signed, by exact text."""
    kit.hub._policy_text = kit.hub._policy_text.replace(b"lsusb | grep scanner", b"lsusb | grep scanner; reboot")
    kit.hub._publish()
    kit.hub.order()
    await kit.deliver()
    judgement = kit.judge()
    assert isinstance(judgement, Refused)
    assert judgement.gate == "signature"


async def test_a_held_release_is_refused(kit: Kit) -> None:
    kit.hub.order()
    kit.hub.hold(Hold(kit.hub.release.name, "", "regression"), epoch=2)
    await kit.deliver()
    judgement = kit.judge()
    assert isinstance(judgement, Refused)
    assert judgement.gate == "hold"


async def test_states_of_a_wave(kit: Kit) -> None:
    kit.hub.order()
    await kit.deliver()
    assert isinstance(kit.judge(replace(FACTS, name="pos-99")), Gone)
    assert isinstance(kit.judge(now=datetime.now(UTC) + timedelta(hours=2)), Gone)
    config = kit.hub.release.config
    assert config is not None
    running = replace(FACTS, firmware_sha256=digest_of(image_of("3.8.2")).sha256, config_sha256=config.digest.sha256)
    assert isinstance(kit.judge(running), Done)
    kit.hub.order(WaveState.HALTED, generation=2)
    await kit.deliver("order")
    assert isinstance(kit.judge(), Stopped)


async def test_replays_are_refused_even_after_removal(kit: Kit) -> None:
    """D11: an older generation or epoch stays refused when the newer resource is gone and the agent restarted."""
    kit.hub.order(generation=5)
    kit.hub.hold(epoch=5)
    await kit.deliver()
    await kit.sink.apply([], [ResourceKey("order", f"{WAVE}/store-208"), ResourceKey("holds", "fleet")])
    kit.open()
    kit.hub.order(generation=4)
    kit.hub.hold(epoch=4)
    assert await kit.deliver("order", "holds") == {"order": "replay", "holds": "replay"}


async def test_forgeries_are_refused(kit: Kit, credentials: CredentialsFactory) -> None:
    await kit.deliver()
    hub_credentials = credentials(HUB.path)
    kit.hub.order()
    genuine = kit.hub.wanted[ResourceKey("order", f"{WAVE}/store-208")]
    envelope = decode(Envelope, genuine.content)
    forged = encode(replace(envelope, payload=envelope.payload + b"\x00"))
    for content in (forged, b"\xff\xff", b""):
        [rejection] = await kit.sink.apply([replace(genuine, content=content)], [])
        assert rejection.gate == "signature"
    elsewhere = Resource(ResourceKey("order", "142/store-209"), genuine.version, genuine.digest, genuine.content)
    [rejection] = await kit.sink.apply([elsewhere], [])
    assert rejection.gate == "signature"
    assert hub_credentials.node_id == HUB


async def test_a_lease_needs_both_signatures_and_this_device(kit: Kit, credentials: CredentialsFactory) -> None:
    kit.hub.order()
    kit.hub.grant(1)
    assert await kit.deliver() == {}
    grant = kit.sink.grant(WAVE)
    assert isinstance(grant, Grant)
    assert grant.lease.attempt == 1
    other_hub = credentials("region/midwest/store/store-209")
    kit.hub.me = other_hub
    kit.hub.grant(1)
    assert await kit.deliver("lease") == {"lease": "signature"}
    now = datetime.now(UTC)
    other = f"{HUB.path}/device/pos-02"
    lease = Lease(WAVE, other, secrets.token_hex(16), 1, now, now + timedelta(hours=1))
    permit = Permit(WAVE, other, 3, 1, None, now, now + timedelta(hours=1), "1" * 32)
    both = LeaseGrant(sign_as_node(lease, credentials(HUB.path)), sign_statement(permit, [kit.keys.control]))
    kit.hub.serve("lease", WAVE, encode(both))
    assert await kit.deliver("lease") == {"lease": "permit"}


async def test_control_signed_time_confirms_the_clock(kit: Kit) -> None:
    """Without trusted time after a restart nothing is armed; fresh control-signed time ends that."""
    sources = [kit.sink.clock_source]
    await kit.deliver("tuf", "policy")
    sources.append(kit.sink.clock_source)
    await kit.deliver("holds")
    sources.append(kit.sink.clock_source)
    assert datetime.now(UTC) - kit.sink.clock_floor < timedelta(minutes=6)
    kit.open()
    sources.append(kit.sink.clock_source)
    unconfirmed = ClockSource.UNCONFIRMED
    assert sources == [unconfirmed, unconfirmed, ClockSource.CONFIRMED, unconfirmed]


class OffsetClock(SystemClock):
    """A clock that is wrong."""

    def __init__(self, offset: timedelta) -> None:
        self._offset = offset

    def now(self) -> datetime:
        return super().now() + self._offset


async def test_a_clock_set_back_is_known_after_a_restart(kit: Kit) -> None:
    """The floor is durable: a board without a battery does not make old permits good again."""
    await kit.deliver()
    floor = kit.sink.clock_floor
    kit.clock = OffsetClock(-timedelta(days=400))
    kit.open()
    assert kit.sink.clock_floor == floor
    with pytest.raises(GateError, match="which is known to have passed") as refusal:
        check_time_trusted(kit.clock.now(), kit.sink.clock_floor, kit.sink.clock_source)
    assert refusal.value.gate == "clock"
    kit.sink.hear_time(datetime.now(UTC))
    assert kit.sink.clock_source is ClockSource.UNCONFIRMED


async def test_a_clock_a_little_behind_control_s_is_trusted(kit: Kit) -> None:
    """Clocks may be apart by CLOCK_SKEW: control's own time as floor would distrust every clock behind it."""
    kit.clock = OffsetClock(-timedelta(minutes=1))
    kit.open()
    await kit.deliver()
    kit.sink.hear_time(datetime.now(UTC))
    check_time_trusted(kit.clock.now(), kit.sink.clock_floor, kit.sink.clock_source)


# --- the report log ------------------------------------------------------------------------------------------------


def said(store: DeviceStore) -> list[tuple[str, int, int]]:
    found = []
    for report in store.document.reports:
        cls: Any = OutcomeReport if report.kind == "outcome" else SnapshotReport
        for envelope in decode(cls, report.body).outcomes:
            outcome = decode(DeviceOutcome, envelope.payload)
            found.append((outcome.kind.name, outcome.attempt, outcome.sequence))
    return found


async def test_a_word_is_said_once(kit: Kit) -> None:
    progress = Progress(UpdateState.REFUSED, WAVE)
    for gate in ("battery", "battery", "temperature", "battery"):
        kit.store.persist(progress, Persist(Outcome(OutcomeKind.REFUSED, gate, "x")), "b" * 32, FACTS)
    assert said(kit.store) == [("REFUSED", 0, 1), ("REFUSED", 0, 2), ("REFUSED", 0, 3)]


async def test_reports_are_forgotten_when_acknowledged_and_said_again_when_fenced(kit: Kit) -> None:
    progress = Progress(UpdateState.REFUSED, WAVE)
    kit.store.persist(progress, Persist(Outcome(OutcomeKind.REFUSED, "battery", "x")), "b" * 32, FACTS)
    assert (kit.store.first_number, kit.store.next_number) == (1, 2)
    assert [report.kind for report in await kit.store.read(1, 10)] == ["outcome"]
    await kit.store.acknowledge(1)
    await kit.store.acknowledge(0)
    assert (kit.store.first_number, kit.store.next_number) == (2, 2)
    before = kit.store.incarnation
    await kit.store.restart()
    assert kit.store.incarnation != before
    assert (kit.store.first_number, kit.store.next_number) == (1, 2)
    assert said(kit.store) == [("REFUSED", 0, 1)]


async def test_a_full_log_takes_a_new_incarnation(kit: Kit) -> None:
    before = kit.store.incarnation
    progress = Progress(UpdateState.REFUSED, WAVE)
    for number in range(MAX_REPORTS + 1):
        gate = ("battery", "temperature")[number % 2]
        kit.store.persist(progress, Persist(Outcome(OutcomeKind.REFUSED, gate, "x")), "b" * 32, FACTS)
    assert kit.store.incarnation != before
    assert said(kit.store) == [("REFUSED", 0, MAX_REPORTS + 1)]


async def test_ping_numbers_never_repeat(kit: Kit) -> None:
    numbers = [kit.store.next_ping() for _ in range(150)]
    kit.open()
    numbers += [kit.store.next_ping() for _ in range(5)]
    assert numbers == sorted(set(numbers))


async def test_a_restored_device_does_not_pass_for_the_one_that_went_on(kit: Kit) -> None:
    """M3, ADR 2: what was appended after the restore, before the hub was reached, is not taken for sent."""
    kit.store.append_event("first", "", "", "")
    assert (kit.store.next_number, kit.store.sent_through) == (2, 0)
    await kit.store.mark_sent(1)
    await kit.sink.connected()
    serial = kit.store.document.serial
    kit.store.append_event("second", "", "", "")
    assert (kit.store.sent_through, kit.store.document.serial) == (2, serial + 1)
    await kit.store.mark_sent(2)
    assert kit.store.document.serial == serial + 1
    backup = {file: file.read_bytes() for file in kit.path.glob("state.json*")}
    kit.store.append_event("third, which the hub knows", "", "", "")
    cursor = kit.store.sent_through
    await kit.sink.disconnected("off")
    for file, content in backup.items():
        file.write_bytes(content)
    kit.open()
    kit.store.append_event("another third", "", "", "")
    kit.store.append_event("fourth", "", "", "")
    assert isinstance(kit.store, SentMark)
    # The hub fences a child whose cursor here is not below the lowest number it never sent.
    assert kit.store.sent_through + 1 <= cursor < kit.store.next_number
    await kit.store.restart()
    assert kit.store.sent_through == 0


# -- revocations -------------------------------------------------------------------------------------------------------


def forged(kind: str, name: str, content: bytes = b"x") -> Resource:
    return Resource(ResourceKey(kind, name), ResourceVersion("e", 1), hashlib.sha256(content).hexdigest(), content)


@pytest.mark.parametrize(("kind", "name"), [("tuf", "metadata"), ("holds", "fleet"), ("revocations", "fleet")])
async def test_what_there_is_one_of_has_one_name(kit: Kit, kind: str, name: str) -> None:
    """A hub that is never asked to remove a second name could use up all the room there is (M6)."""
    listed = RevocationList(1, (), datetime.now(UTC))
    kit.hub.serve("revocations", "fleet", encode(sign_statement(listed, [kit.keys.control])))
    content = kit.hub.wanted[ResourceKey(kind, name)].content
    assert await kit.deliver() == {}
    [rejected] = await kit.sink.apply([forged(kind, "another", content)], [])
    assert (rejected.gate, rejected.key.name) == ("signature", "another")
    assert sorted(one.key.name for one in kit.sink.held() if one.key.type == kind) == [name]


async def test_what_cannot_be_verified_yet_is_kept_within_bounds(kit: Kit) -> None:
    """M6, Q2: before metadata anybody could have made it up."""
    many = [forged("order", f"{number}/s") for number in range(MAX_UNPROVEN + 5)]
    assert [one.gate for one in await kit.sink.apply(many, [])] == ["byte-budget"] * 5
    await kit.sink.apply([], [one.key for one in many])
    large = [forged("order", f"{number}/s", bytes(1_000_000)) for number in range(MAX_HELD_BYTES // 1_000_000 + 2)]
    assert [one.gate for one in await kit.sink.apply(large, [])] == ["byte-budget"] * 2
    kit.open()
    assert [one.gate for one in await kit.sink.apply([forged("order", "x/s", bytes(1_000_000))], [])] == ["byte-budget"]
    await kit.sink.apply([], [one.key for one in large])
    assert await kit.deliver() == {}


async def test_a_flood_is_logged_and_told_a_few_times(kit: Kit) -> None:
    """M6: neither the log of 24 hours nor the report log is the hub's to fill."""
    assert await kit.deliver() == {}
    assert len(await kit.sink.apply([forged("order", f"{number}/s") for number in range(500)], [])) == 500
    assert len([line for line in kit.log_lines() if "refused" in line]) == MAX_ALERTS_PER_UPDATE + 1
    assert [report.kind for report in kit.store.document.reports] == ["event"]


def test_burned_attempts_outlast_old_orders(kit: Kit) -> None:
    """P6: a thousand genuine orders of the past, played again, do not make a device forget what it burned."""
    facts = replace(FACTS)
    kit.store.persist(Progress(UpdateState.ARMED, WAVE, attempt=2), Persist(), "b" * 32, facts)
    kit.store.close_wave("7")
    for start in range(0, 2 * MAX_WAVES, MAX_WAVES):
        kit.store.store_resources((), (), {f"old-{start + number}": 1 for number in range(MAX_WAVES)})
    assert len(kit.store.document.waves) == MAX_WAVES
    assert kit.store.burned(WAVE) == 2
    assert kit.store.is_finished("7")
