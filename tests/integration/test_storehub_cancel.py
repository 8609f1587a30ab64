"""A store hub over mTLS with its WAN dark: what waits has a place, can be looked at beforehand and taken back (M5)."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.session_kit import Fleet
from tests.storehub_kit import (
    OPERATOR,
    STORE,
    WAVE,
    Control,
    SuperHub,
    eventually,
    lay_out,
    running,
    till,
    wan,
)
from wavemesh.codec.statements import decode, encode, to_proto
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.grpc import make_channel
from wavemesh.runtime.status import error_from_rpc
from wavemesh.session.frames import Resource, ResourceKey
from wavemesh.trust.envelope import sign_as_node
from wavemesh.trust.statements import (
    IntentCancellation,
    IntentKind,
    IntentReport,
    OperatorIntent,
    UpdateState,
    WaveState,
)
from wavemesh.v1 import operator_pb2 as pb
from wavemesh.v1.operator_pb2_grpc import OperatorServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from storehub.app import App
    from wavemesh.errors import WavemeshError
    from wavemesh.trust.statements import Envelope

BOB = NodeId(OPERATOR.fleet, "operator/bob")


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


async def submit(stub: Any, intent: Envelope) -> pb.IntentRecord:
    answer = await stub.SubmitIntent(pb.SubmitIntentRequest(intent=to_proto(intent)))
    record: pb.IntentRecord = answer.record
    return record


def cancel(fleet: Fleet, intent_id: str, who: NodeId = OPERATOR, **more: Any) -> pb.CancelIntentRequest:
    word = IntentCancellation(intent_id, "wrong night", datetime.now(UTC))
    return pb.CancelIntentRequest(cancellation=to_proto(sign_as_node(word, fleet.credentials(who))), **more)


async def refusal(call: Any) -> WavemeshError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return error_from_rpc(caught.value)


def intents_told(super_hub: SuperHub) -> list[IntentReport]:
    return [decode(IntentReport, body) for kind, body in super_hub.applied if kind == "intent"]


@asynccontextmanager
async def dark(super_hub: SuperHub, directory: Path, *names: str) -> AsyncIterator[App]:
    """A hub that knows wave 142, planned, and has no upstream any more."""
    control = super_hub.control
    async with wan(super_hub) as parent, running(lay_out(directory, control, parent)) as app:
        order = control.order(*names, state=WaveState.PLANNED)
        super_hub.want(control.tuf(), control.holds(), control.policy_resource(), order)
        await eventually(lambda: WAVE in app.hub.store.waves)
    async with running(directory) as app:
        yield app


async def test_what_waits_for_control_has_a_place_and_is_taken_back(
    control: Control, fleet: Fleet, tmp_path: Path
) -> None:
    super_hub = SuperHub(control)
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(dark(super_hub, tmp_path / "hub", "pos-12"))
        stub = await stack.enter_async_context(desk(fleet, app))
        bob = await stack.enter_async_context(desk(fleet, app, BOB))
        pause = await submit(stub, control.intent(IntentKind.PAUSE_WAVE, "pause"))
        start = await submit(stub, control.intent(IntentKind.START_WAVE, "start"))
        resume = await submit(stub, control.intent(IntentKind.RESUME_WAVE, "resume"))
        # What lowers risk acted at once and only has to be told; what raises it waits behind.
        assert [(one.disposition, one.queue_place) for one in (pause, start, resume)] == [
            (pb.DISPOSITION_APPLIED, 1),
            (pb.DISPOSITION_QUEUED, 2),
            (pb.DISPOSITION_QUEUED, 3),
        ]
        dry = await bob.CancelIntent(cancel(fleet, "start", BOB, dry_run=True))
        assert dry.record.disposition == pb.DISPOSITION_CANCELLED
        assert app.hub.store.intents["start"].disposition.name == "QUEUED"
        answers = [await bob.CancelIntent(cancel(fleet, "start", BOB)) for _ in range(2)]
        assert [(a.record.disposition, a.duplicate) for a in answers] == [
            (pb.DISPOSITION_CANCELLED, False),
            (pb.DISPOSITION_CANCELLED, True),
        ]
        assert "cancelled by bob" in answers[0].record.detail
        # It waits to be told of, and in no queue.
        assert (list(answers[0].record.waiting_for), answers[0].record.queue_place) == (["control"], 0)
        assert (await stub.GetIntent(pb.GetIntentRequest(intent_id="resume"))).record.queue_place == 2
        refused = await refusal(stub.CancelIntent(cancel(fleet, "pause")))
        assert (refused.details["reason"], "wave resume --wave 142" in str(refused)) == ("INTENT_APPLIED", True)
        assert (await refusal(stub.CancelIntent(cancel(fleet, "nobody")))).reason == "NOT_FOUND"
        assert (await refusal(bob.CancelIntent(cancel(fleet, "resume")))).reason == "FORBIDDEN"

        await stack.enter_async_context(wan(super_hub, super_hub.address))
        await eventually(lambda: len(intents_told(super_hub)) == 4)
        told = [(id_of(one), one.cancellation is not None) for one in intents_told(super_hub)]
        # The start itself never goes up without its cancellation.
        assert told == [("pause", False), ("start", True), ("resume", False), ("start", True)]
        await eventually(lambda: not app.hub.store.intents["start"].waiting_for)
        assert app.hub.store.intents["start"].disposition.name == "CANCELLED"


def id_of(report: IntentReport) -> str:
    return decode(OperatorIntent, report.intent.payload).intent_id


async def test_what_was_handed_on_is_taken_back_until_control_has_acted(
    control: Control, fleet: Fleet, tmp_path: Path
) -> None:
    super_hub, directory = SuperHub(control), tmp_path / "hub"
    async with (
        wan(super_hub) as parent,
        running(lay_out(directory, control, parent)) as app,
        desk(fleet, app) as stub,
    ):
        super_hub.want(control.tuf(), control.holds(), control.policy_resource())
        super_hub.want(control.order("pos-12", state=WaveState.PLANNED))
        await eventually(lambda: WAVE in app.hub.store.waves)
        for name in ("start-1", "start-2"):
            await submit(stub, control.intent(IntentKind.START_WAVE, name))
            await eventually(lambda n=name: not app.hub.store.intents[n].waiting_for)  # type: ignore[misc]
        answer = await stub.CancelIntent(cancel(fleet, "start-1"))
        assert (answer.record.disposition, list(answer.record.waiting_for)) == (
            pb.DISPOSITION_CANCELLED,
            ["control"],
        )
        assert "drops it unless it has acted" in answer.record.detail
        await eventually(lambda: [one.cancellation is not None for one in intents_told(super_hub)][-1])
        super_hub.want(control.order("pos-12", generation=2))
        await eventually(lambda: app.hub.belief.orders[WAVE].state is WaveState.RUNNING)
        late = await refusal(stub.CancelIntent(cancel(fleet, "start-2")))
        assert (late.details["reason"], "wave pause --wave 142" in str(late)) == ("INTENT_APPLIED", True)


async def test_a_rollback_is_taken_back_until_the_device_was_told(
    control: Control, fleet: Fleet, tmp_path: Path
) -> None:
    super_hub = SuperHub(control)
    async with (
        dark(super_hub, tmp_path / "hub", "pos-12", "pos-13") as app,
        desk(fleet, app) as stub,
    ):
        first = await submit(stub, control.intent(IntentKind.ROLLBACK_DEVICE, "rb-1", device="pos-12"))
        assert (first.disposition, first.queue_place) == (pb.DISPOSITION_QUEUED, 1)
        await stub.CancelIntent(cancel(fleet, "rb-1"))
        async with till(control, "pos-12", f"127.0.0.1:{app.port}") as one:
            one.say(UpdateState.COMMITTED)
            await eventually(lambda: one.node.path in app.hub.store.devices)
            await submit(stub, control.intent(IntentKind.ROLLBACK_DEVICE, "rb-2", device="pos-12"))
            await eventually(lambda: one.holds(ResourceKey("intent", "rb-2")))
            # The one taken back before never reached the device, though it was there for both.
            assert not one.holds(ResourceKey("intent", "rb-1"))
            told = await refusal(stub.CancelIntent(cancel(fleet, "rb-2")))
            assert (told.details["reason"], "the device was told" in str(told)) == ("INTENT_APPLIED", True)


async def test_what_control_gave_is_taken_back_at_control(control: Control, fleet: Fleet, tmp_path: Path) -> None:
    super_hub = SuperHub(control)
    async with (
        wan(super_hub) as parent,
        running(lay_out(tmp_path / "hub", control, parent)) as app,
        desk(fleet, app) as stub,
    ):
        super_hub.want(control.tuf(), control.holds(), control.policy_resource(), control.order("pos-12"))
        given = control.intent(IntentKind.ROLLBACK_DEVICE, "from-control", device="pos-12")
        down: Resource = control.make("intent", "from-control", encode(given), urgent=True)
        await eventually(lambda: WAVE in app.hub.store.waves)
        super_hub.want(down)
        await eventually(lambda: "from-control" in app.hub.store.intents)
        assert (await refusal(stub.CancelIntent(cancel(fleet, "from-control")))).details["reason"] == "ASK_CONTROL"
        # Given here too: control's withdrawal is the end of both.
        await submit(stub, control.intent(IntentKind.ROLLBACK_DEVICE, "from-here", device="pos-12"))
        super_hub.drop(down)
        await eventually(lambda: app.hub.store.intents["from-control"].disposition.name == "CANCELLED")


async def test_a_preview_in_the_dark_changes_nothing(control: Control, fleet: Fleet, tmp_path: Path) -> None:
    super_hub = SuperHub(control)
    async with (
        dark(super_hub, tmp_path / "hub", "pos-12", "pos-13") as app,
        desk(fleet, app) as stub,
    ):
        reports = app.hub.log.next_number

        async def preview(kind: IntentKind, **fields: Any) -> pb.PreviewIntentResponse:
            envelope = to_proto(control.intent(kind, **fields))
            answer: pb.PreviewIntentResponse = await stub.PreviewIntent(pb.PreviewIntentRequest(intent=envelope))
            return answer

        halt = await preview(IntentKind.HALT_WAVE)
        assert (halt.record.disposition, halt.effect.state_after) == (
            pb.DISPOSITION_APPLIED,
            WaveState.HALTED.value,
        )
        assert (halt.effect.device_count, list(halt.effect.stores)) == (2, [STORE.path])
        start = await preview(IntentKind.START_WAVE)
        assert (start.record.disposition, start.record.queue_place) == (pb.DISPOSITION_QUEUED, 1)
        assert start.effect.state_after == start.effect.state_before == WaveState.PLANNED.value
        fetch = await preview(IntentKind.PREFETCH, policy_yaml=control.policy_yaml)
        assert len(fetch.effect.artifacts) == 2
        back = await preview(IntentKind.ROLLBACK_DEVICE, device="pos-12")
        assert [path.rsplit("/", 1)[1] for path in back.effect.devices] == ["pos-12"]
        assert (app.hub.log.next_number, dict(app.hub.store.intents), dict(app.hub.store.pauses)) == (reports, {}, {})
        await submit(stub, control.intent(IntentKind.HALT_WAVE))
        assert app.hub.log.next_number == reports + 1


async def test_a_hub_lists_what_it_holds(control: Control, fleet: Fleet, tmp_path: Path) -> None:
    super_hub = SuperHub(control)
    async with (
        wan(super_hub) as parent,
        running(lay_out(tmp_path / "hub", control, parent)) as app,
        desk(fleet, app) as stub,
    ):
        assert (await stub.ListHolds(pb.ListHoldsRequest())).epoch == 0
        super_hub.want(control.tuf(), control.holds(), control.policy_resource(), control.order("pos-12", "pos-13"))
        super_hub.want(control.permit("pos-12", app.hub.log.incarnation), control.permit("pos-13", "f" * 32))
        await eventually(lambda: len(app.hub.belief.permits) == 2)
        permits = (await stub.ListPermits(pb.ListPermitsRequest(wave_id=WAVE))).permits
        assert [one.state for one in permits] == [pb.PERMIT_STATE_OUTSTANDING, pb.PERMIT_STATE_WRITTEN_OFF]
        assert not (await stub.ListPermits(pb.ListPermitsRequest(states=[pb.PERMIT_STATE_SPENT]))).permits
        await submit(stub, control.intent(IntentKind.HALT_WAVE))
        void = (await stub.ListPermits(pb.ListPermitsRequest(device="pos-12"))).permits
        assert [one.state for one in void] == [pb.PERMIT_STATE_VOID]
        [store] = (await stub.ListStores(pb.ListStoresRequest(region="midwest"))).stores
        assert (store.path, store.devices, list(store.wave_ids), store.hub.connected) == (STORE.path, 2, [WAVE], True)
        assert not (await stub.ListStores(pb.ListStoresRequest(region="south"))).stores
        elsewhere = await refusal(stub.GetStore(pb.GetStoreRequest(store="store-1")))
        assert elsewhere.details["reason"] == "ASK_CONTROL"
        assert (await stub.GetStore(pb.GetStoreRequest(store="store-209"))).store.path == store.path
        [policy] = (await stub.ListPolicies(pb.ListPoliciesRequest())).policies
        assert (await stub.GetPolicy(pb.GetPolicyRequest(wave_id=WAVE))).policy.digest == policy.digest
        assert (await stub.GetPolicy(pb.GetPolicyRequest(digest=policy.digest[:6]))).policy.json
        assert (await refusal(stub.GetPolicy(pb.GetPolicyRequest(digest="ab")))).reason == "BAD_REQUEST"
        assert (await refusal(stub.ListCohorts(pb.ListCohortsRequest()))).details["reason"] == "ASK_CONTROL"
        assert (await stub.ListHolds(pb.ListHoldsRequest())).epoch == 1
