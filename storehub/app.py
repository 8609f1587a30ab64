"""The store hub's composition root: opens what is durable, joins the parts, runs them in one TaskGroup.

    DIR/config.toml  DIR/identity/  DIR/trust/root.json  DIR/state/hub.sqlite3  DIR/state/cache/

It starts and runs the same whether the super hub can be reached or not. On stop it says goodbye in both directions, so
that children come back at once to the next process and the parent knows at once that this one is gone.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from storehub.asks import Asks
from storehub.belief import Belief
from storehub.cache import Cache
from storehub.cacheplan import CacheViews, statistics
from storehub.clockguard import ClockGuard
from storehub.config import load
from storehub.hub import Hub
from storehub.intents import Intents
from storehub.operator import SERVICE_NAME as OPERATOR_SERVICE
from storehub.operator import OperatorApi
from storehub.paced import PacedReader
from storehub.prefetching import Prefetching
from storehub.registry import Registry
from storehub.reportlog import HubReportLog, snapshot_of
from storehub.scheduler import Scheduler
from storehub.service import DeviceRegistry
from storehub.statuses import Statuses
from storehub.store import HubStore
from storehub.tracing import Tracing
from storehub.upstream import HubSink
from storehub.views import Views
from wavemesh import __version__
from wavemesh.artifacts.blobstore import BlobStore
from wavemesh.artifacts.transfer import SERVICE_NAME as ARTIFACT_SERVICE
from wavemesh.artifacts.transfer import ArtifactServer
from wavemesh.artifacts.yielding import YieldingReader
from wavemesh.errors import LocalError
from wavemesh.identity.live import LiveCredentials
from wavemesh.identity.nodes import NodeId, Role
from wavemesh.identity.renewal import Renewal
from wavemesh.identity.sqlite import SqliteRetirements
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.durable import Disk
from wavemesh.runtime.grpc import make_bulk_channel, make_server, serve_health, set_serving
from wavemesh.runtime.joining import JoinService, make_join_server
from wavemesh.runtime.peers import Peers
from wavemesh.session.downstream import SERVICE_NAME as SESSION_SERVICE
from wavemesh.session.link import DownstreamOptions, SessionDownstream, SessionUpstream, UpstreamOptions
from wavemesh.session.parent import ParentOptions
from wavemesh.session.sqlite import SqliteCursors, SqliteResources
from wavemesh.telemetry.export import ship, way_for
from wavemesh.telemetry.outbox import Outbox
from wavemesh.trust.freshness import ClockSource

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import grpc

    from wavemesh.runtime.clock import Clock

_LOG = logging.getLogger(__name__)
STOP_GRACE_S = 2.0
RETURN_AFTER_S = 0.5
PRUNE_INTERVAL_S = 300.0


class BadRoleError(LocalError):
    """The identity in this directory is not a store hub's."""

    reason = "BAD_ROLE"


class _StoppedError(Exception):
    """Ends the TaskGroup after an orderly stop."""


@dataclass(frozen=True, slots=True)
class App:
    """A store hub, joined and not yet running."""

    hub: Hub
    server: grpc.aio.Server
    port: int
    upstream: SessionUpstream
    downstream: SessionDownstream
    scheduler: Scheduler
    cache: Cache
    statuses: Statuses
    asks: Asks
    intents: Intents
    renewal: Renewal
    joining: grpc.aio.Server | None
    join_port: int
    registry: Registry


@dataclass(frozen=True, slots=True)
class Opened:
    """What is durable, opened: the hub, its own identity, and which certificates of devices were seen in use."""

    hub: Hub
    live: LiveCredentials
    retirements: SqliteRetirements
    identity: Path


