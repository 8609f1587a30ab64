"""Children that ask and never read an answer: what they cost the parent until it cuts them.

Each says hello and asks for 64 KiB, over and over, until the transport takes no more; it beats, so that it is not taken
for dead. Memory is the growth of the server's resident size, at its peak, by child. A child that is not cut, or a child
that reads and is disturbed, makes the result wrong.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import grpc

from bench.cost import cost_of
from bench.report import Result, Target, WrongResultError
from bench.session_fleet import STORE, devices_of, enrol, serving
from wavemesh.codec.session import encode_child
from wavemesh.runtime.grpc import make_channel
from wavemesh.session.frames import MAX_ASK_BYTES, MAX_ASKS_IN_FLIGHT, Ask, Hello
from wavemesh.v1.session_pb2_grpc import SessionServiceStub

if TYPE_CHECKING:
    from pathlib import Path

WITHIN_S = 120.0
MOST_ASKS = 1024
BOUND_KIB = 2 * MAX_ASKS_IN_FLIGHT * MAX_ASK_BYTES // 1024
"""The answers that a session holds at most, as values and as bytes on their way."""


async def crawl(directory: Path, devices: int, _: int) -> Result:
    """So many slow readers, and one that reads."""
    reading, *slow = enrol(directory, devices + 1)
    async with serving("ours", directory) as server, devices_of([reading], f"127.0.0.1:{server.port}") as (live,):
        await live.sink.is_settled.wait()
        before = await server.ask("rss")
        began_s = asyncio.get_running_loop().time()
        async with asyncio.timeout(WITHIN_S), AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            tasks, asking = [], [asyncio.Event() for _ in slow]
            for each, begun in zip(slow, asking, strict=True):
                channel = make_channel(each, f"127.0.0.1:{server.port}", STORE)
                stack.push_async_callback(channel.close)
                tasks.append(group.create_task(_ask_on(SessionServiceStub(channel).Connect(), begun)))
            for begun in asking:
                await begun.wait()
            await server.until_open(1)
            cut_s = asyncio.get_running_loop().time() - began_s
            for task in tasks:
                task.cancel()
        if live.sink.openings != 1 or await live.upstream.ask("health-ping", b"?", WITHIN_S) != b"?":
            raise WrongResultError("the child that reads was disturbed")
        kib = (cost_of(server.pid).peak_rss_kib - before["rss_kib"]) / devices
    keys: dict[str, object] = {"slow_readers": devices, "slow_kib": round(kib, 1), "slow_cut_s": round(cut_s, 2)}
    return Result(keys, (Target("KiB per slow reader", kib, f"<= {BOUND_KIB}", kib <= BOUND_KIB),))


async def _ask_on(call: Any, begun: asyncio.Event) -> None:
    """Ask until nothing is taken any more, and stay; whoever reads nothing does not learn that he was cut."""
    await call.write(encode_child(Hello(1, "bench", "slow", 1, (), 1, ())))
    await call.read()
    begun.set()
    try:
        for number in range(1, MOST_ASKS):
            await call.write(encode_child(Ask(number, "echo", bytes(MAX_ASK_BYTES))))
            await asyncio.sleep(0)
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return
    raise WrongResultError(f"{MOST_ASKS} answers that nobody read were taken")
