"""Control put together: opens what is on disk, serves super hubs and operators, keeps time, drains.

On SIGTERM children are told to come back later, watchers are let go, calls in flight finish, and the database closes. A
kill at any other moment loses nothing that was acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
import secrets
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from control import operator as operator_api
from control import store
from control.changes import Changes
from control.config import Config
from control.database import Database
from control.desired import DesiredState
from control.enrolments import ControlRetirements, Enrolments
from control.fleet import Fleet
from control.intents import Intents
from control.listings import Listings
from control.origins import Origins
from control.queries import Queries
from control.reconciling import Reconciling
from control.recovery import Recovery
from control.releases import Releases
from control.reports import Reports
from control.revocations import Revocations
from control.service import ControlRegistry
from control.signing import Signing
from control.tracing import ControlTables, Tracing
from control.waves import Waves
from wavemesh import __version__
from wavemesh.errors import LocalError
from wavemesh.identity.credentials import NodeCredentials
from wavemesh.identity.files import sweep_pairs
from wavemesh.identity.nodes import Role
from wavemesh.runtime.config import load_config
from wavemesh.runtime.durable import Disk
from wavemesh.runtime.grpc import make_server, serve_health, set_serving
from wavemesh.runtime.peers import Peers
from wavemesh.session import downstream as session
from wavemesh.session.parent import ParentOptions
from wavemesh.telemetry.export import ship, way_for
from wavemesh.telemetry.outbox import Outbox
from wavemesh.trust.tokens import KeyTokenError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from wavemesh.identity.authorities import Authorities
    from wavemesh.identity.nodes import NodeId
    from wavemesh.runtime.clock import Clock

_LOG = logging.getLogger(__name__)
_EPOCH_BYTES = 16
_RETURN_AFTER_S = 1.0
_SERVICES = (session.SERVICE_NAME, operator_api.SERVICE_NAME)


class NotControlError(LocalError):
    """The certificate is not one of a control replica, or the pinned root is missing."""

    reason = "NOT_CONTROL"


@dataclass(frozen=True, slots=True)
class Core:
    """What the adapters share."""

    database: Database
    desired: DesiredState
    signing: Signing
    releases: Releases
    revocations: Revocations
    waves: Waves
    intents: Intents
    fleet: Fleet
    enrolments: Enrolments
    changes: Changes
    clock: Clock
    config: Config
    tracing: Tracing
    reconciling: Reconciling
    origins: Origins


@dataclass(frozen=True, slots=True)
class Control:
    """A running control; ``port`` is where it listens, ``authorities`` whom it believes."""

    port: int
    core: Core
    authorities: Authorities

    async def tick(self) -> None:
        """Do what the clock alone makes due."""
        core = self.core
        async with core.database.transaction() as tx:
            await core.releases.refresh(tx)
            await core.revocations.refresh(tx)
            await core.waves.settle_all(tx)
            await core.waves.forget_closed(tx)
            await core.enrolments.expire(tx)
            await core.intents.expire(tx)
            await core.reconciling.tick(tx)
        await core.intents.progress()
        core.changes.notify()


async def run(directory: Path, clock: Clock, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set, then drain."""
    config = load_config(directory / "config.toml", Config)
    async with serving(directory, config, clock) as control, asyncio.TaskGroup() as group:
        ticking = group.create_task(_tick_forever(control, config.tick_s))
        shipping = group.create_task(
            ship(control.core.tracing.outbox, way_for(config.telemetry, None, None), random.SystemRandom())
        )
        await stop.wait()
        ticking.cancel()
        shipping.cancel()


@asynccontextmanager
async def serving(directory: Path, config: Config, clock: Clock) -> AsyncIterator[Control]:
    """A control that serves inside the block; nothing is due by the clock unless ``tick`` is called."""
    credentials = _credentials(directory, clock)
    database = await Database.open(directory / "state" / "control.sqlite")
    async with contextlib.aclosing(database):
        core = await _load(directory, credentials, database, config, clock)
        registry = _registry(core, credentials)
        await registry.load()
        terms = ParentOptions(__version__, heartbeat_interval_s=config.heartbeat_s)
        options = session.DownstreamOptions(terms=terms)
        peers = Peers(credentials.authorities, clock, await ControlRetirements.load(database))
        downstream = session.SessionDownstream(credentials.node_id, registry, clock, peers, options)
        core.desired.subscribe(downstream.changed)
        server, port = make_server(
            credentials, address=config.listen, maximum_concurrent_rpcs=config.maximum_concurrent_rpcs, peers=peers
        )
        downstream.add_to(server)
        _api(core, credentials, peers).add_to(server)
        health = serve_health(server, _SERVICES)
        await server.start()
        await set_serving(health, _SERVICES)
        _LOG.info("%s listens at port %d", credentials.node_id.uri, port)
        try:
            yield Control(port, core, credentials.authorities)
        finally:
            _LOG.info("draining")
            await health.enter_graceful_shutdown()
            core.changes.end()
            await downstream.drain(_RETURN_AFTER_S)
            await server.stop(config.drain_s)


