"""Control over real mTLS gRPC: an operator plans and starts a wave, a super hub carries it and reports."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from control.database import DatabaseError
from control.waves import Waves
from tests.session_kit import until
from tests.unit.control.control_kit import (
    CONTROL,
    DEVICES,
    POLICY,
    SEGMENT,
    STORES,
    Region,
    SetClock,
    World,
    intent,
    inventory,
    make_world,
    outcome,
    plan,
    signed_intent,
)
from wavemesh.codec.statements import decode, encode
from wavemesh.runtime.grpc import make_channel
from wavemesh.session.faults import AskFailedError
from wavemesh.trust.envelope import sign_as_node, verify_role
from wavemesh.trust.metadata import load_trusted
from wavemesh.trust.statements import (
    Envelope,
    EventReport,
    HealthAck,
    HealthPing,
    HealthPingAnswer,
    HoldList,
    IntentKind,
    IntentReport,
    OutcomeKind,
    Permit,
    SnapshotReport,
    TrustMetadata,
    UpdateState,
    WaveClosed,
    WaveOrder,
    WaveState,
)
from wavemesh.v1 import operator_pb2, rollout_pb2
from wavemesh.v1.session_pb2_grpc import SessionServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.conftest import CredentialsFactory, TrustKeys
    from wavemesh.v1.operator_pb2_grpc import OperatorServiceAsyncStub


@pytest.fixture
def world(
    tmp_path: Path, credentials: CredentialsFactory, trust_keys: TrustKeys, make_manifest: Callable[..., Any]
) -> World:
    directory = tmp_path / "control"
    directory.mkdir()
    return make_world(directory, credentials, trust_keys, make_manifest())


def said(region: Region, kind: str, name: str) -> Envelope:
    [found] = [one for key, one in region.sink.resources.items() if (key.type, key.name) == (kind, name)]
    return decode(Envelope, found.content)


async def changed(stub: Any, condition: Callable[[operator_pb2.Wave], bool]) -> operator_pb2.Wave:
    """The wave as soon as the condition holds, by watching it."""
    async for answer in stub.WatchWave(operator_pb2.WatchWaveRequest(wave_id="142"), timeout=10):
        if condition(answer.wave):
            wave: operator_pb2.Wave = answer.wave
            return wave
    raise AssertionError("the wave closed before")


async def test_a_wave_from_plan_to_close(world: World) -> None:
    """P3, P6, M5: order, policy, permits go down signed; outcomes come up; the wave closes and is forgotten."""
    async with world.serving() as served, served.calling() as stub, served.region() as region:
        await stub.ApplyInventory(inventory())
        planned = await stub.PlanWave(plan())
        assert not planned.duplicate
        assert [len(store.devices) for store in planned.wave.stores] == [6, 6]
        await until(lambda: region.names("order") == ["142/store-208", "142/store-209"], region.sink)
        assert region.names("permit") == []
        for store in STORES:
            region.hub(store)
        await stub.SubmitIntent(intent(world, IntentKind.START_WAVE, cohort=SEGMENT))
        await until(lambda: len(region.names("permit")) == 12, region.sink)
        [tuf] = [one for key, one in region.sink.resources.items() if key.type == "tuf"]
        now = world.clock.now()
        trusted = load_trusted(world.trust_keys.pinned_root, decode(TrustMetadata, tuf.content), now, None)
        order = verify_role(said(region, "order", "142/store-208"), WaveOrder, trusted, "control")
        assert (order.state, order.generation, order.devices[0]) == (WaveState.RUNNING, 2, "pos-01")
        permit = verify_role(said(region, "permit", "142/store-209/pos-12"), Permit, trusted, "control")
        assert (permit.device, permit.attempts, permit.hub_incarnation) == (DEVICES[6], 3, "i" * 32)
        assert verify_role(said(region, "holds", "fleet"), HoldList, trusted, "control").epoch == 1
        assert region.names("policy") == [order.policy_digest]
        wave = await changed(stub, lambda wave: wave.exposure == 12)
        assert wave.state == rollout_pb2.WAVE_STATE_RUNNING
        for device in DEVICES[:-1]:
            region.report(outcome(world, device, OutcomeKind.UPDATED))
        wave = await changed(stub, lambda wave: wave.counts.updated == 11)
        assert (wave.exposure, wave.counts.pending) == (1, 1)
        region.report(outcome(world, DEVICES[-1], OutcomeKind.ROLLED_BACK))
        wave = await changed(stub, lambda wave: wave.state == rollout_pb2.WAVE_STATE_CLOSED)
        assert wave.rollback_ratio == pytest.approx(1 / 12)
        await until(lambda: region.names("closed") == ["142"] and not region.names("order"), region.sink)
        assert verify_role(said(region, "closed", "142"), WaveClosed, trusted, "control").state is WaveState.CLOSED
        assert region.names("permit") == region.names("policy") == []
        ledger = await stub.GetLedger(operator_pb2.GetLedgerRequest(wave_id="142"))
        assert dict(ledger.gates) == {"peripheral:scanner": 1}
        assert ledger.source == "control/cloud-1"


@asynccontextmanager
async def started(world: World, policy: bytes = POLICY) -> AsyncIterator[tuple[Any, Region]]:
    """A wave that runs, with both hubs connected, and its super hub."""
    async with world.serving() as served, served.calling() as stub, served.region() as region:
        await stub.ApplyInventory(inventory())
        await stub.PlanWave(plan(policy=policy))
        for store in STORES:
            region.hub(store)
        await stub.SubmitIntent(intent(world, IntentKind.START_WAVE))
        yield stub, region


async def audited(stub: Any, action: str) -> list[str]:
    answer = await stub.ListAudit(operator_pb2.ListAuditRequest(page_size=1000))
    return [entry.detail for entry in answer.entries if entry.action == action]


async def record_of(stub: Any, intent_id: str) -> operator_pb2.IntentRecord:
    answer = await stub.ListIntents(operator_pb2.ListIntentsRequest())
    record: operator_pb2.IntentRecord
    [record] = [one for one in answer.intents if one.intent_id == intent_id]
    return record


async def test_a_bad_release_halts_itself(world: World) -> None:
    """C2, P6: above the ratio, with evidence, the wave halts; permits are void; exposure ends where it is heard."""
    async with started(world) as (stub, region):
        await until(lambda: len(region.names("permit")) == 12, region.sink)
        for device in DEVICES[:4]:
            region.report(outcome(world, device, OutcomeKind.ROLLED_BACK))
        await changed(stub, lambda wave: wave.counts.rolled_back == 4)
        assert len(region.names("permit")) == 12
        region.hub(STORES[1], connected=False)
        await changed(stub, lambda wave: not wave.stores[1].connected)
        region.report(outcome(world, DEVICES[4], OutcomeKind.ROLLED_BACK))
        wave = await changed(stub, lambda wave: wave.state == rollout_pb2.WAVE_STATE_HALTED)
        assert wave.state_reason.startswith("rollback ratio 1.00 is above 0.5")
        await until(lambda: not region.names("permit"), region.sink)
        order = decode(WaveOrder, said(region, "order", "142/store-209").payload)
        assert order.state is WaveState.HALTED
        wave = await changed(stub, lambda wave: wave.stores[0].order_delivered)
        assert [(store.exposure, store.order_delivered) for store in wave.stores] == [(0, True), (6, False)]
        region.hub(STORES[1])
        wave = await changed(stub, lambda wave: wave.stores[1].order_delivered)
        assert wave.exposure == 0


async def test_only_those_who_may_say_it_are_believed(world: World) -> None:
    """D7: the device itself, or its own hub for what a hub infers; the rest is dropped, audited, and ends nothing."""
    async with started(world) as (stub, region):
        pos_01, pos_02, pos_03 = DEVICES[:3]
        region.report(
            outcome(world, pos_01, OutcomeKind.UPDATED, signer=pos_02),
            outcome(world, pos_01, OutcomeKind.UPDATED, signer=STORES[0]),
            outcome(world, pos_01, OutcomeKind.SILENT, signer=STORES[1], gate="boot-timer"),
            outcome(world, pos_01, OutcomeKind.UPDATED, wave_id="999"),
            outcome(world, pos_01, OutcomeKind.ROLLED_BACK, gate="no-such-gate"),
            outcome(world, pos_01, OutcomeKind.UPDATED, attempt=4),
        )
        region.log.append(b"\xff", "outcome")
        region.log.append(b"", "gossip")
        region.report(outcome(world, pos_02, OutcomeKind.SILENT, signer=STORES[0], gate="boot-timer", sequence=3))
        region.report(outcome(world, pos_03, OutcomeKind.UNKNOWN, signer=STORES[0], gate="lease-expired"))
        region.report(outcome(world, pos_02, OutcomeKind.UPDATED, sequence=2))
        region.report(outcome(world, pos_03, OutcomeKind.UPDATED))
        wave = await changed(stub, lambda wave: wave.counts.updated == 1)
        assert (wave.counts.silent, wave.counts.pending) == (1, 10)
        region.report(outcome(world, pos_02, OutcomeKind.UPDATED, sequence=3))
        wave = await changed(stub, lambda wave: wave.counts.updated == 2)
        assert len(await audited(stub, "report.refused")) == 8
        device = await stub.GetDevice(operator_pb2.GetDeviceRequest(device="pos-02"))
        assert device.device.outcomes[0].signed_by.endswith("/device/pos-02")


async def test_what_cannot_be_delivered_waits(world: World) -> None:
    """M5: a rollback for a dark store is QUEUED and names whom it waits for; it is APPLIED once that is heard."""
    async with started(world) as (stub, region):
        region.hub(STORES[1], connected=False)
        region.device(DEVICES[-1], connected=True)
        await changed(stub, lambda wave: wave.stores[0].connected and not wave.stores[1].connected)
        rollback = intent(world, IntentKind.ROLLBACK_DEVICE, "rb", device="pos-17", reason="scanner driver missing")
        answer = await stub.SubmitIntent(rollback)
        assert answer.record.disposition == operator_pb2.DISPOSITION_QUEUED
        assert list(answer.record.waiting_for) == [DEVICES[-1]]
        await until(lambda: region.names("intent") == ["rb"], region.sink)
        pause = await stub.SubmitIntent(intent(world, IntentKind.PAUSE_WAVE, "pause", reason="look"))
        assert STORES[1] in pause.record.waiting_for
        order = decode(WaveOrder, said(region, "order", "142/store-209").payload)
        await until(
            lambda: decode(WaveOrder, said(region, "order", "142/store-209").payload).state is WaveState.PAUSED,
            region.sink,
        )
        assert order.wave_id == "142"
        region.hub(STORES[1])
        wave = await changed(stub, lambda wave: all(store.order_delivered for store in wave.stores))
        assert wave.state == rollout_pb2.WAVE_STATE_PAUSED
        for name in ("rb", "pause"):
            record = await record_of(stub, name)
            assert (record.disposition, list(record.waiting_for)) == (operator_pb2.DISPOSITION_APPLIED, [])
        assert (await stub.SubmitIntent(rollback)).duplicate


async def test_a_device_that_is_back_already_is_not_rolled_back_again(world: World) -> None:
    """M5: asked twice it happens once, also under another id; once it did something else, it is a new wish."""
    async with started(world) as (stub, region):
        for state, gate, is_back in (
            (UpdateState.ROLLED_BACK, "operator", True),
            (UpdateState.ROLLED_BACK, "watchdog", False),
            (UpdateState.COMMITTED, "", False),
        ):
            region.device(DEVICES[-1], state, gate=gate)
            await until_shown(stub, DEVICES[-1], state.value, gate)
            wish = intent(world, IntentKind.ROLLBACK_DEVICE, f"rb-{gate or 'none'}", device="pos-17", reason="again")
            assert (await stub.SubmitIntent(wish)).duplicate is is_back


async def test_an_approval_names_its_attempt(world: World) -> None:
    """D5: it is handed to the device in the operator's own envelope, unless that attempt is rolled back already."""
    async with started(world) as (stub, region):
        region.device(DEVICES[-1], UpdateState.AWAITING_SIGNOFF, gate="peripheral:scanner", wave_id="142", attempt=1)
        await until_shown(stub, DEVICES[-1], UpdateState.AWAITING_SIGNOFF.value, "peripheral:scanner")
        ledger = await stub.GetLedger(operator_pb2.GetLedgerRequest(wave_id="142"))
        assert [entry.gate for entry in ledger.entries if entry.device == DEVICES[-1]] == ["peripheral:scanner"]
        about = {"device": "pos-17", "reason": "seen on site", "wave_id": "142"}
        with pytest.raises(grpc.aio.AioRpcError, match="attempt: missing"):
            await stub.SubmitIntent(intent(world, IntentKind.APPROVE_ROLLBACK, "ok-0", **about))
        assert not (
            await stub.SubmitIntent(intent(world, IntentKind.APPROVE_ROLLBACK, "ok-1", attempt=1, **about))
        ).duplicate
        await until(lambda: region.names("intent") == ["ok-1"], region.sink)
        region.device(DEVICES[-1], UpdateState.ROLLED_BACK, gate="peripheral:scanner", wave_id="142", attempt=1)
        await until_shown(stub, DEVICES[-1], UpdateState.ROLLED_BACK.value, "peripheral:scanner")
        assert (
            await stub.SubmitIntent(intent(world, IntentKind.APPROVE_ROLLBACK, "ok-2", attempt=1, **about))
        ).duplicate


