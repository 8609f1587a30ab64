"""Control is restored from a backup, and takes its own words up again from a region that holds them (ADR 20)."""

from __future__ import annotations

import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.session_kit import until
from tests.unit.control.control_kit import (
    DEVICES,
    STORES,
    World,
    intent,
    inventory,
    make_world,
    plan,
)
from wavemesh.codec.statements import decode, encode
from wavemesh.session.frames import ResourceKey
from wavemesh.trust.envelope import sign_statement
from wavemesh.trust.kept import KEPT_KIND, MAX_KEPT_BYTES, KeptReport
from wavemesh.trust.statements import (
    Envelope,
    HoldList,
    IntentKind,
    Permit,
    RevocationList,
    WaveClosed,
    WaveOrder,
    WaveState,
)
from wavemesh.v1 import operator_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.conftest import CredentialsFactory, TrustKeys
    from tests.unit.control.control_kit import Region
    from wavemesh.session.frames import Resource

ORDER = ResourceKey("order", "142/store-208")
HOLDS, REVOCATIONS = ResourceKey("holds", "fleet"), ResourceKey("revocations", "fleet")
CLOSED, PERMIT = ResourceKey("closed", "142"), ResourceKey("permit", "142/store-208/pos-01")
RELEASE = "firmware-v3.8.2"


@pytest.fixture
def world(
    tmp_path: Path, credentials: CredentialsFactory, trust_keys: TrustKeys, make_manifest: Callable[..., Any]
) -> World:
    directory = tmp_path / "control"
    directory.mkdir()
    return make_world(directory, credentials, trust_keys, make_manifest())


@asynccontextmanager
async def serving(world: World) -> AsyncIterator[tuple[Any, Region]]:
    async with world.serving() as served, served.calling() as stub, served.region() as region:
        for store in STORES:
            region.hub(store)
        yield stub, region


