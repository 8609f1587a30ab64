"""The campaign finds what it is for: a fault put into a hub makes it fail, and it names the point (H6, M3, S3)."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

from storehub import swaps
from storehub.belief import Belief
from storehub.healing import Healing as StoreHealing
from storehub.hub import Hub
from storehub.intents import Intents
from storehub.scheduler import Scheduler
from storehub.service import DeviceRegistry
from storehub.store import HubStore
from superhub import issued
from superhub.healing import Healing as RegionHealing
from superhub.intake import Intake
from superhub.seeding import Seeding
from superhub.store import RegionStore
from tests.crashpoints.campaign import Options, explore, replay
from tests.crashpoints.components import tale_of
from wavemesh.artifacts.blobstore import BlobStore
from wavemesh.artifacts.incidents import Incidents
from wavemesh.artifacts.partial import PartialFile
from wavemesh.identity.sqlite import SqliteRetirements
from wavemesh.session.sqlite import SqliteCursors, SqliteReportLog, SqliteResources

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

OPTIONS = Options(double_of=0, ends_at_first_failure=True)
MOMENT_S = 0.05


def said_before_done(owner: Any, name: str) -> AbstractContextManager[Any]:
    """The call returns at once, and what it stands for is durable a moment later."""
    done = getattr(owner, name)
    running: set[asyncio.Task[None]] = set()

    async def later(*arguments: Any, **named: Any) -> None:
        await asyncio.sleep(MOMENT_S)  # plays: the time until it is on disk, virtual
        await done(*arguments, **named)

    async def at_once(*arguments: Any, **named: Any) -> None:
        running.add(asyncio.Task(later(*arguments, **named)))  # nobody waits for it: that is the fault

    return patch.object(owner, name, at_once)


def unflushed_blob() -> AbstractContextManager[Any]:
    """A blob gets its name before its bytes are durable."""
    finish = PartialFile.finish

    def finish_unflushed(self: PartialFile, target: Any) -> None:
        with patch.object(type(self._disk), "fsync", lambda *_: None):
            finish(self, target)

    return patch.object(PartialFile, "finish", finish_unflushed)


def acknowledged_before_commit() -> AbstractContextManager[Any]:
    """A device's report is acknowledged before it is on disk."""
    return said_before_done(DeviceRegistry, "apply_reports")


@contextmanager
def moved_apart(registry: Any, name: str, *, is_first: bool) -> Iterator[None]:
    """The cursor moves in a transaction of its own, before that of the effect or after it."""
    advance, apply = SqliteCursors.advance, getattr(registry, name)

    async def apart(self: Any, child: Any, incarnation: str, first: int, reports: Any) -> None:
        cursors = self._hub.cursors if hasattr(self, "_hub") else self._cursors

        async def move() -> None:
            async with cursors._database.transaction() as tx:
                await advance(cursors, tx, child.path, incarnation, first + len(reports) - 1)

        if is_first:
            await move()
        await apply(self, child, incarnation, first, reports)
        if not is_first:
            await move()

    async def nothing(*_: object) -> None:
        """Moved apart."""

    with patch.object(registry, name, apart), patch.object(SqliteCursors, "advance", nothing):
        yield


def lease_sent_before_it_is_persisted() -> AbstractContextManager[Any]:
    """A device is told of its lease while the transaction is open."""
    grant = Scheduler._grant

    async def grant_early(self: Scheduler, tx: Any, slot: Any) -> None:
        await grant(self, tx, slot)
        tx.committed()
        self._hub.changed(None)
        await asyncio.sleep(MOMENT_S)  # plays: the time until it is on disk, virtual

    return patch.object(Scheduler, "_grant", grant_early)