async def until_shown(stub: OperatorServiceAsyncStub, path: str, state: int, gate: str) -> None:
    async with asyncio.timeout(10):
        while True:
            answer = await stub.GetDevice(operator_pb2.GetDeviceRequest(device=path))
            if (answer.device.status.state, answer.device.status.gate) == (state, gate):
                return
            await asyncio.sleep(0.02)


async def test_prefetch_reaches_the_stores_named(world: World) -> None:
    """O1: a prefetch is handed on in the operator's own envelope; its policy must name a published release."""
    async with started(world) as (stub, region):
        answer = await stub.SubmitIntent(
            intent(world, IntentKind.PREFETCH, "pf", policy_yaml=POLICY, window="00:30-03:30", stores=("store-208",))
        )
        assert not answer.duplicate
        await until(lambda: region.names("intent") == ["pf"], region.sink)
        [found] = [one for key, one in region.sink.resources.items() if key.type == "intent"]
        assert (found.audience, found.urgent) == ((STORES[0],), True)
        unknown = POLICY.replace(b"v3.8.2.img", b"v9.img")
        for request in (
            intent(world, IntentKind.PREFETCH, "pf2", policy_yaml=unknown),
            intent(world, IntentKind.PREFETCH, "pf3", policy_yaml=POLICY, window="25:00-03:30"),
            intent(world, IntentKind.PREFETCH, "pf4", policy_yaml=POLICY, stores=("store-999",)),
        ):
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.SubmitIntent(request)


