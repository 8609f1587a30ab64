"""The server process of ``bench sessions``: our downstream, or the bare grpcio echo that is its floor.

``python -m bench.session_server KIND IDENTITY_DIR``: ``door`` admits sessions at the product's rate, ``ours`` all at
once, ``floor`` echoes. Says its port, then answers the lines ``count`` (streams open, reports applied, reports applied
twice) and ``rss`` (resident KiB) on standard input with lines of JSON.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from bench.fakes import BenchRegistry
from bench.floor import bare_server
from wavemesh.identity.credentials import NodeCredentials
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.grpc import make_server, run
from wavemesh.runtime.peers import Peers
from wavemesh.session.link import DownstreamOptions, SessionDownstream

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_STREAMS = 20_000


class Echo:
    """The floor: reads and writes bytes back, keeps nothing."""

    def __init__(self) -> None:
        """No stream is open."""
        self.streams = 0

    async def serve(self, _: object, context: Any) -> None:
        """One stream."""
        self.streams += 1
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                await context.write(message)
        finally:
            self.streams -= 1


async def serve(kind: str, directory: Path) -> None:
    """Serve until standard input ends."""
    credentials = NodeCredentials.load(directory)
    count: Callable[[], dict[str, int]]
    if kind != "floor":
        registry, clock = BenchRegistry(), SystemClock()
        peers = Peers(credentials.authorities, clock)
        server, port = make_server(credentials, address="127.0.0.1:0", maximum_concurrent_rpcs=MAX_STREAMS, peers=peers)
        options = DownstreamOptions(max_sessions=MAX_STREAMS, max_handshakes=MAX_STREAMS)
        if kind == "ours":
            options = replace(options, opens_per_s=math.inf)
        terms = replace(options.terms, heartbeat_interval_s=5.0)
        downstream = SessionDownstream(credentials.node_id, registry, clock, peers, replace(options, terms=terms))
        downstream.add_to(server)

        def count() -> dict[str, int]:
            applied = registry.applied
            return {"open": len(downstream.connected()), "applied": len(applied), "twice": registry.twice}
    else:
        server, port = bare_server(credentials, MAX_STREAMS)
        echo = Echo()
        method: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(echo.serve)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", {"Connect": method}),))

        def count() -> dict[str, int]:
            return {"open": echo.streams, "applied": 0, "twice": 0}

    await server.start()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    _say({"port": port})
    while line := await reader.readline():
        _say(count() if line.strip() == b"count" else {"rss_kib": _resident_kib()})
    await server.stop(None)


def _say(answer: dict[str, int]) -> None:
    print(json.dumps(answer), flush=True)


def _resident_kib() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


if __name__ == "__main__":
    run(serve(sys.argv[1], Path(sys.argv[2])))
