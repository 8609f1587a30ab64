"""Control over real mTLS: enrolments are published and used up, waves wait for certificates, and say so."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.enrolment_kit import until
from tests.session_kit import MemoryLog
from tests.unit.control.control_kit import (
    DEVICES,
    POLICY,
    STORES,
    Region,
    SetClock,
    World,
    intent,
    inventory,
    make_world,
    plan,
)
from wavemesh.codec.statements import decode, encode
from wavemesh.runtime.status import error_from_rpc
from wavemesh.trust.enrolments import CertificateReport, Enrolment
from wavemesh.trust.envelope import verify_role
from wavemesh.trust.metadata import load_trusted
from wavemesh.trust.statements import Envelope, IntentKind, TrustMetadata
from wavemesh.v1 import operator_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.conftest import CredentialsFactory, TrustKeys

NEW_STORE = "region/midwest/store/store-300"
NEW_DEVICE = f"{NEW_STORE}/device/pos-01"
SECRET = hashlib.sha256(b"secret").hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()


@pytest.fixture
def world(
    tmp_path: Path, credentials: CredentialsFactory, trust_keys: TrustKeys, make_manifest: Callable[..., Any]
) -> World:
    directory = tmp_path / "control"
    directory.mkdir()
    world = make_world(directory, credentials, trust_keys, make_manifest())
    world.clock = SetClock()
    return world


def enrol(node: str = NEW_DEVICE, secret: str = SECRET, **fields: Any) -> operator_pb2.CreateEnrolmentRequest:
    defaults: dict[str, Any] = {}
    if "/device/" in node:
        defaults = {"device_class": "pos-tablet", "hardware_revision": "r2", "labels": {"segment": "tills"}}
    return operator_pb2.CreateEnrolmentRequest(node=node, secret_sha256=secret, **(defaults | fields))


def report(node: str, at: datetime, **fields: Any) -> bytes:
    return encode(CertificateReport(node, "ab12", at, at + timedelta(days=90), **fields))


async def refusal(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = error_from_rpc(caught.value)
    return error.details.get("reason", error.reason)


async def test_an_enrolment_is_signed_for_its_region_and_withdrawn_once_used(world: World) -> None:
    async with world.serving() as served, served.region() as region, served.calling() as stub:
        await stub.CreateEnrolment(enrol(NEW_STORE, OTHER, time_zone="America/Chicago"))
        made = await stub.CreateEnrolment(enrol())
        again = await stub.CreateEnrolment(enrol())
        assert (made.duplicate, again.duplicate) == (False, True)
        assert made.trust_root_sha256 == hashlib.sha256(world.trust_keys.pinned_root).hexdigest()
        await until(lambda: region.names("enrolment") == [NEW_STORE, NEW_DEVICE])
        found = _enrolment(world, region, NEW_DEVICE)
        assert (found.secret_sha256, found.device_class, found.hardware_revision) == (SECRET, "pos-tablet", "r2")
        assert found.expires_at - found.issued_at == timedelta(hours=24)
        region.log.append(
            report(NEW_DEVICE, world.clock.now(), device_class="pos-tablet", secret_sha256=SECRET), "certificate"
        )
        region.upstream.wake()
        await until(lambda: region.names("enrolment") == [NEW_STORE])
        nodes = (await stub.ListNodes(operator_pb2.ListNodesRequest(below=NEW_STORE))).nodes
        assert [(one.path, one.serial, one.HasField("token_used_at")) for one in nodes] == [
            (NEW_STORE, "", False),
            (NEW_DEVICE, "ab12", True),
        ]
        # A late report with another token's secret takes nothing back.
        page = await stub.ListNodes(operator_pb2.ListNodesRequest(below=NEW_STORE, page_size=1))
        rest = await stub.ListNodes(
            operator_pb2.ListNodesRequest(below=NEW_STORE, page_size=1, page_token=page.next_page_token)
        )
        assert [one.path for one in (*page.nodes, *rest.nodes)] == [NEW_STORE, NEW_DEVICE]
        assert not rest.next_page_token


def _enrolment(world: World, region: Region, name: str) -> Enrolment:
    contents = {(key.type, key.name): one.content for key, one in region.sink.resources.items()}
    metadata = decode(TrustMetadata, contents["tuf", "metadata"])
    trusted = load_trusted(world.trust_keys.pinned_root, metadata, datetime.now(UTC), None)
    return verify_role(decode(Envelope, contents["enrolment", name]), Enrolment, trusted)


async def test_what_cannot_be_enrolled_is_refused(world: World) -> None:
    async with world.serving() as served, served.calling() as stub:
        await stub.ApplyInventory(inventory())
        got = {
            "a super hub": await refusal(stub.CreateEnrolment(enrol("region/midwest"))),
            "an operator": await refusal(stub.CreateEnrolment(enrol("operator/mallory"))),
            "no path": await refusal(stub.CreateEnrolment(enrol("nowhere"))),
            "no digest": await refusal(stub.CreateEnrolment(enrol(secret="secret"))),
            "for too long": await refusal(stub.CreateEnrolment(enrol(lifetime_s=91 * 86_400))),
            "of a store nobody knows": await refusal(stub.CreateEnrolment(enrol())),
            "of another class": await refusal(stub.CreateEnrolment(enrol(DEVICES[0], device_class="scanner"))),
            "no class": await refusal(stub.CreateEnrolment(enrol(f"{STORES[0]}/device/new", device_class=""))),
        }
        assert got == dict.fromkeys(got, "BAD_REQUEST") | {"of another class": "CONFLICT"}
        # Registered devices need not be described again.
        await stub.CreateEnrolment(
            operator_pb2.CreateEnrolmentRequest(node=DEVICES[0], secret_sha256=SECRET, lifetime_s=60)
        )


async def test_class_and_revision_are_bound_by_the_certificate(world: World) -> None:
    async with world.serving() as served, served.region() as region, served.calling() as stub:
        await stub.ApplyInventory(inventory())
        bound = {"device_class": "pos-tablet", "hardware_revision": "r2"}
        region.log.append(report(DEVICES[0], datetime.now(UTC), **bound), "certificate")
        region.upstream.wake()
        await until(lambda: region.log.first_number == 2)
        assert await refusal(stub.ApplyInventory(inventory(DEVICES[:1], hardware_revision="r3"))) == "CONFLICT"
        await stub.ApplyInventory(inventory(DEVICES[1:2], hardware_revision="r3"))
        await stub.ApplyInventory(inventory(DEVICES[:1]))


async def test_a_region_speaks_for_its_own_nodes_alone(world: World) -> None:
    async with world.serving() as served, served.region() as region, served.calling() as stub:
        region.log.append(report("region/west/store/store-1", datetime.now(UTC)), "certificate")
        region.upstream.wake()
        await until(lambda: region.log.first_number == 2)
        nodes = (await stub.ListNodes(operator_pb2.ListNodesRequest())).nodes
        audit = (await stub.ListAudit(operator_pb2.ListAuditRequest())).entries
        assert not [one for one in nodes if one.path.startswith("region/west")]
        assert "report.refused" in {one.action for one in audit}


async def test_an_enrolment_that_ended_is_withdrawn_a_while_later(world: World) -> None:
    clock = world.clock
    assert isinstance(clock, SetClock)
    async with world.serving() as served, served.region() as region, served.calling() as stub:
        await stub.CreateEnrolment(enrol(NEW_STORE))
        await until(lambda: region.names("enrolment") == [NEW_STORE])
        clock.advance(days=2)
        await served.control.tick()
        assert region.names("enrolment") == [NEW_STORE]
        clock.advance(days=7)
        await served.control.tick()
        await until(lambda: region.names("enrolment") == [])


async def settles(ask: Callable[[], Awaitable[object]], wanted: object) -> None:
    """Ask until the answer is the one wanted."""
    async with asyncio.timeout(10):
        while await ask() != wanted:  # noqa: ASYNC110  # control tells nobody
            await asyncio.sleep(0.02)


async def _known(stub: Any) -> set[str]:
    """Nodes of which control knows a certificate."""
    nodes = (await stub.ListNodes(operator_pb2.ListNodesRequest())).nodes
    return {one.path for one in nodes if one.HasField("issued_at")}


async def _waiting(stub: Any) -> int:
    count: int = (await stub.GetWave(operator_pb2.GetWaveRequest(wave_id="142"))).wave.waiting_for_certificate
    return count


async def test_a_wave_waits_for_certificates_and_says_so(world: World) -> None:
    """Old certificates wait, unknown ones do not; a report or the device's own word ends the waiting."""
    now, first, second = world.clock.now(), DEVICES[0], DEVICES[1]
    async with world.serving() as served, served.region() as region, served.calling() as stub:
        await stub.ApplyInventory(inventory(DEVICES[:3]))
        region.hub(STORES[0])
        for device in (first, second):
            region.device(device, certificate_issued_at=now - timedelta(days=1))
        await settles(lambda: _known(stub), {first, second})
        await stub.PlanWave(plan())
        await stub.SubmitIntent(intent(world, IntentKind.START_WAVE))
        await until(lambda: region.names("permit") == ["142/store-208/pos-03"])
        wave = (await stub.GetWave(operator_pb2.GetWaveRequest(wave_id="142"))).wave
        assert (wave.waiting_for_certificate, wave.counts.pending, wave.exposure) == (2, 3, 1)
        # By the hub's report; its clock is a minute behind control's, and yet nobody waits for ever.
        region.log.append(report(first, now - timedelta(minutes=1), wave_id="142"), "certificate")
        region.upstream.wake()
        await until(lambda: len(region.names("permit")) == 2)
        assert await _waiting(stub) == 1
        # By the device's word, for a hub that lost its reports.
        region.device(second, certificate_issued_at=now + timedelta(minutes=1))
        await settles(lambda: _waiting(stub), 0)
        await served.control.tick()
        await until(lambda: len(region.names("permit")) == 3)


