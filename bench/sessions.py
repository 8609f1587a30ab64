"""N devices, each with its own mTLS connection and session: open, idle, cut, reconnect at once.

The floor is a bare grpcio echo server under the same TLS, options and number of connections, in the same run. Each
round starts a fresh server process of either kind, alternating; figures are medians over the rounds. Memory is the
growth of the server's resident size per session, open and idle. The cut resets all connections in a proxy between;
while it lasts every device writes one report, and all must be applied exactly once after it.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.fakes import ORDER
from bench.report import Result, Target, WrongResultError, write
from bench.session_fleet import POLL_S, STORE, devices_of, enrol, serving
from bench.slow import crawl
from bench.storm import weather
from lab.wan import Link, LinkConfig, Mode
from wavemesh.runtime.grpc import make_channel, run
from wavemesh.session.frames import Report

if TYPE_CHECKING:
    import grpc

    from bench.session_fleet import Device
    from wavemesh.identity.credentials import NodeCredentials

STEP_TIMEOUT_S = 120.0
MEMORY_BOUND = 1.25
RATE_BOUND = 0.8


@dataclass(frozen=True, slots=True)
class Opened:
    """One round of one kind."""

    kib_per_session: float
    open_per_s: float


def main(arguments: list[str]) -> int:
    """Measure and print; 1 when a session does not open or a report is lost or counted twice."""
    parser = argparse.ArgumentParser(prog="python -m bench sessions", description=__doc__)
    parser.add_argument("--devices", type=int, default=300, help="sessions (default 300)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of either kind (default 5)")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--storm", action="store_true", help="only a storm of them, while others work: storm.py")
    only.add_argument("--slow", action="store_true", help="only so many that never read: slow.py")
    parser.add_argument("--json", metavar="FILE", help="write one JSON object there; - is standard output")
    options = parser.parse_args(arguments)
    status = 0
    try:
        with tempfile.TemporaryDirectory(prefix="wavemesh-bench-") as directory:
            measure = weather if options.storm else crawl if options.slow else _measure
            write(run(measure(Path(directory), options.devices, options.rounds)), options.json)
    except* WrongResultError as wrong:
        status = 1
        for error in wrong.exceptions:
            sys.stderr.write(f"bench sessions: wrong result: {error}\n")
    return status


async def _measure(directory: Path, devices: int, rounds: int) -> Result:
    credentials = enrol(directory, devices)
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


async def _open_floor(directory: Path, credentials: list[NodeCredentials]) -> Opened:
    async with serving("floor", directory) as server, AsyncExitStack() as stack:
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
    async with serving("ours", directory) as server:
        before = (await server.ask("rss"))["rss_kib"]
        started = asyncio.get_running_loop().time()
        async with devices_of(credentials, f"127.0.0.1:{server.port}") as devices:
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
        serving("ours", directory) as server,
        Link(LinkConfig("lan", "127.0.0.1:0", f"127.0.0.1:{server.port}")) as link,
        devices_of(credentials, link.address) as devices,
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
