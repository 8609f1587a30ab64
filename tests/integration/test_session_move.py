"""A session moves to a renewed certificate: bulk reads go on, reports count once, asks are answered, all in moments."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import AsyncExitStack, aclosing
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from tests.session_kit import CHILD_OPTIONS, DEVICE, FAST, STORE, Fleet, MemoryLog, MemoryRegistry, MemorySink, until
from wavemesh.artifacts.digests import digest_of
from wavemesh.artifacts.transfer import ArtifactClient, ArtifactServer
from wavemesh.errors import LinkDownError
from wavemesh.identity.live import LiveCredentials
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.grpc import make_bulk_channel, make_server
from wavemesh.runtime.peers import Peers
from wavemesh.session.link import DownstreamOptions, SessionDownstream, SessionUpstream
from wavemesh.trust.enrolments import IssuedCertificate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

    from wavemesh.identity.nodes import NodeId
    from wavemesh.trust.statements import Digest

CONTENT = Random(1).randbytes(4 * 1024 * 1024)


class Retired:
    """What the parent remembers, in memory."""

    def __init__(self) -> None:
        self.starts: dict[str, datetime] = {}

    def newest(self, path: str) -> datetime | None:
        return self.starts.get(path)

    async def used(self, path: str, not_before: datetime) -> None:
        self.starts[path] = not_before


class SlowBlobs:
    """One blob; its second half waits until the test lets it go."""

    def __init__(self) -> None:
        self.half_way = asyncio.Event()
        self.go_on = asyncio.Event()

    async def find_missing(self, peer: NodeId, digests: Sequence[Digest]) -> Sequence[Digest]:
        return ()

    async def open(self, peer: NodeId, digest: Digest, offset: int, length_bytes: int) -> AsyncGenerator[bytes, None]:
        async def pieces() -> AsyncGenerator[bytes, None]:
            half = len(CONTENT) // 2
            yield CONTENT[offset:half]
            self.half_way.set()
            await self.go_on.wait()
            yield CONTENT[half:]

        return pieces()


class World:
    """A parent with sessions and blobs, and a child whose certificate can be renewed."""

    def __init__(self, directory: Path) -> None:
        self.fleet = Fleet.create(directory)
        self.registry, self.blobs, self.retired = MemoryRegistry(), SlowBlobs(), Retired()
        self.fleet.credentials(DEVICE)
        self.live = LiveCredentials.load(directory / DEVICE.path.replace("/", "-"))
        self.log, self.sink = MemoryLog(), MemorySink()

    async def start(self, stack: AsyncExitStack) -> SessionUpstream:
        parent = self.fleet.credentials(STORE)
        peers = Peers(parent.authorities, SystemClock(), self.retired)
        server, self.port = make_server(parent, address="127.0.0.1:0", maximum_concurrent_rpcs=64, peers=peers)
        downstream = SessionDownstream(STORE, self.registry, SystemClock(), peers, DownstreamOptions(FAST))
        downstream.add_to(server)
        ArtifactServer(STORE, self.blobs, peers).add_to(server)
        await server.start()
        stack.push_async_callback(server.stop, None)
        upstream = SessionUpstream(
            credentials=self.live,
            parent=STORE,
            address=f"127.0.0.1:{self.port}",
            log=self.log,
            sink=self.sink,
            clock=SystemClock(),
            rng=Random(3),
            software_version="child/1",
            options=CHILD_OPTIONS,
        )
        group = await stack.enter_async_context(asyncio.TaskGroup())
        task = group.create_task(upstream.run())
        stack.callback(task.cancel)
        await until(lambda: upstream.is_connected, self.sink, self.registry)
        return upstream

    def renew(self) -> None:
        """Install a new pair, one second younger than the one in use."""
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        issuer = self.fleet.issuers.issuer(DEVICE.path)
        start = self.live.current.certificate.not_valid_before_utc + timedelta(seconds=1)
        leaf = issuer.issue(DEVICE, key.public_key(), not_before=start, not_after=now + timedelta(days=1))
        chain = tuple(one.public_bytes(Encoding.DER) for one in issuer.chain)
        self.live.install(key, IssuedCertificate(leaf.public_bytes(Encoding.DER), chain, now), now)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_a_bulk_read_goes_on_and_reports_count_once(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Five moves while a blob is read and a report is appended every few milliseconds."""
    digest = digest_of(CONTENT)
    gaps: list[float] = []
    async with AsyncExitStack() as stack:
        upstream = await world.start(stack)
        client = ArtifactClient(lambda: make_bulk_channel(world.live, f"127.0.0.1:{world.port}", STORE))
        group = await stack.enter_async_context(asyncio.TaskGroup())
        reading = group.create_task(_read(client, digest))
        await world.blobs.half_way.wait()
        for number in range(5):
            world.renew()
            world.log.append(b"before %d" % number)
            upstream.wake()
            began_s = time.perf_counter()
            await upstream.move()
            gaps.append(time.perf_counter() - began_s)
            assert upstream.is_connected
            world.log.append(b"after %d" % number)
            upstream.wake()
        world.blobs.go_on.set()
        assert await reading == CONTENT
        await until(lambda: len(world.registry.applied) == 10, world.registry)
        newest = world.retired.newest(DEVICE.path)
    assert sorted(body for _, body in world.registry.applied) == sorted(
        b"%s %d" % (word, number) for word in (b"before", b"after") for number in range(5)
    )
    assert newest == world.live.current.certificate.not_valid_before_utc
    assert world.registry.events.count(f"+{DEVICE.name}") == 6
    with capsys.disabled():
        shown = ", ".join(f"{gap * 1e3:.0f}" for gap in gaps)
        sys.stderr.write(f"\nsession moved in {shown} ms, the new handshake included; the bulk read went on\n")


