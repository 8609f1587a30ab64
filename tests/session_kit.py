"""Fakes for the seams of a session (durable, in memory) and a small fleet with real certificates, for session tests."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from random import Random
from typing import TYPE_CHECKING, Any

from tests.conftest import Issuers
from wavemesh.errors import NotFoundError
from wavemesh.identity.ca import FleetCa, write_node
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.grpc import make_server
from wavemesh.runtime.peers import Peers
from wavemesh.session.frames import HeldResource, Rejection, Report, Resource, ResourceKey, ResourceVersion, StatusEntry
from wavemesh.session.link import DownstreamOptions, SessionDownstream, SessionUpstream, UpstreamOptions
from wavemesh.session.parent import ParentOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    from wavemesh.identity.credentials import NodeCredentials
    from wavemesh.session.frames import Hello

FLEET = "retail.example"
STORE = NodeId(FLEET, "region/midwest/store/store-208")
OTHER_STORE = NodeId(FLEET, "region/midwest/store/store-209")
DEVICE = NodeId(FLEET, "region/midwest/store/store-208/device/pos-01")


def resource(
    name: str, content: bytes = b"", *, kind: str = "policy", urgent: bool = False, counter: int = 1
) -> Resource:
    """A genuine resource."""
    digest = hashlib.sha256(content).hexdigest()
    return Resource(ResourceKey(kind, name), ResourceVersion("e", counter), digest, content, (), urgent)


def by_key(*resources: Resource) -> dict[ResourceKey, Resource]:
    return {r.key: r for r in resources}


class MemoryLog:
    """A report log whose fields are what is on disk."""

    def __init__(self) -> None:
        self.generation = 1
        self.next_number = 1
        self.first_number = 1
        self.reports: dict[int, Report] = {}
        self.snapshot: tuple[Report, ...] = ()

    @property
    def incarnation(self) -> str:
        return f"incarnation-{self.generation}"

    def append(self, body: bytes, kind: str = "event") -> None:
        self.reports[self.next_number] = Report(kind, body)
        self.next_number += 1

    async def read(self, first: int, limit: int) -> Sequence[Report]:
        assert first >= self.first_number
        return [self.reports[n] for n in range(first, min(first + limit, self.next_number))]

    async def acknowledge(self, through: int) -> None:
        for number in range(self.first_number, through + 1):
            del self.reports[number]
        self.first_number = max(self.first_number, through + 1)

    async def restart(self) -> None:
        kept = [report for report in self.reports.values() if report.kind == "event"]
        self.generation += 1
        self.next_number = self.first_number = 1
        self.reports = {}
        for report in (*self.snapshot, *kept):
            self.append(report.body, report.kind)


class MemorySink:
    """A sink that keeps resources but for the names it refuses."""

    def __init__(self) -> None:
        self.resources: dict[ResourceKey, Resource] = {}
        self.refuses: dict[str, str] = {}
        self.applied: list[tuple[list[str], list[str]]] = []
        self.events: list[str] = []
        self.changed = asyncio.Event()
        self.gate: asyncio.Event | None = None

    def held(self) -> Sequence[HeldResource]:
        return [HeldResource(r.key, r.version, r.digest) for r in self.resources.values()]

    async def apply(self, changed: Sequence[Resource], removed: Sequence[ResourceKey]) -> Sequence[Rejection]:
        if self.gate is not None:
            await self.gate.wait()
        rejected = []
        for r in changed:
            if r.key.name in self.refuses:
                rejected.append(Rejection(r.key, r.digest, self.refuses[r.key.name], "as the test has it"))
            else:
                self.resources[r.key] = r
        for key in removed:
            self.resources.pop(key, None)
        self.applied.append(([r.key.name for r in changed], [key.name for key in removed]))
        self.changed.set()
        return rejected

    async def connected(self) -> None:
        self._note("connected")

    async def settled(self) -> None:
        self._note("settled")

    async def disconnected(self, reason: str) -> None:
        self._note(f"disconnected: {reason}")

    def _note(self, event: str) -> None:
        self.events.append(event)
        self.changed.set()


class MemoryRegistry:
    """A registry whose fields are what is on disk."""

    def __init__(self) -> None:
        self.epoch = "epoch-1"
        self.cursors: dict[tuple[str, str], int] = {}
        self.applied: list[tuple[str, bytes]] = []
        self.wanted: dict[ResourceKey, Resource] = {}
        self.statuses: dict[str, bytes | None] = {}
        self.verdicts: list[tuple[list[str], list[Rejection]]] = []
        self.events: list[str] = []
        self.changed = asyncio.Event()
        self.gate: asyncio.Event | None = None
        self.fault: Exception | None = None
        self.refusal: Exception | None = None

    async def admit(self, child: NodeId, hello: Hello) -> int:
        if self.refusal is not None:
            raise self.refusal
        return self.cursors.get((child.path, hello.incarnation), 0)

    async def apply_reports(
        self, child: NodeId, incarnation: str, first_number: int, reports: Sequence[Report]
    ) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        assert first_number == self.cursors.get((child.path, incarnation), 0) + 1
        self.applied += [(report.kind, report.body) for report in reports]
        self.cursors[child.path, incarnation] = first_number + len(reports) - 1
        self.changed.set()

    def desired(self, child: NodeId) -> Mapping[ResourceKey, Resource]:
        return dict(self.wanted)

    async def verdict(self, child: NodeId, accepted: Sequence[Resource], rejected: Sequence[Rejection]) -> None:
        self.verdicts.append(([r.key.name for r in accepted], list(rejected)))
        self.changed.set()

    async def status(self, child: NodeId, entries: Sequence[StatusEntry]) -> None:
        self.statuses |= {entry.key: entry.body for entry in entries}
        self.changed.set()

    async def answer(self, child: NodeId, kind: str, body: bytes) -> bytes:
        if kind == "never":
            await asyncio.Event().wait()
        if kind != "echo":
            raise NotFoundError(f"no such ask: {kind}")
        return body

    async def child_connected(self, child: NodeId, hello: Hello) -> None:
        self._note(f"+{child.name}")

    async def child_disconnected(self, child: NodeId, reason: str) -> None:
        self._note(f"-{child.name}")

    def _note(self, event: str) -> None:
        self.events.append(event)
        self.changed.set()


async def until(condition: Callable[[], object], *sources: MemorySink | MemoryRegistry, within_s: float = 10.0) -> None:
    """Wait until the condition holds, looking again whenever one of the fakes changed, and now and then."""
    async with asyncio.timeout(within_s):
        while not condition():
            for source in sources:
                source.changed.clear()
            async with asyncio.TaskGroup() as group:
                waiters = [group.create_task(source.changed.wait()) for source in sources]
                await asyncio.wait(waiters, timeout=0.1, return_when=asyncio.FIRST_COMPLETED)
                for waiter in waiters:
                    waiter.cancel()


@dataclass(slots=True)
class Fleet:
    """Certificates by node, made once."""

    directory: Path
    ca: FleetCa
    issuers: Issuers
    nodes: dict[str, NodeCredentials] = field(default_factory=dict)
    lifetime: timedelta = timedelta(days=1)

    @classmethod
    def create(cls, directory: Path, lifetime: timedelta = timedelta(days=1)) -> Fleet:
        ca = FleetCa.create(FLEET, datetime.now(UTC) - timedelta(hours=1))
        return cls(directory, ca, Issuers(ca), lifetime=lifetime)

    def credentials(self, node: NodeId) -> NodeCredentials:
        if node.path not in self.nodes:
            now = datetime.now(UTC)
            self.nodes[node.path] = write_node(
                self.directory / node.path.replace("/", "-"),
                self.issuers.issuer(node.path),
                node,
                not_before=now - timedelta(hours=1),
                not_after=now + self.lifetime,
                ip_addresses=[IPv4Address("127.0.0.1")],
            )
        return self.nodes[node.path]


FAST = ParentOptions("parent/1", heartbeat_interval_s=0.2, handshake_s=2.0, verdict_timeout_s=5.0)
CHILD_OPTIONS = UpstreamOptions(connect_timeout_s=2.0, backoff_base_s=0.02, backoff_cap_s=0.1, stable_s=0.5)


@dataclass(slots=True)
class Parent:
    """A running parent."""

    server: Any
    port: int
    downstream: SessionDownstream
    registry: MemoryRegistry

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@asynccontextmanager
async def serving(
    fleet: Fleet,
    registry: MemoryRegistry,
    *,
    node: NodeId = STORE,
    address: str = "127.0.0.1:0",
    options: DownstreamOptions | None = None,
    server_options: Sequence[tuple[str, Any]] = (),
) -> AsyncIterator[Parent]:
    """A parent over mTLS, stopped hard at the end."""
    credentials = fleet.credentials(node)
    peers = Peers(credentials.authorities, SystemClock())
    server, port = make_server(
        credentials, address=address, maximum_concurrent_rpcs=4096, peers=peers, options=server_options
    )
    downstream = SessionDownstream(node, registry, SystemClock(), peers, options or DownstreamOptions(FAST))
    downstream.add_to(server)
    await server.start()
    try:
        yield Parent(server, port, downstream, registry)
    finally:
        await server.stop(None)


@dataclass(slots=True)
class Child:
    """A running child."""

    upstream: SessionUpstream
    log: MemoryLog
    sink: MemorySink


@asynccontextmanager
async def dialling(
    fleet: Fleet,
    address: str | Callable[[], str],
    *,
    log: MemoryLog | None = None,
    sink: MemorySink | None = None,
    node: NodeId = DEVICE,
    parent: NodeId = STORE,
    options: UpstreamOptions = CHILD_OPTIONS,
) -> AsyncIterator[Child]:
    """A child over mTLS, cancelled at the end, as a crash would."""
    child_log, child_sink = log or MemoryLog(), sink or MemorySink()
    upstream = SessionUpstream(
        credentials=fleet.credentials(node),
        parent=parent,
        address=address,
        log=child_log,
        sink=child_sink,
        clock=SystemClock(),
        rng=Random(7),
        software_version="child/1",
        options=options,
    )
    async with asyncio.TaskGroup() as group:
        task = group.create_task(upstream.run())
        yield Child(upstream, child_log, child_sink)
        task.cancel()
