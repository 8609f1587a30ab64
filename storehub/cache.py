"""The store's cache: fetches each blob once, ahead of need where it may, and serves it while it still arrives.

- Wanted is what active waves and open prefetches name, by verified releases; nothing else is fetched. A want with a
  window is fetched inside it only: a fetch under way stops when it shuts, and goes on where it was in the next. Fetches
  go two at a time over a bulk channel that lives as long as bytes move and gives way to the session on the same link
  (ADR 25), resume where they stopped, and back off while the WAN is dark.
- Arrived bytes are verified against the signed digest before they are visible; the signature bundle of a release is
  verified too. A gate from above (hold, freshness, signature) is kept, shown, and tried again at the longest back-off.
- Bytes that do not match, on arrival, on a read or a scrub, are served no more; every wave that needs them is paused
  here and control is told, durably, before the wrong file moves; the pause is lifted when a refetch has brought them
  back (healing.py). What is pinned and was found wrong is fetched again even if no wave wants it.
- What makes room is decided purely (room.py) and known before the first byte moves. Partial blobs that nobody wants any
  more are swept after a while.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from storehub.apps import newest
from storehub.delivery import Deliveries
from storehub.eviction import DeviceImages, pins
from storehub.healing import Healing
from storehub.records import Disposition
from wavemesh.artifacts.blobstore import BlobMismatchError
from wavemesh.artifacts.download import Patience, download
from wavemesh.artifacts.fetching import Fetches
from wavemesh.artifacts.room import CachedBlob, Need, Room, make_room, stale
from wavemesh.artifacts.scrubbing import Scrub
from wavemesh.errors import BusyError, GateError, LocalError, NotFoundError, WavemeshError
from wavemesh.policy.gates import Gate
from wavemesh.policy.windows import Window
from wavemesh.trust.holds import check_not_held
from wavemesh.trust.releases import MAX_BUNDLE_BYTES, verify_signature_bundle
from wavemesh.trust.statements import IntentKind, WaveState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
    from datetime import datetime
    from random import Random

    from storehub.hub import Hub
    from storehub.pieces import DeliveryReader
    from wavemesh.artifacts.blobstore import BlobEntry, BlobStore, BlobWriter
    from wavemesh.identity.nodes import NodeId
    from wavemesh.trust.statements import Digest

_LOG = logging.getLogger(__name__)
FETCH_ATTEMPTS = 5
PARALLEL_FETCHES = 2
WINDOW_RETRY_S = 30.0
LEAST_PAUSE_S = 0.05
"""Between two looks at what is wanted, so that a chatty store does not keep the cache busy."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a blob is not here yet, how often that was so, and when it is tried again."""

    gate: str
    detail: str
    times: int
    retry_at: datetime
    is_told: bool = False


