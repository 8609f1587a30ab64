"""An attacker with everything a store hub has, against a real agent.

``HostileHub`` has the hub's certificate and node key, serves the real wire, and says what a test wants; ``Raw`` speaks
bytes where the attack is below messages. ``Victim`` is the agent that ``python -m device`` runs, on a board in this
process. A test of this kind has two halves: the attack, after which ``Stage.refuses`` asserts that the device runs,
named a gate or reason, logged and reported it and is otherwise as it was; and the same flow without the attack, which
must end in a committed update (``Stage.updates``), lest a refusal pass for another reason.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from bench.agents import HostedDevice, _Router
from device.logs import read_lines
from device.refusals import EVENT_KIND, kind_of
from device.state import Document, _read
from tests.device_directory import DEVICE, HUB, PATIENCE_S, DeviceDirectory
from tests.device_kit import HubStandIn
from wavemesh.artifacts.transfer import SERVICE_NAME as ARTIFACT_SERVICE
from wavemesh.artifacts.transfer import ArtifactServer
from wavemesh.codec.statements import decode, encode
from wavemesh.policy.document import POLICY_PAYLOAD_TYPE, policy_digest, policy_to_json
from wavemesh.policy.reader import parse_policy
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.grpc import make_server
from wavemesh.runtime.peers import Peers
from wavemesh.session.frames import ResourceKey
from wavemesh.trust.envelope import sign_statement, sign_with_keys
from wavemesh.trust.statements import EventReport, HealthPingAnswer, OutcomeKind
from wavemesh.v1 import artifact_pb2
from wavemesh.v1 import session_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from securesystemslib.signer import CryptoSigner

    from tests.conftest import CredentialsFactory, TrustKeys
    from wavemesh.identity.ca import FleetCa
    from wavemesh.identity.nodes import NodeId
    from wavemesh.session.frames import Rejection, Resource
    from wavemesh.trust.enrolments import IssueAnswer

    Context = grpc.aio.ServicerContext[bytes, bytes]
    Script = Callable[[Context], Awaitable[None]]
    Play = Callable[[artifact_pb2.ReadRequest, Any], Awaitable[None]]
    Forge = Callable[["HostileHub", str], "HealthPingAnswer"]

SESSION_SERVICE = pb.DESCRIPTOR.services_by_name["SessionService"].full_name
UNBOUNDED = (("grpc.max_send_message_length", -1),)
# A fast device in this process does everything asked of it here within a second or three.
QUICK_S = 15.0
HURRY = {
    "ping_interval_s = 0.3": "ping_interval_s = 0.1",
    "gate_interval_s = 0.1": "gate_interval_s = 0.05",
    "recheck_interval_s = 0.5": "recheck_interval_s = 0.2",
    "probe_settle_s = 0.2": "probe_settle_s = 0.1",
}


class HostileHub(HubStandIn):
    """All that a store hub can say, and what only others could have signed."""

    def __init__(self, keys: TrustKeys, credentials: CredentialsFactory, **policy: str) -> None:
        self.taken: list[ResourceKey] = []
        self.answers = True
        self.issue: Callable[[bytes], IssueAnswer] | None = None
        # What is done with a read of that blob instead of serving it.
        self.play_blob: dict[str, Play] = {}
        self.forge_answers: Forge | None = None
        self.forge_in_trial: Forge | None = None
        super().__init__(keys, credentials, **policy)
        self.policy_text = self._policy_text

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(QUICK_S):
            await super().until(condition)

    async def verdict(self, child: NodeId, accepted: Sequence[Resource], rejected: Sequence[Rejection]) -> None:
        self.taken += [one.key for one in accepted]
        ours = ResourceKey("order", f"{self.wave}/store-208")
        await super().verdict(child, [one for one in accepted if one.key == ours], rejected)

    async def answer(self, child: NodeId, kind: str, body: bytes) -> bytes:
        if not self.answers:
            await asyncio.Event().wait()
        if kind == "renew" and self.issue is not None:
            return encode(self.issue(body))
        return await super().answer(child, kind, body)

    def publish(self) -> None:
        """Serve the honest metadata, policy and holds."""
        self._publish()

    def disconnect(self) -> None:
        """End the device's session."""
        if self._downstream is not None:
            self._downstream.disconnect(DEVICE.path, "the hub was replaced")

    def _answer_ping(self, digest: str, kind: str) -> HealthPingAnswer:
        forge = (self.forge_in_trial if self.pings[-1].slot == "B" else None) or self.forge_answers
        return super()._answer_ping(digest, kind) if forge is None else forge(self, digest)

    def _serve_blobs(self, server: grpc.aio.Server, peers: Peers) -> None:
        honest = ArtifactServer(HUB, self.blobs, peers)

        async def read(request: artifact_pb2.ReadRequest, context: Any) -> None:
            await self.play_blob.get(request.digest.sha256, honest.read)(request, context)

        handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_stream_rpc_method_handler(
            read, artifact_pb2.ReadRequest.FromString
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(ARTIFACT_SERVICE, {"Read": handler}),))

    def verdicts(self, kind: str) -> list[ResourceKey]:
        """What of a kind the device accepted, each time."""
        return [key for key in self.taken if key.type == kind]

    def policy(self, **artifacts: str) -> None:
        """Control signs a policy that names other artifacts; without any, the honest one again."""
        text = self.policy_text
        for name, artifact in artifacts.items():
            text = re.sub(rb"\b%b: [^,}]+" % name.encode(), f"{name}: {artifact}".encode(), text, count=1)
        payload = policy_to_json(parse_policy(text, "policy.yaml"))
        self.policy_digest = policy_digest(payload)
        envelope = sign_with_keys(POLICY_PAYLOAD_TYPE, payload, [self.keys.control])
        self.serve("policy", self.policy_digest, encode(envelope))

    def forged(self, statement: Any, *signers: CryptoSigner) -> bytes:
        """The statement as a resource's content, signed by these keys; by control's if there are none."""
        return encode(sign_statement(statement, list(signers) or [self.keys.control]))

    def events(self) -> list[EventReport]:
        """Events that reached this hub."""
        return [decode(EventReport, report.body) for report in self.reports if report.kind == "event"]

    def is_answered(self, intent_id: str) -> bool:
        """Whether the device said that nothing will come of an intent."""
        return intent_id in [event.subject for event in self.events()]

    def told(self) -> list[tuple[str, str]]:
        """(kind of subject, gate) of every refusal that the device reported."""
        return [(kind_of(event.subject), event.gate) for event in self.events() if event.kind == EVENT_KIND]


