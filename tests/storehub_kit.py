"""A store hub between a pretended super hub and pretended devices, over real mTLS, for the store hub's tests."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from securesystemslib.signer import CryptoSigner

from storehub import app as storehub_app
from tests.session_kit import (
    CHILD_OPTIONS,
    FAST,
    FLEET,
    Child,
    Fleet,
    MemoryLog,
    MemoryRegistry,
    MemorySink,
    dialling,
)
from wavemesh.artifacts.transfer import ArtifactServer
from wavemesh.codec.statements import decode, encode
from wavemesh.errors import NotFoundError
from wavemesh.identity.nodes import NodeId
from wavemesh.policy.document import POLICY_PAYLOAD_TYPE, policy_digest, policy_to_json
from wavemesh.policy.reader import parse_policy
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.grpc import make_server
from wavemesh.runtime.peers import Peers
from wavemesh.session.frames import Resource, ResourceKey, ResourceVersion
from wavemesh.session.link import DownstreamOptions, SessionDownstream
from wavemesh.trust.envelope import sign_as_node, sign_statement, sign_with_keys
from wavemesh.trust.files import sign_metadata
from wavemesh.trust.releases import UNKNOWN_DIGEST, Artifact, ReleaseManifest
from wavemesh.trust.repository import add_release, create_repository, publish_targets, sign_bundle
from wavemesh.trust.statements import (
    DeviceOutcome,
    DeviceStatus,
    Digest,
    Envelope,
    EventReport,
    HoldList,
    HubStatus,
    IntentKind,
    LeaseGrant,
    OperatorIntent,
    OutcomeKind,
    OutcomeReport,
    Permit,
    SnapshotReport,
    UpdateState,
    WaveClosed,
    WaveOrder,
    WaveState,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
    from pathlib import Path

    import grpc

    from wavemesh.runtime.clock import Clock
    from wavemesh.session.parent import ParentOptions
    from wavemesh.trust.statements import TrustMetadata

SUPER_HUB = NodeId(FLEET, "region/midwest")
STORE = NodeId(FLEET, "region/midwest/store/store-209")
OPERATOR = NodeId(FLEET, "operator/alice")
WAVE = "142"

POLICY = """\
targets: {{segment: retail, percentage: 100, hubBudget: 2}}
guardrails:
  minBattery: 40
  requireDualPartition: true
  rollbackOnHealthLossMins: {trial_mins}
  maxConcurrentSwaps: {limit}
artifacts: {{firmware: fw.img, signature: fw.sig}}
verification: {{bootProbe: "true", healthAuthority: {authority}}}
"""

CONFIG = """\
listen = "127.0.0.1:{port}"
parent = "{parent}"
lease_s = {lease_s}
trial_allowance_s = {trial_s}
watchdog_s = {watchdog_s}
witness_s = 0.2
scheduling_interval_s = 0.05
status_interval_s = 0.05
hub_status_interval_s = 1.0
ping_relay_timeout_s = 1.0
fetch_retry_min_s = 0.05
fetch_retry_max_s = 0.2
heartbeat_interval_s = 0.2
reconnect_min_s = 0.02
reconnect_max_s = 0.1
"""


def device_node(name: str) -> NodeId:
    return NodeId(FLEET, f"{STORE.path}/device/{name}")


def digest_of(data: bytes) -> Digest:
    return Digest(hashlib.sha256(data).hexdigest(), len(data))


async def eventually(condition: Callable[[], object], within_s: float = 10.0) -> None:
    """Wait until the condition holds, looking again at each turn of the loop's timers."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110  # several nodes, some in other processes, share no event
            await asyncio.sleep(0.01)


