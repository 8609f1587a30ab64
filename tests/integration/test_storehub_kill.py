"""H6 across kill -9: never more devices inside a swap than the limit, and nothing lost or counted twice."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.session_kit import Fleet, MemoryLog
from tests.storehub_kit import WAVE, Control, SuperHub, device_node, eventually, lay_out, till, wan
from wavemesh.codec.statements import decode
from wavemesh.trust.statements import Lease, OutcomeKind, UpdateState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

LIMIT = 2
NAMES = ("pos-12", "pos-13", "pos-14", "pos-15", "pos-16", "pos-17")


class Floor:
    """The store's floor: who is really inside a swap, by what the devices do and not by what the hub thinks."""

    def __init__(self) -> None:
        self.inside: set[str] = set()
        self.most = 0
        self.finished = 0

    def enter(self, name: str) -> None:
        self.inside.add(name)
        self.most = max(self.most, len(self.inside))

    def moved_on(self, finished: int) -> bool:
        return bool(self.inside) or self.finished > finished

    def leave(self, name: str) -> None:
        self.inside.remove(name)
        self.finished += 1


async def swap(control: Control, name: str, address: str, floor: Floor, trial_s: float) -> None:
    """Ask for a lease, arm under it at once, be gone for the trial as a rebooting device is, come back and report."""
    log = MemoryLog()
    async with till(control, name, address, log) as one:
        one.say(UpdateState.VERIFIED)
        await eventually(one.lease, within_s=50)
        grant = one.lease()
        assert grant is not None
        assert decode(Lease, grant.lease.payload).device == one.node.path
        floor.enter(name)
        outcome = one.outcome(OutcomeKind.UPDATED)
    await asyncio.sleep(trial_s)  # plays: what takes time (a trial)
    floor.leave(name)
    async with till(control, name, address, log) as one:
        one.report(outcome)
        one.say(UpdateState.COMMITTED)
        await eventually(lambda: log.first_number > 1, within_s=50)


@asynccontextmanager
async def process(directory: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A real store hub process, killed the hard way at the end."""
    hub = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "storehub", "--dir", str(directory), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield hub
    finally:
        if hub.returncode is None:
            hub.send_signal(signal.SIGKILL)
        await hub.wait()


@pytest.mark.parametrize("seed", [2])
async def test_the_limit_holds_when_the_hub_is_killed(seed: int, tmp_path: Path) -> None:
    rng, floor = Random(seed), Floor()
    control = Control(Fleet.create(tmp_path / "fleet"), limit=LIMIT)
    super_hub = SuperHub(control)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with wan(super_hub) as parent:
        directory = lay_out(tmp_path / "hub", control, parent, port=port, lease_s=5, trial_s=5, watchdog_s=5)
        super_hub.want(control.tuf(), control.holds(), control.policy_resource(), control.order(*NAMES))
        async with asyncio.TaskGroup() as group:
            for name in NAMES:
                group.create_task(swap(control, name, f"127.0.0.1:{port}", floor, rng.uniform(0.5, 1.5)))
            for kill in range(3):
                async with process(directory):
                    if kill == 0:
                        await eventually(lambda: super_hub.incarnation, within_s=20)
                        super_hub.want(*(control.permit(name, super_hub.incarnation) for name in NAMES))
                    before = floor.finished
                    if kill < 2:
                        await eventually(partial(floor.moved_on, before), within_s=20)
                        await asyncio.sleep(rng.uniform(0, 0.3))  # plays: the moment of the kill, drawn by the seed
                    else:
                        await eventually(lambda: len(super_hub.outcomes()) >= len(NAMES), within_s=30)
        assert floor.most == LIMIT
        told = sorted(o.device for o in super_hub.outcomes())
        assert told == sorted(device_node(name).path for name in NAMES)
        assert {o.kind for o in super_hub.outcomes()} == {OutcomeKind.UPDATED}
        assert {o.wave_id for o in super_hub.outcomes()} == {WAVE}