async def _read(client: ArtifactClient, digest: Digest) -> bytes:
    async with aclosing(client.read(digest, 0)) as pieces:
        return b"".join([bytes(piece) async for piece in pieces])


async def test_asks_under_way_are_answered_and_those_between_wait(world: World) -> None:
    async with AsyncExitStack() as stack:
        upstream = await world.start(stack)
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(upstream.ask("echo", b"%d" % number, 5.0)) for number in range(4)]
            world.renew()
            moving = group.create_task(upstream.move())
            while not moving.done():
                asked.append(group.create_task(upstream.ask("echo", b"%d" % len(asked), 5.0)))
                await asyncio.wait([moving, asked[-1]], return_when=asyncio.FIRST_COMPLETED)
    assert [task.result() for task in asked] == [b"%d" % number for number in range(len(asked))]


async def test_a_move_that_fails_leaves_the_session(world: World) -> None:
    """The parent cannot be reached anew: the old session goes on, and the next attempt takes the new certificate."""
    async with AsyncExitStack() as stack:
        upstream = await world.start(stack)
        world.renew()
        upstream._address = "127.0.0.1:1"
        with pytest.raises(LinkDownError):
            await upstream.move()
        assert upstream.is_connected
        assert await upstream.ask("echo", b"still here", 5.0) == b"still here"
        assert world.registry.events == [f"+{DEVICE.name}"]


async def test_the_old_certificate_opens_nothing_once_the_new_one_was_used(world: World) -> None:
    old = world.live.current
    async with AsyncExitStack() as stack:
        upstream = await world.start(stack)
        world.renew()
        client = ArtifactClient(lambda: make_bulk_channel(old, f"127.0.0.1:{world.port}", STORE))
        # Installed, and not used yet: the old one is as good as before.
        assert await client.find_missing(()) == []
        await upstream.move()
        with pytest.raises(Exception, match="has retired") as caught:
            await client.find_missing(())
        assert caught.value.__class__.__name__ == "ForbiddenError"
