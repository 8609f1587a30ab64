"""What goes up and down through a super hub: exactly once, whatever breaks (M3, M4, S3)."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from superhub.intake import Intake
from tests.conftest import FLEET
from tests.session_kit import MemoryLog, MemorySink, resource, until
from tests.storehub_kit import eventually
from tests.superhub_kit import REGION, Region, python, store_id
from wavemesh.codec.statements import decode, encode
from wavemesh.errors import LinkDownError
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.clock import SystemClock
from wavemesh.session.faults import AskFailedError
from wavemesh.session.frames import Report, ResourceKey
from wavemesh.trust.envelope import EarlySignatureError, sign_as_node, sign_statement
from wavemesh.trust.kept import KEPT_KIND, KeptReport
from wavemesh.trust.statements import (
    DeviceOutcome,
    DeviceStatus,
    Envelope,
    EventReport,
    HubStatus,
    IntentCancellation,
    IntentKind,
    IntentReport,
    OperatorIntent,
    OutcomeKind,
    OutcomeReport,
    SnapshotReport,
    UpdateState,
    WaveClosed,
    WaveState,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import TrustKeys
    from wavemesh.identity.ca import FleetCa

STORE = store_id("store-208")
NOW = datetime.now(UTC)
MANY = 300


@pytest.fixture
def region(tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys) -> Region:
    (tmp_path / "origin-files").mkdir()
    region = Region(tmp_path, fleet_ca, trust_keys)
    region.publish("firmware-1", b"firmware")
    return region


class WatchedLog(MemoryLog):
    """Says when the parent has acknowledged something."""

    def __init__(self) -> None:
        super().__init__()
        self.acknowledged = asyncio.Event()

    async def acknowledge(self, through: int) -> None:
        await super().acknowledge(through)
        self.acknowledged.set()


def outcome(region: Region, name: str, sequence: int = 1, **changes: Any) -> Envelope:
    """An outcome signed by its device."""
    node = NodeId(FLEET, f"{STORE.path}/device/{name}")
    fields: dict[str, Any] = {
        "wave_id": "142",
        "device": node.path,
        "attempt": 1,
        "sequence": sequence,
        "kind": OutcomeKind.UPDATED,
        "gate": "",
        "evidence": "",
        "boot_id": "b",
        "slot": "B",
        "firmware_sha256": "0" * 64,
        "firmware_version": "3.8.2",
        "log_sha256": "0" * 64,
        "at": NOW,
    }
    return sign_as_node(DeviceOutcome(**{**fields, **changes}), region.credentials(node))


def append(log: MemoryLog, kind: str, statement: Any) -> None:
    log.append(encode(statement), kind)


def told(region: Region) -> Counter[tuple[str, int]]:
    """How often control was told of each (device, sequence), in outcome reports."""
    said = [decode(DeviceOutcome, envelope.payload) for envelope in region.outcomes()]
    return Counter((one.device.rsplit("/", 1)[1], one.sequence) for one in said)


async def heard(region: Region, device: str, sequence: int) -> None:
    """Control was told."""
    await until(lambda: told(region)[device, sequence], region.control, within_s=20)


async def test_outcomes_reach_control_once_through_every_break(region: Region) -> None:
    """S3: replays, reconnects and restarts of the super hub count nothing twice and lose nothing."""
    log = MemoryLog()
    async with region.running_control():
        for turn in range(4):
            region.write_hub()
            async with region.running_hub() as hub, region.running_store(STORE, hub.port, log, MemorySink()) as store:
                for number in range(5):
                    one = outcome(region, f"pos-0{number}", turn + 1)
                    append(log, "outcome", OutcomeReport((one,)))
                    append(log, "outcome", OutcomeReport((one,)))
                store.wake()
                if turn % 2:  # every other turn the crash comes at once
                    await heard(region, "pos-04", turn + 1)
    assert told(region) == {(f"pos-0{number}", turn): 1 for number in range(5) for turn in (2, 4)} | {
        key: 1 for key in told(region) if key[1] in {1, 3}
    }
    assert log.first_number == log.next_number


async def test_a_killed_super_hub_loses_and_doubles_nothing(region: Region) -> None:
    """S3 with kill -9 at whatever moment: the ledger that control can make of it is complete, each word came once."""
    log = MemoryLog()
    async with region.running_control():
        region.write_hub()
        async with region.running_hub() as hub:
            port = hub.port
        region.write_hub(port)
        async with region.running_store(STORE, port, log, MemorySink()) as store:
            for turn in range(3):
                process = await python("superhub", "--dir", str(region.hub_dir))
                for number in range(MANY):
                    append(log, "outcome", OutcomeReport((outcome(region, f"pos-{number}", turn + 1),)))
                store.wake()
                await heard(region, "pos-0", turn + 1)  # the first of many that are on their way
                process.kill()
                await process.wait()
            sessions = len(region.control.events)
            process = await python("superhub", "--dir", str(region.hub_dir))
            await until(lambda: len(region.control.events) > sessions, region.control)
            await heard(region, f"pos-{MANY - 1}", 3)
            process.terminate()
            assert await process.wait() == 0
    assert told(region) == {(f"pos-{number}", turn): 1 for number in range(MANY) for turn in (1, 2, 3)}


async def test_a_lost_disk_is_refilled_from_below(region: Region) -> None:
    """Semantics, "Sessions": the store's log begins anew with a snapshot, which goes up to control."""
    log = WatchedLog()
    first = outcome(region, "pos-01")
    async with region.running_control():
        region.write_hub()
        append(log, "outcome", OutcomeReport((first,)))
        async with region.running_hub() as hub, region.running_store(STORE, hub.port, log, MemorySink()):
            await until(lambda: told(region).total() == 1, region.control)
            await log.acknowledged.wait()
        shutil.rmtree(region.hub_dir / "state")
        snapshot = SnapshotReport(STORE.path, "incarnation-2", (first,), last=True)
        log.snapshot = (Report("snapshot", encode(snapshot)),)
        async with region.running_hub() as hub, region.running_store(STORE, hub.port, log, MemorySink()) as store:
            await until(lambda: any(one.node == STORE.path for one in region.snapshots()), region.control)
            assert log.generation == 2
            append(log, "outcome", OutcomeReport((first,)))
            append(log, "outcome", OutcomeReport((outcome(region, "pos-02"),)))
            store.wake()
            await until(lambda: told(region)["pos-02", 1], region.control)
    assert told(region) == {("pos-01", 1): 1, ("pos-02", 1): 1}
    assert snapshot in region.snapshots()


