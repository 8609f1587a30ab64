"""Control over real mTLS gRPC: an operator plans and starts a wave, a super hub carries it and reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.session_kit import until
from tests.unit.control.control_kit import (
    DEVICES,
    SEGMENT,
    STORES,
    Region,
    World,
    intent,
    inventory,
    make_world,
    outcome,
    plan,
)
from wavemesh.codec.statements import decode
from wavemesh.trust.envelope import verify_role
from wavemesh.trust.metadata import load_trusted
from wavemesh.trust.statements import (
    Envelope,
    HoldList,
    IntentKind,
    OutcomeKind,
    Permit,
    TrustMetadata,
    WaveClosed,
    WaveOrder,
    WaveState,
)
from wavemesh.v1 import operator_pb2, rollout_pb2

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import CredentialsFactory, TrustKeys


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
