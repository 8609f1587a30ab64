"""A region for tests: a super hub with a real origin process, a control that plays what the test wants, and stores."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from superhub.app import SuperHub
from tests.conftest import FLEET, TrustKeys, make_manifest
from tests.session_kit import CHILD_OPTIONS, MemoryLog, MemoryRegistry, MemorySink, resource
from wavemesh.artifacts.digests import digest_of
from wavemesh.artifacts.transfer import ArtifactClient
from wavemesh.codec.statements import decode, encode
from wavemesh.identity.ca import FleetCa, write_node
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.grpc import make_bulk_channel, make_server
from wavemesh.runtime.peers import Peers
from wavemesh.session.link import SessionDownstream, SessionUpstream
from wavemesh.trust.envelope import sign_statement
from wavemesh.trust.files import sign_metadata
from wavemesh.trust.releases import Artifact, ReleaseManifest
from wavemesh.trust.repository import add_release, publish_targets, sign_bundle
from wavemesh.trust.statements import (
    Digest,
    Envelope,
    EventReport,
    Hold,
    HoldList,
    OutcomeReport,
    SnapshotReport,
    TrustMetadata,
    WaveOrder,
    WaveState,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from wavemesh.identity.credentials import NodeCredentials
    from wavemesh.session.frames import Resource

REGION = NodeId(FLEET, "region/midwest")
CONTROL = NodeId(FLEET, "control/main")
MIB = 1024 * 1024


def store_id(name: str) -> NodeId:
    return NodeId(FLEET, f"{REGION.path}/store/{name}")


@dataclass(slots=True)
class Region:
    """Directories, keys and what control wants; start the parts with the context managers below."""

    directory: Path
    ca: FleetCa
    keys: TrustKeys
    control: MemoryRegistry = field(default_factory=MemoryRegistry)
    downstream: SessionDownstream | None = None
    published: TrustMetadata | None = None
    origin_port: int = 0
    control_port: int = 0
    nodes: dict[str, NodeCredentials] = field(default_factory=dict)

    @property
    def hub_dir(self) -> Path:
        return self.directory / "superhub"

    @property
    def origin_files(self) -> Path:
        return self.directory / "origin-files"

    def credentials(self, node: NodeId, directory: Path | None = None) -> NodeCredentials:
        if node.path not in self.nodes:
            now = datetime.now(UTC)
            self.nodes[node.path] = write_node(
                directory or self.directory / "nodes" / node.path.replace("/", "-"),
                self.ca,
                node,
                not_before=now - timedelta(hours=1),
                not_after=now + timedelta(days=1),
                ip_addresses=[IPv4Address("127.0.0.1")],
            )
        return self.nodes[node.path]

    # -- what control wants -----------------------------------------------------------------------------------------

    def want(self, *resources: Resource) -> None:
        """Control wants these, in place of older ones of their keys."""
        self.control.wanted |= {one.key: one for one in resources}
        if self.downstream is not None:
            self.downstream.changed()

    def publish(self, name: str, content: bytes, packed: bytes = b"", **changes: Any) -> ReleaseManifest:
        """Sign a release with this firmware, put its files at the origin and its metadata into the mesh."""
        firmware = Artifact(f"{name}.img", digest_of(content))
        bundle = Artifact(f"{name}.raucb", digest_of(packed)) if packed else None
        manifest = make_manifest(name, firmware=firmware, config=None, bundle=bundle, **changes)
        self.published, bundles = self.keys.publish(manifest, now=datetime.now(UTC), base=self.published)
        made = bundles[manifest.signature.name]
        self.put_at_origin(content)
        if manifest.bundle is not None:
            self.put_at_origin(packed)
        self.put_at_origin(made)
        self.want(resource("metadata", encode(self.published), kind="tuf"))
        return replace(manifest, signature=Artifact(manifest.signature.name, digest_of(made)))

    def publish_weak_bundle(self, name: str, content: bytes) -> ReleaseManifest:
        """A release whose signature bundle has only one of the two signatures it needs."""
        manifest = make_manifest(name, firmware=Artifact(f"{name}.img", digest_of(content)), config=None)
        bundle = sign_bundle(manifest, self.keys.releases[0])
        published, now = self.published or self.keys.empty, datetime.now(UTC)
        targets = sign_metadata(add_release(published.targets, manifest, bundle, now), *self.keys.releases[:2])
        self.published = publish_targets(published, targets, self.keys.online, now)
        self.put_at_origin(content)
        self.put_at_origin(bundle)
        self.want(resource("metadata", encode(self.published), kind="tuf"))
        return manifest

    def hold(self, epoch: int, *releases: str) -> None:
        holds = HoldList(epoch, tuple(Hold(name, "", "test") for name in releases), datetime.now(UTC))
        self.want(resource("fleet", encode(sign_statement(holds, [self.keys.control])), kind="holds", urgent=True))

    def order(self, store: NodeId, release: ReleaseManifest, **changes: Any) -> WaveOrder:
        now = datetime.now(UTC)
        fields: dict[str, Any] = {
            "wave_id": "142",
            "generation": 1,
            "state": WaveState.RUNNING,
            "cohort": "retail-us-midwest",
            "device_class": release.device_class,
            "hardware_revision": release.hardware_revisions[0],
            "store": store.path,
            "devices": ("pos-01",),
            "release": release.name,
            "policy_digest": "0" * 64,
            "least_hold_epoch": 0,
            "issued_at": now,
            "expires_at": now + timedelta(hours=1),
        }
        order = WaveOrder(**{**fields, **changes})
        content = encode(sign_statement(order, [self.keys.control]))
        self.want(replace(resource(f"{order.wave_id}/{store.name}", content, kind="order"), audience=(store.path,)))
        return order

    def put_at_origin(self, content: bytes) -> Digest:
        digest = digest_of(content)
        (self.origin_files / digest.sha256).write_bytes(content)
        return digest

    # -- what came of it --------------------------------------------------------------------------------------------

    def access_log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "origin.log").read_text().splitlines()]

    def bytes_served(self, digest: Digest) -> int:
        return sum(entry["bytes"] for entry in self.access_log() if entry["path"].endswith(digest.sha256))

    def events(self) -> list[EventReport]:
        return [decode(EventReport, body) for kind, body in self.control.applied if kind == "event"]

    def outcomes(self) -> list[Envelope]:
        return [
            envelope
            for kind, body in self.control.applied
            if kind == "outcome"
            for envelope in decode(OutcomeReport, body).outcomes
        ]

    def snapshots(self) -> list[SnapshotReport]:
        return [decode(SnapshotReport, body) for kind, body in self.control.applied if kind == "snapshot"]

    # -- parts ------------------------------------------------------------------------------------------------------

    def write_hub(self, port: int = 0, **settings: Any) -> None:
        """The super hub's directory, for the origin and the control that run now."""
        for name in ("identity", "trust"):
            (self.hub_dir / name).mkdir(parents=True, exist_ok=True)
        self.credentials(REGION, self.hub_dir / "identity")
        (self.hub_dir / "trust" / "root.json").write_bytes(self.keys.pinned_root)
        lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        (self.hub_dir / "config.toml").write_text(
            f'listen = "127.0.0.1:{port}"\n'
            + "\n".join(lines)
            + f'\n[control]\naddress = "127.0.0.1:{self.control_port}"\nname = "main"\n'
            f'[origin]\nurl = "https://127.0.0.1:{self.origin_port}"\n'
        )

    @asynccontextmanager
    async def running_origin(self, rate_bytes_per_s: int = 0) -> AsyncIterator[None]:
        identity = self.directory / "origin-identity"
        self.credentials(NodeId(FLEET, "control/origin"), identity)
        process = await python(
            "lab.origin",
            *("--dir", str(self.origin_files), "--identity", str(identity)),
            *("--log", str(self.directory / "origin.log"), "--rate-bytes-per-s", str(rate_bytes_per_s)),
        )
        try:
            assert process.stdout is not None
            self.origin_port = int((await process.stdout.readline()).rsplit(b":", 1)[1])
            yield
        finally:
            process.terminate()
            await process.wait()

    @asynccontextmanager
    async def running_control(self) -> AsyncIterator[None]:
        credentials = self.credentials(CONTROL)
        peers = Peers(credentials.authorities, SystemClock())
        server, self.control_port = make_server(
            credentials, address=f"127.0.0.1:{self.control_port}", maximum_concurrent_rpcs=16, peers=peers
        )
        self.downstream = SessionDownstream(CONTROL, self.control, SystemClock(), peers)
        self.downstream.add_to(server)
        await server.start()
        try:
            yield
        finally:
            self.downstream = None
            await server.stop(None)

    @asynccontextmanager
    async def running_hub(self) -> AsyncIterator[SuperHub]:
        """The super hub in this process, cancelled at the end, as a crash would."""
        hub = SuperHub(self.hub_dir, SystemClock(), Random(5))
        async with asyncio.TaskGroup() as group:
            task = group.create_task(hub.run())
            started = group.create_task(hub.started.wait())
            await asyncio.wait([task, started], return_when=asyncio.FIRST_COMPLETED)
            started.cancel()
            yield hub
            task.cancel()

    def client(self, store: NodeId, port: int) -> ArtifactClient:
        return ArtifactClient(lambda: make_bulk_channel(self.credentials(store), f"127.0.0.1:{port}", REGION))

    @asynccontextmanager
    async def running_store(self, store: NodeId, port: int, log: MemoryLog, sink: MemorySink) -> AsyncIterator[Any]:
        """The session of a store, cancelled at the end."""
        upstream = SessionUpstream(
            credentials=self.credentials(store),
            parent=REGION,
            address=f"127.0.0.1:{port}",
            log=log,
            sink=sink,
            clock=SystemClock(),
            rng=Random(3),
            software_version="store/1",
            options=CHILD_OPTIONS,
        )
        async with asyncio.TaskGroup() as group:
            task = group.create_task(upstream.run())
            yield upstream
            task.cancel()


async def python(module: str, *arguments: str, stderr: int | None = None) -> asyncio.subprocess.Process:
    """A Python module as a process of its own."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


async def read_all(client: ArtifactClient, digest: Digest, offset: int = 0) -> bytes:
    async with aclosing(client.read(digest, offset)) as pieces:
        return b"".join([bytes(piece) async for piece in pieces])
