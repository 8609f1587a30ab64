"""Wrong bytes in the store's cache: the waves pause here, control is told, the blob is fetched again, all that durably.

Rules (H2, ADR 35), in this order for each blob that the store suspects:

1. One transaction pauses every wave that needs the blob (origin ``hub:NAME``), appends the event ``cache-mismatch`` and
   notes an incident. Only then is the wrong file moved into quarantine. A power cut before the transaction leaves the
   file where the next read or scrub finds it again; one after it leaves the incident.
2. A blob with an incident that is held again counts only once this process has verified it, so that neither the wrong
   file that a cut left in place nor a copy of unknown worth heals anything.
3. When it is verified, one transaction drops the incident, lifts the pauses of waves that are whole, and tells control
   (``cache-healed``). An incident of a blob that nobody needs any more is dropped.

So each incident is told once, and nothing is healed that was not told.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from storehub.standing import PauseEffect, PauseHere
from wavemesh.artifacts.blobstore import BlobMismatchError
from wavemesh.artifacts.incidents import Incident
from wavemesh.errors import LocalError, NotFoundError
from wavemesh.policy.gates import Gate

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from storehub.hub import Hub
    from wavemesh.artifacts.blobstore import BlobStore
    from wavemesh.runtime.sqlite import Transaction
    from wavemesh.trust.statements import Digest

_LOG = logging.getLogger(__name__)
MAX_REASON_CHARACTERS = 500


class Healing:
    """The keeper of one store's blobs."""

    def __init__(self, hub: Hub, blobs: BlobStore, found: Callable[[Digest], None]) -> None:
        """``found`` is called with each blob whose incident is durable."""
        self._hub = hub
        self._blobs = blobs
        self._found = found
        self._incidents = hub.store.incidents
        self._lock = asyncio.Lock()
        blobs.keep(hub.bell.ring)

    @property
    def origin(self) -> str:
        """The origin of this hub's own pauses."""
        return f"hub:{self._hub.credentials.node_id.name}"

    @property
    def incidents(self) -> Collection[Digest]:
        """Blobs found wrong and not healed yet."""
        return self._incidents.all.keys()

    # -- found ------------------------------------------------------------------------------------------------------

    async def tell_suspects(self) -> None:
        """Pause and tell for every suspect, then set it aside; one that cannot be now is one still."""
        async with self._lock:
            for digest, error in dict(self._blobs.suspects).items():
                try:
                    await self._note(digest, str(error))
                    await self._blobs.set_aside(digest)
                except LocalError as refused:
                    _LOG.error("cache: %s; and that cannot be told and set aside: %s", error, refused)

    async def mismatch(self, error: BlobMismatchError) -> None:
        """The parent sent what is not the blob; where that left a file, it is a suspect."""
        if error.digest in self._blobs.suspects:
            await self.tell_suspects()
        else:
            async with self._lock:
                await self._note(error.digest, str(error))

    async def _note(self, digest: Digest, detail: str) -> None:
        """Pause, tell and note in one transaction; an incident that is open already is not told again."""
        _LOG.error("cache: %s", detail)
        async with self._hub.store.database.transaction() as tx:
            if digest not in self._incidents.all:
                await self._incidents.put(tx, Incident(digest, self._hub.clock.now(), detail))
                await self._tell_mismatch(tx, digest, Gate.CHECKSUM.value, detail)
            await self._pause(tx, digest, Gate.CHECKSUM.value, detail)
        self._found(digest)
        self._hub.changed(None)
        self._hub.bell.ring()

    async def pause_waves(self, digest: Digest, gate: str, detail: str) -> None:
        """Bytes that are the blob's, but may not be used: pause and tell."""
        async with self._hub.store.database.transaction() as tx:
            await self._tell_mismatch(tx, digest, gate, detail)
            await self._pause(tx, digest, gate, detail)
        self._hub.changed(None)

    async def _tell_mismatch(self, tx: Transaction, digest: Digest, gate: str, detail: str) -> None:
        await self._hub.report_event(tx, "cache-mismatch", gate=gate, subject=digest.sha256, detail=detail)

    async def _pause(self, tx: Transaction, digest: Digest, gate: str, detail: str) -> None:
        reason = f"{gate}: {detail}"[:MAX_REASON_CHARACTERS]
        for wave_id, record in list(self._hub.store.waves.items()):
            if record.closed_at is None and digest in record.blobs:
                await self._hub.store.put_pause(tx, PauseHere(wave_id, self.origin, reason, PauseEffect.PAUSE))

    # -- healed -----------------------------------------------------------------------------------------------------

    async def settle(self, needed: Callable[[Digest], bool], is_troubled: Callable[[Digest], bool]) -> None:
        """Tell what is found, verify what is doubtful, and say what is healed.

        ``needed`` says whether somebody needs a blob here; ``is_troubled`` whether something else is wrong with it.
        """
        await self.tell_suspects()
        await self._doubt()
        store, blobs = self._hub.store, self._blobs
        healed = {digest for digest in self.incidents if blobs.is_verified(digest)}
        obsolete = {
            digest
            for digest in self.incidents
            if not blobs.has(digest) and digest not in blobs.suspects and not needed(digest)
        }
        sick = set(self.incidents) - healed
        lifted = {
            wave_id: healed.intersection(store.waves[wave_id].blobs) if wave_id in store.waves else set()
            for wave_id, origin in store.pauses
            if origin == self.origin and self._is_whole(wave_id, sick, is_troubled)
        }
        if not (healed or obsolete or lifted):
            return
        async with store.database.transaction() as tx:
            for digest in healed | obsolete:
                await self._incidents.drop(tx, digest)
            for wave_id, mended in lifted.items():
                await store.drop_pause(tx, wave_id, self.origin)
                await self._tell_healed(tx, mended, wave_id)
            await self._tell_healed_alone(tx, healed.difference(*lifted.values()))
        blobs.counters.healed += len(healed)
        self._hub.changed(None)
        self._hub.bell.ring()

    def _is_whole(self, wave_id: str, sick: Collection[Digest], is_troubled: Callable[[Digest], bool]) -> bool:
        """Whether all that a wave needs is here and right; a wave that is forgotten needs nothing."""
        record = self._hub.store.waves.get(wave_id)
        return record is None or all(
            self._blobs.has(digest) and digest not in sick and not is_troubled(digest) for digest in record.blobs
        )

    async def _tell_healed(self, tx: Transaction, mended: Collection[Digest], wave_id: str) -> None:
        subject = ", ".join(sorted(digest.sha256 for digest in mended))
        gate = Gate.CHECKSUM.value
        await self._hub.report_event(tx, "cache-healed", gate=gate, wave_id=wave_id, subject=subject)

    async def _tell_healed_alone(self, tx: Transaction, healed: Collection[Digest]) -> None:
        """Of blobs that kept no wave waiting."""
        for digest in sorted(healed, key=lambda one: one.sha256):
            await self._tell_healed(tx, (digest,), "")

    async def _doubt(self) -> None:
        """Verify what has an incident and is held, by a process before this one."""
        for digest in list(self.incidents):
            if self._blobs.has(digest) and not self._blobs.is_verified(digest):
                try:
                    await self._blobs.scrub(digest)
                except BlobMismatchError:
                    await self.tell_suspects()
                except NotFoundError as error:
                    _LOG.info("cache: evicted before it was verified: %s", error)
