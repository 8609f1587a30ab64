"""The operator's API of a store hub over mTLS: what lowers risk acts at once, what raises it queues (M5, O1)."""

from __future__ import annotations

import hashlib
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.session_kit import FAST, Fleet, MemoryLog
from tests.storehub_kit import (
    OPERATOR,
    STORE,
    SUPER_HUB,
    WAVE,
    Control,
    SuperHub,
    device_node,
    eventually,
    lay_out,
    running,
    till,
    wan,
)
from wavemesh.codec.statements import decode, encode, to_proto
from wavemesh.errors import ConflictError, ForbiddenError, GateError, NotFoundError, WavemeshError
from wavemesh.runtime.grpc import make_channel
from wavemesh.runtime.status import error_from_rpc
from wavemesh.session.frames import ResourceKey
from wavemesh.session.negotiation import Dialect
from wavemesh.telemetry.uploads import LogLine, LogUpload
from wavemesh.trust.envelope import sign_as_node
from wavemesh.trust.statements import (
    INTENT_REFUSED,
    ROLLBACK_DONE,
    ROLLBACK_FAILED,
    Envelope,
    EventReport,
    HealthAck,
    HealthPing,
    HealthPingAnswer,
    IntentKind,
    IntentReport,
    OperatorIntent,
    OutcomeKind,
    Pause,
    UpdateState,
    WaveState,
)
from wavemesh.v1 import operator_pb2 as pb
from wavemesh.v1 import rollout_pb2
from wavemesh.v1.operator_pb2_grpc import OperatorServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from storehub.app import App
    from wavemesh.identity.nodes import NodeId


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet.create(tmp_path_factory.mktemp("fleet"))


@pytest.fixture
def control(fleet: Fleet) -> Control:
    return Control(fleet)


@asynccontextmanager
async def desk(fleet: Fleet, app: App, who: NodeId = OPERATOR) -> AsyncIterator[Any]:
    async with make_channel(fleet.credentials(who), f"127.0.0.1:{app.port}", STORE) as channel:
        yield OperatorServiceStub(channel)


async def refusal(call: Any) -> WavemeshError:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error_from_rpc(error)
    pytest.fail("the call was answered")


async def submit(stub: Any, intent: Envelope) -> pb.SubmitIntentResponse:
    answer: pb.SubmitIntentResponse = await stub.SubmitIntent(pb.SubmitIntentRequest(intent=to_proto(intent)))
    return answer


async def send_wave(super_hub: SuperHub, app: App, *names: str) -> None:
    control = super_hub.control
    super_hub.want(control.tuf(), control.holds(), control.policy_resource(), control.order(*names))
    await eventually(lambda: WAVE in app.hub.store.waves)


async def test_only_operators_are_served(control: Control, fleet: Fleet, tmp_path: Path) -> None:
    async with running(lay_out(tmp_path / "hub", control, "127.0.0.1:1")) as app:
        for who in (device_node("pos-12"), SUPER_HUB):
            async with desk(fleet, app, who) as stub:
                for call in (stub.ListWaves(pb.ListWavesRequest()), stub.GetFleetStatus(pb.GetFleetStatusRequest())):
                    assert isinstance(await refusal(call), ForbiddenError)
        async with desk(fleet, app) as stub:
            forged = sign_as_node(
                OperatorIntent("f", IntentKind.PAUSE_WAVE, datetime.now(UTC), WAVE, reason="x"),
                fleet.credentials(OPERATOR),
            )
            forged = replace(forged, payload=forged.payload + b"\x00")
            assert isinstance(await refusal(submit(stub, forged)), GateError)
            error = await refusal(stub.PlanWave(pb.PlanWaveRequest()))
            assert isinstance(error, ConflictError)
            assert error.details["reason"] == "ASK_CONTROL"
            assert isinstance(await refusal(stub.GetWave(pb.GetWaveRequest(wave_id="7"))), NotFoundError)


