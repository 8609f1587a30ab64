"""A reconnect storm at one parent while a wave's traffic runs on live sessions, beside the bare grpcio echo.

``python -m bench.storm ours|floor DIRECTORY ADDRESS FIRST COUNT`` is the storm: it loads so many devices, says so, and
at the first line on standard input all dial at once; at the end it says how long that took.

The live sessions are in the process that measures. Each says a report and waits until it is acknowledged, asks and
waits for the answer, and so on; the floor's say a word and wait for its echo. What counts is how long the slowest of a
hundred takes while the storm lasts, and the server's peak of memory. A live session that ends, a report that is lost or
counted twice, a device that does not get in: a wrong result.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cost import cost_of
from bench.report import Result, Target, WrongResultError
from bench.session_fleet import STORE, devices_of, enrol, serving
from wavemesh.errors import LinkDownError
from wavemesh.identity.credentials import NodeCredentials
from wavemesh.runtime.grpc import make_channel, run
from wavemesh.session.frames import Report

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence

    from bench.session_fleet import Device, Server

    Work = Callable[[], Coroutine[None, None, None]]
    LetLoose = Callable[[], Coroutine[None, None, tuple[float, float]]]

LIVE = 20
PACE_S = 0.1
CALM_S = 1.0
WITHIN_S = 180.0
PING_BYTES = 1024
LATENCY_BOUND = 1.25
MEMORY_BOUND = 1.25


@dataclass(slots=True)
class Weather:
    """One side's storm. Seconds; memory in MiB."""

    calm_s: list[float] = field(default_factory=list)
    stormy_s: list[float] = field(default_factory=list)
    lasted_s: float = 0.0
    peak_mib: float = 0.0
    reports: int = 0


async def weather(directory: Path, devices: int, rounds: int) -> Result:
    """Both sides, alternating; one JSON object with the keys ``storm_*`` and ``floor_storm_*``."""
    credentials = enrol(directory, devices + LIVE)
    ours, floor = [], []
    for _ in range(rounds):
        floor.append(await _floor(directory, credentials[:LIVE], devices))
        ours.append(await _ours(directory, credentials[:LIVE], devices))
    keys: dict[str, object] = {"devices": devices, "rounds": rounds, "storm_live": LIVE}
    keys["storm_reports"] = sum(one.reports for one in ours)
    for prefix, side in (("storm", ours), ("floor_storm", floor)):
        keys |= {
            f"{prefix}_s": round(_middle(one.lasted_s for one in side), 2),
            f"{prefix}_calm_p99_ms": round(1e3 * _middle(_p99(one.calm_s) for one in side), 1),
            f"{prefix}_live_p50_ms": round(1e3 * _middle(statistics.median(one.stormy_s) for one in side), 1),
            f"{prefix}_live_p99_ms": round(1e3 * _middle(_p99(one.stormy_s) for one in side), 1),
            f"{prefix}_live_worst_ms": round(1e3 * max(max(one.stormy_s) for one in side), 1),
            f"{prefix}_peak_mib": round(_middle(one.peak_mib for one in side), 1),
        }
    late = _middle(_p99(a.stormy_s) / _p99(b.stormy_s) for a, b in zip(ours, floor, strict=True))
    memory = _middle(a.peak_mib / b.peak_mib for a, b in zip(ours, floor, strict=True))
    keys["ratio_storm_memory"] = round(memory, 3)
    targets = (
        Target("live p99 in the storm / floor", late, f"<= {LATENCY_BOUND}", late <= LATENCY_BOUND),
        Target("peak memory / floor", memory, f"<= {MEMORY_BOUND}", memory <= MEMORY_BOUND),
    )
    return Result(keys, targets)