class Lost:
    """A wave runs, control is backed up, more is said, and control is restored."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.said: dict[ResourceKey, Resource] = {}

    async def happen(self, say: Callable[[Any], Any], key: ResourceKey) -> None:
        """``say`` is what was said after the backup; the region holds the resource of that key then."""
        world = self.world
        async with serving(world) as (stub, region):
            await stub.ApplyInventory(inventory())
            await stub.PlanWave(plan())
            await stub.SubmitIntent(intent(world, IntentKind.START_WAVE))
            await until(lambda: len(region.names("permit")) == 12, region.sink)
        backup = world.directory.parent / "backup"
        shutil.copytree(world.directory / "state", backup)
        async with serving(world) as (stub, region):
            await until(lambda: len(region.names("permit")) == 12, region.sink)
            before = region.sink.resources.get(key)
            await say(stub)
            await until(lambda: region.sink.resources.get(key, before) != before, region.sink)
            self.said = dict(region.sink.resources)
        shutil.rmtree(world.directory / "state")
        shutil.copytree(backup, world.directory / "state")

    def show(self, region: Region, key: ResourceKey) -> None:
        """What a hub says that refuses a replay."""
        region.log.append(encode(KeptReport(key.type, key.name, self.said[key].content)), KEPT_KIND)
        region.upstream.wake()


def word(region: Region, key: ResourceKey, statement: Any) -> Any:
    """A statement as the region has it from control, signature aside."""
    held = region.sink.resources.get(key)
    return None if held is None else decode(statement, decode(Envelope, held.content).payload)


async def audited(stub: Any, action: str) -> list[str]:
    answer = await stub.ListAudit(operator_pb2.ListAuditRequest(page_size=1000))
    return [entry.detail for entry in answer.entries if entry.action == action]


async def test_a_halt_that_control_forgot_is_a_halt_again(world: World) -> None:
    """P6: its permits are withdrawn, and the order is above the one that the region holds."""
    lost = Lost(world)
    await lost.happen(lambda stub: stub.SubmitIntent(intent(world, IntentKind.HALT_WAVE, reason="smoke")), ORDER)
    async with serving(world) as (stub, region):
        await until(lambda: len(region.names("permit")) == 12, region.sink)
        assert word(region, ORDER, WaveOrder).state is WaveState.RUNNING
        lost.show(region, ORDER)
        await until(lambda: word(region, ORDER, WaveOrder).state is WaveState.HALTED, region.sink)
        assert (
            word(region, ORDER, WaveOrder).generation
            > decode(WaveOrder, decode(Envelope, lost.said[ORDER].content).payload).generation
        )
        await until(lambda: not region.names("permit"), region.sink)
        assert len(await audited(stub, "control.regained")) == 1
        assert len(await audited(stub, "wave.halt")) == 1


async def test_a_pause_that_control_forgot_is_in_force_again(world: World) -> None:
    """Shown twice it happens once; and its origin can lift it."""
    lost = Lost(world)
    await lost.happen(lambda stub: stub.SubmitIntent(intent(world, IntentKind.PAUSE_WAVE, reason="a look")), ORDER)
    async with serving(world) as (stub, region):
        lost.show(region, ORDER)
        lost.show(region, ORDER)
        await until(lambda: (o := word(region, ORDER, WaveOrder)) and o.state is WaveState.PAUSED, region.sink)
        [pause] = word(region, ORDER, WaveOrder).pauses
        assert (pause.origin, pause.reason) == ("operator:alice", "a look")
        assert len(await audited(stub, "control.regained")) == 1
        await stub.SubmitIntent(intent(world, IntentKind.RESUME_WAVE, "resume-1"))
        await until(lambda: word(region, ORDER, WaveOrder).state is WaveState.RUNNING, region.sink)


async def test_a_hold_that_control_forgot_holds_again(world: World) -> None:
    """S2: the list is above the one the region holds, and open orders need it."""
    lost = Lost(world)
    hold = operator_pb2.SetHoldRequest(release=RELEASE, held=True, reason="driver")
    await lost.happen(lambda stub: stub.SetHold(hold), HOLDS)
    async with serving(world) as (stub, region):
        await until(lambda: word(region, HOLDS, HoldList) is not None, region.sink)
        assert word(region, HOLDS, HoldList).epoch == 1
        lost.show(region, HOLDS)
        await until(lambda: word(region, HOLDS, HoldList).epoch == 3, region.sink)
        assert [one.release for one in word(region, HOLDS, HoldList).holds] == [RELEASE]
        await until(lambda: word(region, ORDER, WaveOrder).least_hold_epoch == 3, region.sink)
        assert len(await audited(stub, "control.regained")) == 1


async def test_a_revocation_that_control_forgot_is_in_force_again(world: World) -> None:
    """D11: the node stays out, and its permit counts as spent."""
    lost = Lost(world)
    revoke = operator_pb2.RevokeNodeRequest(path=DEVICES[0], reason="stolen")
    await lost.happen(lambda stub: stub.RevokeNode(revoke), REVOCATIONS)
    async with serving(world) as (stub, region):
        await until(lambda: PERMIT in region.sink.resources, region.sink)
        lost.show(region, REVOCATIONS)
        await until(lambda: REVOCATIONS in region.sink.resources, region.sink)
        listed = word(region, REVOCATIONS, RevocationList)
        assert (listed.epoch, [one.path for one in listed.revocations]) == (2, [DEVICES[0]])
        await until(lambda: PERMIT not in region.sink.resources, region.sink)
        assert len(await audited(stub, "control.regained")) == 1


async def test_a_wave_that_control_forgot_to_have_closed_is_closed(world: World) -> None:
    """M3: those below were told to forget it."""
    lost = Lost(world)
    await lost.happen(lambda stub: stub.SubmitIntent(intent(world, IntentKind.PAUSE_WAVE, reason="a look")), ORDER)
    closed = WaveClosed("142", WaveState.CLOSED, world.clock.now())
    content = encode(sign_statement(closed, [world.trust_keys.control]))
    async with serving(world) as (stub, region):
        await until(lambda: ORDER in region.sink.resources, region.sink)
        region.log.append(encode(KeptReport("closed", "142", content)), KEPT_KIND)
        region.upstream.wake()
        await until(lambda: CLOSED in region.sink.resources and not region.names("order"), region.sink)
        assert not region.names("permit")
        assert len(await audited(stub, "wave.close")) == 1


async def test_a_permit_that_control_forgot_is_in_force_as_signed(world: World) -> None:
    """P6: what the region holds counts, and the next one is above it."""
    lost = Lost(world)
    await lost.happen(lambda stub: stub.SubmitIntent(intent(world, IntentKind.PAUSE_WAVE, reason="a look")), ORDER)
    now = world.clock.now()
    permit = Permit("142", DEVICES[0], 3, 5, None, now, now.replace(year=now.year + 1), "j" * 32)
    content = encode(sign_statement(permit, [world.trust_keys.control]))
    async with serving(world) as (stub, region):
        await until(lambda: PERMIT in region.sink.resources, region.sink)
        region.log.append(encode(KeptReport("permit", PERMIT.name, content)), KEPT_KIND)
        region.upstream.wake()
        await until(lambda: word(region, PERMIT, Permit).generation == 5, region.sink)
        assert region.sink.resources[PERMIT].content == content
        assert len(await audited(stub, "control.regained")) == 1


async def test_what_control_did_not_sign_changes_nothing(world: World) -> None:
    """P2, Q2: each is dropped by name, and the report behind it counts."""
    lost = Lost(world)
    await lost.happen(lambda stub: stub.SubmitIntent(intent(world, IntentKind.PAUSE_WAVE, reason="a look")), ORDER)
    forged = encode(sign_statement(HoldList(9, (), world.clock.now()), [world.trust_keys.online]))
    strange = (
        KeptReport("holds", "fleet", forged),
        KeptReport("policy", "p", b"x"),
        KeptReport("order", "142/store-208", b"\xff"),
        KeptReport("tuf", "metadata", lost.said[HOLDS].content),
    )
    async with serving(world) as (stub, region):
        await until(lambda: ORDER in region.sink.resources, region.sink)
        for kept in strange:
            region.log.append(encode(kept), KEPT_KIND)
        region.log.append(b"\xff" * (MAX_KEPT_BYTES // 8), KEPT_KIND)
        lost.show(region, ORDER)
        await until(lambda: word(region, ORDER, WaveOrder).state is WaveState.PAUSED, region.sink)
        assert word(region, HOLDS, HoldList).epoch == 1
        assert len(await audited(stub, "control.regained")) == 1
        assert len(await audited(stub, "report.refused")) == 5
