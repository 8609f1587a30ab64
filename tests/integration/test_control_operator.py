"""The operator API of control over real mTLS gRPC: who may call, what is refused and how; asked twice, done once."""

from __future__ import annotations

import dataclasses
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.unit.control.control_kit import (
    DEVICES,
    POLICY,
    SEGMENT,
    STORES,
    World,
    intent,
    inventory,
    make_world,
    plan,
    signed_intent,
)
from wavemesh.codec.statements import to_proto
from wavemesh.runtime.status import error_from_rpc
from wavemesh.trust.files import sign_metadata
from wavemesh.trust.repository import add_release, revoke_release, sign_bundle
from wavemesh.trust.statements import IntentKind
from wavemesh.v1 import operator_pb2, rollout_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.conftest import CredentialsFactory, TrustKeys
    from wavemesh.errors import WavemeshError

CODE = grpc.StatusCode


@pytest.fixture
def world(
    tmp_path: Path, credentials: CredentialsFactory, trust_keys: TrustKeys, make_manifest: Callable[..., Any]
) -> World:
    directory = tmp_path / "control"
    directory.mkdir()
    return make_world(directory, credentials, trust_keys, make_manifest())


@pytest.fixture
async def stub(world: World) -> AsyncIterator[Any]:
    """Alice's API at a control that knows the inventory."""
    async with world.serving() as served, served.calling() as stub:
        await stub.ApplyInventory(inventory())
        yield stub


class Refusal:
    """How a call was refused."""

    code: grpc.StatusCode
    error: WavemeshError

    @property
    def reason(self) -> str:
        return self.error.details.get("reason", self.error.reason)


@asynccontextmanager
async def refused(code: grpc.StatusCode, reason: str) -> AsyncIterator[Refusal]:
    refusal = Refusal()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield refusal
    refusal.error = error_from_rpc(caught.value)
    assert (caught.value.code(), refusal.reason) == (code, reason), caught.value.details()


@pytest.mark.parametrize("path", [DEVICES[0], STORES[0], "region/midwest", "control/cloud-1"])
async def test_only_operators_call(world: World, path: str) -> None:
    """The certificate decides, for unary and streaming calls (M2)."""
    async with world.serving() as served, served.calling(path) as stub:
        async with refused(CODE.PERMISSION_DENIED, "FORBIDDEN"):
            await stub.ListWaves(operator_pb2.ListWavesRequest())
        async with refused(CODE.PERMISSION_DENIED, "FORBIDDEN"):
            await stub.WatchWave(operator_pb2.WatchWaveRequest(wave_id="142")).read()


@pytest.mark.parametrize(
    ("method", "request_", "reason", "words"),
    [
        ("PlanWave", plan(policy=b"targets: 7"), "BAD_POLICY", "policy.yaml:1"),
        ("PlanWave", plan(wave="14 2"), "BAD_REQUEST", "wave_id"),
        ("PlanWave", plan(cohort=""), "BAD_REQUEST", SEGMENT),
        ("GetWave", operator_pb2.GetWaveRequest(wave_id="x" * 65), "BAD_REQUEST", "wave_id"),
        ("ListWaves", operator_pb2.ListWavesRequest(page_size=1001), "BAD_REQUEST", "page_size"),
        ("ListAudit", operator_pb2.ListAuditRequest(page_token="-1"), "BAD_REQUEST", "page_token"),
        ("SubmitIntent", operator_pb2.SubmitIntentRequest(), "MALFORMED_STATEMENT", "payload_type"),
        ("PublishRelease", operator_pb2.PublishReleaseRequest(), "BAD_REQUEST", "targets"),
        ("PublishRelease", operator_pb2.PublishReleaseRequest(targets=b"{}"), "BAD_REPOSITORY_FILE", "TUF"),
        ("SetHold", operator_pb2.SetHoldRequest(release="firmware-v3.8.2", held=True), "BAD_REQUEST", "reason"),
        ("ApplyInventory", inventory(["region/midwest"]), "BAD_REQUEST", "devices[0].path"),
        ("ApplyInventory", inventory(["region/midwest/store/none/device/a"]), "BAD_REQUEST", "not registered"),
        ("ApplyInventory", inventory(device_class=""), "BAD_REQUEST", "devices[0].device_class"),
        (
            "ApplyInventory",
            operator_pb2.ApplyInventoryRequest(
                stores=[operator_pb2.InventoryStore(path=STORES[0], time_zone="Mars/Olympus")]
            ),
            "BAD_REQUEST",
            "time_zone",
        ),
    ],
)
async def test_malformed_input_is_named(stub: Any, method: str, request_: Any, reason: str, words: str) -> None:
    """Q2: INVALID_ARGUMENT, the reason, and what was wrong where."""
    async with refused(CODE.INVALID_ARGUMENT, reason) as refusal:
        await getattr(stub, method)(request_)
    assert words in str(refusal.error)