@dataclass(frozen=True, slots=True)
class Standing:
    """What no refusal may change: the slots, the boot environment, and the agent's memory but for its counters."""

    files: dict[str, str]
    document: Document


class Victim:
    """The device."""

    def __init__(self, directory: DeviceDirectory) -> None:
        self.directory = directory

    @property
    def path(self) -> Path:
        return self.directory.path

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Switched on until the context ends. An agent that ends by anything but a reboot fails the test."""
        stop = asyncio.Event()
        hosted = HostedDevice(self.path, stop)
        handler = _Router()
        logger = logging.getLogger("wavemesh.session")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(hosted.run())
                try:
                    yield
                finally:
                    stop.set()
                    hosted.stopped()
        finally:
            logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)
        assert not [line for line in self.log() if "crashed" in line]

    def log(self) -> list[str]:
        return [line.text for line in read_lines(self.path / "state" / "log", 0)]

    @property
    def document(self) -> Document:
        document = _read(self.path / "state" / "state.json") or _read(self.path / "state" / "state.json.prev")
        return document or Document("")

    def standing(self) -> Standing:
        """Now."""
        slots = sorted((self.path / "slots").iterdir())
        configs = sorted((self.path / "state" / "config").rglob("*"))
        files = {
            str(path.relative_to(self.path)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (*slots, *configs)
            if path.is_file()
        }
        return Standing(files, _without_counters(self.document))


def _without_counters(document: Document) -> Document:
    blank = Document("")
    names = (
        "incarnation serial acknowledged sent_through reports clock_floor ping_ceiling logs_uploaded step spans"
        " spans_first spans_dropped refusals"
    )
    return replace(document, **{name: getattr(blank, name) for name in names.split()})


class Stage:
    """One device and its hostile hub, connected, with honest metadata, policy and holds held."""

    def __init__(self, hub: HostileHub, victim: Victim) -> None:
        self.hub = hub
        self.victim = victim

    async def refuses(self, kind: str, name: str, content: bytes, gate: str, says: str = "") -> None:
        """A resource is refused by that gate, which is logged and reported, and changes nothing."""
        # What the hub took away before, a lease that was given back, is gone here too.
        await self.hub.until(lambda: {one.key for one in self.victim.document.held} <= self.hub.wanted.keys())
        before, seen, subject = self.victim.standing(), len(self.hub.rejected), f"{kind}/{name}"
        self.hub.serve(kind, name, content)
        await self.hub.until(lambda: len(self.hub.rejected) > seen)
        found = self.hub.rejected[-1]
        assert (found.key, found.gate) == (ResourceKey(kind, name), gate), found
        assert says in found.reason, found
        assert [line for line in self.victim.log() if f"refused {subject}: {gate}" in line]
        await self.hub.until(lambda: (kind_of(subject), gate) in self.hub.told())
        assert self.victim.standing() == before

    async def looked_at_all(self) -> None:
        """The device has looked at everything it holds: it answers one intent a look, before it looks at orders."""
        for _ in range(2):
            asked = self.hub.roll_back("is anybody there?")
            await self.hub.until(partial(self.hub.is_answered, asked))

    async def updates(self, **changes: Any) -> None:
        """The flow without an attack: ordered, swapped, committed."""
        if changes or ResourceKey("order", f"{self.hub.wave}/store-208") not in self.hub.wanted:
            self.hub.order(**changes)
        await self.hub.until(lambda: ("UPDATED", "", 1) in self.hub.words())
        await self.hub.until(lambda: not [one for one in self.victim.document.held if one.key.type == "lease"])
        assert self.victim.directory.environment().trial is None

    async def next_wave(self, wave_id: str) -> None:
        """The same in another wave, where the attack's own is over for good."""
        self.hub.wave = wave_id
        self.hub.order()
        ended = wave_id, OutcomeKind.UPDATED
        await self.hub.until(lambda: ended in [(one.wave_id, one.kind) for one in self.hub.outcomes()])