async def test_a_hub_that_its_parent_cannot_speak_with_says_why(control: Control, fleet: Fleet, tmp_path: Path) -> None:
    """It goes on with the wave it holds, and its operator is told who must be updated."""
    super_hub, directory = SuperHub(control), tmp_path / "hub"
    async with wan(super_hub) as parent, running(lay_out(directory, control, parent)) as app:
        await send_wave(super_hub, app, "pos-12")
    newer = replace(FAST, dialect=Dialect(5, 6))
    async with wan(super_hub, parent, newer), running(directory) as app, desk(fleet, app) as stub:
        await eventually(lambda: app.upstream.refusal)
        wave = (await stub.GetWave(pb.GetWaveRequest(wave_id=WAVE))).wave
        assert wave.state == rollout_pb2.WAVE_STATE_RUNNING
        assert "speaks protocol versions 1 to 1, this parent 5 to 6: update the child" in wave.state_reason


async def test_a_pause_in_the_dark_acts_at_once_and_is_told_later(
    control: Control, fleet: Fleet, tmp_path: Path
) -> None:
    super_hub, directory = SuperHub(control), tmp_path / "hub"
    async with AsyncExitStack() as stack:
        async with wan(super_hub) as parent, running(lay_out(directory, control, parent)) as app:
            await send_wave(super_hub, app, "pos-12")
        app = await stack.enter_async_context(running(directory))
        stub = await stack.enter_async_context(desk(fleet, app))
        pause = control.intent(IntentKind.PAUSE_WAVE)
        first = await submit(stub, pause)
        assert (first.duplicate, first.record.disposition) == (False, pb.DISPOSITION_APPLIED)
        assert list(first.record.waiting_for) == ["control"]
        wave = (await stub.GetWave(pb.GetWaveRequest(wave_id=WAVE))).wave
        assert wave.state == WaveState.PAUSED.value
        assert [(p.origin, p.reason) for p in wave.pauses] == [("operator:alice", "because")]
        assert (await submit(stub, pause)).duplicate
        assert (await submit(stub, control.intent(IntentKind.PAUSE_WAVE))).duplicate, "signed later, the same word"
        assert (await submit(stub, control.intent(IntentKind.PAUSE_WAVE, "i-2"))).duplicate
        conflict = await refusal(submit(stub, control.intent(IntentKind.PAUSE_WAVE, reason="another")))
        assert isinstance(conflict, ConflictError)

        start = await submit(stub, control.intent(IntentKind.START_WAVE, "i-3", wave_id="143", cohort="retail"))
        assert (start.record.disposition, list(start.record.waiting_for)) == (pb.DISPOSITION_QUEUED, ["control"])
        again = await submit(stub, control.intent(IntentKind.START_WAVE, "i-4", wave_id="143"))
        assert (again.duplicate, again.record) == (True, start.record)

        await stack.enter_async_context(wan(super_hub, super_hub.address))
        await eventually(lambda: len([1 for kind, _ in super_hub.applied if kind == "intent"]) == 2)
        told = [decode(IntentReport, body) for kind, body in super_hub.applied if kind == "intent"]
        assert [report.intent for report in told] == [pause, app.hub.store.intents["i-3"].envelope]
        await eventually(lambda: not app.hub.store.intents["i-3"].waiting_for)
        assert not any(record.waiting_for for record in app.hub.store.intents.values())
        listed = (await stub.ListIntents(pb.ListIntentsRequest())).intents
        assert {(r.intent_id, r.disposition) for r in listed} >= {
            ("i-1", pb.DISPOSITION_APPLIED),
            ("i-3", pb.DISPOSITION_APPLIED),
        }

        # Control's order carries the pause from now on, so that control's resume is enough to lift it.
        order = control.order(
            "pos-12", generation=2, state=WaveState.PAUSED, pauses=(Pause("operator:alice", "because"),)
        )
        super_hub.want(order)
        await eventually(lambda: not app.hub.store.pauses)
        super_hub.want(control.order("pos-12", generation=3))
        await eventually(lambda: app.hub.belief.orders[WAVE].generation == 3)
        assert app.hub.standing(app.hub.belief.orders[WAVE]).standing.value == "live"


async def test_a_halt_given_here_is_told_to_trials_and_cannot_be_resumed(
    control: Control, fleet: Fleet, tmp_path: Path
) -> None:
    super_hub = SuperHub(control)
    async with wan(super_hub) as parent, running(lay_out(tmp_path / "hub", control, parent)) as app:
        await send_wave(super_hub, app, "pos-12")
        async with desk(fleet, app) as stub:
            assert (
                await submit(stub, control.intent(IntentKind.HALT_WAVE))
            ).record.disposition == pb.DISPOSITION_APPLIED
            assert app.asks.lease_state(device_node("pos-12").path, WAVE) == "halted"
            resume = await submit(stub, control.intent(IntentKind.RESUME_WAVE, "i-2"))
            assert resume.record.disposition == pb.DISPOSITION_REFUSED