class Cache:
    """Fills and serves one blob store. Also the ``BlobSource`` of the hub's ArtifactServer."""

    def __init__(
        self, hub: Hub, blobs: BlobStore, reader: DeliveryReader, group: asyncio.TaskGroup, rng: Random
    ) -> None:
        """Fetches run as tasks of ``group``."""
        self._hub = hub
        self._blobs = blobs
        self._reader = reader
        self._rng = rng
        self.healing = Healing(hub, blobs, self._found_wrong)
        self.deliveries = Deliveries(hub, blobs, reader, rng, make_room=self._make_room, rotten=self.healing.mismatch)
        self._fetches = Fetches(blobs, self._fetch, group, PARALLEL_FETCHES, self._prepare)
        self.troubles: dict[Digest, Trouble] = {}
        self._proven_bundles: set[tuple[str, Digest]] = set()
        self.scrub = Scrub(blobs, hub.clock, hub.config.scrub_bytes_per_s, hub.config.scrub_interval_s)

    @property
    def used_bytes(self) -> int:
        """Bytes accounted against the quota."""
        return self._blobs.used_bytes

    @property
    def quota_bytes(self) -> int:
        """The quota."""
        return self._blobs.quota_bytes

    @property
    def blobs(self) -> BlobStore:
        """The store that is filled."""
        return self._blobs

    def entries(self) -> Sequence[BlobEntry]:
        """All blobs, oldest use first: the order of eviction."""
        return self._blobs.entries()

    # -- keeping it filled ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Fetch what is wanted for as long as the hub runs."""
        seen = -1
        while True:
            try:
                await self.fill()
            except LocalError as error:
                _LOG.error("cache: %s", error)  # the error says all there is to say
            await asyncio.sleep(LEAST_PAUSE_S)
            seen = await self._hub.bell.wait(seen, self._hub.config.fetch_retry_min_s)

    async def fill(self) -> None:
        """Begin what may be fetched now and settle what has arrived."""
        now = self._hub.clock.now()
        await self.healing.settle(self._is_pinned, lambda digest: digest in self.troubles)
        await self._settle()
        wants = self._open_wants(now)
        self._stop_others(wants)
        await self._sweep(wants, now)
        await self.deliveries.tidy(self._fetches.active)
        missing = [digest for digest in wants if not self._blobs.has(digest) and digest not in self._blobs.suspects]
        for digest in missing:
            trouble = self.troubles.get(digest)
            if self._blobs.is_arriving(digest) or (trouble is not None and now < trouble.retry_at):
                continue
            try:
                self._check_release(digest)
                await self._make_room(missing)
            except WavemeshError as error:
                await self._trouble(digest, error)
                continue
            self._fetches.begin(digest)

    def _open_wants(self, now: datetime) -> list[Digest]:
        """What may be fetched now, small things first within each wave."""
        hub = self._hub
        wants: dict[Digest, None] = {}
        for record in hub.store.waves.values():
            if record.closed_at is not None or record.order.state in {WaveState.HALTED, WaveState.CLOSED}:
                continue
            policy = hub.belief.policies.get(record.order.policy_digest)
            window = policy.windows.prefetch if policy is not None else None
            if policy is not None and (window is None or window.contains(now, hub.config.zone)):
                wants.update(dict.fromkeys(record.blobs))
        for intent in hub.store.intents.values():
            if intent.disposition is Disposition.QUEUED and intent.digests:
                text = intent.intent.window
                if not text or Window.parse(text).contains(now, hub.config.zone):
                    wants.update(dict.fromkeys(intent.digests))
        known = self._known_wants()
        wants.update(
            (digest, None) for digest in self.healing.incidents if digest not in known and self._is_pinned(digest)
        )
        return list(wants)

    def _is_pinned(self, digest: Digest) -> bool:
        return digest.sha256 in self.pins()

    def _stop_others(self, wants: Sequence[Digest]) -> None:
        """End fetches that nobody wants any more, or not before the next window; what has arrived stays."""
        for digest in set(self._fetches.active).difference(wants):
            self._fetches.stop(digest, self._why_not_now(digest))

    def _why_not_now(self, digest: Digest) -> WavemeshError:
        """Why a blob that is not here is not fetched."""
        if digest in self._known_wants():
            msg = f"blob {digest.sha256} is fetched within its prefetch window only"
            return BusyError(msg, retry_after_s=WINDOW_RETRY_S, gate=Gate.WINDOW.value)
        msg = f"blob {digest.sha256} belongs to no active wave of this store"
        return NotFoundError(msg, sha256=digest.sha256)

    def pins(self) -> Mapping[str, tuple[str, ...]]:
        """Reasons to keep blobs, by SHA-256."""
        store = self._hub.store
        needs = [
            Need(f"target of wave {wave_id}", record.blobs)
            for wave_id, record in store.waves.items()
            if record.closed_at is None
        ]
        needs += [
            Need("prefetch asked for", intent.digests)
            for intent in store.intents.values()
            if intent.intent.kind is IntentKind.PREFETCH and intent.disposition is Disposition.QUEUED
        ]
        needs += self._apps_in_use()
        needs += self.deliveries.needs()
        images = (
            DeviceImages(d.status.device_class, d.status.firmware_sha256, d.last_known_good_sha256)
            for d in store.devices.values()
        )
        return pins(needs, images)

    def holding(self) -> list[CachedBlob]:
        """All blobs as eviction sees them."""
        return [CachedBlob(entry.digest, entry.last_used_at, entry.is_complete) for entry in self._blobs.entries()]

    def keeping(self) -> Mapping[str, tuple[str, ...]]:
        """Reasons not to evict blobs now, by SHA-256: the pins, and what is under way."""
        arriving = [digest for digest in self._fetches.active if self._blobs.is_arriving(digest)]
        return {**{digest.sha256: ("being fetched",) for digest in arriving}, **self.pins()}

    def room(self) -> Room:
        """The room there is; raises DiskFaultError."""
        return Room(self._blobs.quota_bytes, self._blobs.free_bytes())

    def _apps_in_use(self) -> Iterable[Need]:
        trusted = self._hub.belief.trusted
        whole = (entry.digest for entry in self._blobs.entries() if entry.is_complete)
        for name, app in newest(trusted.releases().values() if trusted is not None else (), whole):
            digests = tuple(one.digest for one in app.artifacts)
            yield Need(f"newest app {app.repository}, of release {name}", digests)

    async def _make_room(self, wanted: Sequence[Digest]) -> None:
        counters = self._blobs.counters
        for digest in make_room(self.holding(), self.keeping(), wanted, self.room()):
            _LOG.info("evicting %s", digest.sha256)
            counters.evicted_bytes += await self._blobs.delete(digest)
            counters.evicted += 1

    async def _sweep(self, wants: Sequence[Digest], now: datetime) -> None:
        """Give up partial blobs that nobody wants and nobody has written to for a while."""
        partial = [blob for blob in self.holding() if not blob.is_complete and not self._blobs.is_arriving(blob.digest)]
        if not partial:
            return
        keep = timedelta(seconds=self._hub.config.partial_keep_s)
        for digest in stale(partial, self.pins(), wants, now, keep):
            _LOG.info("giving up what is there of %s: nobody wants it any more", digest.sha256)
            self._blobs.counters.swept_bytes += await self._blobs.delete(digest)
            self._blobs.counters.swept += 1

    def _check_release(self, digest: Digest) -> None:
        """Raise GateError unless some release with this blob may be used."""
        trusted, holds = self._hub.belief.trusted, self._hub.belief.holds
        releases = trusted.releases_with(digest) if trusted is not None else ()
        if not releases:
            msg = f"no verified release has blob {digest.sha256}"
            raise GateError(Gate.SIGNATURE.value, msg)
        refusal: GateError | None = None
        for release in releases:
            try:
                if holds is not None:
                    check_not_held(release, holds)
            except GateError as error:
                refusal = error
            else:
                return
        if refusal is not None:
            raise refusal

    async def _prepare(self, digest: Digest) -> None:
        """Bring a blob by the delivery that is planned for it, as far as that goes without its writer."""
        try:
            await self.deliveries.bring(digest)
        except WavemeshError as error:
            await self._trouble(digest, error)
            raise

    async def _fetch(self, writer: BlobWriter) -> None:
        """Bring one blob to its end; retries a few times by itself."""
        config, began_at = self._hub.config, self._hub.clock.now()
        patience = Patience(FETCH_ATTEMPTS, config.fetch_retry_min_s, config.fetch_retry_max_s)
        try:
            await download(self._reader, writer, rng=self._rng, patience=patience)
        except BlobMismatchError as error:
            is_rebuilt = await self.deliveries.failed(writer.digest, error)
            await self._trouble(writer.digest, error)
            if not (writer.is_wrong or is_rebuilt):  # else the store itself finds it, once the writer is gone
                await self.healing.mismatch(error)
            raise
        except WavemeshError as error:
            await self._trouble(writer.digest, error)
            raise
        await self._trace(writer.digest, began_at)
        self.troubles.pop(writer.digest, None)
        self._hub.bell.ring()

    async def _trace(self, digest: Digest, began_at: datetime) -> None:
        """Tell the waves that wait for a blob how long it took; a full disk costs the telling alone."""
        store = self._hub.store
        orders = [one.order for one in store.waves.values() if one.closed_at is None and digest in one.blobs]
        try:
            async with store.database.transaction() as tx:
                await self._hub.tracing.fetched(tx, orders, digest, began_at)
        except LocalError as error:
            _LOG.warning("the fetch of %s is not traced: %s", digest.sha256, error)

    async def _trouble(self, digest: Digest, error: WavemeshError) -> None:
        """Remember why a blob is not here; a gate is an event, once."""
        config, old = self._hub.config, self.troubles.get(digest)
        gate = _gate_of(error)
        times = old.times + 1 if old is not None and old.gate == gate else 1
        ceiling_s = min(config.fetch_retry_max_s, config.fetch_retry_min_s * 2.0 ** min(times, 16))
        wait_s = config.fetch_retry_max_s if gate else self._rng.uniform(ceiling_s / 2, ceiling_s)
        if isinstance(error, BusyError):
            wait_s = max(wait_s, min(error.retry_after_s, config.fetch_retry_max_s))
        retry_at = self._hub.clock.now() + timedelta(seconds=wait_s)
        is_told = times > 1 and old is not None and old.is_told
        self.troubles[digest] = trouble = Trouble(gate, str(error), times, retry_at, is_told)
        _LOG.warning("blob %s: %s", digest.sha256, error)
        if gate and not is_told:
            async with self._hub.store.database.transaction() as tx:
                subject = ", ".join(self._hub.belief.known_blobs().get(digest, (digest.sha256,)))
                await self._hub.report_event(tx, "cache-refused", gate=gate, subject=subject, detail=str(error))
            self.troubles[digest] = replace(trouble, is_told=True)

    # -- settling ---------------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Bundles that arrived are verified, prefetches that are complete say so."""
        store = self._hub.store
        await self._prove_bundles()
        finished = [
            intent
            for intent in store.intents.values()
            if intent.intent.kind is IntentKind.PREFETCH
            and intent.disposition is Disposition.QUEUED
            and intent.digests
            and all(self._blobs.has(digest) for digest in intent.digests)
        ]
        if not finished:
            return
        async with store.database.transaction() as tx:
            for intent in finished:
                done = replace(intent, disposition=Disposition.APPLIED, detail="cached and verified", waiting_for=())
                await store.put_intent(tx, done)
        self._hub.changed(None)
        self._hub.bell.ring()

    async def _prove_bundles(self) -> None:
        """Verify the signature bundles of releases whose bundle is here (k of n release keys)."""
        trusted = self._hub.belief.trusted
        for release in trusted.releases().values() if trusted is not None else ():
            digest = release.signature.digest
            proof = (release.name, digest)  # who vouches for a release decides whose signatures its bundle needs
            if trusted is None or proof in self._proven_bundles or not self._blobs.has(digest):
                continue
            try:
                verify_signature_bundle(await self._read_small(digest), release, trusted)
            except GateError as error:
                await self._trouble(digest, error)
                await self.healing.pause_waves(digest, error.gate, str(error))
            except BlobMismatchError:
                await self.healing.tell_suspects()
                continue
            self._proven_bundles.add(proof)

    async def _read_small(self, digest: Digest) -> bytes:
        if digest.size_bytes > MAX_BUNDLE_BYTES:
            msg = f"signature bundle of {digest.size_bytes} bytes; at most {MAX_BUNDLE_BYTES} are accepted"
            raise GateError(Gate.SIGNATURE.value, msg)
        async with aclosing(self._blobs.follow(digest, 0)) as pieces:
            return b"".join([piece async for piece in pieces])

    def _found_wrong(self, digest: Digest) -> None:
        """What was proven of those bytes counts no more."""
        self._proven_bundles = {proof for proof in self._proven_bundles if proof[1] != digest}

    # -- serving ----------------------------------------------------------------------------------------------------

    async def find_missing(self, peer: NodeId, digests: Sequence[Digest]) -> Sequence[Digest]:
        """Those of the digests that are not held."""
        del peer  # every device of the store may know what its hub holds
        return [digest for digest in digests if not self._blobs.has(digest)]

    async def open(self, peer: NodeId, digest: Digest, offset: int, length_bytes: int) -> AsyncGenerator[bytes, None]:
        """The bytes for a device, fetched meanwhile if they are wanted and may be fetched now."""
        del peer  # devices of the store share its cache; whether one may install what it reads, it verifies itself
        self._check_release(digest)
        is_held = self._blobs.has(digest)
        self._blobs.counters.opened(is_held=is_held)
        if is_held or self._blobs.is_arriving(digest):
            return self._guarded(self._blobs.follow(digest, offset, length_bytes))
        await self.healing.tell_suspects()
        trouble = self.troubles.get(digest)
        if trouble is not None and trouble.gate:
            raise GateError(trouble.gate, trouble.detail)
        wants = self._open_wants(self._hub.clock.now())
        if digest not in wants:
            raise self._why_not_now(digest)
        await self._make_room([want for want in wants if not self._blobs.has(want)])
        return self._guarded(await self._fetches.open(digest, offset, length_bytes))

    def _known_wants(self) -> set[Digest]:
        return {blob for r in self._hub.store.waves.values() if r.closed_at is None for blob in r.blobs}

    async def _guarded(self, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """The pieces, counted; what turns out to be corrupt on the way pauses its waves."""
        async with aclosing(pieces):
            try:
                async for piece in pieces:
                    yield piece
                    self._blobs.counters.served_bytes += len(piece)
            except BlobMismatchError:
                await self.healing.tell_suspects()
                raise


def _gate_of(error: WavemeshError) -> str:
    """The gate behind a failed fetch; empty for accidents that a further fetch heals."""
    if isinstance(error, GateError):
        return error.gate
    is_room = isinstance(error, LocalError) and not isinstance(error, BlobMismatchError)
    return Gate.CACHE_QUOTA.value if is_room else ""
