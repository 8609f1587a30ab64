"""Control takes certificates back: the RPCs, the list, permits and live streams. Real mTLS."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from control.revocations import ClockDoubtError
from edgectl.exits import Exit
from edgectl.main import run
from tests.session_kit import until
from tests.storehub_kit import eventually
from tests.unit.control.control_kit import (
    CONTROL,
    DEVICES,
    MIDWEST,
    STORES,
    Region,
    SetClock,
    World,
    identity_of,
    intent,
    inventory,
    make_world,
    outcome,
    plan,
)
from wavemesh.codec.statements import decode, encode
from wavemesh.identity.certificates import LONGEST_LEAF_LIFETIME
from wavemesh.runtime.status import error_from_rpc
from wavemesh.session.frames import ResourceKey
from wavemesh.trust.enrolments import CertificateReport
from wavemesh.trust.statements import Envelope, IntentKind, OutcomeKind, Revocation, RevocationList, RevocationReach
from wavemesh.v1 import operator_pb2, rollout_pb2

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import CredentialsFactory, TrustKeys

KEY = ResourceKey("revocations", "fleet")
ENDS_WITHIN_S = 5.0
NODE, BELOW, AUTHORITY = (
    rollout_pb2.REVOCATION_REACH_NODE,
    rollout_pb2.REVOCATION_REACH_BELOW,
    rollout_pb2.REVOCATION_REACH_AUTHORITY,
)


@pytest.fixture
def world(
    tmp_path: Path, credentials: CredentialsFactory, trust_keys: TrustKeys, make_manifest: Callable[..., Any]
) -> World:
    directory = tmp_path / "control"
    directory.mkdir()
    return make_world(directory, credentials, trust_keys, make_manifest())


def revoke(path: str, reach: rollout_pb2.RevocationReach.ValueType = NODE, **fields: Any) -> Any:
    return operator_pb2.RevokeNodeRequest(path=path, reach=reach, **{"reason": "stolen", **fields})


def told(region: Region) -> RevocationList | None:
    """The list that reached the super hub."""
    found = region.sink.resources.get(KEY)
    return decode(RevocationList, decode(Envelope, found.content).payload) if found is not None else None


def status_of(call: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str]:
    error = error_from_rpc(call)
    return call.code(), error.details.get("reason", error.reason)


async def test_a_node_is_taken_back_once_and_everybody_is_told(world: World) -> None:
    """Durable, urgent, audited with the reason; with ``issued_before`` a repetition changes nothing."""
    async with world.serving() as served, served.region() as region, served.calling() as stub:
        await stub.ApplyInventory(inventory())
        before = datetime.now(UTC)
        request = revoke(DEVICES[0])
        request.issued_before.FromDatetime(before)
        answer = await stub.RevokeNode(request)
        assert (answer.epoch, answer.duplicate, list(answer.nodes)) == (1, False, [DEVICES[0]])
        again = await stub.RevokeNode(request)
        assert (again.epoch, again.duplicate) == (1, True)
        later = await stub.RevokeNode(revoke(DEVICES[0], reason="stolen again", issued_before=None))
        assert later.epoch in {1, 2}, "the same second is the same revocation"
        await until(lambda: told(region), region.sink)
        held = told(region)
        assert held is not None
        [entry] = held.revocations
        assert entry.path == DEVICES[0]
        assert before <= entry.issued_before <= before + timedelta(seconds=3)
        assert entry.issued_before.microsecond == 0
        assert region.sink.resources[KEY].urgent
        audit = (await stub.ListAudit(operator_pb2.ListAuditRequest())).entries
        assert any((one.action, one.subject) == ("node.revoke", DEVICES[0]) and "stolen" in one.detail for one in audit)
    async with world.serving() as served, served.calling() as stub:
        listed = await stub.ListRevocations(operator_pb2.ListRevocationsRequest())
        assert [one.path for one in listed.revocations] == [DEVICES[0]]
        assert listed.epoch in {held.epoch, later.epoch}


async def test_a_dry_run_says_whom_it_would_hit_and_does_nothing(world: World) -> None:
    async with world.serving() as served, served.region() as region, served.calling() as stub:
        await stub.ApplyInventory(inventory())
        region.hub(STORES[0])
        region.device(DEVICES[0])
        await eventually(lambda: served.control.core.fleet.is_connected(DEVICES[0]))
        answer = await stub.RevokeNode(revoke(STORES[0], BELOW, dry_run=True))
        assert list(answer.nodes) == [STORES[0], *DEVICES[:6]]
        assert list(answer.sessions) == [STORES[0], DEVICES[0]]
        assert (answer.nodes_total, answer.sessions_total, answer.epoch, answer.duplicate) == (7, 2, 0, False)
        node = await stub.RevokeNode(revoke(STORES[0], dry_run=True))
        assert list(node.nodes) == [STORES[0]]
        whole = await stub.RevokeNode(revoke(MIDWEST.path, AUTHORITY, dry_run=True))
        assert whole.nodes_total == 1 + len(STORES) + len(DEVICES)
        assert not (await stub.ListRevocations(operator_pb2.ListRevocationsRequest())).revocations
        assert told(region) is None


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (revoke("region"), "path"),
        (revoke("till/1"), "path"),
        (revoke(STORES[0], AUTHORITY), "reach"),
        (revoke(STORES[0], rollout_pb2.RevocationReach.ValueType(9)), "reach"),
        (revoke(STORES[0], reason=" "), "reason"),
        (revoke(STORES[0], reason="x" * 201), "reason"),
        (revoke(STORES[0], issued_before={"seconds": 4_000_000_000}), "issued_before"),
    ],
)
async def test_what_cannot_be_taken_back_is_refused_by_field(world: World, request_: Any, field: str) -> None:
    async with world.serving() as served, served.calling() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.RevokeNode(request_)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error_from_rpc(caught.value).details["field"] == field
        assert served.control.core.revocations.listed is None


async def test_pages_of_revocations(world: World) -> None:
    async with world.serving() as served, served.calling() as stub:
        for path in DEVICES[:3]:
            await stub.RevokeNode(revoke(path))
        first = await stub.ListRevocations(operator_pb2.ListRevocationsRequest(page_size=2))
        rest = await stub.ListRevocations(
            operator_pb2.ListRevocationsRequest(page_size=2, page_token=first.next_page_token)
        )
        assert [one.path for page in (first, rest) for one in page.revocations] == list(DEVICES[:3])
        assert not rest.next_page_token


# -- live streams ------------------------------------------------------------------------------------------------------


def report_time(what: str, seconds: float) -> None:
    print(f"{what} ended after {seconds:.3f} s")  # noqa: T201  # pytest -s shows it


async def test_streams_of_a_revoked_operator_and_super_hub_end(world: World) -> None:
    """WatchWave of one operator and the session of a region, while another operator's watch goes on; measured."""
    async with (
        world.serving() as served,
        served.region() as region,
        served.calling("operator/mallory") as revoked,
        served.calling("operator/bob") as kept,
        served.calling() as stub,
    ):
        await stub.ApplyInventory(inventory())
        await stub.PlanWave(plan())
        watches = [one.WatchWave(operator_pb2.WatchWaveRequest(wave_id="142")) for one in (revoked, kept)]
        for watch in watches:
            assert (await watch.read()).wave.wave_id == "142"
        await eventually(lambda: region.upstream.is_connected)
        began = world.clock.monotonic()
        await stub.RevokeNode(revoke("operator/mallory"))
        assert await asyncio.wait_for(watches[0].code(), ENDS_WITHIN_S) is grpc.StatusCode.PERMISSION_DENIED
        report_time("a revoked operator's watch", world.clock.monotonic() - began)
        began = world.clock.monotonic()
        await stub.RevokeNode(revoke(MIDWEST.path))
        await eventually(lambda: not region.upstream.is_connected, within_s=ENDS_WITHIN_S)
        report_time("a revoked super hub's session", world.clock.monotonic() - began)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await revoked.ListWaves(operator_pb2.ListWavesRequest())
        assert status_of(caught.value) == (grpc.StatusCode.PERMISSION_DENIED, "REVOKED")
        await eventually(lambda: "REVOKED" in region.upstream.refusal)
        await stub.SubmitIntent(intent(world, IntentKind.PAUSE_WAVE, reason="because"))
        assert (await watches[1].read()).wave.pauses
        assert not watches[1].done()
        watches[1].cancel()


