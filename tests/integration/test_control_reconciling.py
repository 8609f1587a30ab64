"""C2 over the wire: what a region says is compared with what control holds, daily and when asked."""

from __future__ import annotations

import asyncio
import io
import json
from contextlib import redirect_stdout
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from edgectl.contexts import Context, Contexts, save_contexts
from edgectl.main import run
from tests.session_kit import Fleet as HubFleet
from tests.storehub_kit import STORE, SuperHub, eventually, lay_out, running, till, wan
from tests.storehub_kit import Control as HubControl
from tests.unit.control.control_kit import (
    CONTROL,
    DEVICES,
    STORES,
    Region,
    Served,
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
from wavemesh.outcomes import ledger_digest, rank_of
from wavemesh.trust.statements import DeviceOutcome, HubStatus, IntentKind, LedgerView, OutcomeKind
from wavemesh.v1 import operator_pb2 as pb

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
    world = make_world(directory, credentials, trust_keys, make_manifest())
    world.clock = SetClock()
    return world


async def asked(stub: Any, wave_id: str = "") -> dict[tuple[str, str], pb.Discrepancy]:
    """Discrepancies by cause and subject."""
    answer = await stub.ListDiscrepancies(pb.ListDiscrepanciesRequest(wave_id=wave_id))
    assert answer.total == len(answer.discrepancies)
    cause = pb.DiscrepancyCause.Name
    return {(cause(one.cause)[len("DISCREPANCY_CAUSE_") :], one.subject): one for one in answer.discrepancies}


async def audited(stub: Any) -> list[tuple[str, str]]:
    entries = (await stub.ListAudit(pb.ListAuditRequest(action="reconcile"))).entries
    return [(entry.action, entry.subject) for entry in reversed(entries)]


def say(region: Region, world: World, store: str, ledger: str, *, connected: bool = True) -> None:
    at, incarnation = world.clock.now(), "i" * 32
    ledgers = (LedgerView("142", ledger),) if ledger else ()
    status = HubStatus(store, at, incarnation=incarnation, connected=connected, ledgers=ledgers)
    region.upstream.set_status(f"store/{store.rsplit('/', 1)[1]}/hub", encode(status))


async def typed(served: Served, world: World, *words: str) -> tuple[int, str]:
    """What edgectl answers an operator who asks control."""
    identity = identity_of(world.credentials, "operator/alice", world.directory.parent / "alice")
    contexts = world.directory.parent / "contexts.toml"
    save_contexts(contexts, Contexts("control", {"control": Context("control", served.address, CONTROL, identity)}))

    def types() -> tuple[int, str]:
        told = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(told):
            patch.setenv("EDGECTL_CONFIG", str(contexts))
            return run(list(words)), told.getvalue()

    return await asyncio.to_thread(types)


async def ready(served: Served, stub: Any, region: Region, world: World) -> None:
    """A running wave, everybody connected."""
    await stub.ApplyInventory(inventory())
    await stub.PlanWave(plan())
    for store in STORES:
        say(region, world, store, "")
    for path in DEVICES:
        region.device(path)
    fleet = served.control.core.fleet
    await eventually(lambda: all(map(fleet.is_connected, (*STORES, *DEVICES))))
    await stub.SubmitIntent(intent(world, IntentKind.START_WAVE, "start"))
    await served.control.tick()


async def shown(served: Served, region: Region, world: World, ledger: str) -> None:
    """The first store's hub shows that digest of its ledger."""
    say(region, world, STORES[0], ledger)
    await eventually(lambda: (served.control.core.fleet.ledger_of(STORES[0], "142") or ("",))[0] == ledger)


@pytest.mark.timeout(60)
async def test_a_day_is_reconciled_and_audited_once(world: World) -> None:
    clock = world.clock
    assert isinstance(clock, SetClock)
    nothing = ledger_digest((), {})
    async with world.serving() as served, served.calling() as stub, served.region() as region:
        await ready(served, stub, region, world)
        core = served.control.core
        await eventually(lambda: region.names("permit"))
        # One device updates; its hub has never heard of it, by its ledger. The other hub goes dark.
        said = outcome(world, DEVICES[0], OutcomeKind.UPDATED)
        region.report(said)
        await shown(served, region, world, nothing)
        say(region, world, STORES[1], "", connected=False)
        await eventually(lambda: not core.fleet.is_connected(STORES[1]))
        await eventually(lambda: region.log.first_number == region.log.next_number)
        assert set(await asked(stub)) == set(), "all of it may be under way"
        assert await typed(served, world, "fleet", "reconcile") == (0, "what was reported is what should have been\n")

        clock.advance(hours=25)
        found = await asked(stub)
        late = {("PERMIT_UNSPENT", path) for path in DEVICES[1:6]}
        assert set(found) == {("HUB_UNHEARD", STORES[1]), ("LEDGER_DIFFERS", STORES[0])} | late
        assert found["PERMIT_UNSPENT", DEVICES[1]].reported == "idle"
        assert not found["LEDGER_DIFFERS", STORES[0]].HasField("since")
        assert set(await asked(stub, "143")) == set()
        code, shown_text = await typed(served, world, "fleet", "reconcile", "--wave", "142", "--output", "json")
        assert code == 1
        assert {one["cause"] for one in json.loads(shown_text)["discrepancies"]} == {"ledger_differs", "permit_unspent"}
        code, shown_text = await typed(served, world, "fleet", "reconcile")
        assert (code, "hub_unheard" in shown_text) == (1, True)
        assert await audited(stub) == [], "asking writes nothing"
        await served.control.tick()
        first = await audited(stub)
        assert sorted(first) == sorted(("reconcile.found", subject) for _, subject in found)
        assert (await asked(stub))["LEDGER_DIFFERS", STORES[0]].HasField("since")
        clock.advance(hours=25)
        await served.control.tick()
        assert await audited(stub) == first, "not again the next day"

        # The hub comes to hold the same.
        rank = rank_of(decode(DeviceOutcome, said.payload), said, by_device=True)
        await shown(served, region, world, ledger_digest(DEVICES, {DEVICES[0]: rank}))
        clock.advance(hours=25)
        await served.control.tick()
        assert (await audited(stub))[len(first) :] == [("reconcile.settled", STORES[0])]
        assert ("LEDGER_DIFFERS", STORES[0]) not in await asked(stub)


async def test_a_hub_shows_the_digest_that_control_computes(tmp_path: Path) -> None:
    """The two sides of the comparison, from the outcome of one device."""
    hub_control = HubControl(HubFleet.create(tmp_path / "fleet"))
    super_hub = SuperHub(hub_control)
    async with wan(super_hub) as parent, running(lay_out(tmp_path / "hub", hub_control, parent)) as app:
        super_hub.want(hub_control.tuf(), hub_control.holds(), hub_control.policy_resource())
        super_hub.want(hub_control.order("pos-12", "pos-13"))
        await eventually(lambda: [one.wave_id for one in _status(super_hub).ledgers] == ["142"])
        async with till(hub_control, "pos-12", f"127.0.0.1:{app.port}") as one:
            said = one.outcome(OutcomeKind.REFUSED, gate="battery")
            one.report(said)
            rank = rank_of(decode(DeviceOutcome, said.payload), said, by_device=True)
            expected = ledger_digest([one.node.path], {one.node.path: rank})
            await eventually(lambda: _status(super_hub).ledgers[0].sha256 == expected)


def _status(super_hub: SuperHub) -> HubStatus:
    return decode(HubStatus, super_hub.statuses.get("hub") or encode(HubStatus(STORE.path, datetime.now(UTC))))
