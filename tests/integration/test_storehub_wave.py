"""A store hub runs a wave over real sessions: leases within the limit, exactly-once ledger, WAN or no WAN."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest

from storehub.clockguard import FLOOR_FACT
from storehub.scheduler import INCARNATION_FACT, NOTHING
from tests.session_kit import Fleet, MemoryLog
from tests.storehub_kit import (
    STORE,
    WAVE,
    Control,
    SuperHub,
    Till,
    device_node,
    eventually,
    lay_out,
    running,
    till,
    wan,
)
from wavemesh.runtime.clock import SystemClock
from wavemesh.session.frames import ResourceKey
from wavemesh.trust.envelope import verify_node, verify_role
from wavemesh.trust.statements import Lease, OutcomeKind, Permit, UpdateState, WaveState

if TYPE_CHECKING:
    from pathlib import Path

    from storehub.app import App
    from storehub.swaps import DeviceView


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet.create(tmp_path_factory.mktemp("fleet"))


@pytest.fixture
def control(fleet: Fleet) -> Control:
    return Control(fleet)


async def begin(super_hub: SuperHub, *names: str, generation: int = 1) -> None:
    """Send a running wave for those devices, permits bound to the hub's incarnation as control would."""
    control = super_hub.control
    super_hub.want(control.tuf(), control.holds(), control.policy_resource(), control.order(*names))
    await eventually(lambda: super_hub.incarnation)
    super_hub.want(*(control.permit(name, super_hub.incarnation) for name in names))


def address(app: App) -> str:
    return f"127.0.0.1:{app.port}"


async def tills(stack: AsyncExitStack, control: Control, app: App, *names: str) -> list[Till]:
    return [await stack.enter_async_context(till(control, name, address(app))) for name in names]


