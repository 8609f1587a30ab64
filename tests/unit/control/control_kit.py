"""A control's directory with real keys and certificates, signed statements and clients, for control's tests."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any

from control.app import serving
from control.config import Config
from tests.session_kit import MemoryLog, MemorySink
from wavemesh.codec.statements import encode, to_proto
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.grpc import make_channel
from wavemesh.session.upstream import SessionUpstream, UpstreamOptions
from wavemesh.trust.envelope import sign_as_node
from wavemesh.trust.statements import (
    DeviceOutcome,
    DeviceStatus,
    Envelope,
    HubStatus,
    IntentKind,
    OperatorIntent,
    OutcomeKind,
    OutcomeReport,
    UpdateState,
)
from wavemesh.v1 import operator_pb2
from wavemesh.v1.operator_pb2_grpc import OperatorServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from control.app import Control
    from tests.conftest import CredentialsFactory, TrustKeys
    from wavemesh.runtime.clock import Clock
    from wavemesh.trust.releases import ReleaseManifest

FLEET = "test.example"
CONTROL = NodeId(FLEET, "control/cloud-1")
MIDWEST = NodeId(FLEET, "region/midwest")
STORES = ("region/midwest/store/store-208", "region/midwest/store/store-209")
DEVICES = tuple(f"{STORES[0]}/device/pos-{n:02}" for n in range(1, 7)) + tuple(
    f"{STORES[1]}/device/pos-{n:02}" for n in range(12, 18)
)
SEGMENT = "retail-us-midwest"

POLICY = b"""
targets:
  segment: "retail-us-midwest"
  percentage: 100
  hubBudget: 2
guardrails:
  minBattery: 40
  haltRollbackRatio: 0.5
artifacts:
  firmware: "firmware-v3.8.2.img"
  config: "pos-app-12.4.1.tar.gz"
  signature: "firmware-v3.8.2.sig"
verification:
  bootProbe: "systemd-analyze verify /boot/inactive"
  peripheralChecks:
    - "lsusb | grep scanner"
"""


class SetClock:
    """A clock that stands where the test puts it."""

    def __init__(self) -> None:
        self.at = datetime.now(UTC)

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return SystemClock().monotonic()

    def advance(self, **step: float) -> None:
        self.at += timedelta(**step)


@dataclass(slots=True)
class World:
    """A control's directory and everybody's keys."""

    directory: Path
    credentials: CredentialsFactory
    trust_keys: TrustKeys
    config: Config = field(default_factory=lambda: Config(listen="127.0.0.1:0", delivery_wait_s=0.0, drain_s=0.5))
    clock: Clock = field(default_factory=SystemClock)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Served]:
        """Control on this directory, in this process."""
        async with serving(self.directory, self.config, self.clock) as control:
            yield Served(self, control)


@dataclass(slots=True)
class Served:
    """A running control."""

    world: World
    control: Control

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.control.port}"

    @asynccontextmanager
    async def calling(self, path: str = "operator/alice") -> AsyncIterator[Any]:
        """The operator's API as that node calls it."""
        async with calling(self.world, self.address, path) as stub:
            yield stub

    @asynccontextmanager
    async def region(self, log: MemoryLog | None = None) -> AsyncIterator[Region]:
        """The midwest's super hub, connected."""
        async with dialling(self.world, lambda: self.address, log) as region:
            yield region


@asynccontextmanager
async def calling(world: World, address: str, path: str = "operator/alice") -> AsyncIterator[Any]:
    async with make_channel(world.credentials(path), address, CONTROL) as channel:
        yield OperatorServiceStub(channel)


@dataclass(slots=True)
class Region:
    """A super hub of the test: what it holds, what it says."""

    world: World
    upstream: SessionUpstream
    log: MemoryLog
    sink: MemorySink

    def hub(self, store: str, *, connected: bool = True, incarnation: str = "i" * 32) -> None:
        """Say how a store's hub is."""
        status = HubStatus(store, datetime.now(UTC), incarnation=incarnation, connected=connected)
        self.upstream.set_status(f"store/{store.rsplit('/', 1)[1]}/hub", encode(status))

    def device(self, path: str, state: UpdateState = UpdateState.IDLE, **fields: Any) -> None:
        """Say how a device is."""
        _, _, _, store, _, name = path.split("/")
        values: dict[str, Any] = {"connected": True} | fields
        status = DeviceStatus(path, state, datetime.now(UTC), **values)
        self.upstream.set_status(f"store/{store}/device/{name}", encode(status))

    def report(self, *envelopes: Envelope) -> None:
        """Report outcomes."""
        self.log.append(encode(OutcomeReport(envelopes)), "outcome")
        self.upstream.wake()

    def names(self, kind: str) -> list[str]:
        """Names of the resources of a type that the super hub holds."""
        return sorted(key.name for key in self.sink.resources if key.type == kind)


