"""Wrong bytes in the region's cache: told to control, set aside, fetched from the origin again, all that durably.

Rules (H2, ADR 35): one transaction appends the event ``cache-mismatch`` and notes an incident; only then is the wrong
file moved into quarantine. What an order names is fetched again at once, the rest when a store asks for it. Once this
process has verified the blob, one transaction drops the incident and tells ``cache-healed``. An incident of a blob that
no order names is dropped a day later, so that an origin with wrong bytes is told of once a day, however often it is
asked. A super hub has no waves to pause: the stores that lack the blob wait for it, the others go on.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING

from wavemesh.artifacts.blobstore import BlobMismatchError
from wavemesh.artifacts.incidents import Incident
from wavemesh.errors import LocalError, NotFoundError, WavemeshError
from wavemesh.policy.gates import Gate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from superhub.events import Events
    from superhub.store import RegionStore
    from wavemesh.artifacts.blobstore import BlobStore
    from wavemesh.runtime.clock import Clock
    from wavemesh.trust.statements import Digest

_LOG = logging.getLogger(__name__)
RETRY_S = 30.0
"""Between two looks at what is not healed yet."""
FORGOTTEN_AFTER = timedelta(days=1)
"""How long an incident of a blob that nobody needs stays open."""


class Healing:
    """The keeper of one region's blobs."""

    def __init__(self, store: RegionStore, blobs: BlobStore, events: Events, clock: Clock) -> None:
        """Suspects are looked at as soon as there is one, once ``run`` runs."""
        self._store = store
        self._blobs = blobs
        self._events = events
        self._clock = clock
        self._lock = asyncio.Lock()
        self._called = asyncio.Event()
        blobs.keep(self._called.set)

    def call(self) -> None:
        """Something changed that may heal, or end, an incident."""
        self._called.set()

    async def run(self, is_needed: Callable[[Digest], bool], refetch: Callable[[Digest], Awaitable[None]]) -> None:
        """Tell and heal for as long as the hub runs.

        ``is_needed`` says whether an order names a blob; ``refetch`` begins to fetch it, or raises WavemeshError.
        """
        while True:
            self._called.clear()
            try:
                await self._settle(is_needed, refetch)
            except LocalError as error:
                _LOG.error("cache: %s", error)  # the error says all there is to say
            try:
                async with asyncio.timeout(RETRY_S if self._store.incidents.all or self._blobs.suspects else None):
                    await self._called.wait()
            except TimeoutError:
                continue

    async def tell_suspects(self) -> None:
        """Tell of every suspect, then set it aside; one that cannot be now is one still."""
        async with self._lock:
            for digest, error in dict(self._blobs.suspects).items():
                try:
                    await self._note(digest, str(error))
                    await self._blobs.set_aside(digest)
                except LocalError as refused:
                    _LOG.error("cache: %s; and that cannot be told and set aside: %s", error, refused)

    async def _note(self, digest: Digest, detail: str) -> None:
        """Tell and note in one transaction; an incident that is open already is not told again."""
        _LOG.error("cache: %s", detail)
        if digest in self._store.incidents.all:
            return
        incident = Incident(digest, self._clock.now(), detail)
        async with self._store.database.transaction() as tx:
            await self._store.incidents.put(tx, incident)
            await self._events.append_once(
                tx,
                "cache-mismatch",
                digest.sha256,
                detail,
                gate=Gate.CHECKSUM.value,
                about=incident.found_at.isoformat(),  # rot may come again: each time is told
            )
            tx.on_commit(self._events.appended)

    async def _settle(self, is_needed: Callable[[Digest], bool], refetch: Callable[[Digest], Awaitable[None]]) -> None:
        await self.tell_suspects()
        for digest, incident in list(self._store.incidents.all.items()):
            if self._blobs.has(digest):
                await self._heal(incident)
            elif digest in self._blobs.suspects:
                continue
            elif is_needed(digest):
                try:
                    await refetch(digest)
                except WavemeshError as error:
                    _LOG.warning("cache: blob %s is not fetched again yet: %s", digest.sha256, error)
            elif self._clock.now() - incident.found_at > FORGOTTEN_AFTER:
                async with self._store.database.transaction() as tx:
                    await self._store.incidents.drop(tx, digest)

    async def _heal(self, incident: Incident) -> None:
        """Say that a blob is healed, once it is verified."""
        digest = incident.digest
        if not self._blobs.is_verified(digest):
            try:
                await self._blobs.scrub(digest)
            except BlobMismatchError:
                await self.tell_suspects()
                return
            except NotFoundError:
                return
        async with self._store.database.transaction() as tx:
            await self._store.incidents.drop(tx, digest)
            await self._events.append_once(
                tx,
                "cache-healed",
                digest.sha256,
                "",
                gate=Gate.CHECKSUM.value,
                about=incident.found_at.isoformat(),
            )
            tx.on_commit(self._events.appended)
        self._blobs.counters.healed += 1
