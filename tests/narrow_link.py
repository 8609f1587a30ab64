"""A link of 1 MB/s between two network namespaces, and a parent behind it with a session and blobs, as a super hub.

The far side is ``python -m tests.narrow_link IDENTITY_DIR HOST`` inside the namespace. It says its ports, then answers
each line on standard input: ``pause NAME`` makes an urgent resource of that name whose content is the monotonic time at
which it was wanted, which both sides read from the one clock of the machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.session_kit import MemoryRegistry, by_key, resource
from wavemesh.artifacts.transfer import ArtifactServer
from wavemesh.identity.credentials import NodeCredentials
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.grpc import make_server, run
from wavemesh.runtime.peers import Peers
from wavemesh.session.link import SessionDownstream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence

    from wavemesh.identity.nodes import NodeId
    from wavemesh.trust.statements import Digest

RATE_BIT_S = 8_000_000
QUEUE_BYTES = 256 * 1024
"""What the link holds back before it drops: a quarter of a second, as routers at the edge do."""


@contextmanager
def narrow_link() -> Iterator[tuple[str, str]]:
    """The far namespace and its address. Both directions have the rate and the queue. Needs root.

    The queue is a router's between the two: in that of the sending machine the kernel keeps a socket's share small
    (TCP small queues), and nothing would ever wait behind it.
    """
    number = os.getpid() % 60_000
    router, far = f"router-{number}", f"far-{number}"
    network = f"10.{200 + number // 250 % 50}.{number % 250}"
    shape = ("root", "tbf", "rate", f"{RATE_BIT_S}bit", "burst", "8kb", "limit", str(QUEUE_BYTES))
    with ExitStack() as undo:
        for name in (router, far):
            _do("ip", "netns", "add", name)
            undo.callback(_do, "ip", "netns", "delete", name)
        near_end, far_end = f"na{number}", f"nb{number}"
        _do("ip", "link", "add", near_end, "type", "veth", "peer", "name", "near", "netns", router)
        _do("ip", "-n", router, "link", "add", "far", "type", "veth", "peer", "name", far_end, "netns", far)
        _do("ip", "address", "add", f"{network}.1/30", "dev", near_end)
        _do("ip", "-n", router, "address", "add", f"{network}.2/30", "dev", "near")
        _do("ip", "-n", router, "address", "add", f"{network}.5/30", "dev", "far")
        _do("ip", "-n", far, "address", "add", f"{network}.6/30", "dev", far_end)
        _do("ip", "link", "set", near_end, "up")
        _do("ip", "-n", far, "link", "set", far_end, "up")
        for end in ("near", "far"):
            _do("ip", "-n", router, "link", "set", end, "up")
            _do("tc", "-n", router, "qdisc", "add", "dev", end, *shape)
        _do("ip", "route", "add", f"{network}.4/30", "via", f"{network}.2")
        _do("ip", "-n", far, "route", "add", "default", "via", f"{network}.5")
        _do("ip", "netns", "exec", router, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        yield far, f"{network}.6"


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: run as root")


def _do(*command: str) -> None:
    program = shutil.which(command[0], path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    subprocess.run((program or command[0], *command[1:]), check=True, timeout=10)


class Endless:
    """A source that has every blob at once."""

    async def find_missing(self, peer: NodeId, digests: Sequence[Digest]) -> Sequence[Digest]:
        return ()

    async def open(self, peer: NodeId, digest: Digest, offset: int, length_bytes: int) -> AsyncGenerator[bytes, None]:
        return self._pieces(digest.size_bytes - offset)

    async def _pieces(self, left: int) -> AsyncGenerator[bytes, None]:
        piece = bytes(512 * 1024)
        while left > 0:
            yield piece[:left]
            left -= len(piece)


class Registry(MemoryRegistry):
    """Answers telemetry with a word."""

    async def answer(self, child: NodeId, kind: str, body: bytes) -> bytes:
        return b"kept"


async def serve(directory: Path, host: str) -> None:
    """Serve until standard input ends."""
    credentials = NodeCredentials.load(directory)
    peers, registry = Peers(credentials.authorities, SystemClock()), Registry()
    grpc_server, port = make_server(credentials, address=f"{host}:0", maximum_concurrent_rpcs=64, peers=peers)
    downstream = SessionDownstream(credentials.node_id, registry, SystemClock(), peers)
    downstream.add_to(grpc_server)
    ArtifactServer(credentials.node_id, Endless(), peers).add_to(grpc_server)
    await grpc_server.start()
    echo = await asyncio.start_server(_echo, host, 0)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    _say({"port": port, "echo": echo.sockets[0].getsockname()[1]})
    while line := await reader.readline():
        name = line.split()[1].decode()
        registry.wanted = by_key(resource(name, str(time.monotonic()).encode(), kind="order", urgent=True))
        downstream.changed()
    await grpc_server.stop(None)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(64):
        writer.write(data)
    writer.close()


def _say(answer: dict[str, int]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run(serve(Path(sys.argv[1]), sys.argv[2]))
