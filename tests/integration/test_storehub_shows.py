"""A store hub against a super hub that offers older words of control: it refuses, and shows what it holds (ADR 20)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.session_kit import Fleet
from tests.storehub_kit import STORE, WAVE, Control, SuperHub, eventually, lay_out, running, wan
from wavemesh.codec.statements import decode
from wavemesh.trust.kept import KEPT_KIND, KeptReport
from wavemesh.trust.statements import IntentKind, WaveState

if TYPE_CHECKING:
    from pathlib import Path

    from wavemesh.session.frames import Resource

ORDER = f"{WAVE}/{STORE.name}"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet.create(tmp_path_factory.mktemp("fleet"))


@pytest.fixture
def control(fleet: Fleet) -> Control:
    return Control(fleet)


def shown(super_hub: SuperHub) -> list[KeptReport]:
    return [decode(KeptReport, body) for kind, body in super_hub.applied if kind == KEPT_KIND]


def kept(resource: Resource) -> KeptReport:
    return KeptReport(resource.key.type, resource.key.name, resource.content)


async def test_what_is_held_is_shown_once_a_session(control: Control, tmp_path: Path) -> None:
    """S2, P6: as signed; again in the next session, for its parent may have been restored once more."""
    super_hub = SuperHub(control)
    order, holds = control.order("pos-12", generation=5), control.holds(epoch=4)
    async with wan(super_hub) as parent:
        pass
    async with running(lay_out(tmp_path / "hub", control, parent)) as app:
        async with wan(super_hub, parent):
            super_hub.want(control.tuf(), control.policy_resource(), order, holds)
            await eventually(lambda: WAVE in app.hub.belief.orders and app.hub.belief.holds is not None)
            super_hub.want(control.order("pos-12", generation=4), control.holds(epoch=3))
            await eventually(lambda: len(shown(super_hub)) == 2)
            super_hub.want(control.order("pos-12", generation=3))
            await eventually(lambda: len(super_hub.reported("resource-refused")) == 3)
            assert sorted(shown(super_hub), key=lambda one: one.type) == [kept(holds), kept(order)]
            assert app.hub.belief.orders[WAVE].generation == 5
        async with wan(super_hub, parent):
            await eventually(lambda: len(shown(super_hub)) == 4)


@pytest.mark.parametrize("ended", [WaveState.HALTED, WaveState.CLOSED])
async def test_a_wave_that_is_over_stays_over(control: Control, tmp_path: Path, ended: WaveState) -> None:
    """P6: whatever the generation, after a restart, and with the last word taken back as well."""
    super_hub, directory = SuperHub(control), tmp_path / "hub"
    order, closed = control.order("pos-12", generation=2, state=WaveState.HALTED), control.closed()
    async with wan(super_hub) as parent, running(lay_out(directory, control, parent)) as app:
        super_hub.want(control.tuf(), control.policy_resource(), control.holds(), order)
        await eventually(lambda: WAVE in app.hub.belief.orders)
        if ended is WaveState.CLOSED:
            super_hub.drop(order)
            super_hub.want(closed)
            await eventually(lambda: WAVE in app.hub.belief.closed)
        super_hub.want(control.order("pos-12", generation=7))
        await eventually(lambda: shown(super_hub))
        assert shown(super_hub) == [kept(closed if ended is WaveState.CLOSED else order)]
    super_hub.drop(closed, order)
    async with wan(super_hub, parent), running(directory) as app:
        await eventually(lambda: not app.hub.resources.all("closed") and not app.hub.resources.all("order"))
    async with wan(super_hub, parent), running(directory) as app:
        super_hub.want(control.order("pos-12", generation=9))
        await eventually(lambda: len(super_hub.reported("resource-refused")) == 2)
        assert WAVE not in app.hub.belief.orders
        super_hub.want(control.order("pos-12", generation=10, state=WaveState.HALTED))
        await eventually(lambda: (o := app.hub.belief.orders.get(WAVE)) and o.state is WaveState.HALTED)


async def test_a_pause_here_gives_way_once_control_has_acted_on_it(control: Control, tmp_path: Path) -> None:
    """It was lifted while this hub was dark, so that no order ever carried it; another of that origin stays."""
    super_hub, directory = SuperHub(control), tmp_path / "hub"
    async with wan(super_hub) as parent, running(lay_out(directory, control, parent)) as app:
        super_hub.want(control.tuf(), control.policy_resource(), control.holds(), control.order("pos-12"))
        await eventually(lambda: WAVE in app.hub.belief.orders)
        held = app.hub.belief.judge_intent(control.intent(IntentKind.PAUSE_WAVE, "p-1"), app.hub.clock.now())
        await app.intents.submit(held.envelope, held.operator)
        assert app.hub.store.pauses
        super_hub.want(control.order("pos-12", generation=2, pauses_taken=("p-0", "p-2")))
        await eventually(lambda: app.hub.belief.orders[WAVE].generation == 2)
        assert app.hub.store.pauses
    async with wan(super_hub, parent), running(directory) as app:
        assert [one.intent_id for one in app.hub.store.pauses.values()] == ["p-1"]
        super_hub.want(control.order("pos-12", generation=3, pauses_taken=("p-0", "p-1")))
        await eventually(lambda: not app.hub.store.pauses)
        assert app.hub.belief.orders[WAVE].generation == 3