async def test_a_pass_without_anything_to_do_costs_no_transaction(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first pass remembers incarnation and time; those after it have nothing to write."""
    async with wan(SuperHub(control)) as parent, running(lay_out(tmp_path / "hub", control, parent)) as app:
        store = app.hub.store
        await eventually(lambda: store.fact(INCARNATION_FACT) == app.hub.log.incarnation and store.fact(FLOOR_FACT))
        opened: list[str] = []
        monkeypatch.setattr(store.database, "transaction", lambda: opened.append("transaction"))
        assert await app.scheduler.step() == NOTHING
        assert opened == []
        monkeypatch.undo()


async def test_a_wave_from_order_to_ledger(control: Control, fleet: Fleet, tmp_path: Path) -> None:
    super_hub = SuperHub(control)
    async with (
        wan(super_hub) as parent,
        running(lay_out(tmp_path / "hub", control, parent)) as app,
        AsyncExitStack() as s,
    ):
        await begin(super_hub, "pos-12", "pos-13", "pos-14")
        devices = await tills(s, control, app, "pos-12", "pos-13", "pos-14")
        order_key = ResourceKey("order", f"{WAVE}/{STORE.name}")
        for one in devices:
            one.say(UpdateState.STAGING)
            await eventually(partial(one.holds, order_key))
            held = {key.type for key in one.child.sink.resources}
            assert held == {"tuf", "holds", "policy", "order"}  # permits stay at the hub
        for one in devices:
            one.say(UpdateState.VERIFIED)
        await eventually(lambda: sum(one.lease() is not None for one in devices) == 2)
        assert len(app.hub.store.slots) == 2
        pressing = app.downstream.options.is_pressing
        assert [pressing(one.node) for one in devices] == [one.lease() is not None for one in devices]
        await eventually(lambda: app.scheduler.swaps_active() == 2)

        first = next(one for one in devices if one.lease() is not None)
        grant = first.lease()
        assert grant is not None
        ca = fleet.credentials(STORE).authorities
        signer, lease = verify_node(grant.lease, Lease, ca, app.hub.clock.now(), STORE.path)
        trusted = app.hub.belief.trusted
        assert trusted is not None
        permit = verify_role(grant.permit, Permit, trusted)
        assert (lease.device, lease.attempt, permit.device) == (first.node.path, 1, first.node.path)
        assert signer == STORE

        first.say(UpdateState.TRIAL)
        envelope = first.outcome(OutcomeKind.UPDATED)
        first.report(envelope, envelope)
        first.say(UpdateState.COMMITTED)
        await eventually(lambda: all(one.lease() is not None for one in devices if one is not first))
        await eventually(super_hub.outcomes)
        assert [(o.device, o.kind) for o in super_hub.outcomes()] == [(first.node.path, OutcomeKind.UPDATED)]


async def test_a_store_without_its_wan_goes_on_and_tells_later_once(control: Control, tmp_path: Path) -> None:
    """H5, H7, M3: cached policy, permits and trust carry the wave; the ledger goes up on return, nothing twice."""
    super_hub = SuperHub(control)
    directory = tmp_path / "hub"
    async with AsyncExitStack() as s:
        async with wan(super_hub) as parent, running(lay_out(directory, control, parent)) as app:
            await begin(super_hub, "pos-12", "pos-13")
            await eventually(lambda: len(app.hub.belief.permits) == 2)
        # A restart in the dark: all that is needed is on disk.
        app = await s.enter_async_context(running(directory))
        devices = await tills(s, control, app, "pos-12", "pos-13")
        for one in devices:
            one.say(UpdateState.VERIFIED)
        for one in devices:
            await eventually(one.lease)
            one.report(one.outcome(OutcomeKind.UPDATED))
        await eventually(lambda: not app.hub.store.slots)
        assert super_hub.outcomes() == []
        await s.enter_async_context(wan(super_hub, super_hub.address))
        await eventually(lambda: len(super_hub.outcomes()) == 2)
        await eventually(lambda: app.hub.log.first_number == app.hub.log.next_number)
        assert sorted(o.device for o in super_hub.outcomes()) == [one.node.path for one in devices]


async def test_a_pause_takes_leases_back_and_a_halt_is_told_to_trials(control: Control, tmp_path: Path) -> None:
    super_hub = SuperHub(control)
    async with (
        wan(super_hub) as parent,
        running(lay_out(tmp_path / "hub", control, parent)) as app,
        AsyncExitStack() as s,
    ):
        await begin(super_hub, "pos-12", "pos-13")
        waiting, trying = await tills(s, control, app, "pos-12", "pos-13")
        waiting.say(UpdateState.VERIFIED)
        trying.say(UpdateState.VERIFIED)
        await eventually(lambda: waiting.lease() and trying.lease())
        trying.say(UpdateState.TRIAL)
        await eventually(lambda: app.hub.store.devices[trying.node.path].status.state is UpdateState.TRIAL)
        super_hub.want(control.order("pos-12", "pos-13", generation=2, state=WaveState.PAUSED))
        await eventually(lambda: waiting.lease() is None)
        assert trying.lease() is not None
        assert app.asks.lease_state(trying.node.path, WAVE) == "paused"
        super_hub.want(control.order("pos-12", "pos-13", generation=3, state=WaveState.HALTED))
        await eventually(lambda: app.asks.lease_state(trying.node.path, WAVE) == "halted")


async def test_what_cannot_be_believed_is_refused_by_gate(control: Control, fleet: Fleet, tmp_path: Path) -> None:
    super_hub, impostor = SuperHub(control), Control(fleet)
    async with wan(super_hub) as parent, running(lay_out(tmp_path / "hub", control, parent)) as app:
        super_hub.want(control.tuf(), control.policy_resource(), control.order("pos-12", generation=5))
        await eventually(lambda: WAVE in app.hub.belief.orders)
        super_hub.want(control.order("pos-12", generation=4))
        await eventually(lambda: super_hub.reported("resource-refused"))
        assert [e.gate for e in super_hub.reported("resource-refused")] == ["replay"]
        super_hub.want(impostor.order("pos-12", generation=9), impostor.holds(epoch=7))
        await eventually(lambda: len(super_hub.reported("resource-refused")) == 3)
        assert {e.gate for e in super_hub.reported("resource-refused")[1:]} == {"signature"}
        assert app.hub.belief.orders[WAVE].generation == 5
        assert app.hub.belief.holds is None


async def test_an_order_may_come_before_the_trust_that_proves_it(control: Control, tmp_path: Path) -> None:
    super_hub = SuperHub(control)
    async with wan(super_hub) as parent, running(lay_out(tmp_path / "hub", control, parent)) as app:
        super_hub.want(control.order("pos-12"), control.holds())
        await eventually(lambda: len(app.hub.resources.held()) == 2)
        assert not app.hub.belief.orders
        super_hub.want(control.tuf())
        await eventually(lambda: WAVE in app.hub.belief.orders and app.hub.belief.holds is not None)


async def test_a_hub_whose_clock_is_behind_throws_no_outcome_away(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M3: by its clock the device's certificate is not valid yet; it judges again when its clock is right."""
    super_hub, behind = SuperHub(control), [timedelta()]
    monkeypatch.setattr(SystemClock, "now", lambda _: datetime.now(UTC) - behind[0])
    async with (
        wan(super_hub) as parent,
        running(lay_out(tmp_path / "hub", control, parent)) as app,
        AsyncExitStack() as s,
    ):
        [till] = await tills(s, control, app, "pos-12")
        await begin(super_hub, "pos-12")
        behind[0] = timedelta(days=30)
        till.report(till.outcome(OutcomeKind.UPDATED))
        await eventually(lambda: till.node.path not in app.hub.present)
        assert not super_hub.outcomes()
        behind[0] = timedelta()
        await eventually(super_hub.outcomes)
        assert not super_hub.reported("report-refused")


async def test_a_device_cannot_speak_for_another(control: Control, tmp_path: Path) -> None:
    super_hub = SuperHub(control)
    async with (
        wan(super_hub) as parent,
        running(lay_out(tmp_path / "hub", control, parent)) as app,
        AsyncExitStack() as s,
    ):
        [thief] = await tills(s, control, app, "pos-12")
        await begin(super_hub, "pos-12", "pos-13")
        thief.report(thief.outcome(OutcomeKind.UPDATED, signer=device_node("pos-13")))
        good = thief.outcome(OutcomeKind.UPDATED)
        thief.report(good)
        await eventually(super_hub.outcomes)
        assert [o.device for o in super_hub.outcomes()] == [thief.node.path]
        assert [e.gate for e in super_hub.reported("report-refused")] == ["signature"]


async def test_a_silent_device_frees_its_slot_after_the_maxima_and_is_counted(control: Control, tmp_path: Path) -> None:
    """H6: silent with a witness, unknown without; the device's own word wins later."""
    super_hub = SuperHub(control)
    directory = lay_out(tmp_path / "hub", control, "127.0.0.1:1", lease_s=0.5, trial_s=0.5, watchdog_s=0.5)
    async with wan(super_hub) as parent:
        lay_out(directory, control, parent, lease_s=0.5, trial_s=0.5, watchdog_s=0.5)
        async with running(directory) as app, AsyncExitStack() as s:
            await begin(super_hub, "pos-12")
            log = MemoryLog()
            async with till(control, "pos-12", address(app), log) as victim:
                victim.say(UpdateState.VERIFIED)
                await eventually(lambda: victim.lease() is not None)
                late_word = victim.outcome(OutcomeKind.ROLLED_BACK, gate="boot-timer")
            await eventually(super_hub.outcomes)
            [unknown] = super_hub.outcomes()
            assert (unknown.kind, unknown.gate) == (OutcomeKind.UNKNOWN, "lease-expired")
            assert not app.hub.store.slots
            await tills(s, control, app, "pos-13")  # a witness
            await eventually(lambda: super_hub.outcomes()[-1].kind is OutcomeKind.SILENT)
            async with till(control, "pos-12", address(app), log) as victim:
                victim.report(late_word)
                await eventually(lambda: super_hub.outcomes()[-1].kind is OutcomeKind.ROLLED_BACK)


async def test_a_wave_that_closes_first_frees_the_slot_of_its_last_device(control: Control, tmp_path: Path) -> None:
    """The device's word ends the slot, or it would wait minutes for the lease of its next wave."""
    super_hub = SuperHub(control)
    async with (
        wan(super_hub) as parent,
        running(lay_out(tmp_path / "hub", control, parent, lease_s=60.0)) as app,
        AsyncExitStack() as s,
    ):
        await begin(super_hub, "pos-12")
        [one] = await tills(s, control, app, "pos-12")
        one.say(UpdateState.VERIFIED)
        await eventually(lambda: one.lease() is not None)
        super_hub.drop(*(resource for key, resource in super_hub.wanted.items() if key.type in {"order", "permit"}))
        super_hub.want(control.closed())
        await eventually(lambda: not app.hub.belief.orders)
        one.report(one.outcome(OutcomeKind.UPDATED))
        await eventually(lambda: not app.hub.store.slots)


async def test_the_hub_knows_when_a_device_left(control: Control, fleet: Fleet, tmp_path: Path) -> None:
    """C2: it speaks for a device that falls silent in its swap at the same time (``witnesses.py``)."""
    super_hub = SuperHub(control)
    path = device_node("pos-12").path
    async with wan(super_hub) as parent, running(lay_out(tmp_path / "hub", control, parent)) as app:

        def seen() -> DeviceView | None:
            return app.scheduler.view().devices.get(path)

        async with till(control, "pos-12", f"127.0.0.1:{app.port}") as one:
            one.say(UpdateState.IDLE, wave_id="")
            await eventually(lambda: path in app.hub.store.devices)
            assert (found := seen()) is not None
            assert (found.connected_since is not None, found.left_at) == (True, None)
        await eventually(lambda: path not in app.hub.present)
        assert (found := seen()) is not None
        assert found.left_at is not None
        assert found.left_at >= found.seen_at