async def test_what_a_hub_was_given_is_applied_here(world: World) -> None:
    """O1, M5: an operator's intent comes up as a report; its own signature counts; a refused one is kept as refused."""
    async with started(world) as (stub, region):
        pause = signed_intent(world, IntentKind.PAUSE_WAVE, "hub-pause", "operator/bob", reason="smoke")
        region.log.append(encode(IntentReport(pause, STORES[1])), "intent")
        gone = signed_intent(world, IntentKind.HALT_WAVE, "hub-halt", "operator/bob", reason="smoke", wave_id="none")
        region.log.append(encode(IntentReport(gone, STORES[1])), "intent")
        mine = signed_intent(world, IntentKind.ROLLBACK_DEVICE, "hub-rb", device="pos-12", reason="smoke")
        region.log.append(encode(IntentReport(mine, STORES[1])), "intent")
        forged = dataclasses.replace(pause, payload=pause.payload + b" ")
        region.log.append(encode(IntentReport(forged, STORES[1])), "intent")
        event = EventReport(
            "e" * 32, STORES[1], "cache-mismatch", "checksum", "142", "sha", "healed", world.clock.now()
        )
        for _ in range(2):
            region.log.append(encode(event), "event")
        region.upstream.wake()
        wave = await changed(stub, lambda wave: wave.state == rollout_pb2.WAVE_STATE_PAUSED)
        assert [pause.origin for pause in wave.pauses] == ["operator:bob"]
        await until(lambda: region.names("intent") == ["hub-rb"], region.sink)
        await until(lambda: region.log.first_number == region.log.next_number, region.sink)
        assert (await record_of(stub, "hub-halt")).disposition == operator_pb2.DISPOSITION_REFUSED
        assert len(await audited(stub, "intent.refused")) == len(await audited(stub, "report.refused")) == 1
        assert await audited(stub, "cache-mismatch") == ["gate checksum; wave 142; healed"]