@asynccontextmanager
async def staged(
    path: Path,
    ca: FleetCa,
    keys: TrustKeys,
    credentials: CredentialsFactory,
    *,
    pace: str = "3600.0",
    bare: str = "",
    **policy: str,
) -> AsyncIterator[Stage]:
    """Everything up and connected; ``pace`` is how soon the device wants to see progress of staging, seconds.

    A ``bare`` device was given nothing yet, not even metadata.
    """
    hub = HostileHub(keys, credentials, **policy)
    if bare:
        hub.wanted.clear()
    victim = Victim(DeviceDirectory(path / "device", ca, keys.pinned_root))
    async with hub.serving():
        victim.directory.configure(hub.port)
        for line, faster in HURRY.items():
            victim.directory.set(line, faster)
        victim.directory.set("fsync_step_bytes = 131072", f"fsync_step_bytes = 131072\nprogress_s = {pace}")
        async with victim.running():
            await hub.until(lambda: bool(hub.statuses) and len(victim.document.held) == len(hub.wanted))
            yield Stage(hub, victim)


class Wire:
    """A hub that speaks bytes: its scripts see what the device says first and send what they like."""

    def __init__(self, hub: HostileHub) -> None:
        self.hub = hub
        self.hellos: list[pb.Hello] = []
        self.sessions = 0
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def serving(self, script: Script, reads: Script | None = None, port: int = 0) -> AsyncIterator[int]:
        """Play ``script`` for each session, and ``reads`` for each blob that is asked for."""

        async def connect(request: AsyncIterator[bytes], context: Context) -> None:
            del request
            first = await context.read()
            self.hellos.append(pb.ConnectRequest.FromString(first).hello)
            self._changed.set()
            await script(context)

        peers = Peers(self.hub.me.authorities, SystemClock())
        server, bound = make_server(
            self.hub.me, address=f"127.0.0.1:{port}", maximum_concurrent_rpcs=64, peers=peers, options=UNBOUNDED
        )
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Connect": grpc.stream_stream_rpc_method_handler(connect)
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SESSION_SERVICE, handlers),))
        await server.start()
        try:
            yield bound
        finally:
            await server.stop(0)

    async def until_sessions(self, count: int) -> None:
        """Wait until the device has come that often."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.hellos) < count:
                self._changed.clear()
                await self._changed.wait()