async def _load(
    directory: Path, credentials: NodeCredentials, database: Database, config: Config, clock: Clock
) -> Core:
    """Take up what is on disk."""
    desired = await DesiredState.load(database, await _epoch(database))
    signing = Signing.load(directory / "keys", credentials.node_id.uri)
    root = _pinned_root(directory)
    releases = Releases(root, desired=desired, signing=signing, clock=clock, config=config)
    revocations = Revocations(credentials, desired=desired, signing=signing, clock=clock, config=config)
    async with database.transaction() as tx:
        await releases.load(tx, directory / "trust" / "bootstrap")
        await revocations.load(tx)
    changes, fleet = Changes(), Fleet()
    tracing = await _tracing(credentials.node_id, database, config, clock)
    waves = Waves(
        desired=desired,
        releases=releases,
        revocations=revocations,
        signing=signing,
        clock=clock,
        config=config,
        tracing=tracing,
    )
    intents = Intents(
        database=database,
        desired=desired,
        waves=waves,
        releases=releases,
        fleet=fleet,
        changes=changes,
        clock=clock,
        config=config,
    )
    await intents.load()
    enrolments = Enrolments(
        fleet_name=credentials.node_id.fleet,
        trust_root_sha256=hashlib.sha256(root).hexdigest(),
        desired=desired,
        signing=signing,
        fleet=fleet,
        clock=clock,
    )
    return Core(
        database=database,
        desired=desired,
        signing=signing,
        releases=releases,
        revocations=revocations,
        waves=waves,
        intents=intents,
        fleet=fleet,
        enrolments=enrolments,
        changes=changes,
        clock=clock,
        config=config,
        tracing=tracing,
        reconciling=Reconciling(
            database=database, desired=desired, fleet=fleet, clock=clock, config=config, actor=signing.uri
        ),
        origins=Origins(config.origins, directory / "config.toml", releases=releases, clock=clock),
    )


async def _tracing(node: NodeId, database: Database, config: Config, clock: Clock) -> Tracing:
    outbox = Outbox(node, ControlTables(database), clock, config.telemetry)
    await outbox.load()
    return Tracing(node, outbox, clock)


def recovery_of(core: Core) -> Recovery:
    """What takes control's own words up again."""
    return Recovery(
        releases=core.releases,
        revocations=core.revocations,
        waves=core.waves,
        signing=core.signing,
        clock=core.clock,
    )


def _registry(core: Core, credentials: NodeCredentials) -> ControlRegistry:
    reports = Reports(
        database=core.database,
        waves=core.waves,
        intents=core.intents,
        revocations=core.revocations,
        fleet=core.fleet,
        enrolments=core.enrolments,
        recovery=recovery_of(core),
        authorities=credentials.authorities,
        clock=core.clock,
        tracing=core.tracing,
    )
    return ControlRegistry(
        fleet_name=credentials.node_id.fleet,
        database=core.database,
        desired=core.desired,
        fleet=core.fleet,
        reports=reports,
        waves=core.waves,
        intents=core.intents,
        enrolments=core.enrolments,
        signing=core.signing,
        changes=core.changes,
        authorities=credentials.authorities,
        clock=core.clock,
        outbox=core.tracing.outbox,
        releases=core.releases,
        origins=core.origins,
    )


def _api(core: Core, credentials: NodeCredentials, peers: Peers) -> operator_api.OperatorApi:
    queries = Queries(
        source=credentials.node_id.path,
        database=core.database,
        desired=core.desired,
        fleet=core.fleet,
        intents=core.intents,
        releases=core.releases,
        outbox=core.tracing.outbox,
    )
    listings = Listings(
        database=core.database,
        desired=core.desired,
        fleet=core.fleet,
        intents=core.intents,
        releases=core.releases,
    )
    return operator_api.OperatorApi(
        fleet_name=credentials.node_id.fleet,
        database=core.database,
        waves=core.waves,
        intents=core.intents,
        releases=core.releases,
        revocations=core.revocations,
        fleet=core.fleet,
        enrolments=core.enrolments,
        queries=queries,
        listings=listings,
        reconciling=core.reconciling,
        changes=core.changes,
        authorities=credentials.authorities,
        peers=peers,
        clock=core.clock,
        config=core.config,
    )


def _credentials(directory: Path, clock: Clock) -> NodeCredentials:
    credentials = NodeCredentials.load(directory / "identity")
    credentials.check_validity(clock.now())
    if credentials.node_id.role is not Role.CONTROL:
        msg = f"{directory / 'identity'} is the identity of {credentials.node_id.uri}, which is no control"
        raise NotControlError(msg)
    sweep_pairs(directory / "identity", Disk())
    return credentials


async def _tick_forever(control: Control, interval_s: float) -> None:
    while True:
        await asyncio.sleep(interval_s)
        try:
            await control.tick()
        except KeyTokenError as error:
            # A token that is away for a while stops what has to be signed, not the sessions; the next tick tries again.
            _LOG.error("nothing could be signed: %s", error)


async def _epoch(database: Database) -> str:
    """The epoch of resource versions, made on the first start."""
    async with database.transaction() as tx:
        epoch = await store.value(tx, "epoch")
        if not epoch:
            epoch = secrets.token_hex(_EPOCH_BYTES)
            await store.set_value(tx, "epoch", epoch)
        return epoch


def _pinned_root(directory: Path) -> bytes:
    path = directory / "trust" / "root.json"
    try:
        return path.read_bytes()
    except OSError as error:
        msg = f"{path}: {error.strerror}; put the pinned TUF root there"
        raise NotControlError(msg) from error
