"""A pause passes bulk that saturates a link of 1 MB/s (M5): real TCP through a router's queue, beside the bare trip."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from contextlib import aclosing, asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

from tests.narrow_link import RATE_BIT_S, narrow_link, needs_root
from tests.session_kit import Fleet, MemoryLog, MemorySink, until
from wavemesh.artifacts.yielding import YieldingReader
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.grpc import make_bulk_channel
from wavemesh.session.link import SessionUpstream
from wavemesh.telemetry.shipping import PAUSE_S
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from wavemesh.session.frames import Rejection, Resource, ResourceKey

HUB = NodeId("retail.example", "region/midwest")
STORE = NodeId("retail.example", "region/midwest/store/store-208")
ENDLESS = Digest("0" * 64, 1 << 40)
PAUSES = 20
BETWEEN_S = 0.2
BOUND_S = 0.1


class Arrivals(MemorySink):
    """Notes how long after it was wanted each resource came."""

    def __init__(self) -> None:
        super().__init__()
        self.after_s: dict[str, float] = {}

    async def apply(self, changed: Sequence[Resource], removed: Sequence[ResourceKey]) -> Sequence[Rejection]:
        for each in changed:
            self.after_s[each.key.name] = time.monotonic() - float(each.content)
        return await super().apply(changed, removed)


class Far:
    """The parent behind the link."""

    def __init__(self, process: asyncio.subprocess.Process, host: str, ports: dict[str, int]) -> None:
        self._process = process
        self.address = f"{host}:{ports['port']}"
        self.echo = (host, ports["echo"])

    async def pause(self, name: str, sink: Arrivals) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(f"pause {name}\n".encode())
        await until(lambda: name in sink.after_s, sink)
        return sink.after_s[name]


@asynccontextmanager
async def far_parent(fleet: Fleet, tmp_path: Path) -> AsyncIterator[Far]:
    fleet.credentials(HUB)
    with narrow_link() as (namespace, host):
        process = await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", namespace, sys.executable, "-m", "tests.narrow_link"),
            *(str(tmp_path / HUB.path.replace("/", "-")), host),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            yield Far(process, host, json.loads(await process.stdout.readline()))
        finally:
            process.kill()
            await process.wait()


@needs_root
async def test_a_pause_passes_a_saturated_link_within_100_ms(tmp_path: Path) -> None:
    """Above the slowest bare round trip of the idle link, which is what this machine's scheduler adds."""
    fleet, sink, clock = Fleet.create(tmp_path), Arrivals(), SystemClock()
    credentials = fleet.credentials(STORE)
    arrived = 0
    async with far_parent(fleet, tmp_path) as far:
        upstream = SessionUpstream(
            credentials=credentials,
            parent=HUB,
            address=far.address,
            log=MemoryLog(),
            sink=sink,
            clock=clock,
            rng=Random(1),
            software_version="test",
        )
        bulk = YieldingReader(lambda options: make_bulk_channel(credentials, far.address, HUB, options), clock)

        async def pull() -> None:
            nonlocal arrived
            async with aclosing(bulk.read(ENDLESS)) as pieces:
                async for piece in pieces:
                    arrived += len(piece)

        async def flood() -> None:
            while True:
                await upstream.ask("telemetry", bytes(60 * 1024), 30.0)
                await asyncio.sleep(PAUSE_S)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(upstream.run())]
            await until(lambda: "connected" in sink.events, sink)
            floor_s = max([await _trip_s(*far.echo) for _ in range(PAUSES)])
            tasks += [group.create_task(pull()), group.create_task(flood())]
            began, after_s = time.monotonic(), []
            for number in range(PAUSES):
                await asyncio.sleep(BETWEEN_S)  # plays: people who pause now and then
                after_s.append(await far.pause(f"wave-{number}", sink))
            rate = arrived / (time.monotonic() - began)
            for task in tasks:
                task.cancel()
    after_s.sort()
    assert rate > 0.6 * RATE_BIT_S / 8, f"{rate:.0f} bytes a second do not saturate the link"
    assert after_s[18] <= BOUND_S + floor_s, f"{after_s} beside {floor_s}"


async def _trip_s(host: str, port: int) -> float:
    """One bare round trip, the connection's own not counted."""
    reader, writer = await asyncio.open_connection(host, port)
    began = time.monotonic()
    writer.write(b"?")
    await reader.read(1)
    writer.close()
    return time.monotonic() - began