async def test_who_takes_back_itself_is_cut_off_after_the_commit(world: World) -> None:
    async with world.serving() as served, served.calling("operator/mallory") as stub, served.calling() as other:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.RevokeNode(revoke("operator/mallory"))
        assert status_of(caught.value) == (grpc.StatusCode.PERMISSION_DENIED, "REVOKED")
        listed = await other.ListRevocations(operator_pb2.ListRevocationsRequest())
        assert [one.path for one in listed.revocations] == ["operator/mallory"]


# -- waves -------------------------------------------------------------------------------------------------------------


async def running_wave(served: Any, stub: Any, region: Region) -> None:
    await stub.ApplyInventory(inventory())
    await stub.PlanWave(plan())
    for store in STORES:
        region.hub(store)
    await eventually(lambda: all(served.control.core.fleet.is_connected(store) for store in STORES))
    await stub.SubmitIntent(intent(served.world, IntentKind.START_WAVE))
    await until(lambda: len(region.names("permit")) == len(DEVICES), region.sink)


async def exposure(stub: Any) -> dict[str, int]:
    wave = (await stub.GetWave(operator_pb2.GetWaveRequest(wave_id="142"))).wave
    return {one.store: one.exposure for one in wave.stores}


async def test_a_revoked_device_keeps_its_target_and_loses_its_permit(world: World) -> None:
    """Spent, withdrawn, not issued again; pending in the ledger; with a new certificate it gets one of its own."""
    async with world.serving() as served, served.region() as region, served.calling() as stub:
        await running_wave(served, stub, region)
        await stub.RevokeNode(revoke(DEVICES[0]))
        await until(lambda: len(region.names("permit")) == len(DEVICES) - 1, region.sink)
        assert await exposure(stub) == {STORES[0]: 5, STORES[1]: 6}
        await served.control.tick()
        assert "142/store-208/pos-01" not in region.names("permit")
        wave = (await stub.GetWave(operator_pb2.GetWaveRequest(wave_id="142"))).wave
        assert wave.counts.pending == len(DEVICES)
        # Its word, signed with what was taken back, does not count.
        region.report(outcome(world, DEVICES[0], OutcomeKind.UPDATED), outcome(world, DEVICES[1], OutcomeKind.UPDATED))
        await eventually(lambda: region.log.first_number == region.log.next_number)
        ledger = (await stub.GetLedger(operator_pb2.GetLedgerRequest(wave_id="142"))).counts
        assert (ledger.updated, ledger.pending) == (1, len(DEVICES) - 1)
        audit = (await stub.ListAudit(operator_pb2.ListAuditRequest())).entries
        assert any(one.action == "permits.write-off" and "of revoked nodes" in one.detail for one in audit)
        assert any(one.action == "report.refused" and "taken back" in one.detail for one in audit)
        core = served.control.core
        core.revocations.note_certificate(DEVICES[0], datetime.now(UTC) - timedelta(minutes=1))
        await served.control.tick()
        assert "142/store-208/pos-01" not in region.names("permit"), "an old certificate is no new one"
        issued_at = datetime.now(UTC) + timedelta(seconds=2)
        joined = CertificateReport(DEVICES[0], "5e71a1", issued_at, issued_at + timedelta(days=90))
        region.log.append(encode(joined), "certificate")
        region.upstream.wake()
        await until(lambda: "142/store-208/pos-01" in region.names("permit"), region.sink)