class Control:
    """Whoever signs: release keys, control's key, operators; with one release and one policy."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        limit: int = 2,
        authority: str = "either",
        trial_mins: float = 0.01,
        bundle: bytes = b"",
    ) -> None:
        self.fleet = fleet
        now = datetime.now(UTC)
        self.root_keys, self.online = [CryptoSigner.generate_ed25519()], CryptoSigner.generate_ed25519()
        self.release_keys = [CryptoSigner.generate_ed25519() for _ in range(3)]
        self.key = CryptoSigner.generate_ed25519()
        self.trust: TrustMetadata = create_repository(
            root=self.root_keys,
            releases=self.release_keys,
            online=[self.online],
            control=[self.key],
            now=now - timedelta(hours=1),
        )
        self.blobs: dict[str, bytes] = {}
        self.firmware = self.add_release("fw", bytes(range(256)) * 4096, bundle)
        text = POLICY.format(limit=limit, authority=authority, trial_mins=trial_mins)
        self.policy_yaml = text.encode()
        self.policy = policy_to_json(parse_policy(self.policy_yaml, "policy.yaml"))
        self.counter = 0

    @property
    def root(self) -> bytes:
        return self.trust.roots[0]

    def add_release(self, name: str, firmware: bytes, packed: bytes = b"") -> Digest:
        now = datetime.now(UTC)
        digest = digest_of(firmware)
        manifest = ReleaseManifest(
            name=name,
            version="3.8.2",
            device_class="pos",
            hardware_revisions=("r1",),
            signed_at=now.replace(microsecond=0),
            firmware=Artifact(f"{name}.img", digest),
            config=None,
            signature=Artifact(f"{name}.sig", UNKNOWN_DIGEST),
            boot_probe="true",
            bundle=Artifact(f"{name}.raucb", digest_of(packed)) if packed else None,
        )
        self.publish(manifest, firmware, packed)
        return digest

    def publish(self, manifest: ReleaseManifest, *contents: bytes) -> None:
        """Sign a release, and have its files at hand; empty ones are none."""
        now = datetime.now(UTC)
        bundle = sign_bundle(manifest, *self.release_keys[:2])
        targets = sign_metadata(add_release(self.trust.targets, manifest, bundle, now), *self.release_keys[:2])
        self.trust = publish_targets(self.trust, targets, self.online, now)
        self.blobs |= {digest_of(content).sha256: content for content in (*contents, bundle) if content}

    def make(self, kind: str, name: str, content: bytes, *, urgent: bool = False) -> Resource:
        self.counter += 1
        digest = hashlib.sha256(content).hexdigest()
        version = ResourceVersion("e", self.counter)
        return Resource(ResourceKey(kind, name), version, digest, content, (STORE.path,), urgent)

    def sign(self, statement: Any) -> bytes:
        return encode(sign_statement(statement, [self.key]))

    def tuf(self) -> Resource:
        return self.make("tuf", "metadata", encode(self.trust))

    def policy_resource(self) -> Resource:
        envelope = sign_with_keys(POLICY_PAYLOAD_TYPE, self.policy, [self.key])
        return self.make("policy", policy_digest(self.policy), encode(envelope))

    def holds(self, epoch: int = 1, **changes: Any) -> Resource:
        holds = HoldList(epoch, (), datetime.now(UTC))
        return self.make("holds", "fleet", self.sign(replace(holds, **changes)), urgent=True)

    def order(self, *names: str, generation: int = 1, state: WaveState = WaveState.RUNNING, **changes: Any) -> Resource:
        now = datetime.now(UTC)
        order = WaveOrder(
            wave_id=WAVE,
            generation=generation,
            state=state,
            cohort="retail",
            device_class="pos",
            hardware_revision="r1",
            store=STORE.path,
            devices=names,
            release="fw",
            policy_digest=policy_digest(self.policy),
            least_hold_epoch=1,
            issued_at=now,
            expires_at=now + timedelta(days=1),
        )
        order = replace(order, **changes)
        return self.make("order", f"{order.wave_id}/{STORE.name}", self.sign(order), urgent=state is WaveState.PAUSED)

    def permit(self, name: str, incarnation: str, **changes: Any) -> Resource:
        now = datetime.now(UTC)
        path = device_node(name).path
        permit = Permit(WAVE, path, 3, 1, self.firmware, now, now + timedelta(days=1), incarnation)
        return self.make("permit", f"{WAVE}/{STORE.name}/{name}", self.sign(replace(permit, **changes)))

    def closed(self) -> Resource:
        return self.make("closed", WAVE, self.sign(WaveClosed(WAVE, WaveState.CLOSED, datetime.now(UTC))))

    def intent(self, kind: IntentKind, intent_id: str = "i-1", **changes: Any) -> Envelope:
        intent = OperatorIntent(intent_id, kind, datetime.now(UTC), WAVE, reason="because")
        return sign_as_node(replace(intent, **changes), self.fleet.credentials(OPERATOR))


class SuperHub(MemoryRegistry):
    """What the store hub dials: a registry on which the test sets resources, and a source of blobs."""

    def __init__(self, control: Control) -> None:
        super().__init__()
        self.control = control
        self.downstream: SessionDownstream | None = None
        self.reads: list[tuple[str, int]] = []
        self.blob_faults: dict[str, Exception] = {}
        self.handlers: tuple[grpc.GenericRpcHandler, ...] = ()
        self.address = ""

    def want(self, *resources: Resource) -> None:
        self.wanted |= {resource.key: resource for resource in resources}
        self._told()

    def drop(self, *resources: Resource) -> None:
        for resource in resources:
            self.wanted.pop(resource.key, None)
        self._told()

    def _told(self) -> None:
        if self.downstream is not None:
            self.downstream.changed()

    async def find_missing(self, peer: NodeId, digests: Sequence[Digest]) -> Sequence[Digest]:
        return [digest for digest in digests if digest.sha256 not in self.control.blobs]

    async def open(self, peer: NodeId, digest: Digest, offset: int, length_bytes: int) -> AsyncGenerator[bytes, None]:
        if digest.sha256 in self.blob_faults:
            raise self.blob_faults[digest.sha256]
        if digest.sha256 not in self.control.blobs:
            raise NotFoundError(digest.sha256)
        self.reads.append((digest.sha256, offset))

        async def pieces() -> AsyncGenerator[bytes, None]:
            data = self.control.blobs[digest.sha256]
            for start in range(offset, len(data), 65536):
                yield data[start : start + 65536]

        return pieces()

    @property
    def incarnation(self) -> str:
        body = self.statuses.get("hub")
        return decode(HubStatus, body).incarnation if body else ""

    def outcomes(self) -> list[DeviceOutcome]:
        """Every outcome that was reported, in order, from outcome and snapshot reports."""
        found: list[DeviceOutcome] = []
        for kind, body in self.applied:
            if kind == "outcome":
                found += [decode(DeviceOutcome, e.payload) for e in decode(OutcomeReport, body).outcomes]
            elif kind == "snapshot":
                found += [decode(DeviceOutcome, e.payload) for e in decode(SnapshotReport, body).outcomes]
        return found

    def reported(self, kind: str) -> list[EventReport]:
        events = [decode(EventReport, body) for report, body in self.applied if report == "event"]
        return [event for event in events if event.kind == kind]


@asynccontextmanager
async def wan(super_hub: SuperHub, address: str = "127.0.0.1:0", terms: ParentOptions = FAST) -> AsyncIterator[str]:
    """The super hub's server for as long as the block lasts; leaving it is the WAN going dark."""
    credentials = super_hub.control.fleet.credentials(SUPER_HUB)
    peers = Peers(credentials.authorities, SystemClock())
    server, port = make_server(credentials, address=address, maximum_concurrent_rpcs=1000, peers=peers)
    super_hub.downstream = SessionDownstream(SUPER_HUB, super_hub, SystemClock(), peers, DownstreamOptions(terms))
    super_hub.downstream.add_to(server)
    server.add_generic_rpc_handlers(super_hub.handlers)
    ArtifactServer(SUPER_HUB, super_hub, peers).add_to(server)
    await server.start()
    super_hub.address = f"127.0.0.1:{port}"
    try:
        yield super_hub.address
    finally:
        super_hub.downstream = None
        await server.stop(None)