async def test_a_new_incarnation_gets_permits_after_its_snapshot(world: World) -> None:
    """Semantics, "Permits and leases": the old one's are written off first, by the new one's own snapshot."""
    async with started(world) as (stub, region):
        await until(lambda: len(region.names("permit")) == 12, region.sink)
        region.report(outcome(world, DEVICES[0], OutcomeKind.UPDATED))
        region.hub(STORES[0], incarnation="j" * 32)
        wave = await changed(stub, lambda wave: wave.counts.updated == 1)
        assert wave.stores[0].exposure == 5
        assert decode(Permit, said(region, "permit", "142/store-208/pos-02").payload).generation == 1
        last = SnapshotReport(STORES[0], "j" * 32, (outcome(world, DEVICES[1], OutcomeKind.UPDATED),), last=True)
        region.log.append(encode(last), "snapshot")
        region.upstream.wake()

        def is_for(generation: int, incarnation: str) -> bool:
            permit = decode(Permit, said(region, "permit", "142/store-208/pos-03").payload)
            return (permit.generation, permit.hub_incarnation, permit.attempts) == (generation, incarnation * 32, 3)

        await until(lambda: is_for(2, "j"), region.sink)
        assert decode(Permit, said(region, "permit", "142/store-208/pos-02").payload).generation == 1
        assert decode(Permit, said(region, "permit", "142/store-209/pos-12").payload).generation == 1
        [detail] = await audited(stub, "permits.write-off")
        assert detail.startswith("4 permits")
        # A stale snapshot out of a super hub's backup: whoever is there now gets its permits once it tells all again.
        for incarnation, generation in (("i", 3), ("j", 4)):
            region.hub(STORES[0], incarnation="j" * 32)
            region.log.append(encode(SnapshotReport(STORES[0], incarnation * 32, (), last=True)), "snapshot")
            region.upstream.wake()
            await until(lambda g=generation, i=incarnation: is_for(g, i), region.sink)  # type: ignore[misc]