def outcome_passed_on_later() -> AbstractContextManager[Any]:
    """An outcome is counted in one transaction and goes up by another."""
    report = Hub.report_outcomes

    async def report_apart(self: Hub, tx: Any, *outcomes: Any) -> None:
        async def later() -> None:
            async with self.store.database.transaction() as own:
                await report(self, own, *outcomes)

        tx.on_commit(lambda: running.append(asyncio.Task(later())))  # nobody waits for it: that is the fault

    running: list[asyncio.Task[None]] = []
    return patch.object(Hub, "report_outcomes", report_apart)


def resource_shown_before_it_is_stored() -> AbstractContextManager[Any]:
    """The parent is told that a resource is held, and it is held in memory."""
    store = SqliteResources.store

    async def store_in_memory(self: SqliteResources, tx: Any, changed: Any, removed: Any) -> None:
        await store(self, tx, changed, removed)
        await tx.execute("DELETE FROM session_resources")

    return patch.object(SqliteResources, "store", store_in_memory)


def pause_in_memory() -> AbstractContextManager[Any]:
    """A pause is forgotten by a restart."""
    put = HubStore.put_pause

    async def put_in_memory(self: HubStore, tx: Any, pause: Any) -> None:
        await put(self, tx, pause)
        await tx.execute("DELETE FROM pauses")

    return patch.object(HubStore, "put_pause", put_in_memory)


def intent_answered_before_commit() -> AbstractContextManager[Any]:
    """An operator has the answer before the intent is on disk."""
    return said_before_done(Intents, "submit")


def generations_forgotten() -> AbstractContextManager[Any]:
    """What control took back may come again in an older generation, after a restart."""
    return patch.object(Belief, "remember", lambda *_: None)


def leases_at_once() -> AbstractContextManager[Any]:
    """After a start, and as a new incarnation, the hub does not wait to hear where its devices are."""
    return patch.multiple(swaps, _has_settled=lambda *_: True, _unaccounted=lambda *_: set())


def mark_in_memory() -> AbstractContextManager[Any]:
    """What was sent is not known after a restart."""

    async def mark(self: SqliteReportLog, through: int) -> None:
        self._marked(through)

    return patch.object(SqliteReportLog, "mark_sent", mark)


def entered_after_the_first_byte() -> AbstractContextManager[Any]:
    """A release is seeded before its entry into the region is on disk."""
    return said_before_done(Seeding, "_note_entry")


def certificate_out_before_it_is_kept() -> AbstractContextManager[Any]:
    """A certificate leaves, and nobody remembers it."""

    async def keep(*_: object) -> None:
        """Forgotten."""

    return patch.object(issued, "keep", keep)


def retired_in_memory() -> AbstractContextManager[Any]:
    """An older certificate comes back after a restart."""

    async def used(self: SqliteRetirements, path: str, issued_at: Any) -> None:
        self._newest[path] = issued_at

    return patch.object(SqliteRetirements, "used", used)


def told_in_memory() -> AbstractContextManager[Any]:
    """What went up already goes up again after a restart."""
    is_first = RegionStore.is_first

    async def is_first_now(self: RegionStore, tx: Any, kind: str, name: str) -> bool:
        told: set[tuple[str, str]] = self.__dict__.setdefault("told", set())
        is_news = await is_first(self, tx, kind, name) and (kind, name) not in told
        told.add((kind, name))
        await tx.execute("DELETE FROM seen")
        return is_news

    return patch.object(RegionStore, "is_first", is_first_now)


def cursor_behind(registry: Any) -> AbstractContextManager[Any]:
    """The effect is durable before the cursor."""
    return moved_apart(registry, "apply_reports" if registry is DeviceRegistry else "apply", is_first=False)


def cursor_ahead(registry: Any) -> AbstractContextManager[Any]:
    """The cursor is durable before the effect."""
    return moved_apart(registry, "apply_reports" if registry is DeviceRegistry else "apply", is_first=True)


@contextmanager
def moved_before_it_is_told() -> Iterator[None]:
    """A wrong blob is set aside first, and told of afterwards."""

    async def tell_late(self: Any) -> None:
        async with self._lock:
            for digest, error in dict(self._blobs.suspects).items():
                await self._blobs.set_aside(digest)
                await self._note(digest, str(error))

    with (
        patch.object(StoreHealing, "tell_suspects", tell_late),
        patch.object(RegionHealing, "tell_suspects", tell_late),
    ):
        yield


