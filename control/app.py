"""Control put together: opens what is on disk, serves super hubs and operators, keeps time, drains.

On SIGTERM children are told to come back later, watchers are let go, calls in flight finish, and the database closes. A
kill at any other moment loses nothing that was acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
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
from control.fleet import Fleet
from control.intents import Intents
from control.queries import Queries
from control.releases import Releases
from control.reports import Reports
from control.service import ControlRegistry
from control.signing import Signing
from control.waves import Waves
from wavemesh import __version__
from wavemesh.errors import LocalError
from wavemesh.identity.credentials import NodeCredentials
from wavemesh.identity.nodes import Role
from wavemesh.runtime.config import load_config
from wavemesh.runtime.grpc import make_server, serve_health, set_serving
from wavemesh.session import downstream as session
from wavemesh.session.parent import ParentOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from wavemesh.runtime.clock import Clock

_LOG = logging.getLogger(__name__)
_EPOCH_BYTES = 16
_RETURN_AFTER_S = 1.0
_SERVICES = (session.SERVICE_NAME, operator_api.SERVICE_NAME)


class NotControlError(LocalError):
    """The certificate is not one of a control replica, or the pinned root is missing."""

    reason = "NOT_CONTROL"


@dataclass(frozen=True, slots=True)
class Control:
    """A running control; ``port`` is where it listens."""

    port: int
    downstream: session.SessionDownstream
    waves: Waves
    releases: Releases
    intents: Intents
    fleet: Fleet
    _database: Database
    _changes: Changes

    async def tick(self) -> None:
        """Do what the clock alone makes due."""
        async with self._database.transaction() as tx:
            await self.releases.refresh(tx)
            await self.waves.settle_all(tx)
            await self.waves.forget_closed(tx)
            await self.intents.expire(tx)
        await self.intents.progress()
        self._changes.notify()


async def run(directory: Path, clock: Clock, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set, then drain."""
    config = load_config(directory / "config.toml", Config)
    async with serving(directory, config, clock) as control, asyncio.TaskGroup() as group:
        ticking = group.create_task(_tick_forever(control, config.tick_s))
        await stop.wait()
        ticking.cancel()


@asynccontextmanager
async def serving(directory: Path, config: Config, clock: Clock) -> AsyncIterator[Control]:
    """A control that serves inside the block; nothing is due by the clock unless ``tick`` is called."""
    credentials = NodeCredentials.load(directory / "identity")
    credentials.check_validity(clock.now())
    node_id = credentials.node_id
    if node_id.role is not Role.CONTROL:
        msg = f"{directory / 'identity'} is the identity of {node_id.uri}, which is no control"
        raise NotControlError(msg)
    database = await Database.open(directory / "state" / "control.sqlite")
    async with contextlib.aclosing(database):
        desired = await DesiredState.load(database, await _epoch(database))
        signing = Signing.load(directory / "keys", node_id.uri)
        releases = Releases(_pinned_root(directory), desired=desired, signing=signing, clock=clock, config=config)
        async with database.transaction() as tx:
            await releases.load(tx, directory / "trust" / "bootstrap")
        changes, fleet = Changes(), Fleet()
        waves = Waves(desired=desired, releases=releases, signing=signing, clock=clock, config=config)
        intents = Intents(
            database=database,
            desired=desired,
            waves=waves,
            fleet=fleet,
            changes=changes,
            clock=clock,
            config=config,
        )
        await intents.load()
        reports = Reports(
            database=database,
            waves=waves,
            intents=intents,
            fleet=fleet,
            ca_certificates=credentials.ca_certificates,
            clock=clock,
        )
        registry = ControlRegistry(
            fleet_name=node_id.fleet,
            database=database,
            desired=desired,
            fleet=fleet,
            reports=reports,
            waves=waves,
            intents=intents,
            signing=signing,
            changes=changes,
            ca_certificates=credentials.ca_certificates,
            clock=clock,
        )
        await registry.load()
        terms = ParentOptions(__version__, heartbeat_interval_s=config.heartbeat_s)
        downstream = session.SessionDownstream(node_id, registry, clock, session.DownstreamOptions(terms=terms))
        desired.subscribe(downstream.changed)
        queries = Queries(
            source=node_id.path,
            database=database,
            desired=desired,
            fleet=fleet,
            intents=intents,
            releases=releases,
        )
        api = operator_api.OperatorApi(
            fleet_name=node_id.fleet,
            database=database,
            waves=waves,
            intents=intents,
            releases=releases,
            registry=registry,
            fleet=fleet,
            queries=queries,
            changes=changes,
            ca_certificates=credentials.ca_certificates,
            clock=clock,
            config=config,
        )
        server, port = make_server(
            credentials, address=config.listen, maximum_concurrent_rpcs=config.maximum_concurrent_rpcs
        )
        downstream.add_to(server)
        api.add_to(server)
        health = serve_health(server, _SERVICES)
        await server.start()
        await set_serving(health, _SERVICES)
        _LOG.info("%s listens at port %d", node_id.uri, port)
        try:
            yield Control(port, downstream, waves, releases, intents, fleet, database, changes)
        finally:
            _LOG.info("draining")
            await health.enter_graceful_shutdown()
            changes.end()
            await downstream.drain(_RETURN_AFTER_S)
            await server.stop(config.drain_s)


async def _tick_forever(control: Control, interval_s: float) -> None:
    while True:
        await asyncio.sleep(interval_s)
        await control.tick()


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