async def test_a_renewal_heard_late_or_twice_ends_the_waiting_once(world: World) -> None:
    """Rotation with the region away: it waits, pending; what comes late counts, what comes again takes nothing back."""
    device, now, log = DEVICES[0], world.clock.now(), MemoryLog()
    before = report(device, now - timedelta(days=1))
    async with world.serving() as served, served.calling() as stub:
        async with served.region(log) as region:
            await stub.ApplyInventory(inventory(DEVICES[:1]))
            region.hub(STORES[0])
            region.log.append(before, "certificate")
            region.upstream.wake()
            await settles(lambda: _known(stub), {device})
        await stub.PlanWave(plan())
        await stub.SubmitIntent(intent(world, IntentKind.START_WAVE))
        await served.control.tick()
        assert await _waiting(stub) == 1
        async with served.region(log) as region:
            region.hub(STORES[0])
            region.log.append(report(device, now + timedelta(minutes=1), wave_id="142"), "certificate")
            region.log.append(before, "certificate")
            region.upstream.wake()
            await until(lambda: region.names("permit") == ["142/store-208/pos-01"])
            await until(lambda: region.log.first_number == region.log.next_number)
            assert await _waiting(stub) == 0
            [node] = (await stub.ListNodes(operator_pb2.ListNodesRequest(below=device))).nodes
            assert node.issued_at.ToDatetime(UTC) > now


async def test_a_policy_may_leave_certificates_alone(world: World) -> None:
    policy = POLICY.replace(b"  minBattery: 40\n", b"  minBattery: 40\n  rotateCertificates: false\n")
    async with world.serving() as served, served.region() as region, served.calling() as stub:
        await stub.ApplyInventory(inventory(DEVICES[:1]))
        region.hub(STORES[0])
        region.log.append(report(DEVICES[0], world.clock.now() - timedelta(days=1)), "certificate")
        region.upstream.wake()
        await until(lambda: region.log.first_number == 2)
        await stub.PlanWave(plan(policy=policy))
        await stub.SubmitIntent(intent(world, IntentKind.START_WAVE))
        await until(lambda: len(region.names("permit")) == 1)
        assert await _waiting(stub) == 0