@contextmanager
def healed_by_what_lies_there() -> Iterator[None]:
    """What is held counts as healed, though nobody has verified it."""
    with patch.object(BlobStore, "is_verified", BlobStore.has):
        yield


@contextmanager
def incident_in_memory() -> Iterator[None]:
    """What was told is told again after a restart."""
    put = Incidents.put

    async def put_in_memory(self: Incidents, tx: Any, incident: Any) -> None:
        await put(self, tx, incident)
        await tx.execute("DELETE FROM incidents")

    with patch.object(Incidents, "put", put_in_memory):
        yield


SPARSE = {generations_forgotten: 8, leases_at_once: 4}
"""One cut in so many steps will do: these show in the end alone, and a telling to the end takes its time."""


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("mutant", "component", "scenario", "problem"),
    [
        (unflushed_blob, "storehub", "store-wave", "does not hold its bytes"),
        (lambda: said_before_done(DeviceRegistry, "apply_reports"), "storehub", "store-wave", "the cursor of"),
        (lambda: cursor_behind(DeviceRegistry), "storehub", "store-wave", "went up before its cursor moved"),
        (lambda: cursor_ahead(DeviceRegistry), "storehub", "store-wave", "is counted and goes nowhere"),
        (lease_sent_before_it_is_persisted, "storehub", "store-wave", "no slot says so"),
        (outcome_passed_on_later, "storehub", "store-wave", "is counted and goes nowhere"),
        (resource_shown_before_it_is_stored, "storehub", "store-wave", "was taken and is gone"),
        (mark_in_memory, "storehub", "store-wave", "the parent is at report"),
        (lambda: said_before_done(Intents, "submit"), "storehub", "store-operators", "was answered and is gone"),
        (pause_in_memory, "storehub", "store-operators", "the pause was answered and is gone"),
        (generations_forgotten, "storehub", "store-trusting", "are known in generations"),
        (leases_at_once, "storehub", "store-restored", "may be inside a swap"),
        (moved_before_it_is_told, "storehub", "store-cached", "are gone, and nobody is told"),
        (healed_by_what_lies_there, "storehub", "store-cached", "was told 2 times"),
        (incident_in_memory, "storehub", "store-cached", "was told 2 times"),
        (moved_before_it_is_told, "superhub", "region-seeding", "are gone, and nobody is told"),
        (unflushed_blob, "superhub", "region-seeding", "does not hold its bytes"),
        (lambda: said_before_done(Intake, "apply"), "superhub", "region-rollup", "the cursor of"),
        (lambda: cursor_behind(Intake), "superhub", "region-rollup", "went up before its cursor moved"),
        (lambda: cursor_ahead(Intake), "superhub", "region-rollup", "is counted and goes nowhere"),
        (mark_in_memory, "superhub", "region-rollup", "the parent is at report"),
        (told_in_memory, "superhub", "region-rollup", "went up 2 times"),
        (retired_in_memory, "superhub", "region-rollup", "older certificates may come back"),
        (lambda: said_before_done(Seeding, "_note_entry"), "superhub", "region-seeding", "has not entered the region"),
        (certificate_out_before_it_is_kept, "superhub", "region-issuing", "was issued and is not known"),
    ],
)
def test_a_fault_in_a_hub_is_found_and_its_point_named(
    mutant: Any, component: str, scenario: str, problem: str
) -> None:
    with mutant():
        result = explore(tale_of(component, "", scenario), replace(OPTIONS, single_of=SPARSE.get(mutant, 1)))
        [failure] = [one for one in result.failures if problem in " ".join(one.problems)][-1:]
        again, _ = replay(tale_of(component, "", scenario), failure.point, OPTIONS)
    assert any(problem in one for one in again), "the point fails again by its name"