async def open_hub(directory: Path, clock: Clock) -> Opened:
    """Open everything durable; raises LocalError."""
    config = load(directory)
    credentials = LiveCredentials.load(directory / "identity")
    if credentials.node_id.role is not Role.STORE_HUB:
        msg = f"{directory / 'identity'} is of {credentials.node_id.uri}, not of a store hub"
        raise BadRoleError(msg)
    root = _read_root(directory / "trust" / "root.json")
    Disk().make_dir(directory / "state")
    store = await HubStore.open(directory / "state" / "hub.sqlite3")
    async with AsyncExitStack() as undo:
        undo.push_async_callback(store.close)
        outbox = Outbox(credentials.node_id, store.database, clock, config.telemetry)
        await outbox.load()
        hub = Hub(
            credentials=credentials,
            config=config,
            clock=clock,
            store=store,
            log=await HubReportLog.open(store.database, snapshot_of(store, credentials.node_id.path)),
            resources=await SqliteResources.open(store.database),
            cursors=SqliteCursors(store.database),
            belief=Belief(credentials.node_id.path, root, credentials.authorities),
            clock_guard=ClockGuard(store, ClockSource.HARDWARE if config.hardware_clock else ClockSource.UNCONFIRMED),
            tracing=Tracing(credentials.node_id, outbox, clock),
        )
        retirements = await SqliteRetirements.open(store.database)
        opened = Opened(hub, credentials, retirements, directory / "identity")
        undo.pop_all()
    return opened


