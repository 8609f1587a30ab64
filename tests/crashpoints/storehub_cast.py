"""The store hub on a stage: the real hub as storehub/app.py joins it, a super hub above it and devices below, played.

A device here does what ``device/`` does as far as a hub can tell: it stages by the hub's cache, asks for a lease, burns
an attempt, is inside a swap for a while, and signs one outcome for each burn.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from contextlib import ExitStack, aclosing
from dataclasses import replace
from datetime import timedelta
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from cryptography.hazmat.primitives.serialization import Encoding

from storehub import app
from storehub.config import load
from tests.conftest import FLEET
from tests.crashpoints.fleet import HUB
from tests.crashpoints.hub_fleet import LIMIT, OPERATOR, the_hub_fleet
from tests.crashpoints.hub_wire import Cast, PlayedDownstream, PlayedUpstream, SilentServer
from wavemesh.codec.statements import decode, encode
from wavemesh.errors import LinkDownError, WavemeshError
from wavemesh.identity.binding import Binding
from wavemesh.identity.csr import key_of_request
from wavemesh.identity.nodes import NodeId
from wavemesh.session.frames import Report
from wavemesh.trust.enrolments import IssueAnswer, IssuedCertificate, RenewalRequest
from wavemesh.trust.envelope import sign_as_node
from wavemesh.trust.statements import (
    DeviceOutcome,
    DeviceStatus,
    Envelope,
    Lease,
    LeaseGrant,
    OutcomeKind,
    OutcomeReport,
    SnapshotReport,
    UpdateState,
    WaveOrder,
    WaveState,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from cryptography import x509

    from tests.crashpoints.hub_story import Stage
    from tests.crashpoints.hub_world import Child, World
    from tests.crashpoints.virtual_time import VirtualClock
    from wavemesh.artifacts.plan import Method
    from wavemesh.session.frames import Resource
    from wavemesh.trust.statements import Digest

# Two releases do not fit; the least that a configuration may say is more than these blobs together.
QUOTA_BYTES = 20 * 1024
ARM_AFTER_S, SWAP_S, RETRY_S = 5.0, 60.0, 20.0
_PIECE_BYTES = 2048
INSIDE = frozenset({"LEASED", "ARMED"})


class StoreCast(Cast):
    """A super hub and the devices of a store."""

    def __init__(self, world: World, clock: VirtualClock) -> None:
        super().__init__(world, clock)
        self.cache: Any = None
        self.intents: Any = None

    # --- the super hub -----------------------------------------------------------------------------------------------

    def reported(self, world: World, incarnation: str, reports: list[Report]) -> World:
        """Permits are for the incarnation that sent its snapshot; those of an older one are written off."""
        permits = world.note("permits")
        if permits is None or incarnation in world.note("incarnations"):
            return world
        if not any(report.kind == "snapshot" for report in reports):
            return world
        known = (*world.note("incarnations"), incarnation)
        wave_id, version, devices = permits
        served = [the_hub_fleet().permit(wave_id, version, one, len(known), incarnation) for one in devices]
        return replace(world, parent=world.parent.serving(*served, audience=HUB.path)).noting("incarnations", known)

    def answer(self, kind: str, body: bytes) -> bytes:
        """The authority of the region answers for the super hub."""
        if kind != "renew" or not self.state.is_reachable:
            return super().answer(kind, body)
        request = decode(RenewalRequest, decode(Envelope, body).payload)
        fleet, now = the_hub_fleet(), self.clock.now()
        leaf = fleet.region.issue(
            HUB,
            key_of_request(request.csr),
            not_before=now,
            not_after=now + timedelta(days=30),
            binding=Binding(now),
        )
        chain = tuple(der(one) for one in fleet.region.chain)
        self.become(self.world.noting("renewals", (self.world.note("renewals") or 0) + 1))
        return encode(IssueAnswer(IssuedCertificate(der(leaf), chain, now)))

    # --- devices -----------------------------------------------------------------------------------------------------

    def hear(self, path: str, desired: tuple[Resource, ...]) -> World:
        """Orders begin and end what a device does; a lease lets it go on."""
        world = super().hear(path, desired)
        child = world.child(path)
        orders = [decode(WaveOrder, _payload(one)) for one in desired if one.key.type == "order"]
        running = [one for one in orders if one.state is WaveState.RUNNING and _has_policy(one, desired)]
        if child.state == "IDLE" and running:
            child = replace(child, state="STAGING", wave_id=running[-1].wave_id, attempt=1, fetched=())
        lease = _lease(desired, child.wave_id)
        if child.state == "LEASED" and (lease is None or lease.lease_id != child.lease_id):
            child = replace(child, state="VERIFIED", lease_id="", due_s=None)
        usable = lease is not None and lease.attempt == child.attempt and self.clock.now() < lease.expires_at
        if child.state == "VERIFIED" and lease is not None and usable:
            others = [one.path for one in world.children if one.path != path and one.state in INSIDE]
            if len(others) >= LIMIT:
                world = world.blaming(f"{path} has a lease while {', '.join(others)} may be inside a swap")
            if "pause" in world.answered and "resume" not in dict(world.asked):
                world = world.blaming(f"{path} has a lease of wave {child.wave_id}, which is paused here")
            child = replace(child, state="LEASED", lease_id=lease.lease_id, due_s=self.clock.elapsed_s + ARM_AFTER_S)
        for one in desired:
            if one.key.type == "intent" and one.key.name not in dict(child.got):
                child = replace(self._rolled_back(child), got=(*child.got, (one.key.name, b"")))
        if child.state == "DONE" and not any(one.wave_id == child.wave_id for one in orders):
            child = replace(child, state="IDLE", wave_id="", burned=0)
        return world.with_child(child)

    def go_on(self, path: str) -> World:
        """Burn, swap, and say what came of it, each in its time."""
        world = self.world
        child = world.child(path)
        if child.due_s is None or child.due_s > self.clock.elapsed_s:
            return world
        if child.state == "LEASED":
            due_s = self.clock.elapsed_s + SWAP_S
            return world.with_child(replace(child, state="ARMED", burned=child.attempt, due_s=due_s))
        if child.state == "ARMED":
            return world.with_child(self._said(child, OutcomeKind[child.script[child.attempt - 1]]))
        return world.with_child(replace(child, due_s=None))

    def restart(self, path: str) -> World:
        """All outcomes in one snapshot; what a device says is of the whole wave anyway."""
        child = self.world.child(path)
        number = len(self.world.note("restarts") or ())
        incarnation = f"{number:032x}"
        outcomes = tuple(one for report in child.reports for one in decode(OutcomeReport, report.body).outcomes)
        snapshot = Report("snapshot", encode(SnapshotReport(path, incarnation, outcomes, last=True)))
        child = replace(child, incarnation=incarnation, reports=(snapshot,), acknowledged=0)
        restarts = (*(self.world.note("restarts") or ()), path)
        return self.world.with_child(child).noting("restarts", restarts)

    def _rolled_back(self, child: Child) -> Child:
        """At once and well, which is all that a hub sees of it."""
        report = self._outcome(child, OutcomeKind.ROLLED_BACK, "operator")
        return replace(child, reports=(*child.reports, report), sequence=child.sequence + 1)

    def _said(self, child: Child, kind: OutcomeKind) -> Child:
        gates = {OutcomeKind.UPDATED: "", OutcomeKind.INCONCLUSIVE: "power-loss"}
        report = self._outcome(child, kind, gates.get(kind, "boot-probe"))
        again = kind is OutcomeKind.INCONCLUSIVE
        return replace(
            child,
            reports=(*child.reports, report),
            sequence=child.sequence + 1,
            state="VERIFIED" if again else "DONE",
            attempt=child.attempt + 1 if again else child.attempt,
            lease_id="",
            due_s=None,
            firmware_sha256=child.fetched[-1] if kind is OutcomeKind.UPDATED else child.firmware_sha256,
        )

    def _outcome(self, child: Child, kind: OutcomeKind, gate: str) -> Report:
        outcome = DeviceOutcome(
            wave_id=child.wave_id,
            device=child.path,
            attempt=child.attempt,
            sequence=child.sequence + 1,
            kind=kind,
            gate=gate,
            evidence="",
            boot_id="b",
            slot="B",
            firmware_sha256="",
            firmware_version="",
            log_sha256="",
            at=self.clock.now(),
        )
        return Report("outcome", encode(OutcomeReport((sign_as_node(outcome, the_hub_fleet().nodes[child.path]),))))

    def status(self, path: str) -> dict[str, bytes]:
        child = self.world.child(path)
        state = {"LEASED": "VERIFIED", "DONE": "COMMITTED"}.get(child.state, child.state)
        status = DeviceStatus(
            device=path,
            state=UpdateState[state],
            at=self.clock.now().replace(second=0),
            wave_id=child.wave_id,
            attempt=child.attempt,
            device_class="pos-tablet",
            firmware_sha256=child.firmware_sha256,
        )
        return {"device": encode(status)}

    async def work(self, path: str) -> None:
        """Stage by the hub's cache; what is read is checked, and what cannot be had now is asked for again."""
        child = self.world.child(path)
        if child.state != "STAGING":
            return
        version = self.world.note("versions")[child.wave_id]
        release = the_hub_fleet().base.releases[version]
        for artifact in (release.config, release.firmware):
            assert artifact is not None
            if artifact.digest.sha256 not in child.fetched and not await self._fetch(path, artifact.digest):
                child = replace(self.world.child(path), due_s=self.clock.elapsed_s + RETRY_S)
                self.become(self.world.with_child(child))
                return
            child = self.world.child(path)
            if artifact.digest.sha256 not in child.fetched:
                child = replace(child, fetched=(*child.fetched, artifact.digest.sha256))
                self.become(self.world.with_child(child))
        self.become(self.world.with_child(replace(child, state="VERIFIED", due_s=None)))

    async def _fetch(self, path: str, digest: Digest) -> bool:
        try:
            pieces = await self.cache.open(NodeId(FLEET, path), digest, 0, digest.size_bytes)
            async with aclosing(pieces):
                content = b"".join([bytes(piece) async for piece in pieces])
        except WavemeshError as error:
            logging.getLogger(__name__).info("%s gets nothing of %s: %s", path, digest.sha256[:12], error)
            return False
        if hashlib.sha256(content).hexdigest() != digest.sha256:
            self.become(self.world.blaming(f"the cache served wrong bytes of {digest.sha256[:12]}"))
        return True

    # --- operators ---------------------------------------------------------------------------------------------------

    async def operate(self, name: str) -> None:
        envelope = dict(self.world.asked)[name]
        if name.startswith("cancel"):
            await self.intents.cancel(envelope, OPERATOR)
        else:
            await self.intents.submit(envelope, OPERATOR)


