"""What benchmarks of sessions run with: identities of one store, a server process, devices of ours."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING

from bench.fakes import BenchLog, BenchSink
from bench.report import WrongResultError
from wavemesh.identity.ca import FleetCa, write_node
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.clock import SystemClock
from wavemesh.session.link import SessionUpstream, UpstreamOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from wavemesh.identity.credentials import NodeCredentials

FLEET = "bench.example"
STORE = NodeId(FLEET, "region/midwest/store/store-208")
POLL_S = 0.01


@dataclass(slots=True)
class Server:
    """A server process and its control lines."""

    process: asyncio.subprocess.Process
    port: int

    @property
    def pid(self) -> int:
        """The process."""
        return self.process.pid

    async def ask(self, line: str) -> dict[str, int]:
        """Send a line, read the answer."""
        if self.process.stdin is None or self.process.stdout is None:
            msg = "the server has no pipes"
            raise RuntimeError(msg)
        self.process.stdin.write(line.encode() + b"\n")
        answer: dict[str, int] = json.loads(await self.process.stdout.readline())
        return answer

    async def until_open(self, count: int) -> None:
        """Wait until that many streams are open at the server."""
        while (await self.ask("count"))["open"] != count:  # noqa: ASYNC110  # the event is in another process
            await asyncio.sleep(POLL_S)  # the event is in another process


@dataclass(frozen=True, slots=True)
class Device:
    """One device of ours."""

    upstream: SessionUpstream
    log: BenchLog
    sink: BenchSink


def enrol(directory: Path, devices: int) -> list[NodeCredentials]:
    """Write a store and so many devices of it below the directory; the devices."""
    now = datetime.now(UTC)
    ca = FleetCa.create(FLEET, now - timedelta(hours=1))
    since, until = now - timedelta(hours=1), now + timedelta(days=1)
    write_node(directory / "store", ca, STORE, not_before=since, not_after=until)
    return [
        write_node(directory / node.name, ca, node, not_before=since, not_after=until)
        for node in (NodeId(FLEET, f"{STORE.path}/device/pos-{number}") for number in range(devices))
    ]


@asynccontextmanager
async def serving(kind: str, directory: Path) -> AsyncIterator[Server]:
    """A server process of that kind, see ``session_server.py``."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.session_server",
        kind,
        str(directory / "store"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        if process.stdout is None:
            raise WrongResultError("the server has no pipes")
        yield Server(process, json.loads(await process.stdout.readline())["port"])
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def devices_of(credentials: Sequence[NodeCredentials], address: str) -> AsyncIterator[list[Device]]:
    """All devices, running."""
    devices = []
    for number, each in enumerate(credentials):
        log, sink = BenchLog(), BenchSink()
        upstream = SessionUpstream(
            credentials=each,
            parent=STORE,
            address=address,
            log=log,
            sink=sink,
            clock=SystemClock(),
            rng=Random(number),  # noqa: S311  # jitter, not a secret
            software_version="bench",
            options=UpstreamOptions(connect_timeout_s=30.0),
        )
        devices.append(Device(upstream, log, sink))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(device.upstream.run()) for device in devices]
        yield devices
        for task in tasks:
            task.cancel()
