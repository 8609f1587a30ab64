"""When a node renews: in time, when a wave wants it and once for each, at the right moment, again after failures."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.conftest import FLEET, Issuers
from tests.unit.control.control_kit import SetClock
from wavemesh.errors import LinkDownError
from wavemesh.identity.ca import write_node
from wavemesh.identity.csr import key_of_request
from wavemesh.identity.live import LiveCredentials
from wavemesh.identity.nodes import NodeId
from wavemesh.identity.renewal import Renewal, RenewalOptions
from wavemesh.trust.enrolments import IssuedCertificate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from wavemesh.identity.ca import FleetCa

NODE = NodeId(FLEET, "region/midwest/store/store-208")


class Way:
    """The way up: issues for ``days`` days, or fails as often as it is told."""

    def __init__(self, ca: FleetCa, clock: SetClock) -> None:
        self._issuer, self._clock = Issuers(ca).issuer(NODE.path), clock
        self.asked: list[str] = []
        self.moves = self.failures = 0
        self.changed = asyncio.Event()
        self.allowed = True

    async def obtain(self, csr: bytes, wave_id: str) -> IssuedCertificate:
        self.asked.append(wave_id)
        self.changed.set()
        if self.failures:
            self.failures -= 1
            msg = "the region is out of reach"
            raise LinkDownError(msg)
        now = self._clock.now()
        leaf = self._issuer.issue(
            NODE, key_of_request(csr), not_before=now - timedelta(minutes=5), not_after=now + timedelta(days=90)
        )
        chain = tuple(one.public_bytes(Encoding.DER) for one in self._issuer.chain)
        return IssuedCertificate(leaf.public_bytes(Encoding.DER), chain, now)

    async def ask(self, kind: str, body: bytes, timeout_s: float) -> bytes:
        raise AssertionError

    async def move(self) -> None:
        self.moves += 1
        self.changed.set()


class World:
    def __init__(self, directory: Path, ca: FleetCa, age: timedelta) -> None:
        self.clock = SetClock()
        self.way = Way(ca, self.clock)
        start = self.clock.at - age
        issuer = Issuers(ca).issuer(NODE.path)
        write_node(directory, issuer, NODE, not_before=start, not_after=start + timedelta(hours=20))
        self.live = LiveCredentials.load(directory)
        self.renewal = Renewal(
            live=self.live,
            upstream=self.way,
            clock=self.clock,
            rng=Random(1),
            obtain=self.way.obtain,
            allowed=lambda: self.way.allowed,
            options=RenewalOptions(retry_min_s=0.01, retry_max_s=0.02),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.renewal.run())
            yield
            task.cancel()

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self.way.changed.clear()
                await self.way.changed.wait()


async def _turns(count: int = 20) -> None:
    """Let everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize(("hours", "due"), [(9.5, []), (12.5, [""])])
async def test_it_is_due_past_half_of_the_lifetime(
    tmp_path: Path, fleet_ca: FleetCa, hours: float, due: list[str]
) -> None:
    world = World(tmp_path, fleet_ca, timedelta(hours=hours))
    async with world.running():
        if due:
            await world.until(lambda: world.way.moves == 1)
        await _turns()
    assert world.way.asked == due


async def test_failures_leave_the_certificate_and_are_tried_again(tmp_path: Path, fleet_ca: FleetCa) -> None:
    world = World(tmp_path, fleet_ca, timedelta(hours=13))
    before, world.way.failures = world.live.current, 3
    async with world.running():
        await world.until(lambda: len(world.way.asked) == 3)
        assert world.live.current is before
        await world.until(lambda: world.way.moves == 1)
    assert world.live.current is not before
    assert len(world.way.asked) == 4


async def test_a_wave_asks_once(tmp_path: Path, fleet_ca: FleetCa) -> None:
    """Also when it goes on to say that the certificate is too old, as clocks may have it."""
    world = World(tmp_path, fleet_ca, timedelta(hours=1))
    async with world.running():
        world.renewal.want("142")
        world.renewal.want("142")
        await world.until(lambda: world.way.moves == 1)
        world.renewal.want("142")
        await _turns()
        world.renewal.want("")
        world.renewal.want("143")
        await world.until(lambda: world.way.moves == 2)
    assert world.way.asked == ["142", "143"]


async def test_a_wave_that_is_over_wants_nothing(tmp_path: Path, fleet_ca: FleetCa) -> None:
    world = World(tmp_path, fleet_ca, timedelta(hours=1))
    world.renewal.want("142")
    world.renewal.want("")
    async with world.running():
        await _turns()
    assert world.way.asked == []


async def test_it_waits_for_its_moment(tmp_path: Path, fleet_ca: FleetCa) -> None:
    """Not in a trial: what is due then is done afterwards."""
    world = World(tmp_path, fleet_ca, timedelta(hours=13))
    world.way.allowed = False
    async with world.running():
        world.renewal.want("142")
        await _turns()
        assert world.way.asked == []
        world.way.allowed = True
        await world.until(lambda: world.way.moves == 1)
    assert world.way.asked == ["142"]