async def test_resume_queues_and_lifts_the_own_pause_once_control_has_it(
    control: Control, fleet: Fleet, tmp_path: Path
) -> None:
    super_hub, directory = SuperHub(control), tmp_path / "hub"
    async with AsyncExitStack() as stack:
        async with wan(super_hub) as parent, running(lay_out(directory, control, parent)) as app:
            await send_wave(super_hub, app, "pos-12")
        app = await stack.enter_async_context(running(directory))
        stub = await stack.enter_async_context(desk(fleet, app))
        await submit(stub, control.intent(IntentKind.PAUSE_WAVE))
        resume = await submit(stub, control.intent(IntentKind.RESUME_WAVE, "i-2"))
        assert resume.record.disposition == pb.DISPOSITION_QUEUED
        assert app.hub.store.pauses
        await stack.enter_async_context(wan(super_hub, super_hub.address))
        await eventually(lambda: not app.hub.store.pauses)


async def test_a_rollback_reaches_its_device_and_is_done_by_its_word(
    control: Control, fleet: Fleet, tmp_path: Path
) -> None:
    async with running(lay_out(tmp_path / "hub", control, "127.0.0.1:1")) as app, desk(fleet, app) as stub:
        missing = await refusal(submit(stub, control.intent(IntentKind.ROLLBACK_DEVICE, device="pos-99", wave_id="")))
        assert isinstance(missing, NotFoundError)
        async with till(control, "pos-12", f"127.0.0.1:{app.port}") as one:
            one.say(UpdateState.COMMITTED)
            await eventually(lambda: one.node.path in app.hub.store.devices)
            rollback = control.intent(IntentKind.ROLLBACK_DEVICE, device="pos-12")
            answer = await submit(stub, rollback)
            assert (answer.record.disposition, list(answer.record.waiting_for)) == (
                pb.DISPOSITION_QUEUED,
                [one.node.path],
            )
            key = ResourceKey("intent", "i-1")
            await eventually(lambda: one.holds(key))
            assert decode(Envelope, one.child.sink.resources[key].content) == rollback
            assert list(app.hub.store.slots) == [one.node.path]
            assert (await submit(stub, control.intent(IntentKind.ROLLBACK_DEVICE, "i-2", device="pos-12"))).duplicate
            one.report(one.outcome(OutcomeKind.ROLLED_BACK, gate="operator"))
            await eventually(lambda: app.hub.store.intents["i-1"].disposition.name == "APPLIED")
            await eventually(lambda: not one.holds(key) and not app.hub.store.slots)
            ledger = app.hub.store.ledger(WAVE)[one.node.path]
            assert ledger.outcome.gate == "operator"
            one.say(UpdateState.ROLLED_BACK, gate="operator")
            await eventually(lambda: app.hub.store.devices[one.node.path].status.gate == "operator")
            again = await submit(stub, control.intent(IntentKind.ROLLBACK_DEVICE, "i-3", device="pos-12"))
            assert (again.duplicate, again.record.disposition) == (True, pb.DISPOSITION_APPLIED)
            one.say(UpdateState.COMMITTED, gate="")
            await eventually(lambda: not app.hub.store.devices[one.node.path].status.gate)
            anew = await submit(stub, control.intent(IntentKind.ROLLBACK_DEVICE, "i-4", device="pos-12"))
            assert (anew.duplicate, anew.record.disposition) == (False, pb.DISPOSITION_QUEUED)