async def test_what_is_not_there(stub: Any) -> None:
    """Unknown waves, devices, stores, releases are NOT_FOUND by name."""
    for call in (
        stub.GetWave(operator_pb2.GetWaveRequest(wave_id="none")),
        stub.GetLedger(operator_pb2.GetLedgerRequest(wave_id="none")),
        stub.WatchWave(operator_pb2.WatchWaveRequest(wave_id="none")).read(),
        stub.GetDevice(operator_pb2.GetDeviceRequest(device="pos-99")),
        stub.ListDevices(operator_pb2.ListDevicesRequest(store="store-999")),
        stub.SetHold(operator_pb2.SetHoldRequest(release="none", held=True, reason="x")),
        stub.PlanWave(plan(policy=POLICY.replace(b"v3.8.2.img", b"v9.img"))),
        stub.PlanWave(plan(cohort="elsewhere")),
    ):
        async with refused(CODE.NOT_FOUND, "NOT_FOUND"):
            await call


async def test_what_only_hubs_know(stub: Any) -> None:
    """Logs and caches are at hubs: ASK_HUB."""
    async with refused(CODE.FAILED_PRECONDITION, "ASK_HUB"):
        await stub.GetDeviceLogs(operator_pb2.GetDeviceLogsRequest(device="pos-01"))
    async with refused(CODE.FAILED_PRECONDITION, "ASK_HUB"):
        await stub.ListCache(operator_pb2.ListCacheRequest())


async def test_planning_is_idempotent(stub: Any) -> None:
    """M5: the same plan twice is one wave; another plan under its id is refused; a dry run keeps nothing."""
    dry = await stub.PlanWave(plan(dry_run=True))
    assert len(dry.wave.stores) == 2
    assert not (await stub.ListWaves(operator_pb2.ListWavesRequest())).waves
    first, second = await stub.PlanWave(plan()), await stub.PlanWave(plan())
    assert (first.duplicate, second.duplicate) == (False, True)
    assert first.wave == second.wave
    async with refused(CODE.FAILED_PRECONDITION, "CONFLICT"):
        await stub.PlanWave(plan(policy=POLICY.replace(b"percentage: 100", b"percentage: 50")))
    async with refused(CODE.FAILED_PRECONDITION, "EMPTY_WAVE") as refusal:
        await stub.PlanWave(plan(wave="143"))
    assert "142" in str(refusal.error)


async def test_a_mixed_cohort_is_refused(stub: Any) -> None:
    """P3: the cohorts it splits into are listed, and can be named."""
    await stub.ApplyInventory(inventory(DEVICES[:2], hardware_revision="r3"))
    async with refused(CODE.FAILED_PRECONDITION, "MIXED_COHORT") as refusal:
        await stub.PlanWave(plan())
    assert refusal.error.details["cohorts"] == f"{SEGMENT}/pos-tablet/r2, {SEGMENT}/pos-tablet/r3"
    planned = await stub.PlanWave(plan(cohort=f"{SEGMENT}/pos-tablet/r2"))
    assert sum(len(store.devices) for store in planned.wave.stores) == 10
    async with refused(CODE.FAILED_PRECONDITION, "CONFLICT"):
        await stub.PlanWave(plan(wave="143", cohort=f"{SEGMENT}/pos-tablet/r3"))


async def test_intents_are_idempotent(world: World, stub: Any) -> None:
    """M5: by id, and by effect; an id is for one intent; a start names the wave's own cohort."""
    await stub.PlanWave(plan())
    async with refused(CODE.FAILED_PRECONDITION, "CONFLICT"):
        await stub.SubmitIntent(intent(world, IntentKind.START_WAVE, cohort="another"))
    wave = await stub.GetWave(operator_pb2.GetWaveRequest(wave_id="142"))
    assert wave.wave.state == rollout_pb2.WAVE_STATE_PLANNED
    start = intent(world, IntentKind.START_WAVE, "start-1", cohort=SEGMENT)
    answers = [await stub.SubmitIntent(start) for _ in range(2)]
    answers.append(await stub.SubmitIntent(intent(world, IntentKind.START_WAVE, "start-2")))
    assert [answer.duplicate for answer in answers] == [False, True, True]
    async with refused(CODE.FAILED_PRECONDITION, "CONFLICT"):
        await stub.SubmitIntent(intent(world, IntentKind.HALT_WAVE, "start-1", reason="x"))
    audit = await stub.ListAudit(operator_pb2.ListAuditRequest())
    assert [entry.action for entry in audit.entries].count("wave.start") == 1
    [started] = [entry for entry in audit.entries if entry.action == "wave.start"]
    assert started.actor == "spiffe://test.example/operator/alice"


