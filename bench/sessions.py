"""N devices, each with its own mTLS connection and session: open, idle, cut, reconnect at once.

The floor is a bare grpcio echo server under the same TLS, options and number of connections, in the same run. Each
round starts a fresh server process of either kind, alternating; figures are medians over the rounds. Memory is the
growth of the server's resident size per session, open and idle. The cut resets all connections in a proxy between;
while it lasts every device writes one report, and all must be applied exactly once after it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from bench.fakes import ORDER, BenchLog, BenchSink
from bench.report import Result, Target, WrongResultError, write
from lab.wan import Link, LinkConfig, Mode
from wavemesh.identity.ca import FleetCa, write_node
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.grpc import make_channel, run
from wavemesh.session.frames import Report
from wavemesh.session.link import SessionUpstream, UpstreamOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from wavemesh.identity.credentials import NodeCredentials

FLEET = "bench.example"
STORE = NodeId(FLEET, "region/midwest/store/store-208")
STEP_TIMEOUT_S = 120.0
POLL_S = 0.01
MEMORY_BOUND = 1.25
RATE_BOUND = 0.8


@dataclass(frozen=True, slots=True)
class Opened:
    """One round of one kind."""

    kib_per_session: float
    open_per_s: float


@dataclass(slots=True)
class Server:
    """A server process and its control lines."""

    process: asyncio.subprocess.Process
    port: int

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


def main(arguments: list[str]) -> int:
    """Measure and print; 1 when a session does not open or a report is lost or counted twice."""
    parser = argparse.ArgumentParser(prog="python -m bench sessions", description=__doc__)
    parser.add_argument("--devices", type=int, default=300, help="sessions (default 300)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of either kind (default 5)")
    parser.add_argument("--json", metavar="FILE", help="write one JSON object there; - is standard output")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="wavemesh-bench-") as directory:
            result = run(_measure(Path(directory), options.devices, options.rounds))
    except WrongResultError as error:
        sys.stderr.write(f"bench sessions: wrong result: {error}\n")
        return 1
    write(result, options.json)
    return 0


async def _measure(directory: Path, devices: int, rounds: int) -> Result:
    credentials = _enrol(directory, devices)
    ours, floor = [], []
    for _ in range(rounds):
        floor.append(await _open_floor(directory, credentials))
        ours.append(await _open_ours(directory, credentials))
    reconnect_s, converged_s = await _reconnect(directory, credentials)
    keys: dict[str, object] = {
        "devices": devices,
        "kib_per_session": round(statistics.median(one.kib_per_session for one in ours), 1),
        "floor_kib": round(statistics.median(one.kib_per_session for one in floor), 1),
        "open_per_s": round(statistics.median(one.open_per_s for one in ours), 1),
        "floor_open_per_s": round(statistics.median(one.open_per_s for one in floor), 1),
        "reconnect_s": round(reconnect_s, 2),
        "converged_s": round(converged_s, 2),
        "rounds": rounds,
    }
    memory = statistics.median(a.kib_per_session / b.kib_per_session for a, b in zip(ours, floor, strict=True))
    rate = statistics.median(a.open_per_s / b.open_per_s for a, b in zip(ours, floor, strict=True))
    keys |= {"ratio_memory": round(memory, 3), "ratio_rate": round(rate, 3)}
    targets = (
        Target("memory / floor", memory, f"<= {MEMORY_BOUND}", memory <= MEMORY_BOUND),
        Target("open rate / floor", rate, f">= {RATE_BOUND}", rate >= RATE_BOUND),
    )
    return Result(keys, targets)


def _enrol(directory: Path, devices: int) -> list[NodeCredentials]:
    now = datetime.now(UTC)
    ca = FleetCa.create(FLEET, now - timedelta(hours=1))
    since, until = now - timedelta(hours=1), now + timedelta(days=1)
    write_node(directory / "store", ca, STORE, not_before=since, not_after=until)
    return [
        write_node(directory / node.name, ca, node, not_before=since, not_after=until)
        for node in (NodeId(FLEET, f"{STORE.path}/device/pos-{number}") for number in range(devices))
    ]


@asynccontextmanager
async def _server(kind: str, directory: Path) -> AsyncIterator[Server]:
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
            msg = "the server has no pipes"
            raise RuntimeError(msg)
        yield Server(process, json.loads(await process.stdout.readline())["port"])
    finally:
        process.kill()
        await process.wait()


async def _open_floor(directory: Path, credentials: list[NodeCredentials]) -> Opened:
    async with _server("floor", directory) as server, AsyncExitStack() as stack:
        before = (await server.ask("rss"))["rss_kib"]
        started = asyncio.get_running_loop().time()
        calls: list[Any] = []

        async def one(each: NodeCredentials) -> None:
            channel = make_channel(each, f"127.0.0.1:{server.port}", STORE)
            stack.push_async_callback(channel.close)
            call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream("/bench.Echo/Connect")()
            calls.append(call)
            await call.write(b"hello")
            if await call.read() != b"hello":
                raise WrongResultError("the floor did not echo")

        async with asyncio.timeout(STEP_TIMEOUT_S), asyncio.TaskGroup() as group:
            for each in credentials:
                group.create_task(one(each))
        lasted_s = asyncio.get_running_loop().time() - started
        await server.until_open(len(credentials))
        after = (await server.ask("rss"))["rss_kib"]
    return Opened((after - before) / len(credentials), len(credentials) / lasted_s)


async def _open_ours(directory: Path, credentials: list[NodeCredentials]) -> Opened:
    async with _server("ours", directory) as server:
        before = (await server.ask("rss"))["rss_kib"]
        started = asyncio.get_running_loop().time()
        async with _devices(credentials, f"127.0.0.1:{server.port}") as devices:
            async with asyncio.timeout(STEP_TIMEOUT_S):
                for device in devices:
                    await device.sink.is_open.wait()
                lasted_s = asyncio.get_running_loop().time() - started
                await _settle(devices)
                await server.until_open(len(devices))
            after = (await server.ask("rss"))["rss_kib"]
    return Opened((after - before) / len(credentials), len(credentials) / lasted_s)


async def _reconnect(directory: Path, credentials: list[NodeCredentials]) -> tuple[float, float]:
    """Seconds from the link's return to all sessions open, and to all reports applied and resources settled."""
    async with (
        asyncio.timeout(STEP_TIMEOUT_S),
        _server("ours", directory) as server,
        Link(LinkConfig("lan", "127.0.0.1:0", f"127.0.0.1:{server.port}")) as link,
        _devices(credentials, link.address) as devices,
    ):
        await _settle(devices)
        link.set_mode(Mode.CUT)
        for number, device in enumerate(devices):
            await device.sink.is_closed.wait()
            device.log.append(Report("event", str(number).encode()))
            device.upstream.wake()
        link.set_mode(Mode.PASS)
        started = asyncio.get_running_loop().time()
        for device in devices:
            await device.sink.is_open.wait()
        reconnect_s = asyncio.get_running_loop().time() - started
        await _settle(devices)
        while (counted := await server.ask("count"))["applied"] < len(devices):  # noqa: ASYNC110  # as above
            await asyncio.sleep(POLL_S)
        converged_s = asyncio.get_running_loop().time() - started
        if counted["twice"] or counted["applied"] != len(devices):
            raise WrongResultError(f"{len(devices)} reports written, {counted}")
    return reconnect_s, converged_s


async def _settle(devices: list[Device]) -> None:
    for device in devices:
        await device.sink.is_settled.wait()
        if device.sink.resources != {ORDER.key: ORDER}:
            raise WrongResultError("a device settled without the order")


@asynccontextmanager
async def _devices(credentials: list[NodeCredentials], address: str) -> AsyncIterator[list[Device]]:
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