async def test_a_restored_super_hub_is_fenced_and_sends_what_it_holds(region: Region) -> None:
    """The hub's disk goes back in time: a new incarnation, and all outcomes it holds as a snapshot."""
    log = MemoryLog()
    state, backup = region.hub_dir / "state", region.directory / "backup"
    async with region.running_control():
        region.write_hub()
        append(log, "outcome", OutcomeReport((outcome(region, "pos-01"),)))
        async with region.running_hub() as hub, region.running_store(STORE, hub.port, log, MemorySink()):
            await until(lambda: told(region).total() == 1, region.control)
        shutil.copytree(state, backup)
        append(log, "outcome", OutcomeReport((outcome(region, "pos-02"),)))
        async with region.running_hub() as hub, region.running_store(STORE, hub.port, log, MemorySink()):
            await until(lambda: told(region).total() == 2, region.control)
        shutil.rmtree(state)
        backup.rename(state)
        append(log, "outcome", OutcomeReport((outcome(region, "pos-03"),)))
        log.snapshot = (
            Report("snapshot", encode(SnapshotReport(STORE.path, "incarnation-2", (outcome(region, "pos-02"),), True))),
        )
        async with region.running_hub() as hub, region.running_store(STORE, hub.port, log, MemorySink()):

            def devices_in_snapshots() -> set[str]:
                envelopes = [one for snapshot in region.snapshots() for one in snapshot.outcomes]
                return {decode(DeviceOutcome, envelope.payload).device[-6:] for envelope in envelopes}

            await until(lambda: devices_in_snapshots() >= {"pos-01", "pos-02"}, region.control)
    own = [snapshot for snapshot in region.snapshots() if snapshot.node == REGION.path]
    assert len({snapshot.incarnation for snapshot in own}) == 2
    assert all(snapshot.last for snapshot in own)