async def test_pauses_are_per_origin_and_a_halt_is_for_ever(world: World, stub: Any) -> None:
    """Semantics, "Trust": each lifts its own pause; nothing resumes after a halt."""
    await stub.PlanWave(plan())
    await stub.SubmitIntent(intent(world, IntentKind.START_WAVE))
    async with refused(CODE.INVALID_ARGUMENT, "BAD_INTENT"):
        await stub.SubmitIntent(intent(world, IntentKind.PAUSE_WAVE, "p0"))
    await stub.SubmitIntent(intent(world, IntentKind.PAUSE_WAVE, "p1", reason="regression"))
    twice = await stub.SubmitIntent(intent(world, IntentKind.PAUSE_WAVE, "p2", reason="regression"))
    assert twice.duplicate
    lifted = await stub.SubmitIntent(intent(world, IntentKind.RESUME_WAVE, "r1"))
    assert not lifted.duplicate
    await stub.SubmitIntent(intent(world, IntentKind.PAUSE_WAVE, "p3", reason="again"))
    wave = (await stub.GetWave(operator_pb2.GetWaveRequest(wave_id="142"))).wave
    assert wave.state == rollout_pb2.WAVE_STATE_PAUSED
    assert [(pause.origin, pause.reason) for pause in wave.pauses] == [("operator:alice", "again")]
    await stub.SubmitIntent(intent(world, IntentKind.HALT_WAVE, "h1", reason="enough"))
    async with refused(CODE.FAILED_PRECONDITION, "CONFLICT"):
        await stub.SubmitIntent(intent(world, IntentKind.RESUME_WAVE, "r2"))
    assert (await stub.SubmitIntent(intent(world, IntentKind.HALT_WAVE, "h2", reason="more"))).duplicate


async def test_another_operators_pause_stays(world: World) -> None:
    """Bob's resume leaves alice's pause in force."""
    async with world.serving() as served, served.calling() as alice, served.calling("operator/bob") as bob:
        await alice.ApplyInventory(inventory())
        await alice.PlanWave(plan())
        await alice.SubmitIntent(intent(world, IntentKind.PAUSE_WAVE, "p1", reason="mine"))
        answer = await bob.SubmitIntent(intent(world, IntentKind.RESUME_WAVE, "r1", operator="operator/bob"))
        assert "still paused by operator:alice" in answer.record.detail
        async with refused(CODE.PERMISSION_DENIED, "FORBIDDEN"):
            await bob.SubmitIntent(intent(world, IntentKind.HALT_WAVE, "h1", reason="x"))


async def test_a_forged_intent_is_refused(world: World, stub: Any) -> None:
    """An intent counts by its own signature."""
    envelope = signed_intent(world, IntentKind.HALT_WAVE, reason="x")
    forged = dataclasses.replace(envelope, payload=envelope.payload.replace(b"142", b"143"))
    async with refused(CODE.FAILED_PRECONDITION, "GATE") as refusal:
        await stub.SubmitIntent(operator_pb2.SubmitIntentRequest(intent=to_proto(forged)))
    assert refusal.error.details["gate"] == "signature"


async def test_publishing_needs_the_release_keys(world: World, stub: Any, make_manifest: Callable[..., Any]) -> None:
    """P2: two of three release keys and the next version; a revocation halts the wave that carries the release."""
    keys = world.trust_keys
    now = datetime.now(UTC)
    current = (await stub.ListReleases(operator_pb2.ListReleasesRequest())).targets
    manifest = make_manifest("firmware-v3.9.0", version="3.9.0")
    unsigned = add_release(current, manifest, sign_bundle(manifest, *keys.releases[:2]), now)
    publish = operator_pb2.PublishReleaseRequest
    async with refused(CODE.FAILED_PRECONDITION, "GATE") as refusal:
        await stub.PublishRelease(publish(targets=sign_metadata(unsigned, keys.releases[0])))
    assert "firmware-v3.9.0: " in str(refusal.error)
    [audited] = (await stub.ListAudit(operator_pb2.ListAuditRequest(page_size=1))).entries
    assert (audited.action, "gate signature; firmware-v3.9.0: " in audited.detail) == ("release.publish-refused", True)
    signed = sign_metadata(unsigned, *keys.releases[:2])
    further = sign_metadata(revoke_release(signed, "firmware-v3.8.2", "bricks", now), *keys.releases[1:])
    async with refused(CODE.FAILED_PRECONDITION, "CONFLICT"):
        await stub.PublishRelease(publish(targets=further))
    answers = [await stub.PublishRelease(publish(targets=signed)) for _ in range(2)]
    assert [answer.duplicate for answer in answers] == [False, True]
    assert list(answers[0].releases) == ["firmware-v3.8.2", "firmware-v3.9.0"]
    await stub.PlanWave(plan())
    await stub.PublishRelease(publish(targets=further))
    wave = (await stub.GetWave(operator_pb2.GetWaveRequest(wave_id="142"))).wave
    assert (wave.state, wave.state_reason) == (rollout_pb2.WAVE_STATE_HALTED, "release firmware-v3.8.2 was revoked")
    listed = await stub.ListReleases(operator_pb2.ListReleasesRequest())
    assert {one.name: one.revoked_reason for one in listed.releases} == {
        "firmware-v3.8.2": "bricks",
        "firmware-v3.9.0": "",
    }
    assert {one.role for one in listed.releases} == {"targets"}


