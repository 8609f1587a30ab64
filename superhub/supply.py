"""What stores may fetch, what is made of it for them, and who keeps it right: wired, for ``app.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from superhub.config import DerivingStart
from superhub.deriving import Deriving
from superhub.healing import Healing
from superhub.seeding import Seeding
from wavemesh.artifacts.making import Makers
from wavemesh.runtime.durable import Disk

if TYPE_CHECKING:
    import asyncio
    from pathlib import Path

    from superhub.acceptance import Acceptance
    from superhub.config import SuperHubConfig
    from superhub.derived import Derived
    from superhub.events import Events
    from superhub.opening import OpenOrigin
    from superhub.running import Running
    from superhub.store import RegionStore
    from superhub.timetable import Timetable
    from superhub.tracing import Tracing
    from wavemesh.artifacts.blobstore import BlobStore
    from wavemesh.artifacts.fetching import Fetches
    from wavemesh.artifacts.scrubbing import Scrub
    from wavemesh.runtime.clock import Clock
    from wavemesh.runtime.peers import Peers
    from wavemesh.session.sqlite import SqliteReportLog, SqliteResources
    from wavemesh.trust.statements import Digest


@dataclass(frozen=True, slots=True)
class Ground:
    """What the parts stand on: all that was opened from disk."""

    store: RegionStore
    blobs: BlobStore
    fetches: Fetches
    log: SqliteReportLog
    resources: SqliteResources
    tracing: Tracing
    peers: Peers
    scrub: Scrub
    origin: OpenOrigin
    timetable: Timetable
    derived: Derived
    group: asyncio.TaskGroup


@dataclass(frozen=True, slots=True)
class Supply:
    """The parts."""

    seeding: Seeding
    deriving: Deriving
    healing: Healing


@dataclass(frozen=True, slots=True)
class Region:
    """Whose supply it is: its name, where it keeps what it makes, how it is configured."""

    name: str
    directory: Path
    config: SuperHubConfig
    clock: Clock


def supply(region: Region, ground: Ground, acceptance: Acceptance, events: Events, running: Running) -> Supply:
    """Make the parts and let them know each other."""

    async def bring(digest: Digest) -> None:
        await seeding.bring(digest)

    async def make_room(digest: Digest) -> None:
        await seeding.make_room_for_derived(digest)

    config, deltas = region.config, region.config.deltas
    healing = Healing(ground.store, ground.blobs, events, region.clock)
    deriving = Deriving(
        directory=region.directory / "state" / "deriving",
        blobs=ground.blobs,
        derived=ground.derived,
        makers=Makers(parallel=deltas.parallel, make_bounds=deltas.bounds),
        limits=deltas.limits,
        is_on=deltas.enabled,
        clock=region.clock,
        group=ground.group,
        bring=bring,
        make_room=make_room,
        disk=Disk(),
    )
    seeding = Seeding(
        region=region.name,
        max_age=config.compliance.max_age,
        store=ground.store,
        blobs=ground.blobs,
        fetches=ground.fetches,
        acceptance=acceptance,
        events=events,
        healing=healing,
        deriving=deriving,
        running=running,
        derive_on_entry=deltas.start is DerivingStart.ENTERED,
        clock=region.clock,
        tracing=ground.tracing,
        check_time=ground.timetable.check,
    )
    return Supply(seeding, deriving, healing)