async def test_a_super_hub_whose_clock_is_behind_throws_no_outcome_away(
    region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M3: by its clock the device's certificate is not valid yet; it judges again when its clock is right."""
    behind, judged, apply = [timedelta()], asyncio.Event(), Intake.apply
    monkeypatch.setattr(SystemClock, "now", lambda _: datetime.now(UTC) - behind[0])

    async def watched(self: Intake, *reports: Any) -> None:
        try:
            await apply(self, *reports)
        except EarlySignatureError:
            judged.set()
            raise

    monkeypatch.setattr(Intake, "apply", watched)
    log = MemoryLog()
    async with region.running_control():
        region.write_hub()
        async with region.running_hub() as hub, region.running_store(STORE, hub.port, log, MemorySink()) as link:
            await until(lambda: link.is_connected, region.control)
            behind[0] = timedelta(days=30)
            append(log, "outcome", OutcomeReport((outcome(region, "pos-01"),)))
            await asyncio.wait_for(judged.wait(), 10)
            behind[0] = timedelta()
            await heard(region, "pos-01", 1)
    assert not region.events()


async def test_intents_and_events_go_up_once_and_lies_are_told(region: Region) -> None:
    operator = region.credentials(NodeId(FLEET, "operator/alice"))
    intent = OperatorIntent("i-1", IntentKind.PAUSE_WAVE, NOW, wave_id="142", reason="test")
    signed = IntentReport(sign_as_node(intent, operator), STORE.path)
    event = EventReport("e" * 32, STORE.path, "cache-mismatch", "checksum", "", "blob", "", NOW)
    foreign = outcome(region, "pos-01", device="region/midwest/store/store-209/device/pos-01")
    log = MemoryLog()
    for _ in range(2):
        append(log, "intent", signed)
        append(log, "event", event)
        append(log, "outcome", OutcomeReport((foreign,)))
        append(log, "event", replace(event, event_id="f" * 32, node=store_id("store-209").path))
        log.append(b"\xff\xff", "outcome")
        log.append(b"", "gossip")
    append(log, "outcome", OutcomeReport((outcome(region, "pos-02"),)))
    async with region.running_control():
        region.write_hub()
        async with region.running_hub() as hub, region.running_store(STORE, hub.port, log, MemorySink()):
            await until(lambda: told(region).total() == 1, region.control)
            await until(lambda: len(region.events()) == 5, region.control)
    assert intents(region) == [encode(signed)]
    assert Counter(one.kind for one in region.events()) == {"cache-mismatch": 1, "report-refused": 4}
    assert all(one.subject == STORE.path for one in region.events() if one.kind == "report-refused")


async def test_an_intent_taken_back_in_the_dark_goes_up_with_its_cancellation_only(region: Region) -> None:
    """Its hub handed it on while the super hub's own WAN was down: control must never see it alone."""
    alice, bob = (region.credentials(NodeId(FLEET, f"operator/{name}")) for name in ("alice", "bob"))
    intent = OperatorIntent("i-1", IntentKind.START_WAVE, NOW, wave_id="142")
    plain = IntentReport(sign_as_node(intent, alice), STORE.path)
    word = sign_as_node(IntentCancellation("i-1", "", NOW), bob)
    taken_back = replace(plain, cancellation=word)
    lie = replace(plain, cancellation=sign_as_node(IntentCancellation("i-2", "", NOW), bob))
    log = MemoryLog()
    append(log, "intent", plain)
    async with region.running_control():
        region.write_hub()
    async with (
        region.running_hub() as hub,
        region.running_store(STORE, hub.port, log, MemorySink()) as store,
    ):
        await eventually(lambda: log.first_number == log.next_number)
        for report in (lie, taken_back, taken_back):
            append(log, "intent", report)
        store.wake()
        await eventually(lambda: log.first_number == log.next_number)
        async with region.running_control():
            await until(lambda: len(intents(region)) == 2 and bool(region.events()), region.control)
    assert intents(region) == [encode(taken_back)] * 2
    assert "cancellation of 'i-2'" in region.events()[0].detail


async def test_what_stores_hold_of_control_goes_up_once_a_session_with_it(region: Region) -> None:
    """ADR 20: a thousand stores show the same list; control, restored once more, is shown it again."""
    kept = KeptReport("holds", "fleet", b"as signed")
    logs = [MemoryLog(), MemoryLog()]
    stores = [store_id(name) for name in ("store-208", "store-209")]
    for log in logs:
        append(log, KEPT_KIND, kept)
        append(log, KEPT_KIND, kept)
        log.append(b"\xff", KEPT_KIND)
    async with region.running_control():
        region.write_hub()
    async with region.running_hub() as hub:
        async with region.running_control():
            await until(lambda: region.downstream is not None and region.downstream.connected(), region.control)
            async with (
                region.running_store(stores[0], hub.port, logs[0], MemorySink()),
                region.running_store(stores[1], hub.port, logs[1], MemorySink()),
            ):
                await eventually(lambda: all(log.first_number == log.next_number for log in logs))
                await until(lambda: len(region.events()) == 2, region.control)
            assert [body for kind, body in region.control.applied if kind == KEPT_KIND] == [encode(kept)]
        async with region.running_control():
            await until(lambda: region.downstream is not None and region.downstream.connected(), region.control)
            append(logs[0], KEPT_KIND, kept)
            async with region.running_store(stores[0], hub.port, logs[0], MemorySink()):
                await until(lambda: sum(kind == KEPT_KIND for kind, _ in region.control.applied) == 2, region.control)


def intents(region: Region) -> list[bytes]:
    return [body for kind, body in region.control.applied if kind == "intent"]


async def test_desired_state_goes_to_whom_it_concerns(region: Region) -> None:
    """Relayed unchanged under the hub's own versions; what control takes back goes; what is not genuine stays out."""
    other = store_id("store-209")
    release = region.publish("firmware-2", b"two")
    region.order(STORE, release)
    region.order(other, release)
    forged = sign_statement(WaveClosed("143", WaveState.CLOSED, NOW), [region.keys.online])
    region.want(resource("143", encode(forged), kind="closed"))
    mine, theirs = MemorySink(), MemorySink()
    async with region.running_control():
        region.write_hub()
        async with (
            region.running_hub() as hub,
            region.running_store(STORE, hub.port, MemoryLog(), mine),
            region.running_store(other, hub.port, MemoryLog(), theirs),
        ):
            order, tuf = ResourceKey("order", "142/store-208"), ResourceKey("tuf", "metadata")
            await until(lambda: set(mine.resources) == {order, tuf}, mine)
            await until(lambda: len(theirs.resources) == 2, theirs)
            assert mine.resources[order].content == region.control.wanted[order].content
            assert mine.resources[order].version.epoch != region.control.wanted[order].version.epoch
            await until(lambda: any(refused for _, refused in region.control.verdicts), region.control)
            rejected = [one for _, refused in region.control.verdicts for one in refused]
            assert [(one.key.name, one.gate) for one in rejected] == [("143", "signature")]
            del region.control.wanted[order]
            region.want()
            await until(lambda: set(mine.resources) == {tuf}, mine)
        async with region.running_hub() as hub, region.running_store(other, hub.port, MemoryLog(), theirs):
            region.order(other, release, generation=2, state=WaveState.PAUSED)
            await until(lambda: theirs.resources[ResourceKey("order", "142/store-209")].content != b"", theirs)
            wanted = region.control.wanted[ResourceKey("order", "142/store-209")]
            await until(lambda: theirs.resources[wanted.key].digest == wanted.digest, theirs)


async def test_a_closed_wave_is_forgotten(region: Region) -> None:
    log = MemoryLog()
    append(log, "outcome", OutcomeReport((outcome(region, "pos-01"),)))
    async with region.running_control():
        region.write_hub()
        async with region.running_hub() as hub, region.running_store(STORE, hub.port, log, MemorySink()):
            await until(lambda: told(region).total() == 1, region.control)
            closed = sign_statement(WaveClosed("142", WaveState.CLOSED, NOW), [region.keys.control])
            before = len(region.control.verdicts)
            region.want(resource("142", encode(closed), kind="closed"))
            await until(lambda: len(region.control.verdicts) > before, region.control)
        region.control.cursors[REGION.path, next(reversed(region.control.cursors))[1]] = 1000
        async with region.running_hub():
            await until(lambda: len(region.snapshots()) > 1, region.control)
    assert region.snapshots()[-1].outcomes == ()


async def test_status_goes_up_under_the_stores_name(region: Region) -> None:
    device = DeviceStatus(f"{STORE.path}/device/pos-01", UpdateState.STAGING, NOW)
    status = HubStatus(STORE.path, NOW, devices_connected=6)
    statuses = region.control.statuses
    async with region.running_control():
        region.write_hub()
        async with region.running_hub() as hub:
            async with region.running_store(STORE, hub.port, MemoryLog(), MemorySink()) as store:
                store.set_status("hub", encode(status))
                store.set_status("device/pos-01", encode(device))
                await until(lambda: "store/store-208/device/pos-01" in statuses, region.control)
                await until(lambda: hub_status(region).devices_connected == 6, region.control)
                assert hub_status(region).connected
                assert statuses["store/store-208/device/pos-01"] == encode(device)
            await until(lambda: not hub_status(region).connected, region.control)
        own = decode(HubStatus, statuses["hub"] or b"")
        assert (own.hub, own.cache_quota_bytes > 0) == (REGION.path, True)


def hub_status(region: Region) -> HubStatus:
    body = region.control.statuses.get("store/store-208/hub")
    return decode(HubStatus, body) if body else HubStatus(STORE.path, NOW)


async def test_pings_are_relayed_and_refused_without_control(region: Region) -> None:
    async def answer(child: NodeId, kind: str, body: bytes) -> bytes:
        assert (child, kind) == (REGION, "health-ping")
        return b"ack of " + body

    region.control.answer = answer  # type: ignore[method-assign]  # the fake control's answer to this test
    async with region.running_control():
        region.write_hub()
        async with region.running_hub() as hub:
            sink = MemorySink()
            async with region.running_store(STORE, hub.port, MemoryLog(), sink) as store:
                await until(lambda: "settled" in sink.events and region.control.events, sink, region.control)
                async with asyncio.TaskGroup() as group:
                    pings = [group.create_task(store.ask("health-ping", b"%d" % n, 5.0)) for n in range(16)]
                assert [ping.result() for ping in pings] == [b"ack of %d" % n for n in range(16)]
                with pytest.raises(AskFailedError, match="NOT_FOUND"):
                    await store.ask("logs", b"", 5.0)
    async with region.running_hub() as hub:
        sink = MemorySink()
        async with region.running_store(STORE, hub.port, MemoryLog(), sink) as store:
            await until(lambda: "connected" in sink.events, sink)
            with pytest.raises((AskFailedError, LinkDownError), match="LINK_DOWN"):
                await store.ask("health-ping", b"", 5.0)