async def test_holds(world: World, stub: Any) -> None:
    """A hold is an epoch of its own; what is held is neither planned nor started."""
    hold = operator_pb2.SetHoldRequest(release="firmware-v3.8.2", held=True, reason="scanner driver")
    first, second = await stub.SetHold(hold), await stub.SetHold(hold)
    assert [(one.epoch, list(one.held), one.duplicate) for one in (first, second)] == [
        (2, ["firmware-v3.8.2"], False),
        (2, ["firmware-v3.8.2"], True),
    ]
    async with refused(CODE.FAILED_PRECONDITION, "GATE") as refusal:
        await stub.PlanWave(plan())
    assert refusal.error.details["gate"] == "hold"
    [release] = (await stub.ListReleases(operator_pb2.ListReleasesRequest())).releases
    assert release.hold_reason == "scanner driver"
    lifted = await stub.SetHold(operator_pb2.SetHoldRequest(release="firmware-v3.8.2", held=False))
    assert (lifted.epoch, list(lifted.held)) == (3, [])
    await stub.PlanWave(plan())
    await stub.SetHold(hold)
    async with refused(CODE.FAILED_PRECONDITION, "GATE"):
        await stub.SubmitIntent(intent(world, IntentKind.START_WAVE))


async def test_probes_must_be_signed(stub: Any) -> None:
    """Semantics, "Trust": a policy only selects among the release's signed probes."""
    async with refused(CODE.FAILED_PRECONDITION, "CONFLICT") as refusal:
        await stub.PlanWave(plan(policy=POLICY.replace(b"lsusb | grep scanner", b"rm -rf /")))
    assert "verification.peripheralChecks" in str(refusal.error)


async def test_pages(stub: Any) -> None:
    """Lists come in pages, each entry once."""
    devices: list[str] = []
    token = ""
    for _ in range(3):
        page = await stub.ListDevices(operator_pb2.ListDevicesRequest(page_size=5, page_token=token))
        devices += [device.path for device in page.devices]
        token = page.next_page_token
    assert devices == sorted(DEVICES)
    assert not token
    for percent in (1, 2, 3):
        policy = POLICY.replace(b"percentage: 100", b"percentage: %d" % percent)
        await stub.PlanWave(plan(wave=f"w{percent}", policy=policy))
    page = await stub.ListWaves(operator_pb2.ListWavesRequest(page_size=2))
    rest = await stub.ListWaves(operator_pb2.ListWavesRequest(page_size=2, page_token=page.next_page_token))
    assert [wave.wave_id for wave in (*page.waves, *rest.waves)] == ["w3", "w2", "w1"]
    audit = await stub.ListAudit(operator_pb2.ListAuditRequest(page_size=1))
    older = await stub.ListAudit(operator_pb2.ListAuditRequest(page_size=1, page_token=audit.next_page_token))
    assert [audit.entries[0].subject, older.entries[0].subject] == ["w3", "w2"]


async def test_inventory_stays(stub: Any) -> None:
    """What is registered stays; a target of an open wave keeps its class."""
    again = await stub.ApplyInventory(inventory(DEVICES[:1]))
    assert (again.stores, again.devices) == (2, 12)
    device = (await stub.GetDevice(operator_pb2.GetDeviceRequest(device="pos-17"))).device
    assert (device.path, device.labels["segment"]) == (DEVICES[-1], SEGMENT)
    await stub.PlanWave(plan())
    async with refused(CODE.FAILED_PRECONDITION, "CONFLICT"):
        await stub.ApplyInventory(inventory(hardware_revision="r9"))
    fleet = await stub.GetFleetStatus(operator_pb2.GetFleetStatusRequest())
    assert (fleet.devices, fleet.devices_connected, dict(fleet.firmware_versions)) == (12, 0, {"unknown": 12})
    assert [hub.hub for hub in fleet.hubs] == ["region/midwest", *STORES]