class PlayedArtifacts:
    """Stands for ``YieldingReader``: the super hub's blobs. The link falls once in the middle of a big one, where the
    world notes ``falls``.
    """

    def __init__(self, cast: StoreCast) -> None:
        self._cast = cast

    async def offer(self, target: Digest, bases: Sequence[Digest], methods: Sequence[Method]) -> None:
        """A super hub that knows no deliveries."""

    async def read(self, digest: Digest, offset: int = 0, length_bytes: int = 0) -> AsyncGenerator[memoryview, None]:
        content = the_hub_fleet().base.blobs[digest.sha256][: offset + length_bytes if length_bytes else None]
        for start in range(offset, len(content), _PIECE_BYTES):
            if not (self._cast.is_on and self._cast.state.is_reachable):
                raise LinkDownError("the super hub is out of reach")
            falls = self._cast.world.note("falls")
            if falls and start >= 2 * _PIECE_BYTES and digest.sha256 not in falls:
                self._cast.become(self._cast.world.noting("falls", (*falls, digest.sha256)))
                raise LinkDownError("the link fell")
            yield memoryview(content)[start : start + _PIECE_BYTES]
        sent = self._cast.world.note("sent") or ()
        self._cast.become(self._cast.world.noting("sent", tuple(sorted({*sent, digest.sha256}))))