async def test_an_approval_is_passed_on_at_once_and_done_by_that_attempts_outcome(
    control: Control, fleet: Fleet, tmp_path: Path
) -> None:
    """D5: with the WAN dark and every slot taken; another attempt's outcome answers nothing."""
    super_hub = SuperHub(control)
    async with AsyncExitStack() as stack:
        async with wan(super_hub) as parent, running(lay_out(tmp_path / "hub", control, parent)) as app:
            await send_wave(super_hub, app, "pos-12")
        app = await stack.enter_async_context(running(tmp_path / "hub"))
        stub = await stack.enter_async_context(desk(fleet, app))
        one = await stack.enter_async_context(till(control, "pos-12", f"127.0.0.1:{app.port}"))
        for changes in ({"attempt": 0}, {"attempt": 2, "wave_id": ""}, {"attempt": 2, "reason": ""}):
            wish = control.intent(IntentKind.APPROVE_ROLLBACK, device="pos-12", **changes)
            assert isinstance(await refusal(submit(stub, wish)), ConflictError)
        one.say(UpdateState.AWAITING_SIGNOFF, attempt=2, gate="peripheral:scanner")
        await eventually(lambda: one.node.path in app.hub.store.devices)
        entry = (await stub.GetLedger(pb.GetLedgerRequest(wave_id=WAVE))).entries[0]
        assert (entry.kind, entry.gate, entry.attempt) == (OutcomeKind.PENDING.value, "peripheral:scanner", 2)
        approval = control.intent(IntentKind.APPROVE_ROLLBACK, device="pos-12", attempt=2)
        answer = await submit(stub, approval)
        assert (answer.record.disposition, list(answer.record.waiting_for)) == (pb.DISPOSITION_QUEUED, [one.node.path])
        await eventually(lambda: one.holds(ResourceKey("intent", "i-1")))
        assert (
            await submit(stub, control.intent(IntentKind.APPROVE_ROLLBACK, "i-2", device="pos-12", attempt=2))
        ).duplicate
        one.report(one.outcome(OutcomeKind.ROLLED_BACK, gate="peripheral:scanner", attempt=1))
        await eventually(partial(_is_empty, one.child.log))
        assert app.hub.store.intents["i-1"].disposition.name == "QUEUED"
        one.report(one.outcome(OutcomeKind.ROLLED_BACK, gate="peripheral:scanner", attempt=2))
        await eventually(lambda: app.hub.store.intents["i-1"].disposition.name == "APPLIED")
        one.say(UpdateState.ROLLED_BACK, attempt=2, gate="peripheral:scanner")
        await eventually(lambda: app.hub.store.devices[one.node.path].status.state is UpdateState.ROLLED_BACK)
        late = await submit(stub, control.intent(IntentKind.APPROVE_ROLLBACK, "i-3", device="pos-12", attempt=2))
        assert (late.duplicate, late.record.disposition) == (True, pb.DISPOSITION_APPLIED)


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        (INTENT_REFUSED, ("REFUSED", "refused by the device: there is no previous slot")),
        (ROLLBACK_FAILED, ("REFUSED", "refused by the device: there is no previous slot")),
        (ROLLBACK_DONE, ("APPLIED", "the device rolled back")),
    ],
)
async def test_a_device_answers_a_rollback_without_an_outcome(
    control: Control, fleet: Fleet, tmp_path: Path, kind: str, end: tuple[str, str]
) -> None:
    """The device's word, and its alone, ends the intent and frees the slot at once instead of after the maxima."""
    super_hub = SuperHub(control)
    async with (
        wan(super_hub) as parent,
        running(lay_out(tmp_path / "hub", control, parent, lease_s=60.0)) as app,
        desk(fleet, app) as stub,
        till(control, "pos-12", f"127.0.0.1:{app.port}") as one,
        till(control, "pos-13", f"127.0.0.1:{app.port}") as other,
    ):
        one.say(UpdateState.IDLE)
        await eventually(lambda: one.node.path in app.hub.store.devices)
        await submit(stub, control.intent(IntentKind.ROLLBACK_DEVICE, device="pos-12", wave_id=""))
        await eventually(lambda: one.holds(ResourceKey("intent", "i-1")) and bool(app.hub.store.slots))
        said = EventReport("e", "", kind, "operator", "", "i-1", "there is no previous slot", datetime.now(UTC))
        for each in (other, one):
            assert app.hub.store.intents["i-1"].disposition.name == "QUEUED"
            each.child.log.append(encode(replace(said, node=each.node.path)))
            each.child.upstream.wake()
            await eventually(partial(_is_empty, each.child.log))
        record = app.hub.store.intents["i-1"]
        assert (record.disposition.name, record.detail) == end
        await eventually(lambda: not one.holds(ResourceKey("intent", "i-1")) and not app.hub.store.slots)


def _is_empty(log: MemoryLog) -> bool:
    return not log.reports