async def test_a_revoked_store_hub_has_spent_all_it_had(world: World) -> None:
    async with world.serving() as served, served.region() as region, served.calling() as stub:
        await running_wave(served, stub, region)
        await stub.RevokeNode(revoke(STORES[1]))
        await until(lambda: len(region.names("permit")) == 6, region.sink)
        await served.control.tick()
        assert await exposure(stub) == {STORES[0]: 6, STORES[1]: 0}
        assert all("store-208" in name for name in region.names("permit"))
        assert served.control.core.revocations.is_revoked(STORES[1])
        assert not served.control.core.revocations.is_revoked(DEVICES[-1]), "its devices are not revoked themselves"


# -- the list over time ------------------------------------------------------------------------------------------------


async def test_the_list_is_signed_anew_and_forgets_what_has_expired(world: World) -> None:
    clock = SetClock()
    world = dataclasses.replace(world, clock=clock)
    old = Revocation("operator/gone", RevocationReach.NODE, clock.now() - 2 * LONGEST_LEAF_LIFETIME, "long ago")
    async with world.serving() as served:
        revocations, database = served.control.core.revocations, served.control.core.database
        fresh = revocations.draft(DEVICES[0], RevocationReach.NODE, "stolen", None)
        async with database.transaction() as tx:
            await revocations.add(tx, old)
            await revocations.add(tx, fresh)
        assert revocations.listed is not None
        assert set(revocations.listed.revocations) == {old, fresh}
        clock.advance(minutes=30)
        await served.control.tick()
        assert revocations.epoch == 2
        clock.advance(minutes=31)
        await served.control.tick()
        assert revocations.epoch == 3
        assert revocations.listed.revocations == (fresh,)
        assert revocations.listed.issued_at == clock.now()
        clock.advance(minutes=61)
        await served.control.tick()
        assert (revocations.epoch, revocations.listed.issued_at) == (3, clock.now()), "the same epoch, later"