def lay_out(
    directory: Path,
    control: Control,
    parent: str,
    *,
    port: int = 0,
    lease_s: float = 1.0,
    trial_s: float = 1.0,
    watchdog_s: float = 1.0,
    more: str = "",
) -> Path:
    """A store hub's directory."""
    control.fleet.credentials(STORE)
    directory.mkdir(parents=True, exist_ok=True)
    identity = control.fleet.directory / STORE.path.replace("/", "-")
    shutil.copytree(identity, directory / "identity", dirs_exist_ok=True)
    (directory / "trust").mkdir(exist_ok=True)
    (directory / "trust" / "root.json").write_bytes(control.root)
    values = {"port": port, "parent": parent, "lease_s": lease_s, "trial_s": trial_s, "watchdog_s": watchdog_s}
    (directory / "config.toml").write_text(CONFIG.format(**values) + more)
    return directory


class DrivenClock(SystemClock):
    """The machine's wall clock as far ahead as the test wants; timers stay the machine's own."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def now(self) -> datetime:
        return super().now() + self.ahead

    def set(self, at: datetime) -> None:
        self.ahead = at - super().now()


@asynccontextmanager
async def running(directory: Path, clock: Clock | None = None) -> AsyncIterator[storehub_app.App]:
    """A store hub in this process, stopped in an orderly way at the end."""
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as group:
        group.create_task(storehub_app.run(directory, stop, ready.set_result, clock))
        try:
            yield await ready
        finally:
            stop.set()


@dataclass(slots=True)
class Till:
    """A pretended device: says states, is given leases, reports outcomes."""

    child: Child
    node: NodeId
    fleet: Fleet
    sequence: int = 0
    status: DeviceStatus = field(init=False)

    def __post_init__(self) -> None:
        self.status = DeviceStatus(self.node.path, UpdateState.IDLE, datetime.now(UTC), device_class="pos")

    def say(self, state: UpdateState, *, wave_id: str = WAVE, attempt: int = 1, **changes: Any) -> None:
        now = datetime.now(UTC)
        self.status = replace(self.status, state=state, at=now, wave_id=wave_id, attempt=attempt, **changes)
        self.child.upstream.set_status("device", encode(self.status))

    def holds(self, key: ResourceKey) -> bool:
        return key in self.child.sink.resources

    def lease(self, wave_id: str = WAVE) -> LeaseGrant | None:
        held = self.child.sink.resources.get(ResourceKey("lease", wave_id))
        return decode(LeaseGrant, held.content) if held is not None else None

    def outcome(self, kind: OutcomeKind, *, attempt: int = 1, gate: str = "", signer: NodeId | None = None) -> Envelope:
        self.sequence += 1
        outcome = DeviceOutcome(
            wave_id=WAVE,
            device=self.node.path,
            attempt=attempt,
            sequence=self.sequence,
            kind=kind,
            gate=gate,
            evidence="",
            boot_id="b",
            slot="B",
            firmware_sha256="",
            firmware_version="3.8.2",
            log_sha256="",
            at=datetime.now(UTC),
        )
        return sign_as_node(outcome, self.fleet.credentials(signer or self.node))

    def report(self, *envelopes: Envelope) -> None:
        self.child.log.append(encode(OutcomeReport(envelopes)), "outcome")
        self.child.upstream.wake()


@asynccontextmanager
async def till(
    control: Control, name: str, address: str | Callable[[], str], log: MemoryLog | None = None
) -> AsyncIterator[Till]:
    """A device with an open session, cut off at the end."""
    node = device_node(name)
    dial = dialling(control.fleet, address, node=node, parent=STORE, log=log, sink=MemorySink(), options=CHILD_OPTIONS)
    async with dial as child:
        yield Till(child, node, control.fleet)
