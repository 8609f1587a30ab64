"""Control, a super hub with its region's authority, and store hubs that joined by token: real tiers over real mTLS."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any

from control.config import Config
from superhub.app import SuperHub
from tests import storehub_kit
from tests.session_kit import CHILD_OPTIONS, MemoryLog, MemorySink
from tests.unit.control.control_kit import FLEET, MIDWEST, Served, World, make_world
from wavemesh.identity.ca import REGION_LIFETIME, FleetCa, RegionCa, write_node
from wavemesh.identity.join import Joined, Joining
from wavemesh.identity.live import LiveCredentials
from wavemesh.identity.nodes import NodeId
from wavemesh.identity.renewal import Renewal
from wavemesh.identity.tokens import Token
from wavemesh.runtime.clock import SystemClock
from wavemesh.session.link import SessionUpstream
from wavemesh.v1 import operator_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from storehub.app import App
    from tests.conftest import TrustKeys
    from wavemesh.identity.credentials import NodeCredentials
    from wavemesh.identity.keys import Keys
    from wavemesh.runtime.clock import Clock

STORE = NodeId(FLEET, "region/midwest/store/store-208")
DEVICE = NodeId(FLEET, f"{STORE.path}/device/pos-01")
LOCALHOST = "127.0.0.1"


def free_port() -> int:
    with socket.socket() as one:
        one.bind((LOCALHOST, 0))
        port: int = one.getsockname()[1]
        return port


@dataclass(slots=True)
class Mesh:
    """Directories and keys; start the tiers with the context managers below."""

    directory: Path
    ca: FleetCa
    region: RegionCa
    trust_keys: TrustKeys
    world: World
    clock: SetClock
    made: dict[str, NodeCredentials] = field(default_factory=dict)

    @classmethod
    def create(cls, directory: Path, trust_keys: TrustKeys) -> Mesh:
        since = datetime.now(UTC) - timedelta(hours=1)
        ca = FleetCa.create(FLEET, since)
        region = RegionCa.create(ca, "midwest", not_before=since, not_after=since + REGION_LIFETIME)
        made: dict[str, NodeCredentials] = {}

        def credentials(path: str) -> NodeCredentials:
            if path not in made:
                issuer = region if path.startswith("region/") else ca
                made[path] = write_node(
                    directory / "nodes" / path.replace("/", "-"),
                    issuer,
                    NodeId(FLEET, path),
                    not_before=since,
                    not_after=since + timedelta(days=90),
                )
            return made[path]

        world = make_world(directory / "control", credentials, trust_keys)
        world.config = Config(listen=f"{LOCALHOST}:{free_port()}", delivery_wait_s=0.0, drain_s=0.5)
        mesh = cls(directory, ca, region, trust_keys, world, SetClock(), made)
        mesh._write_super_hub()
        return mesh

    @property
    def hub_dir(self) -> Path:
        return self.directory / "superhub"

    def _write_super_hub(self) -> None:
        write_node(
            self.hub_dir / "identity",
            self.region,
            MIDWEST,
            not_before=self.ca.certificate.not_valid_before_utc,
            not_after=self.ca.certificate.not_valid_before_utc + timedelta(days=90),
        )
        self.region.save(self.hub_dir / "authority")
        (self.hub_dir / "trust").mkdir()
        (self.hub_dir / "trust" / "root.json").write_bytes(self.trust_keys.pinned_root)
        (self.hub_dir / "config.toml").write_text(
            f'listen = "{LOCALHOST}:{free_port()}"\njoin_listen = "{LOCALHOST}:{free_port()}"\ndrain_s = 0.2\n'
            f'reconnect_max_s = 0.2\n[control]\naddress = "{self.world.config.listen}"\nname = "cloud-1"\n'
            f'[origin]\nurl = "https://{LOCALHOST}:1"\n'
        )

    # -- tiers --------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def control(self) -> AsyncIterator[Served]:
        async with self.world.serving() as served:
            yield served

    @asynccontextmanager
    async def super_hub(self) -> AsyncIterator[SuperHub]:
        hub = SuperHub(self.hub_dir, self.clock, Random(5))
        async with asyncio.TaskGroup() as group:
            task = group.create_task(hub.run())
            started = group.create_task(hub.started.wait())
            await asyncio.wait([task, started], return_when=asyncio.FIRST_COMPLETED)
            started.cancel()
            yield hub
            hub.stop()

    @asynccontextmanager
    async def store_hub(self, directory: Path) -> AsyncIterator[App]:
        """The store hub of a directory in which it has joined, with a port for devices to join at."""
        config = directory / "config.toml"
        text = config.read_text()
        if "join_listen" not in text:
            config.write_text(f'{text}join_listen = "{LOCALHOST}:{free_port()}"\nreconnect_max_s = 0.2\n')
        async with storehub_kit.running(directory) as app:
            yield app

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Running]:
        """All of them, the store hub joined and connected."""
        async with AsyncExitStack() as stack:
            control = await stack.enter_async_context(AsyncExitStack())
            served = await control.enter_async_context(self.control())
            super_hub = await stack.enter_async_context(AsyncExitStack())
            hub = await super_hub.enter_async_context(self.super_hub())
            store = self.directory / "store"
            await self.join(store, await self.token(served, hub, STORE, time_zone="America/Chicago"))
            store_hub = await stack.enter_async_context(AsyncExitStack())
            app = await store_hub.enter_async_context(self.store_hub(store))
            await until(lambda: app.upstream.is_connected)
            yield Running(self, served, hub, app, control, super_hub, store_hub)

    # -- joining ------------------------------------------------------------------------------------------------------

    async def token(self, served: Served, hub: SuperHub, node: NodeId, address: str = "", **fields: Any) -> Token:
        """A token for that node, known to the super hub."""
        secret = secrets.token_bytes(32)
        sha256 = hashlib.sha256(secret).hexdigest()
        defaults: dict[str, Any] = {}
        if node.role.value == "device":
            defaults = {"device_class": "pos-tablet", "hardware_revision": "r2", "labels": {"segment": "till"}}
        request = operator_pb2.CreateEnrolmentRequest(node=node.path, secret_sha256=sha256, **(defaults | fields))
        async with served.calling() as stub:
            made = await stub.CreateEnrolment(request)
        await until(lambda: self.enrolled(hub, node.path) == sha256)
        addresses = (address or f"{LOCALHOST}:{hub.join_port}",)
        root = self.world.credentials("operator/alice").root_der
        return Token(node, secret, root, made.trust_root_sha256, addresses)

    def enrolled(self, hub: SuperHub, path: str) -> str:
        """Digest of the secret by which the super hub would let that node join; empty for none."""
        found = hub.parts.authority.enrolment(path)
        return found.secret_sha256 if found is not None else ""

    async def join(self, directory: Path, token: Token, clock: Clock | None = None, tcti: str = "") -> Joined:
        return await Joining(directory, token, listen=f"{LOCALHOST}:0", tcti=tcti).run(clock or SystemClock())


@dataclass(slots=True)
class Running:
    """Control and super hub run, a store hub has joined and runs; the stacks have those that a test may take away."""

    mesh: Mesh
    served: Served
    hub: SuperHub
    store: App
    control: AsyncExitStack
    super_hub: AsyncExitStack
    store_hub: AsyncExitStack

    async def token(self, node: NodeId = DEVICE, **fields: Any) -> Token:
        address = f"{LOCALHOST}:{self.store.join_port}" if node.path.startswith(f"{STORE.path}/") else ""
        return await self.mesh.token(self.served, self.hub, node, address, **fields)

    async def device(self, name: str = "device", tcti: str = "", **fields: Any) -> Path:
        """A device that has joined, with its key in that TPM if there is one; its directory."""
        directory = self.mesh.directory / name
        await self.mesh.join(directory, await self.token(**fields), tcti=tcti)
        return directory

    async def start_store_hub(self) -> None:
        """Again, after ``store_hub.aclose()``: on its old directory, at a new port."""
        self.store = await self.store_hub.enter_async_context(self.mesh.store_hub(self.mesh.directory / "store"))
        await until(lambda: self.store.upstream.is_connected)

    @property
    def address(self) -> str:
        return f"{LOCALHOST}:{self.store.port}"


class SetClock:
    """The super hub's clock: the machine's, as far off as the test wants."""

    def __init__(self) -> None:
        self.off_by = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.off_by

    def monotonic(self) -> float:
        return SystemClock().monotonic()


@dataclass(slots=True)
class Node:
    """A node's session and its renewal, in this process."""

    live: LiveCredentials
    upstream: SessionUpstream
    renewal: Renewal
    log: MemoryLog
    sink: MemorySink


@asynccontextmanager
async def dialling(
    directory: Path,
    address: str | Callable[[], str],
    parent: NodeId,
    clock: Clock | None = None,
    keys: Keys | None = None,
) -> AsyncIterator[Node]:
    """The session of the node whose identity is there; cut at the end."""
    live = LiveCredentials.load(directory / "identity", keys=keys)
    log, sink = MemoryLog(), MemorySink()
    upstream = SessionUpstream(
        credentials=live,
        parent=parent,
        address=address,
        log=log,
        sink=sink,
        clock=SystemClock(),
        rng=Random(3),
        software_version="node/1",
        options=CHILD_OPTIONS,
    )
    renewal = Renewal(live=live, upstream=upstream, clock=clock or SystemClock(), rng=Random(4))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(upstream.run())
        yield Node(live, upstream, renewal, log, sink)
        task.cancel()


async def until(condition: Callable[[], object], within_s: float = 15.0) -> None:
    """Wait until the condition holds, looking a hundred times a second: what is waited for tells nobody."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110  # no event says so
            await asyncio.sleep(0.01)