async def test_permits_in_batches(world: World) -> None:
    """permitBatch: so many outstanding at a time in each hub, renewed as outcomes come in."""
    policy = POLICY.replace(b"hubBudget: 2", b"hubBudget: 2\n  permitBatch: 2")
    async with started(world, policy) as (stub, region):
        await until(lambda: len(region.names("permit")) == 4, region.sink)
        region.report(outcome(world, DEVICES[0], OutcomeKind.UPDATED))
        await until(lambda: len(region.names("permit")) == 5, region.sink)
        wave = await changed(stub, lambda wave: wave.counts.updated == 1)
        assert [store.exposure for store in wave.stores] == [2, 2]


async def test_health_pings(world: World) -> None:
    """D4, D11: control acknowledges what the device signed, names the ping, and refuses replays and strangers."""
    async with started(world) as (_, region):
        device = DEVICES[0]
        ping = HealthPing("142", device, "b" * 32, "B", "f" * 64, 7, "control")
        envelope = sign_as_node(ping, world.credentials(device))
        for _ in range(2):
            answer = decode(HealthPingAnswer, await region.upstream.ask("health-ping", encode(envelope), 5))
            assert answer.ack is not None
            ack = decode(HealthAck, answer.ack.payload)
            assert (ack.ping_sha256, ack.authority) == (hashlib.sha256(envelope.payload).hexdigest(), "control")
        older = sign_as_node(dataclasses.replace(ping, counter=6), world.credentials(device))
        stranger = f"{STORES[0]}/device/pos-99"
        unknown = sign_as_node(dataclasses.replace(ping, device=stranger), world.credentials(stranger))
        forged = dataclasses.replace(envelope, payload=envelope.payload + b" ")
        for bad in (older, unknown, forged):
            with pytest.raises(AskFailedError):
                await region.upstream.ask("health-ping", encode(bad), 5)
        with pytest.raises(AskFailedError):
            await region.upstream.ask("horoscope", b"", 5)