def _read_root(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        msg = f"cannot read the pinned TUF root {path}: {error.strerror}; `edgectl node join` lays it"
        raise BadRoleError(msg) from error


def join(opened: Opened, blobs: BlobStore, group: asyncio.TaskGroup) -> App:
    """Join the parts; fetches of the cache become tasks of ``group``."""
    hub, credentials = opened.hub, opened.live
    config = hub.config
    parent = NodeId(credentials.node_id.fleet, credentials.node_id.path.rsplit("/", 2)[0])
    rng = random.Random()  # noqa: S311  # jitter, not a secret
    intents = Intents(hub)
    sink = HubSink(hub, intents)
    sink.restore()
    upstream = _upstream(opened, parent, sink, rng)
    scheduler = Scheduler(hub)
    reader = PacedReader(
        YieldingReader(partial(make_bulk_channel, credentials, config.parent, parent), hub.clock),
        hub.clock,
        window_bytes_per_s=config.window_bytes_per_s,
        day_bytes_per_s=config.day_bytes_per_s,
    )
    cache = Cache(hub, blobs, reader, group, rng)
    prefetching = Prefetching(hub, cache, reader.meter)
    reader.is_windowed = prefetching.is_windowed
    views = Views(hub, cache, scheduler, upstream, partial(statistics, cache))
    statuses = Statuses(hub, views, upstream.set_status)
    asks = Asks(hub, upstream)
    registry = DeviceRegistry(hub, asks, statuses.device_changed)
    terms = ParentOptions(__version__, heartbeat_interval_s=config.heartbeat_interval_s)
    peers = Peers(credentials.authorities, hub.clock, opened.retirements)
    # Between ARM and outcome: nobody else at this hub has a clock running against it.
    options = DownstreamOptions(terms=terms, is_pressing=lambda child: child.path in hub.store.slots)
    downstream = SessionDownstream(credentials.node_id, registry, hub.clock, peers, options)
    server, port = make_server(
        credentials, address=config.listen, maximum_concurrent_rpcs=config.maximum_concurrent_rpcs, peers=peers
    )
    downstream.add_to(server)
    ArtifactServer(credentials.node_id, cache, peers).add_to(server)
    shown = CacheViews(hub, cache)
    OperatorApi(hub, intents, views, prefetching=prefetching, cache=shown, peers=peers).add_to(server)
    hub.is_cached = blobs.has
    hub.changed = downstream.changed
    hub.wake_upstream = upstream.wake
    hub.tracing.is_dark = lambda: not upstream.is_connected
    if isinstance(hub.log, HubReportLog):
        hub.log.listener = intents.acknowledged
    apps = Registry(hub, cache, peers, opened.identity)
    renewal = Renewal(
        live=credentials,
        upstream=upstream,
        clock=hub.clock,
        rng=rng,
        renewed=apps.reload,
        floor=lambda: hub.clock_guard.floor,
    )
    joining, join_port = _joining(hub, asks, port)
    return App(
        hub=hub,
        server=server,
        port=port,
        upstream=upstream,
        downstream=downstream,
        scheduler=scheduler,
        cache=cache,
        statuses=statuses,
        asks=asks,
        intents=intents,
        renewal=renewal,
        joining=joining,
        join_port=join_port,
        registry=apps,
    )


def _upstream(opened: Opened, parent: NodeId, sink: HubSink, rng: random.Random) -> SessionUpstream:
    hub, config = opened.hub, opened.hub.config
    return SessionUpstream(
        credentials=opened.live,
        parent=parent,
        address=config.parent,
        log=hub.log,
        sink=sink,
        clock=hub.clock,
        rng=rng,
        software_version=__version__,
        options=UpstreamOptions(backoff_base_s=config.reconnect_min_s, backoff_cap_s=config.reconnect_max_s),
    )


def _joining(hub: Hub, asks: Asks, session_port: int) -> tuple[grpc.aio.Server | None, int]:
    """The port where devices join, if there is to be one."""
    if not hub.config.join_listen:
        return None, 0
    service = JoinService(hub.credentials.node_id, asks.certificates.join, hub.clock, session_port)
    return make_join_server(hub.credentials, hub.config.join_listen, service)


async def run(
    directory: Path, stop: asyncio.Event, ready: Callable[[App], None] | None = None, clock: Clock | None = None
) -> None:
    """Run a store hub until ``stop`` is set; ``ready`` is called once it listens. Raises LocalError."""
    opened = await open_hub(directory, clock or SystemClock())
    hub = opened.hub
    try:
        blobs = await BlobStore.open(directory / "state" / "cache", hub.config.quota_bytes, hub.clock)
        async with asyncio.TaskGroup() as group, AsyncExitStack() as stack:
            app = join(opened, blobs, group)
            await app.intents.acknowledged(hub.log.first_number - 1)
            await _start(app)
            if hub.config.registry_listen:
                port = await stack.enter_async_context(app.registry.serving(hub.config.registry_listen))
                _LOG.info("container runtimes pull at port %d", port)
            for part in (
                app.upstream.run(),
                app.scheduler.run(),
                app.cache.run(),
                app.cache.scrub.run(),
                app.statuses.run(),
                _prune(app),
                ship(hub.tracing.outbox, way_for(hub.config.telemetry, app.upstream, hub.log), random.Random()),  # noqa: S311
                app.renewal.run(),
            ):
                group.create_task(part)
            if ready is not None:
                ready(app)
            await stop.wait()
            await _drain(app)
            raise _StoppedError
    except* _StoppedError:
        _LOG.info("stopped")
    finally:
        await hub.store.close()


async def _start(app: App) -> None:
    services = (SESSION_SERVICE, ARTIFACT_SERVICE, OPERATOR_SERVICE)
    health = serve_health(app.server, services)
    await app.server.start()
    await set_serving(health, services)
    _LOG.info("%s listens at port %d", app.hub.path, app.port)
    if app.joining is not None:
        await app.joining.start()
        _LOG.info("devices join at port %d", app.join_port)


async def _prune(app: App) -> None:
    while True:
        try:
            await app.asks.prune_logs()
        except LocalError as error:
            _LOG.error("old logs stay for now: %s", error)  # the error says all there is to say
        await asyncio.sleep(PRUNE_INTERVAL_S)


async def _drain(app: App) -> None:
    _LOG.info("stopping")
    if app.joining is not None:
        await app.joining.stop(0)
    await app.downstream.drain(RETURN_AFTER_S)
    await app.upstream.drain()
    await app.server.stop(STOP_GRACE_S)


async def main(directory: Path) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await run(directory, stop)
