"""H5, P6, M5: a store hub whose WAN is dark for a week, by its own clock.

What it finishes, what it starts no more, whom it serves; on return everything is told once, and nothing fetched again.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest

from storehub.records import Disposition
from tests.session_kit import Fleet
from tests.storehub_kit import (
    OPERATOR,
    WAVE,
    Control,
    DrivenClock,
    SuperHub,
    device_node,
    eventually,
    lay_out,
    running,
    till,
    wan,
)
from wavemesh.policy.document import policy_to_json
from wavemesh.policy.reader import parse_policy
from wavemesh.session.frames import ResourceKey
from wavemesh.trust.statements import IntentKind, OutcomeKind, UpdateState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from storehub.app import App
    from tests.storehub_kit import Till

pytestmark = pytest.mark.timeout(60)
DAY = timedelta(days=1)
PERMITTED = ("pos-1", "pos-2", "pos-3", "pos-4")
NAMES = (*PERMITTED, "pos-5")


def control_with(directory: Path, hold_hours: int) -> Control:
    control = Control(Fleet.create(directory / "fleet", 40 * DAY), authority="hub")
    policy = control.policy_yaml.replace(b"guardrails:\n", b"guardrails:\n  holdMaxAgeHours: %d\n" % hold_hours)
    control.policy_yaml, control.policy = policy, policy_to_json(parse_policy(policy, "policy.yaml"))
    return control


async def supply(super_hub: SuperHub, app: App) -> None:
    """All of a wave while the WAN is there: order for five days, permits for four of five, one for two days only."""
    control, now = super_hub.control, app.hub.clock.now()
    super_hub.want(control.tuf(), control.holds(), control.policy_resource())
    super_hub.want(control.order(*NAMES, expires_at=now + 5 * DAY))
    await eventually(lambda: super_hub.incarnation)
    lasts = dict.fromkeys(PERMITTED, 30 * DAY) | {"pos-4": 2 * DAY}
    permits = [control.permit(name, super_hub.incarnation, expires_at=now + last) for name, last in lasts.items()]
    super_hub.want(*permits)
    await eventually(lambda: len(app.hub.belief.permits) == len(PERMITTED))
    await eventually(lambda: len(app.cache.entries()) == 2 and all(one.is_complete for one in app.cache.entries()))


@asynccontextmanager
async def ready(control: Control, app: App, name: str) -> AsyncIterator[Till]:
    """A device that asks for a lease, and that the hub has heard."""
    async with till(control, name, f"127.0.0.1:{app.port}") as one:
        one.say(UpdateState.VERIFIED)
        await eventually(lambda: (here := app.hub.present.get(one.node.path)) is not None and here.is_heard)
        yield one


async def swaps(control: Control, app: App, name: str) -> None:
    async with ready(control, app, name) as one:
        await eventually(one.lease)
        one.say(UpdateState.COMMITTED)
        one.report(one.outcome(OutcomeKind.UPDATED))
        await eventually(lambda: one.node.path in app.hub.store.ledger(WAVE))


async def is_refused(control: Control, app: App, name: str) -> bool:
    """Whether a device that asks gets nothing by the next decision."""
    async with ready(control, app, name) as one:
        granted = (await app.scheduler.step()).granted
        return not granted and one.lease() is None


async def test_a_dark_week_ends_where_permits_and_orders_end(tmp_path: Path) -> None:
    control, clock = control_with(tmp_path, hold_hours=24 * 30), DrivenClock()
    super_hub, directory = SuperHub(control), tmp_path / "hub"
    async with AsyncExitStack() as stack:
        async with wan(super_hub) as parent:
            lay_out(directory, control, parent, lease_s=60, trial_s=60)
            async with running(directory, clock) as app:
                await supply(super_hub, app)
        begun, read_before = clock.now(), len(super_hub.reads)

        def later(days: float) -> None:
            clock.set(begun + days * DAY)

        async with running(directory, clock) as app:
            later(1)
            await swaps(control, app, "pos-1")
            assert await is_refused(control, app, "pos-5"), "no permit"
        async with running(directory, clock) as app:  # a hub that restarts in the dark goes on
            later(3)
            await swaps(control, app, "pos-2")
            assert await is_refused(control, app, "pos-4"), "its permit expired"
            assert app.hub.standing(app.hub.belief.orders[WAVE]).gate == ""
            later(6)
            assert await is_refused(control, app, "pos-3"), "the order expired"
            assert app.hub.standing(app.hub.belief.orders[WAVE]).gate == "permit"
            await _operators_are_served(control, app)
            queued = app.hub.log.next_number - app.hub.log.first_number
            assert queued == 6, "three outcomes and three intents; nothing else grew"
            later(7)
            told_before = len(super_hub.outcomes())
            await stack.enter_async_context(wan(super_hub, super_hub.address))
            await eventually(lambda: app.hub.log.first_number == app.hub.log.next_number)
            told = Counter((one.device, one.kind) for one in super_hub.outcomes()[told_before:])
            done = {(device_node(name).path, OutcomeKind.UPDATED): 1 for name in ("pos-1", "pos-2")}
            assert told == done | {(device_node("pos-1").path, OutcomeKind.ROLLED_BACK): 1}
            assert len([1 for kind, _ in super_hub.applied if kind == "intent"]) == 3
            await eventually(lambda: not any(one.waiting_for for one in app.hub.store.intents.values()))
            # Back: a new order and permit, and the last one swaps from what the cache has held all week.
            now = clock.now()
            super_hub.want(control.holds(2, issued_at=now), control.order(*NAMES, generation=2, expires_at=now + DAY))
            await eventually(lambda: app.hub.belief.orders[WAVE].generation == 2)
            resumed = control.intent(IntentKind.RESUME_WAVE, "resume", issued_at=now)
            await app.intents.submit(resumed, OPERATOR)
            await eventually(lambda: not app.hub.store.pauses)
            await swaps(control, app, "pos-3")
        assert len(super_hub.reads) == read_before, "nothing is fetched again"


async def _operators_are_served(control: Control, app: App) -> None:
    """What lowers risk acts at once, a day after everything expired; what raises it waits for control."""

    async def asks(kind: IntentKind, **changes: object) -> Disposition:
        intent = control.intent(kind, kind.name.lower(), issued_at=app.hub.clock.now(), **changes)
        return (await app.intents.submit(intent, OPERATOR))[0].disposition

    assert await asks(IntentKind.PREFETCH, wave_id="", policy_yaml=control.policy_yaml) is Disposition.APPLIED
    assert await asks(IntentKind.START_WAVE, wave_id="143", cohort="retail") is Disposition.QUEUED
    assert await asks(IntentKind.PAUSE_WAVE) is Disposition.APPLIED
    assert app.hub.standing(app.hub.belief.orders[WAVE]).standing.value == "paused"
    assert await asks(IntentKind.ROLLBACK_DEVICE, device="pos-1") is Disposition.QUEUED
    async with till(control, "pos-1", f"127.0.0.1:{app.port}") as one:
        one.sequence = 1
        one.say(UpdateState.COMMITTED)
        await eventually(partial(one.holds, ResourceKey("intent", "rollback_device")))
        one.report(one.outcome(OutcomeKind.ROLLED_BACK, gate="operator"))
        one.say(UpdateState.ROLLED_BACK)
        await eventually(lambda: app.hub.store.intents["rollback_device"].disposition is Disposition.APPLIED)


async def test_by_default_a_dark_store_begins_no_swap_after_a_day(tmp_path: Path) -> None:
    """The view of holds is 24 hours old then; fresh holds are enough to go on."""
    control, clock = control_with(tmp_path, hold_hours=24), DrivenClock()
    super_hub, directory = SuperHub(control), tmp_path / "hub"
    async with AsyncExitStack() as stack:
        async with wan(super_hub) as parent:
            lay_out(directory, control, parent, lease_s=60, trial_s=60)
            app = await stack.enter_async_context(running(directory, clock))
            await supply(super_hub, app)
        begun = clock.now()
        clock.set(begun + timedelta(hours=23))
        await swaps(control, app, "pos-1")
        clock.set(begun + timedelta(hours=25))
        assert await is_refused(control, app, "pos-2")
        assert app.hub.standing(app.hub.belief.orders[WAVE]).gate == "freshness"
        super_hub.want(control.holds(2, issued_at=clock.now()))
        await stack.enter_async_context(wan(super_hub, super_hub.address))
        await swaps(control, app, "pos-2")