async def test_a_restart_changes_nothing(world: World) -> None:
    """C3: what was published stays as it was, to the version; waves, intents and ledgers are there."""
    async with started(world) as (stub, region):
        await until(lambda: len(region.names("permit")) == 12, region.sink)
        region.report(outcome(world, DEVICES[0], OutcomeKind.UPDATED))
        before = await changed(
            stub, lambda wave: wave.counts.updated == 1 and all(store.order_delivered for store in wave.stores)
        )
        held = {key: (one.version, one.digest) for key, one in region.sink.resources.items()}
    async with world.serving() as served, served.calling() as stub, served.region() as region:
        await until(
            lambda: {key: (one.version, one.digest) for key, one in region.sink.resources.items()} == held, region.sink
        )
        for store in STORES:
            region.hub(store)
        after = await changed(stub, lambda wave: all(store.order_delivered for store in wave.stores))
        assert after == before
        assert (await stub.SubmitIntent(intent(world, IntentKind.START_WAVE, "again"))).duplicate


async def test_time_alone(world: World) -> None:
    """Orders expire; the hold list and TUF are signed anew; a halted wave gets its last word; intents expire."""
    clock = SetClock()
    world.clock = clock
    async with world.serving() as served, served.calling() as stub, served.region() as region:
        await stub.ApplyInventory(inventory())
        await stub.PlanWave(plan())
        await stub.SubmitIntent(intent(world, IntentKind.HALT_WAVE, reason="x"))
        await stub.SubmitIntent(intent(world, IntentKind.ROLLBACK_DEVICE, "rb", device="pos-17", reason="x"))
        await until(lambda: region.names("intent") == ["rb"], region.sink)
        holds = decode(HoldList, said(region, "holds", "fleet").payload)
        clock.advance(hours=2)
        await served.control.tick()
        await until(
            lambda: decode(HoldList, said(region, "holds", "fleet").payload).issued_at > holds.issued_at, region.sink
        )
        assert decode(HoldList, said(region, "holds", "fleet").payload).epoch == 1
        assert region.names("closed") == []
        clock.advance(days=1)
        await served.control.tick()
        await until(lambda: region.names("closed") == ["142"], region.sink)
        [tuf] = [one for key, one in region.sink.resources.items() if key.type == "tuf"]
        trusted = load_trusted(world.trust_keys.pinned_root, decode(TrustMetadata, tuf.content), clock.now(), None)
        assert trusted.versions["timestamp"] == 2
        await stub.PlanWave(plan("143"))
        clock.advance(days=14)
        await served.control.tick()
        await until(lambda: region.names("closed") == ["142", "143"], region.sink)
        wave = (await stub.GetWave(operator_pb2.GetWaveRequest(wave_id="143"))).wave
        assert (wave.state, wave.state_reason) == (rollout_pb2.WAVE_STATE_CLOSED, "expired")
        assert (await record_of(stub, "rb")).disposition == operator_pb2.DISPOSITION_REFUSED
        clock.advance(days=31)
        await served.control.tick()
        await until(lambda: not region.names("closed") and not region.names("intent"), region.sink)


async def test_only_super_hubs_have_sessions(world: World) -> None:
    """M4: control holds one session per region; a store hub that dials control is refused."""
    async with world.serving() as served:
        async with make_channel(world.credentials(STORES[0]), served.address, CONTROL) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await SessionServiceStub(channel).Connect().read()
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED


async def test_effect_and_cursor_are_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """M3: a fault after the effect and before the commit leaves neither; the report is applied when it comes again."""
    async with started(world) as (stub, region):
        settle = Waves.settle
        faults = iter([DatabaseError("disk full"), None])

        async def fail_once(self: Waves, tx: Any, wave_id: str) -> None:
            await settle(self, tx, wave_id)
            if (fault := next(faults, None)) is not None:
                raise fault

        monkeypatch.setattr(Waves, "settle", fail_once)
        region.report(outcome(world, DEVICES[0], OutcomeKind.UPDATED))
        wave = await changed(stub, lambda wave: wave.counts.updated == 1)
        assert wave.counts.pending == 11
        assert next(faults, "used") == "used"