@asynccontextmanager
async def dialling(world: World, address: Callable[[], str], log: MemoryLog | None = None) -> AsyncIterator[Region]:
    """The midwest's super hub; it is cut at the end, as a crash would."""
    import asyncio

    memory, sink = log or MemoryLog(), MemorySink()
    upstream = SessionUpstream(
        credentials=world.credentials(MIDWEST.path),
        parent=CONTROL,
        address=address,
        log=memory,
        sink=sink,
        clock=SystemClock(),
        rng=Random(7),
        software_version="superhub/1",
        options=UpstreamOptions(connect_timeout_s=2.0, backoff_base_s=0.02, backoff_cap_s=0.1, stable_s=0.5),
    )
    async with asyncio.TaskGroup() as group:
        task = group.create_task(upstream.run())
        yield Region(world, upstream, memory, sink)
        task.cancel()


def make_world(
    directory: Path, credentials: CredentialsFactory, trust_keys: TrustKeys, *manifests: ReleaseManifest
) -> World:
    """Write a control's directory, those releases published from the start."""
    credentials(CONTROL.path)
    world = World(directory, credentials, trust_keys)
    shutil.copytree(identity_of(credentials, CONTROL.path, directory), directory / "identity", dirs_exist_ok=True)
    for name, signer in (("control", trust_keys.control), ("online", trust_keys.online)):
        (directory / "keys").mkdir(exist_ok=True)
        (directory / "keys" / f"{name}.pem").write_bytes(signer.private_bytes)
    bootstrap = directory / "trust" / "bootstrap"
    bootstrap.mkdir(parents=True)
    (directory / "trust" / "root.json").write_bytes(trust_keys.pinned_root)
    published, _ = trust_keys.publish(*manifests, now=datetime.now(UTC))
    (bootstrap / "targets.json").write_bytes(published.targets)
    (directory / "config.toml").write_text('listen = "127.0.0.1:0"\ntick_s = 0.2\ndelivery_wait_s = 0\n')
    return world


def identity_of(credentials: CredentialsFactory, path: str, directory: Path) -> Path:
    made = credentials(path)
    target = directory.parent / f"{directory.name}-identity"
    target.mkdir(exist_ok=True)
    (target / "node.key").write_bytes(made._key_pem)
    (target / "node.crt").write_bytes(made._chain_pem)
    (target / "ca.crt").write_bytes(made._ca_pem)
    return target


def inventory(devices: Sequence[str] = DEVICES, **fields: str) -> operator_pb2.ApplyInventoryRequest:
    """Stores and devices of one cohort; ``fields`` replace class and revision."""
    values = {"device_class": "pos-tablet", "hardware_revision": "r2"} | fields
    return operator_pb2.ApplyInventoryRequest(
        stores=[operator_pb2.InventoryStore(path=path, time_zone="America/Chicago") for path in STORES],
        devices=[operator_pb2.InventoryDevice(path=path, labels={"segment": SEGMENT}, **values) for path in devices],
    )


def plan(wave: str = "142", policy: bytes = POLICY, cohort: str = SEGMENT, **more: Any) -> operator_pb2.PlanWaveRequest:
    return operator_pb2.PlanWaveRequest(
        wave_id=wave, cohort=cohort, policy_yaml=policy, policy_name="policy.yaml", **more
    )


def intent(
    world: World, kind: IntentKind, intent_id: str = "", operator: str = "operator/alice", **fields: Any
) -> operator_pb2.SubmitIntentRequest:
    """An intent as that operator signs it."""
    return operator_pb2.SubmitIntentRequest(intent=to_proto(signed_intent(world, kind, intent_id, operator, **fields)))


def signed_intent(
    world: World, kind: IntentKind, intent_id: str = "", operator: str = "operator/alice", **fields: Any
) -> Envelope:
    values: dict[str, Any] = {"wave_id": "142"} if kind.name.endswith("_WAVE") else {}
    statement = OperatorIntent(intent_id or kind.name.lower(), kind, datetime.now(UTC), **(values | fields))
    return sign_as_node(statement, world.credentials(operator))


def outcome(world: World, device: str, kind: OutcomeKind, *, signer: str = "", **fields: Any) -> Envelope:
    """An outcome as the device, or another signer, signs it."""
    bad = kind not in {OutcomeKind.UPDATED, OutcomeKind.PENDING}
    statement = DeviceOutcome(
        wave_id="142",
        device=device,
        attempt=1,
        sequence=1,
        kind=kind,
        gate="peripheral:scanner" if bad else "",
        evidence="",
        boot_id="",
        slot="B",
        firmware_sha256=hashlib.sha256(b"firmware-v3.8.2.img").hexdigest(),
        firmware_version="3.8.2",
        log_sha256="",
        at=datetime.now(UTC),
    )
    return sign_as_node(dataclasses.replace(statement, **fields), world.credentials(signer or device))
