"""Never fewer than 2 of 3 tills of a lane up: policy, hub's configuration, sessions, and what an operator reads."""

from __future__ import annotations

import asyncio
import io
from contextlib import AsyncExitStack, redirect_stdout
from functools import partial
from typing import TYPE_CHECKING

import pytest

from edgectl.contexts import Context, Contexts, save_contexts
from edgectl.main import run
from tests.session_kit import Fleet, MemoryLog
from tests.storehub_kit import OPERATOR, STORE, WAVE, Control, SuperHub, eventually, lay_out, running, till, wan
from wavemesh.codec.statements import decode
from wavemesh.policy.document import policy_to_json
from wavemesh.policy.reader import parse_policy
from wavemesh.runtime.config import ConfigError
from wavemesh.trust.statements import HubStatus, OutcomeKind, UpdateState

if TYPE_CHECKING:
    from pathlib import Path

    from tests.storehub_kit import Till

pytestmark = pytest.mark.timeout(60)
LANE = ("pos-01", "pos-02", "pos-03")
GROUPS = """
[[groups]]
role = "till"
group = "lane-a"
devices = ["pos-01", "pos-02", "pos-03"]
"""


@pytest.fixture
def control(tmp_path: Path) -> Control:
    control = Control(Fleet.create(tmp_path / "fleet"))
    floor = b"guardrails:\n  availability: [{role: till, group: lane-a, minUp: 2}]\n"
    control.policy_yaml = control.policy_yaml.replace(b"guardrails:\n", floor)
    control.policy = policy_to_json(parse_policy(control.policy_yaml, "policy.yaml"))
    return control


async def begin(super_hub: SuperHub, *names: str) -> None:
    control = super_hub.control
    super_hub.want(control.tuf(), control.holds(), control.policy_resource(), control.order(*names))
    await eventually(lambda: super_hub.incarnation)
    super_hub.want(*(control.permit(name, super_hub.incarnation) for name in names))


def waits(super_hub: SuperHub) -> dict[str, str]:
    """What the hub tells its parent of who waits."""
    return {wait.device: wait.reason for wait in decode(HubStatus, super_hub.statuses["hub"] or b"").waits}


async def typed(directory: Path, *words: str) -> str:
    """What edgectl prints for an operator at the store."""

    def types() -> str:
        shown = io.StringIO()
        with redirect_stdout(shown):
            assert run(list(words)) == 0
        return shown.getvalue()

    return await asyncio.to_thread(types)


async def swap(one: Till) -> None:
    """The device swaps under its lease and signs that it is well."""
    for state in (UpdateState.ARMED, UpdateState.TRIAL, UpdateState.COMMITTED):
        one.say(state)
    one.report(one.outcome(OutcomeKind.UPDATED))


async def test_a_dead_till_holds_up_its_lane_until_it_is_back(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    super_hub = SuperHub(control)
    async with AsyncExitStack() as stack:
        parent = await stack.enter_async_context(wan(super_hub))
        directory = lay_out(tmp_path / "hub", control, parent, lease_s=60, trial_s=60, more=GROUPS)
        app = await stack.enter_async_context(running(directory))
        address = f"127.0.0.1:{app.port}"
        control.fleet.credentials(OPERATOR)
        identity = control.fleet.directory / OPERATOR.path.replace("/", "-")
        contexts = tmp_path / "contexts.toml"
        save_contexts(contexts, Contexts("store", {"store": Context("store", address, STORE, identity)}))
        monkeypatch.setenv("EDGECTL_CONFIG", str(contexts))
        await begin(super_hub, *LANE)
        first, second = [await stack.enter_async_context(till(control, name, address)) for name in LANE[:2]]
        log = MemoryLog()
        async with till(control, LANE[2], address, log) as third:
            for one in (first, second, third):
                one.say(UpdateState.VERIFIED)
            await eventually(first.lease)
        # The third is cut off: the first, not armed yet, loses its lease till it is back, then arms before it goes.
        held_back = "its lease is held back: till/lane-a has 1 of 2 others up, floor 2"
        await eventually(lambda: not first.lease() and waits(super_hub).get("pos-01") == held_back)
        async with till(control, LANE[2], address, log) as third:
            third.say(UpdateState.VERIFIED)
            await eventually(first.lease)
            first.say(UpdateState.ARMED)
            await eventually(lambda: app.hub.store.devices[first.node.path].status.state is UpdateState.ARMED)
        await eventually(lambda: third.node.path not in app.hub.present)
        assert first.lease(), "armed is under way"
        await swap(first)
        short = "till/lane-a has 2 of 3 up (not pos-03), floor 2"
        await eventually(lambda: waits(super_hub) == {"pos-02": short})
        assert second.lease() is None
        shown = await typed(tmp_path, "wave", "status", "--wave", WAVE)
        assert f"pos-02 waits: {short}" in shown
        assert f"pos-02 waits: {short}" in await typed(tmp_path, "hub", "show", STORE.name)
        async with till(control, LANE[2], address, log) as third:
            third.say(UpdateState.VERIFIED)
            await eventually(second.lease)
            await eventually(lambda: waits(super_hub) == {"pos-03": "till/lane-a: pos-02 inside a swap"})
            assert third.lease() is None
            await swap(second)
            await eventually(third.lease)
            await swap(third)
            await eventually(partial(_all_updated, super_hub))
            await eventually(lambda: not waits(super_hub))


def _all_updated(super_hub: SuperHub) -> bool:
    return [one.kind for one in super_hub.outcomes()] == [OutcomeKind.UPDATED] * len(LANE)


async def test_a_group_the_store_does_not_know_is_named_and_an_empty_one_is_no_floor(
    control: Control, tmp_path: Path
) -> None:
    super_hub = SuperHub(control)
    async with wan(super_hub) as parent:
        directory = lay_out(tmp_path / "hub", control, parent)
        async with running(directory) as app, till(control, "pos-01", f"127.0.0.1:{app.port}") as one:
            await begin(super_hub, "pos-01")
            one.say(UpdateState.VERIFIED)
            why = "no group till/lane-a in this hub's config.toml: list its devices there, or none"
            await eventually(lambda: waits(super_hub) == {"pos-01": why})
            assert one.lease() is None
        lay_out(directory, control, parent, more='\n[[groups]]\nrole = "till"\ngroup = "lane-a"\ndevices = []\n')
        async with running(directory) as app, till(control, "pos-01", f"127.0.0.1:{app.port}") as one:
            one.say(UpdateState.VERIFIED)
            await eventually(one.lease)


@pytest.mark.parametrize(
    ("groups", "problem"),
    [
        (GROUPS + GROUPS, "group till/lane-a is there twice"),
        (GROUPS.replace("pos-02", "pos-01"), "device pos-01 is named twice in group till/lane-a"),
        (GROUPS.replace("pos-02", "Till 2"), "'Till 2' is no name of a device"),
    ],
)
async def test_groups_that_make_no_sense_are_refused(
    groups: str, problem: str, control: Control, tmp_path: Path
) -> None:
    directory = lay_out(tmp_path / "hub", control, "127.0.0.1:1", more=groups)
    with pytest.raises(ExceptionGroup) as refused:
        async with running(directory):
            pass
    assert problem in str(refused.value.exceptions[0])
    assert isinstance(refused.value.exceptions[0], ConfigError)