def _middle(values: Iterable[float]) -> float:
    return statistics.median(values)


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[min(len(values) * 99 // 100, len(values) - 1)]


async def _ours(directory: Path, live: list[NodeCredentials], devices: int) -> Weather:
    """A wave's traffic on sessions of ours."""
    found = Weather()
    async with (
        serving("door", directory) as server,
        _storm("ours", directory, server, devices) as let_loose,
        devices_of(live, f"127.0.0.1:{server.port}") as children,
    ):
        for child in children:
            await child.sink.is_settled.wait()

        async def work(child: Device) -> None:
            found.reports += 1
            child.log.append(Report("event", f"{id(child)}/{child.log.next_number}".encode()))
            child.upstream.wake()
            while child.log.first_number < child.log.next_number:
                await child.log.acknowledged.wait()
            try:
                await child.upstream.ask("health-ping", bytes(PING_BYTES), WITHIN_S)
            except LinkDownError as error:
                raise WrongResultError(f"a live session ended in the storm: {child.sink.ended_by}") from error

        await _through(found, let_loose, [partial(work, child) for child in children])
        counted = await server.ask("count")
        if any(child.sink.ended_by for child in children):
            raise WrongResultError(f"a live session ended: {[child.sink.ended_by for child in children]}")
        if counted["twice"] or counted["applied"] != found.reports:
            raise WrongResultError(f"{found.reports} reports written, {counted}")
    return found


async def _floor(directory: Path, live: list[NodeCredentials], devices: int) -> Weather:
    """Words and their echoes on bare streams, two for each report and ask of ours."""
    found = Weather()
    async with (
        serving("floor", directory) as server,
        _storm("floor", directory, server, devices) as let_loose,
        AsyncExitStack() as stack,
    ):
        works: list[Work] = []
        for each in live:
            channel = make_channel(each, f"127.0.0.1:{server.port}", STORE)
            stack.push_async_callback(channel.close)
            works.append(partial(_echo_twice, channel.stream_stream("/bench.Echo/Connect")()))
        await _through(found, let_loose, works)
    return found


async def _echo_twice(call: Any) -> None:
    for _ in range(2):
        await call.write(bytes(PING_BYTES))
        if await call.read() != bytes(PING_BYTES):
            raise WrongResultError("the floor did not echo")


async def _through(found: Weather, let_loose: LetLoose, works: Sequence[Work]) -> None:
    """Work calmly for a while, then through the storm."""
    clock, over = asyncio.get_running_loop(), asyncio.Event()
    samples = found.calm_s

    async def go_on(work: Work) -> None:
        while True:
            began_s = clock.time()
            await work()
            samples.append(clock.time() - began_s)
            if over.is_set():
                return
            await asyncio.sleep(PACE_S)

    async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as group:
        for work in works:
            group.create_task(go_on(work))
        await asyncio.sleep(CALM_S)
        samples = found.stormy_s
        found.lasted_s, found.peak_mib = await let_loose()
        over.set()


@asynccontextmanager
async def _storm(kind: str, directory: Path, server: Server, devices: int) -> AsyncIterator[LetLoose]:
    """The storm's process, its devices loaded; calling lets it loose and waits until all are in.

    To be begun before the live sessions: a fork beside gRPC's threads can crash it.
    It returns the seconds that took, and the server's peak of memory in MiB.
    """
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "bench.storm",
            kind,
            str(directory),
            f"127.0.0.1:{server.port}",
            str(LIVE),
            str(devices),
        ),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    stdin, stdout = process.stdin, process.stdout
    if stdin is None or stdout is None:
        raise WrongResultError("the storm has no pipes")

    async def let_loose() -> tuple[float, float]:
        stdin.write(b"go\n")
        lasted_s: float = json.loads(await stdout.readline())["lasted_s"]
        await server.until_open(devices + LIVE)
        return lasted_s, cost_of(server.pid).peak_rss_kib / 1024

    try:
        await stdout.readline()
        yield let_loose
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _blow(kind: str, directory: Path, address: str, numbers: range) -> None:
    """The storm itself."""
    nodes = [NodeCredentials.load(directory / f"pos-{number}") for number in numbers]
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    _say({"devices": len(nodes)})
    await reader.readline()
    began_s = asyncio.get_running_loop().time()
    async with AsyncExitStack() as stack:
        if kind == "ours":
            for device in await stack.enter_async_context(devices_of(nodes, address)):
                await device.sink.is_settled.wait()
        else:
            async with asyncio.TaskGroup() as group:
                for node in nodes:
                    channel = make_channel(node, address, STORE)
                    stack.push_async_callback(channel.close)
                    group.create_task(_greet(channel.stream_stream("/bench.Echo/Connect")(wait_for_ready=True)))
        _say({"lasted_s": asyncio.get_running_loop().time() - began_s})
        await reader.readline()


async def _greet(call: Any) -> None:
    await call.write(b"hello")
    if await call.read() != b"hello":
        raise WrongResultError("the floor did not echo")


def _say(answer: dict[str, float]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    run(
        _blow(sys.argv[1], Path(sys.argv[2]), sys.argv[3], range(int(sys.argv[4]), int(sys.argv[4]) + int(sys.argv[5])))
    )