@pytest.mark.parametrize("step", [timedelta(days=365), timedelta(minutes=-30)])
async def test_a_clock_that_cannot_be_right_signs_nothing(world: World, step: timedelta) -> None:
    """A year ahead control's own certificate has expired; behind the list in force it was set back."""
    clock = SetClock()
    world = dataclasses.replace(world, clock=clock)
    async with world.serving() as served:
        revocations, database = served.control.core.revocations, served.control.core.database
        async with database.transaction() as tx:
            await revocations.add(tx, revocations.draft(DEVICES[0], RevocationReach.NODE, "stolen", None))
        before = revocations.listed
        clock.at += step
        with pytest.raises(ClockDoubtError, match="clock"):
            revocations.draft(DEVICES[1], RevocationReach.NODE, "stolen", None)
        async with database.transaction() as tx:
            await revocations.refresh(tx)
        assert revocations.listed is before
        clock.at -= step
        async with database.transaction() as tx:
            assert await revocations.add(tx, revocations.draft(DEVICES[1], RevocationReach.NODE, "stolen", None))


async def test_a_failed_transaction_takes_nothing_back(world: World) -> None:
    async with world.serving() as served:
        revocations, database = served.control.core.revocations, served.control.core.database
        entry = revocations.draft(DEVICES[0], RevocationReach.NODE, "stolen", None)

        async def fail() -> None:
            async with database.transaction() as tx:
                assert await revocations.add(tx, entry)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        assert revocations.listed is None
        assert served.control.authorities.revocations is None
        assert served.control.core.desired.get("", KEY) is None


# -- the command line --------------------------------------------------------------------------------------------------


async def test_edgectl_asks_before_it_takes_back(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whom it hits is said first; nobody to ask and no --yes means nothing is done."""
    world.credentials("operator/alice")
    identity = identity_of(world.credentials, "operator/alice", world.directory.parent / "alice")
    contexts = world.directory.parent / "contexts.toml"
    monkeypatch.setenv("EDGECTL_CONFIG", str(contexts))

    async def edgectl(*words: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(run, list(words))
        told = capsys.readouterr()
        return code, told.out, told.err

    async with world.serving() as served, served.calling() as stub:
        contexts.write_text(
            f'current = "control"\n[contexts.control]\naddress = "{served.address}"\n'
            f'node = "{CONTROL.uri}"\nidentity = "{identity}"\n'
        )
        await stub.ApplyInventory(inventory())
        words = ("node", "revoke", STORES[0], "--reason", "stolen", "--below")
        code, _, err = await edgectl(*words)
        assert (code, "7 registered nodes" in err, "--yes" in err) == (Exit.BAD_INPUT, True, True)
        code, out, _ = await edgectl(*words, "--dry-run")
        assert (code, "would take back" in out) == (Exit.OK, True)
        assert (await edgectl("node", "revocations"))[1].startswith("nothing was taken back")
        code, out, _ = await edgectl(*words, "--yes")
        assert (code, "epoch 1" in out) == (Exit.OK, True)
        code, out, _ = await edgectl("node", "revocations", "--output", "json")
        [entry] = json.loads(out)["revocations"]
        assert (entry["path"], entry["reach"], entry["reason"]) == (STORES[0], "below", "stolen")
        code, _, err = await edgectl(*words, "--authority")
        assert (code, "exclude" in err) == (Exit.BAD_INPUT, True)
        code, _, err = await edgectl("node", "revoke", STORES[0], "--authority", "--reason", "x", "--yes")
        assert (code, "no region" in err) == (Exit.BAD_INPUT, True)