class StoreHub:
    """Implements ``Component``."""

    fleet = FLEET

    def cast(self, world: World, clock: VirtualClock) -> StoreCast:
        return StoreCast(world, clock)

    async def run(self, stage: Stage, ready: Callable[[], None]) -> None:
        cast = stage.cast
        assert isinstance(cast, StoreCast)

        def upstream(**parts: Any) -> PlayedUpstream:
            made = PlayedUpstream(cast, parts["log"], parts["sink"])
            stage.upstream_idle = made.is_idle
            return made

        def started(joined: app.App) -> None:
            stage.registry = joined.downstream.registry
            cast.cache, cast.intents = joined.cache, joined.intents
            ready()

        async def used(node: NodeId) -> None:
            """The server's own business, and the super hub's scenario."""

        stage.used = used
        played = {
            "SessionUpstream": upstream,
            "SessionDownstream": lambda _node, registry, *_: PlayedDownstream(cast, registry),
            "make_server": lambda *_, **__: (SilentServer(), 1),
            "serve_health": lambda *_: None,
            "set_serving": _nothing,
            "ArtifactServer": lambda *_: SimpleNamespace(add_to=lambda _: None),
            "OperatorApi": lambda *_, **__: SimpleNamespace(add_to=lambda _: None),
            "YieldingReader": lambda *_: PlayedArtifacts(cast),
            "Disk": lambda: stage.disk,
            "load": lambda directory: replace(load(directory), quota_bytes=QUOTA_BYTES),
            "random": SimpleNamespace(Random=lambda: Random(0)),
        }
        with ExitStack() as stack:
            for name, stand_in in played.items():
                stack.enter_context(patch.object(app, name, stand_in))
            await app.run(stage.directory, asyncio.Event(), started, stage.clock)


async def _nothing(*_: object) -> None:
    """Nothing to do."""


def _payload(resource: Resource) -> bytes:
    return decode(Envelope, resource.content).payload


def _has_policy(order: WaveOrder, desired: tuple[Resource, ...]) -> bool:
    return any((one.key.type, one.key.name) == ("policy", order.policy_digest) for one in desired)


def _lease(desired: tuple[Resource, ...], wave_id: str) -> Lease | None:
    for one in desired:
        if (one.key.type, one.key.name) == ("lease", wave_id):
            return decode(Lease, decode(LeaseGrant, one.content).lease.payload)
    return None


def der(certificate: x509.Certificate) -> bytes:
    """As it travels."""
    return certificate.public_bytes(Encoding.DER)
