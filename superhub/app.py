"""The super hub's composition root: what is made, how it is wired, and how it stops.

Started as ``python -m superhub --dir DIR``. One TaskGroup holds the session with control, the status relay, the fetches
and the server. SIGTERM drains: stores are told to come back later, control is told goodbye, then everything ends. After
kill -9 the next start takes up what was durable; there is no other recovery.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from random import SystemRandom
from typing import TYPE_CHECKING

from superhub.acceptance import Acceptance
from superhub.authority import Authority, load_authority
from superhub.config import SuperHubConfig
from superhub.derivations import sizes_told
from superhub.derived import Derived
from superhub.events import Events
from superhub.intake import Intake
from superhub.opening import OpenOrigin, open_origin
from superhub.running import Running
from superhub.schedule import Schedule
from superhub.service import RegionRegistry
from superhub.shelf import Shelf
from superhub.sink import RegionSink
from superhub.statuses import StatusRelay
from superhub.store import RegionStore
from superhub.supply import Ground, Region, supply
from superhub.timetable import TimedReader, Timetable
from superhub.tracing import Tracing
from wavemesh import __version__
from wavemesh.artifacts.blobstore import BlobStore
from wavemesh.artifacts.counting import statistics_of
from wavemesh.artifacts.download import Patience, download
from wavemesh.artifacts.fetching import Fetches
from wavemesh.artifacts.scrubbing import Scrub
from wavemesh.artifacts.transfer import SERVICE_NAME as ARTIFACT_SERVICE
from wavemesh.artifacts.transfer import ArtifactServer
from wavemesh.codec.statements import encode
from wavemesh.errors import LinkDownError, LocalError
from wavemesh.identity.live import LiveCredentials
from wavemesh.identity.nodes import NodeId, Role
from wavemesh.identity.renewal import Renewal
from wavemesh.identity.sqlite import SqliteRetirements
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.config import ConfigError, load_config
from wavemesh.runtime.durable import Disk
from wavemesh.runtime.grpc import make_server, serve_health, set_serving
from wavemesh.runtime.joining import JoinService, make_join_server
from wavemesh.runtime.peers import Peers
from wavemesh.session.downstream import SERVICE_NAME as SESSION_SERVICE
from wavemesh.session.downstream import DownstreamOptions, SessionDownstream
from wavemesh.session.parent import ParentOptions
from wavemesh.session.showing import Showing
from wavemesh.session.sqlite import SqliteCursors, SqliteReportLog, SqliteResources
from wavemesh.session.upstream import SessionUpstream, UpstreamOptions
from wavemesh.telemetry.export import ship, way_for
from wavemesh.telemetry.outbox import Outbox
from wavemesh.trust.statements import HubStatus

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from random import Random

    import grpc

    from superhub.deriving import Deriving
    from superhub.healing import Healing
    from superhub.seeding import Seeding
    from wavemesh.artifacts.blobstore import BlobWriter
    from wavemesh.artifacts.download import BlobReader
    from wavemesh.runtime.clock import Clock
    from wavemesh.trust.enrolments import IssuedCertificate


_LOG = logging.getLogger(__name__)

STATUS_PERIOD_S = 15.0
RPCS_PER_STORE = 4
MOST_SHOWN_BYTES = 500
ORIGIN_PATIENCE = Patience(attempts=6, back_off_min_s=0.2, back_off_max_s=10.0)
"""Short, because the store that asked comes again by itself and the fetch goes on where it stopped."""


class TrustRootError(LocalError):
    """The pinned TUF root of this node is missing or unreadable."""

    reason = "TRUST_ROOT"


@dataclass(frozen=True, slots=True)
class Parts:
    """What runs, wired."""

    sink: RegionSink
    upstream: SessionUpstream
    downstream: SessionDownstream
    artifacts: ArtifactServer
    statuses: StatusRelay
    registry: RegionRegistry
    peers: Peers
    authority: Authority
    renewal: Renewal
    seeding: Seeding
    healing: Healing
    deriving: Deriving


class SuperHub:
    """One super hub, from its directory. ``run`` is its life."""

    def __init__(self, directory: Path, clock: Clock, rng: Random) -> None:
        """Read configuration and identity; raises ConfigError, CredentialsError, CaFilesError, TrustRootError."""
        self._directory = directory
        self._clock = clock
        self._rng = rng
        self.config = load_config(directory / "config.toml", SuperHubConfig)
        self.credentials = LiveCredentials.load(directory / "identity")
        self.node_id = self.credentials.node_id
        if self.node_id.role is not Role.SUPER_HUB:
            raise ConfigError(directory / "identity", "", f"{self.node_id.uri} is not a super hub")
        self._ca = load_authority(directory / "authority", self.node_id)
        self._root = _read_root(directory / "trust" / "root.json")
        self._parts: Parts | None = None
        self._renewed: Callable[[], None] = lambda: None
        self._stopping = asyncio.Event()
        self.port = 0
        self.join_port = 0
        self.started = asyncio.Event()
        self.outbox: Outbox

    @property
    def parts(self) -> Parts:
        """What runs; RuntimeError before it does."""
        if self._parts is None:
            msg = "the super hub does not run yet"
            raise RuntimeError(msg)
        return self._parts

    def stop(self) -> None:
        """Begin to drain; ``run`` returns when that is done."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve the region until ``stop``."""
        state = self._directory / "state"
        Disk().make_dir(state)
        async with AsyncExitStack() as stack:
            store = await RegionStore.open(state / "superhub.db")
            stack.push_async_callback(store.database.close)
            blobs = await BlobStore.open(state / "cache", self.config.cache_quota_bytes, self._clock)
            parallel, identity = self.config.parallel_fetches, self._directory / "identity"
            origin = await stack.enter_async_context(
                open_origin(self.config.origin, identity, parallel, database=store.database, clock=self._clock)
            )
            self._renewed = origin.reload
            timetable = Timetable(Schedule(self.config.origin.schedule), self._clock)
            async with asyncio.TaskGroup() as group:
                fetches = Fetches(blobs, partial(self._fetch, TimedReader(origin.reader, timetable)), group, parallel)
                await self._serve(group, store=store, blobs=blobs, fetches=fetches, origin=origin, timetable=timetable)

    async def _fetch(self, origin: BlobReader, writer: BlobWriter) -> None:
        await download(origin, writer, rng=self._rng, patience=ORIGIN_PATIENCE)

    async def _serve(
        self,
        group: asyncio.TaskGroup,
        *,
        store: RegionStore,
        blobs: BlobStore,
        fetches: Fetches,
        origin: OpenOrigin,
        timetable: Timetable,
    ) -> None:
        """Run the parts, and take them down in order."""
        log = await SqliteReportLog.open(store.database, partial(store.snapshot, self.node_id.path))
        resources = await SqliteResources.open(store.database)
        peers = Peers(self.credentials.authorities, self._clock, await SqliteRetirements.open(store.database))
        outbox = self.outbox = Outbox(self.node_id, store.database, self._clock, self.config.telemetry)
        await outbox.load()
        tracing = Tracing(self.node_id, outbox, store.database, self._clock)
        scrub = Scrub(blobs, self._clock, self.config.scrub_bytes_per_s, self.config.scrub_interval_s)
        derived = await Derived.open(store.database, blobs, self._clock.now())
        ground = Ground(store, blobs, fetches, log, resources, tracing, peers, scrub, origin, timetable, derived, group)
        parts = self._parts = self._wire(ground)
        await parts.deriving.sweep()
        await parts.sink.restore()
        background = [
            group.create_task(parts.upstream.run(), name="upstream"),
            group.create_task(parts.statuses.run(), name="status relay"),
            group.create_task(parts.renewal.run(), name="renewal"),
            group.create_task(self._report_status(parts, ground), name="own status"),
            group.create_task(parts.healing.run(parts.seeding.is_needed, parts.seeding.refetch), name="healing"),
            group.create_task(scrub.run(), name="scrub"),
            group.create_task(origin.run(), name="URLs of the origin"),
            group.create_task(
                ship(outbox, way_for(self.config.telemetry, parts.upstream, log), self._rng), name="telemetry"
            ),
        ]
        try:
            await self._listen(parts)
        finally:
            fetches.stop_all(LinkDownError("the super hub is stopping"))
            parts.deriving.stop_all()
            for task in background:
                task.cancel()

    def _wire(self, ground: Ground) -> Parts:
        """Make the parts and let them know each other."""
        clock, authorities, path = self._clock, self.credentials.authorities, self.node_id.path
        store, log, tracing = ground.store, ground.log, ground.tracing
        acceptance, shelf = Acceptance(path, self._root, authorities), Shelf(path)

        def appended() -> None:
            upstream.wake()

        def changed() -> None:
            ground.timetable.changed()
            seeding.changed()
            ground.origin.wake()
            downstream.changed()

        events = Events(path, store, log, clock, appended)
        running = Running()
        region = Region(self.node_id.name, self._directory, self.config, clock)
        supplied = supply(region, ground, acceptance, events, running)
        seeding, showing = supplied.seeding, Showing(log.append)
        sink = RegionSink(
            store=store,
            resources=ground.resources,
            acceptance=acceptance,
            shelf=shelf,
            clock=clock,
            tracing=tracing,
            showing=showing,
            changed=changed,
            connected=ground.origin.wake,
        )
        upstream = self._upstream(log, sink)
        ground.timetable.use(seeding.running)
        ground.origin.use(upstream.ask, seeding.lacking)
        cursors = SqliteCursors(store.database)
        intake = self._intake(ground, cursors, events, showing, appended)
        statuses = StatusRelay(upstream)
        authority = self._authority(store, log, acceptance, appended)
        registry = RegionRegistry(
            node_id=self.node_id,
            epoch=ground.resources.epoch,
            shelf=shelf,
            cursors=cursors,
            intake=intake,
            events=events,
            statuses=statuses,
            upstream=upstream,
            authority=authority,
            clock=clock,
            tracing=tracing,
            running=running,
        )
        downstream = self._downstream(registry, ground.peers)
        return Parts(
            sink=sink,
            upstream=upstream,
            downstream=downstream,
            artifacts=ArtifactServer(
                self.node_id, seeding, ground.peers, offers=seeding, maximum_reads=self.config.maximum_reads
            ),
            statuses=statuses,
            registry=registry,
            peers=ground.peers,
            authority=authority,
            renewal=self._renewal(authority, upstream),
            seeding=seeding,
            healing=supplied.healing,
            deriving=supplied.deriving,
        )

    def _intake(
        self, ground: Ground, cursors: SqliteCursors, events: Events, showing: Showing, appended: Callable[[], None]
    ) -> Intake:
        """What becomes of what stores report."""
        return Intake(
            store=ground.store,
            log=ground.log,
            cursors=cursors,
            events=events,
            authorities=self.credentials.authorities,
            clock=self._clock,
            tracing=ground.tracing,
            showing=showing,
            appended=appended,
        )

    def _upstream(self, log: SqliteReportLog, sink: RegionSink) -> SessionUpstream:
        """The session with control."""
        return SessionUpstream(
            credentials=self.credentials,
            parent=NodeId(self.node_id.fleet, f"control/{self.config.control.name}"),
            address=self.config.control.address,
            log=log,
            sink=sink,
            clock=self._clock,
            rng=self._rng,
            software_version=__version__,
            options=UpstreamOptions(
                backoff_base_s=self.config.reconnect_min_s, backoff_cap_s=self.config.reconnect_max_s
            ),
        )

    def _downstream(self, registry: RegionRegistry, peers: Peers) -> SessionDownstream:
        """The stores' sessions."""
        terms = ParentOptions(__version__, heartbeat_interval_s=self.config.heartbeat_s)
        options = DownstreamOptions(terms, max_sessions=self.config.maximum_stores)
        return SessionDownstream(self.node_id, registry, self._clock, peers, options)

    def _authority(
        self, store: RegionStore, log: SqliteReportLog, acceptance: Acceptance, appended: Callable[[], None]
    ) -> Authority:
        """Who issues in this region."""
        return Authority(
            node_id=self.node_id,
            ca=self._ca,
            lifetime=self.config.authority.lifetime,
            root=self._root,
            store=store,
            log=log,
            acceptance=acceptance,
            authorities=self.credentials.authorities,
            clock=self._clock,
            appended=appended,
        )

    def _renewal(self, authority: Authority, upstream: SessionUpstream) -> Renewal:
        """The super hub renews itself: the authority is its own."""

        async def obtain(csr: bytes, _: str) -> IssuedCertificate:
            return await authority.renew_own(self.credentials.current.certificate, csr)

        return Renewal(
            live=self.credentials,
            upstream=upstream,
            clock=self._clock,
            rng=self._rng,
            obtain=obtain,
            renewed=self._renewed,
        )

    async def _listen(self, parts: Parts) -> None:
        """Serve the stores until the drain; say goodbye downwards, then upwards."""
        server, self.port = make_server(
            self.credentials,
            address=self.config.listen,
            maximum_concurrent_rpcs=RPCS_PER_STORE * self.config.maximum_stores,
            peers=parts.peers,
        )
        parts.downstream.add_to(server)
        parts.artifacts.add_to(server)
        services = (SESSION_SERVICE, ARTIFACT_SERVICE)
        health = serve_health(server, services)
        await server.start()
        joining = await self._listen_for_joins(parts.authority)
        try:
            await set_serving(health, services)
            _LOG.info("%s listens at port %d", self.node_id.uri, self.port)
            self.started.set()
            await self._stopping.wait()
            await health.enter_graceful_shutdown()
            await parts.downstream.drain(self.config.drain_s)
            await parts.upstream.drain()
        finally:
            if joining is not None:
                await joining.stop(0)
            await server.stop(self.config.drain_s if self._stopping.is_set() else 0)

    async def _listen_for_joins(self, authority: Authority) -> grpc.aio.Server | None:
        """The port where store hubs join, if there is to be one."""
        if not self.config.join_listen:
            return None
        service = JoinService(self.node_id, partial(authority.join, self.node_id), self._clock, self.port)
        server, self.join_port = make_join_server(self.credentials, self.config.join_listen, service)
        await server.start()
        _LOG.info("store hubs join at port %d", self.join_port)
        return server

    async def _report_status(self, parts: Parts, ground: Ground) -> None:
        """This hub's own status, now and then."""
        blobs, log = ground.blobs, ground.log
        while True:
            status = HubStatus(
                hub=self.node_id.path,
                at=self._clock.now(),
                software_version=__version__,
                incarnation=log.incarnation,
                devices_connected=parts.registry.devices_connected,
                cache_bytes=blobs.used_bytes,
                cache_quota_bytes=blobs.quota_bytes,
                cache=statistics_of(blobs, ground.scrub.progress, len(ground.store.incidents.all)),
                origin=_shown(f"{self.config.origin.url}: {ground.timetable.describe()}"),
                seeded=parts.seeding.seeded,
                derived=sizes_told(parts.deriving.made),
            )
            parts.statuses.set("hub", encode(status))
            await asyncio.sleep(STATUS_PERIOD_S)


async def main(directory: Path) -> None:
    """Run the super hub of a directory until SIGTERM or SIGINT."""
    hub = SuperHub(directory, SystemClock(), SystemRandom())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, hub.stop)
    await hub.run()


def _shown(text: str) -> str:
    """As much of it as a status takes."""
    return text.encode()[:MOST_SHOWN_BYTES].decode("utf-8", "ignore")


def _read_root(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        msg = f"cannot read the pinned TUF root {path}: {error.strerror}; put the fleet's first one, 1.root.json, there"
        raise TrustRootError(msg) from error