async def test_ledger_devices_and_logs_are_shown(control: Control, fleet: Fleet, tmp_path: Path) -> None:
    super_hub = SuperHub(control)
    async with (
        wan(super_hub) as parent,
        running(lay_out(tmp_path / "hub", control, parent)) as app,
        desk(fleet, app) as stub,
    ):
        await send_wave(super_hub, app, "pos-12", "pos-13")
        async with till(control, "pos-12", f"127.0.0.1:{app.port}") as one:
            one.say(UpdateState.COMMITTED, firmware_version="3.8.2")
            one.report(one.outcome(OutcomeKind.ROLLED_BACK, gate="peripheral:scanner"))
            await eventually(lambda: app.hub.store.ledger(WAVE))
            ledger = await stub.GetLedger(pb.GetLedgerRequest(wave_id=WAVE))
            assert (ledger.counts.rolled_back, ledger.counts.pending, dict(ledger.gates)) == (
                1,
                1,
                {"peripheral:scanner": 1},
            )
            assert ledger.source == STORE.path
            assert ledger.entries[0].signed_by == one.node.uri
            devices = (await stub.ListDevices(pb.ListDevicesRequest(page_size=1))).devices
            assert [d.path for d in devices] == [one.node.path]
            fleet_status = await stub.GetFleetStatus(pb.GetFleetStatusRequest())
            assert (fleet_status.devices, fleet_status.devices_connected, fleet_status.hubs[0].connected) == (
                2,
                1,
                True,
            )
            now = datetime.now(UTC)
            lines = tuple(LogLine(now + timedelta(seconds=n), "info", WAVE, f"line {n}") for n in range(3))
            upload = encode(LogUpload(1, lines))
            for _ in range(2):  # asked again until answered; lines known are ignored
                await one.child.upstream.ask("logs", upload, 5)
            shown = (await stub.GetDeviceLogs(pb.GetDeviceLogsRequest(device="pos-12", limit=2))).lines
            assert [line.text for line in shown] == ["line 1", "line 2"]
        watch = stub.WatchWave(pb.WatchWaveRequest(wave_id=WAVE))
        assert (await watch.read()).wave.counts.rolled_back == 1
        super_hub.want(control.closed())
        while (seen := await watch.read()) is not grpc.aio.EOF:
            last = seen.wave
        assert last.state == WaveState.CLOSED.value


def ping(one: Any, authority: str, counter: int = 1) -> bytes:
    statement = HealthPing(WAVE, one.node.path, "boot", "B", "0" * 64, counter, authority)
    return encode(sign_as_node(statement, one.fleet.credentials(one.node)))


async def ask(one: Any, body: bytes) -> HealthPingAnswer:
    return decode(HealthPingAnswer, await one.child.upstream.ask("health-ping", body, 5))


async def test_health_pings_by_authority(control: Control, fleet: Fleet, tmp_path: Path) -> None:
    super_hub, directory = SuperHub(control), tmp_path / "hub"

    async def relay(child: NodeId, kind: str, body: bytes) -> bytes:
        envelope = decode(Envelope, body)
        digest = hashlib.sha256(envelope.payload).hexdigest()
        ack = decode(Envelope, control.sign(HealthAck(digest, "control", datetime.now(UTC))))
        return encode(HealthPingAnswer(ack, "none", None))

    super_hub.answer = relay  # type: ignore[method-assign]  # the fake's answer is this test's
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(running(lay_out(directory, control, "127.0.0.1:1")))
        one = await stack.enter_async_context(till(control, "pos-12", f"127.0.0.1:{app.port}", MemoryLog()))
        await eventually(lambda: one.child.upstream.is_connected)
        dark = await ask(one, ping(one, "control"))
        assert dark.ack is None
        assert dark.authority_down is not None
        assert dark.lease_state == "none"
        own = await ask(one, ping(one, "either", 2))
        assert own.ack is not None
        assert decode(HealthAck, own.ack.payload).authority == "hub"
        assert own.authority_down is None
        with pytest.raises(WavemeshError):
            await ask(one, ping(one, "hub", 1))  # a replay
    async with (
        wan(super_hub) as parent,
        running(lay_out(directory, control, parent)) as app,
        till(control, "pos-12", f"127.0.0.1:{app.port}") as one,
    ):
        await eventually(lambda: one.child.upstream.is_connected and app.upstream.is_connected)
        for counter, authority in enumerate(("control", "either")):
            lit = await ask(one, ping(one, authority, counter))
            assert lit.ack is not None
            assert decode(HealthAck, lit.ack.payload).authority == "control"
