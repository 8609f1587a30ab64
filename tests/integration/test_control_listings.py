"""Control's lists, previews and cancellations over real mTLS gRPC, with a super hub that holds what is published."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from control import queries
from tests.session_kit import until
from tests.unit.control.control_kit import (
    DEVICES,
    POLICY,
    SEGMENT,
    STORES,
    Region,
    World,
    intent,
    inventory,
    make_world,
    outcome,
    plan,
    signed_intent,
)
from wavemesh.codec.statements import encode, to_proto
from wavemesh.runtime.status import error_from_rpc
from wavemesh.trust.envelope import sign_as_node
from wavemesh.trust.statements import IntentCancellation, IntentKind, IntentReport, OutcomeKind, UpdateState
from wavemesh.v1 import operator_pb2 as pb
from wavemesh.v1 import report_pb2, rollout_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.conftest import CredentialsFactory, TrustKeys
    from wavemesh.trust.statements import Envelope


@pytest.fixture
def world(
    tmp_path: Path, credentials: CredentialsFactory, trust_keys: TrustKeys, make_manifest: Callable[..., Any]
) -> World:
    directory = tmp_path / "control"
    directory.mkdir()
    return make_world(directory, credentials, trust_keys, make_manifest())


@asynccontextmanager
async def planned(world: World) -> AsyncIterator[tuple[Any, Region]]:
    """Wave 142, planned, both hubs connected."""
    async with world.serving() as served, served.calling() as stub, served.region() as region:
        await stub.ApplyInventory(inventory())
        await stub.PlanWave(plan())
        for store in STORES:
            region.hub(store)

        async def both() -> bool:
            listed = (await stub.ListStores(pb.ListStoresRequest())).stores
            return all(store.hub.connected for store in listed)

        await until_true(both, region)
        yield stub, region


async def until_true(condition: Callable[[], Any], region: Region) -> None:
    """Wait for a condition that asks control, looking again whenever the super hub was told something."""
    async with asyncio.timeout(10):
        while not await condition():
            region.upstream.wake()
            await asyncio.sleep(0.02)


def cancellation(world: World, intent_id: str, operator: str = "operator/alice", reason: str = "") -> Envelope:
    return sign_as_node(IntentCancellation(intent_id, reason, world.clock.now()), world.credentials(operator))


def cancel(world: World, intent_id: str, operator: str = "operator/alice", **more: Any) -> pb.CancelIntentRequest:
    return pb.CancelIntentRequest(cancellation=to_proto(cancellation(world, intent_id, operator)), **more)


def preview(world: World, kind: IntentKind, **fields: Any) -> pb.PreviewIntentRequest:
    return pb.PreviewIntentRequest(intent=to_proto(signed_intent(world, kind, **fields)))


async def reason_of(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = error_from_rpc(caught.value)
    return error.details.get("reason", error.reason)


async def test_stores_cohorts_policies_and_holds_are_listed(world: World) -> None:
    async with planned(world) as (stub, _):
        stores = (await stub.ListStores(pb.ListStoresRequest(page_size=1))).stores
        assert [(s.path, s.devices, list(s.wave_ids), s.time_zone) for s in stores] == [
            (STORES[0], 6, ["142"], "America/Chicago")
        ]
        rest = await stub.ListStores(pb.ListStoresRequest(page_token=stores[0].path))
        assert [store.path for store in rest.stores] == [STORES[1]]
        assert not (await stub.ListStores(pb.ListStoresRequest(region="south"))).stores
        assert not (await stub.ListStores(pb.ListStoresRequest(wave_id="999"))).stores
        assert (await stub.GetStore(pb.GetStoreRequest(store="store-209"))).store.path == STORES[1]
        assert await reason_of(stub.GetStore(pb.GetStoreRequest(store="store-1"))) == "NOT_FOUND"

        [cohort] = (await stub.ListCohorts(pb.ListCohortsRequest())).cohorts
        assert (cohort.name, cohort.devices, cohort.devices_in_waves, list(cohort.stores)) == (
            SEGMENT,
            12,
            12,
            list(STORES),
        )
        await stub.SubmitIntent(intent(world, IntentKind.HALT_WAVE, "h", reason="x"))
        await stub.ApplyInventory(inventory(DEVICES[:2], hardware_revision="r3"))
        split = (await stub.ListCohorts(pb.ListCohortsRequest(segment=SEGMENT))).cohorts
        assert [(one.name, one.devices, one.devices_in_waves) for one in split] == [
            (f"{SEGMENT}/pos-tablet/r2", 10, 0),
            (f"{SEGMENT}/pos-tablet/r3", 2, 0),
        ]

        [policy] = (await stub.ListPolicies(pb.ListPoliciesRequest())).policies
        assert (list(policy.wave_ids), policy.json) == (["142"], b"")
        for request in (pb.GetPolicyRequest(digest=policy.digest[:8]), pb.GetPolicyRequest(wave_id="142")):
            full = (await stub.GetPolicy(request)).policy
            assert (full.digest, b"haltRollbackRatio" in full.json) == (policy.digest, True)
        assert await reason_of(stub.GetPolicy(pb.GetPolicyRequest(digest="zz"))) == "BAD_REQUEST"
        assert await reason_of(stub.GetPolicy(pb.GetPolicyRequest(wave_id="7"))) == "NOT_FOUND"

        await stub.SetHold(pb.SetHoldRequest(release="firmware-v3.8.2", held=True, reason="driver"))
        holds = await stub.ListHolds(pb.ListHoldsRequest())
        assert (holds.epoch, [(h.release, h.reason, list(h.wave_ids)) for h in holds.holds]) == (
            2,
            [("firmware-v3.8.2", "driver", ["142"])],
        )


async def test_permits_are_listed_where_they_stand(world: World) -> None:
    async with planned(world) as (stub, region):
        assert not (await stub.ListPermits(pb.ListPermitsRequest())).permits
        await stub.SubmitIntent(intent(world, IntentKind.START_WAVE))
        await until(lambda: len(region.names("permit")) == 12, region.sink)
        region.report(outcome(world, DEVICES[0], OutcomeKind.UPDATED))

        async def states(**wanted: Any) -> dict[str, int]:
            page = await stub.ListPermits(pb.ListPermitsRequest(**wanted))
            return {one.device: one.state for one in page.permits}

        async def is_spent() -> bool:
            return (await states(device="pos-01")) == {DEVICES[0]: pb.PERMIT_STATE_SPENT}

        await until_true(is_spent, region)
        out = await states(states=[pb.PERMIT_STATE_OUTSTANDING], store="store-208")
        assert sorted(out) == sorted(DEVICES[1:6])
        first = await stub.ListPermits(pb.ListPermitsRequest(page_size=7))
        rest = await stub.ListPermits(pb.ListPermitsRequest(page_size=7, page_token=first.next_page_token))
        assert sorted(one.device for one in (*first.permits, *rest.permits)) == sorted(DEVICES)
        assert await reason_of(stub.ListPermits(pb.ListPermitsRequest(wave_id="7"))) == "NOT_FOUND"


async def test_a_preview_says_what_would_be_and_changes_nothing(world: World) -> None:
    async with planned(world) as (stub, region):
        before = (await stub.GetWave(pb.GetWaveRequest(wave_id="142"))).wave
        start = await stub.PreviewIntent(preview(world, IntentKind.START_WAVE))
        effect = start.effect
        assert (effect.state_before, effect.state_after) == (
            rollout_pb2.WAVE_STATE_PLANNED,
            rollout_pb2.WAVE_STATE_RUNNING,
        )
        assert (effect.device_count, list(effect.stores)) == (12, list(STORES))
        assert (effect.exposure_before, effect.exposure_after, effect.permits_issued) == (0, 12, 12)
        assert (await stub.GetWave(pb.GetWaveRequest(wave_id="142"))).wave == before
        assert await reason_of(stub.GetIntent(pb.GetIntentRequest(intent_id="start_wave"))) == "NOT_FOUND"
        assert "wave.start" not in {one.action for one in (await stub.ListAudit(pb.ListAuditRequest())).entries}
        assert region.names("permit") == []
        refused = preview(world, IntentKind.START_WAVE, intent_id="s2", cohort="another")
        assert await reason_of(stub.PreviewIntent(refused)) == "CONFLICT"

        await stub.SubmitIntent(intent(world, IntentKind.START_WAVE))
        await until(lambda: len(region.names("permit")) == 12, region.sink)
        again = await stub.PreviewIntent(preview(world, IntentKind.START_WAVE, intent_id="s3"))
        assert (again.duplicate, again.effect.permits_issued) == (True, 0)
        halt = await stub.PreviewIntent(preview(world, IntentKind.HALT_WAVE, reason="x"))
        assert (halt.effect.exposure_before, halt.effect.exposure_after, halt.effect.permits_voided) == (12, 0, 12)
        back = preview(world, IntentKind.ROLLBACK_DEVICE, device="pos-17", reason="x")
        assert list((await stub.PreviewIntent(back)).effect.devices) == [DEVICES[-1]]
        fetch = preview(world, IntentKind.PREFETCH, policy_yaml=POLICY)
        fetched = (await stub.PreviewIntent(fetch)).effect
        assert (list(fetched.stores), len(fetched.artifacts)) == (list(STORES), 3)
        assert len(region.names("permit")) == 12
        assert region.names("intent") == []


async def test_an_intent_that_waits_is_taken_back(world: World) -> None:
    """By any operator, once; what control acted on is refused with what to do instead."""
    async with world.serving() as served, served.calling() as stub, served.calling("operator/bob") as bob:
        await stub.ApplyInventory(inventory())
        await stub.PlanWave(plan())
        for number, device in enumerate(("pos-17", "pos-17", "pos-16")):
            request = intent(world, IntentKind.ROLLBACK_DEVICE, f"rb-{number}", device=device, reason="driver")
            record = (await stub.SubmitIntent(request)).record
            # Two wait for pos-17, one for pos-16: places are per node.
            assert record.queue_place == {0: 1, 1: 2, 2: 1}[number]
        async with served.region() as region:
            await until(lambda: region.names("intent") == ["rb-0", "rb-1", "rb-2"], region.sink)
            dry = await bob.CancelIntent(cancel(world, "rb-0", "operator/bob", dry_run=True))
            assert dry.record.disposition == pb.DISPOSITION_CANCELLED
            assert (await bob.GetIntent(pb.GetIntentRequest(intent_id="rb-0"))).record.disposition == (
                pb.DISPOSITION_QUEUED
            )
            answers = [await bob.CancelIntent(cancel(world, "rb-0", "operator/bob")) for _ in range(2)]
            assert [answer.duplicate for answer in answers] == [False, True]
            assert answers[0].record.queue_place == 0
            assert "cancelled by bob" in answers[0].record.detail
            await until(lambda: region.names("intent") == ["rb-1", "rb-2"], region.sink)
        assert (await stub.GetIntent(pb.GetIntentRequest(intent_id="rb-1"))).record.queue_place == 1
        [entry] = (await stub.ListAudit(pb.ListAuditRequest(action="intent.cancel"))).entries
        assert (entry.actor, entry.subject) == ("spiffe://test.example/operator/bob", "rb-0")
        await stub.SubmitIntent(intent(world, IntentKind.PAUSE_WAVE, "p-1", reason="smoke"))
        with pytest.raises(grpc.aio.AioRpcError, match=r"wave resume --wave 142"):
            await stub.CancelIntent(cancel(world, "p-1"))
        assert await reason_of(stub.CancelIntent(cancel(world, "p-1"))) == "INTENT_APPLIED"
        assert await reason_of(stub.CancelIntent(cancel(world, "nobody"))) == "NOT_FOUND"
        assert await reason_of(bob.CancelIntent(cancel(world, "rb-1"))) == "FORBIDDEN"


async def test_what_was_taken_back_at_a_hub_never_happens_here(world: World) -> None:
    """The start that comes with its cancellation is not acted on; a cancellation that comes too late is audited."""
    async with planned(world) as (stub, region):
        start = signed_intent(world, IntentKind.START_WAVE, "hub-start")
        word = cancellation(world, "hub-start", "operator/bob", "wrong night")
        for _ in range(2):
            region.log.append(encode(IntentReport(start, STORES[1], word)), "intent")
        pause = signed_intent(world, IntentKind.PAUSE_WAVE, "hub-pause", reason="smoke")
        region.log.append(encode(IntentReport(pause, STORES[1])), "intent")
        late = cancellation(world, "hub-pause", "operator/bob")
        region.log.append(encode(IntentReport(pause, STORES[1], late)), "intent")
        other = signed_intent(world, IntentKind.HALT_WAVE, "hub-halt", reason="x")
        region.log.append(encode(IntentReport(other, STORES[1], late)), "intent")
        region.upstream.wake()

        async def all_taken() -> bool:
            return region.log.first_number == region.log.next_number

        await until_true(all_taken, region)
        wave = (await stub.GetWave(pb.GetWaveRequest(wave_id="142"))).wave
        assert (wave.state, len(wave.pauses)) == (rollout_pb2.WAVE_STATE_PLANNED, 1)
        record = (await stub.GetIntent(pb.GetIntentRequest(intent_id="hub-start"))).record
        assert (record.disposition, "wrong night" in record.detail) == (pb.DISPOSITION_CANCELLED, True)
        actions = [one.action for one in (await stub.ListAudit(pb.ListAuditRequest(action="intent"))).entries]
        assert sorted(actions) == ["intent.cancel", "intent.cancel-refused"]
        # A cancellation of another intent is no word on this one.
        assert await reason_of(stub.GetIntent(pb.GetIntentRequest(intent_id="hub-halt"))) == "NOT_FOUND"
        # The id stands for the cancelled intent for ever.
        again = await stub.SubmitIntent(pb.SubmitIntentRequest(intent=to_proto(start)))
        assert (again.duplicate, again.record.disposition) == (True, pb.DISPOSITION_CANCELLED)


async def test_lists_are_narrowed(world: World) -> None:
    async with planned(world) as (stub, region):
        region.device(DEVICES[0], UpdateState.STAGING, firmware_version="3.8.1")
        region.device(DEVICES[1], UpdateState.REFUSED, gate="peripheral:scanner", firmware_version="3.8.1")

        async def names(**wanted: Any) -> list[str]:
            page = await stub.ListDevices(pb.ListDevicesRequest(**wanted))
            return [one.path.rsplit("/", 1)[1] for one in page.devices]

        async def is_heard() -> bool:
            return len(await names(firmware_version="3.8.1")) == 2

        await until_true(is_heard, region)
        assert await names(states=[report_pb2.UPDATE_STATE_STAGING]) == ["pos-01"]
        assert await names(gate="peripheral") == await names(gate="peripheral:scanner") == ["pos-02"]
        assert await names(gate="battery") == await names(region="south") == []
        assert len(await names(region="midwest")) == 12
        region.report(outcome(world, DEVICES[2], OutcomeKind.ROLLED_BACK))

        async def is_told() -> bool:
            return await names(outcomes=[report_pb2.OUTCOME_KIND_ROLLED_BACK]) == ["pos-03"]

        await until_true(is_told, region)
        assert (
            await reason_of(stub.ListDevices(pb.ListDevicesRequest(states=[report_pb2.UPDATE_STATE_IDLE] * 17)))
            == "BAD_REQUEST"
        )

        now = world.clock.now()
        await stub.SubmitIntent(intent(world, IntentKind.PAUSE_WAVE, "p-1", reason="smoke"))
        await stub.SubmitIntent(intent(world, IntentKind.ROLLBACK_DEVICE, "rb-1", device="pos-17", reason="x"))

        async def ids(**wanted: Any) -> list[str]:
            request = pb.ListIntentsRequest(**{key: value for key, value in wanted.items() if key != "since"})
            if "since" in wanted:
                request.since.FromDatetime(wanted["since"])
            return [one.intent_id for one in (await stub.ListIntents(request)).intents]

        assert await ids(kind=rollout_pb2.INTENT_KIND_PAUSE_WAVE) == ["p-1"]
        assert await ids(device="pos-17") == await ids(device=DEVICES[-1]) == ["rb-1"]
        assert await ids(operator="alice") == ["rb-1", "p-1"] == await ids(since=now - timedelta(seconds=5))
        assert await ids(operator="bob") == await ids(since=now + timedelta(hours=1)) == []

        async def actions(**wanted: Any) -> set[str]:
            request = pb.ListAuditRequest(**{key: value for key, value in wanted.items() if key != "since"})
            if "since" in wanted:
                request.since.FromDatetime(wanted["since"])
            return {one.action for one in (await stub.ListAudit(request)).entries}

        assert await actions(actor="alice", subject="142") == {"wave.plan", "wave.pause"}
        assert await actions(action="wave.plan") == {"wave.plan"}
        assert await actions(action="wave") == {"wave.plan", "wave.pause"}
        assert await actions(action="wav") == await actions(since=now + timedelta(hours=1)) == set()
        assert [w.wave_id for w in (await stub.ListWaves(pb.ListWavesRequest(cohort=SEGMENT))).waves] == ["142"]
        assert not (await stub.ListWaves(pb.ListWavesRequest(release="none"))).waves


async def test_a_page_of_few_among_many_may_be_short_and_the_list_is_whole(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter that only memory can judge looks at so many rows a page, and goes on from there."""
    monkeypatch.setattr(queries, "SCAN_ROWS", 2)
    monkeypatch.setattr(queries, "MAX_SCANS", 2)
    async with planned(world) as (stub, region):
        wanted = [DEVICES[0], DEVICES[5], DEVICES[11]]
        for path in wanted:
            region.device(path, UpdateState.TRIAL)

        async def found() -> list[str]:
            paths: list[str] = []
            request = pb.ListDevicesRequest(states=[report_pb2.UPDATE_STATE_TRIAL], page_size=2)
            for _ in range(20):
                page = await stub.ListDevices(request)
                paths += [one.path for one in page.devices]
                if not page.next_page_token:
                    return paths
                request.page_token = page.next_page_token
            raise AssertionError(paths)

        async def is_heard() -> bool:
            return await found() == wanted

        await until_true(is_heard, region)
        assert len((await stub.ListDevices(pb.ListDevicesRequest(page_size=3))).devices) == 3


async def test_an_inventory_is_compared_before_it_is_applied(world: World) -> None:
    async with world.serving() as served, served.calling() as stub:
        wanted = inventory(DEVICES[:2])
        wanted.dry_run = True
        dry = await stub.ApplyInventory(wanted)
        assert [(one.path, one.is_new) for one in dry.changes] == [
            *((path, True) for path in STORES),
            *((path, True) for path in DEVICES[:2]),
        ]
        assert not (await stub.ListStores(pb.ListStoresRequest())).stores
        await stub.ApplyInventory(inventory(DEVICES[:2]))
        assert not (await stub.ApplyInventory(wanted)).changes
        other = inventory(DEVICES[:1], hardware_revision="r3")
        [change] = (await stub.ApplyInventory(other)).changes
        assert (change.is_new, list(change.differences)) == (False, ["hardware_revision: r2 -> r3"])
