"""Seeds the region: what a store asks for is judged, fetched once, and streamed while it is still judged right.

The shell of ``compliance.py``. An entry of a release into the region is durable before its first byte leaves. Every
piece of a running stream is preceded by a new judgement if trust, holds or orders changed since the last one, so a hold
ends transfers in their middle; a fetch from the origin that nobody may have any more is stopped. A refusal is explicit
to the asking store and told to control once for each release and gate. When the cache is full, what was made here goes
first, then what no order names, longest unused; when that is not enough, the store is refused with ``cache-quota``.

What was made of a blob (``deriving.py``) is judged as that blob is, before its first byte and in its middle, and comes
from this cache alone: no origin has it. What may come by deltas is offered under the same judgement.
"""

from __future__ import annotations

from collections import Counter
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from superhub.compliance import Bundle, BundleNeeded, Entry, Finding, Pass, Refusal, RegionView, assess, decide
from wavemesh.artifacts.blobstore import BlobMismatchError, FetchStoppedError, QuotaExceededError
from wavemesh.artifacts.plan import Method
from wavemesh.artifacts.room import CachedBlob, Room, make_room
from wavemesh.errors import BusyError, GateError, NotFoundError, WavemeshError
from wavemesh.policy.gates import Gate
from wavemesh.telemetry.units import BlobMoved
from wavemesh.trust.delivered import SeededBytes
from wavemesh.trust.envelope import SignatureGateError
from wavemesh.trust.releases import MAX_BUNDLE_BYTES, verify_signature_bundle
from wavemesh.trust.statements import WaveState

_AN_AGE = timedelta(days=36_500)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Sequence

    from superhub.acceptance import Acceptance
    from superhub.deriving import Deriving
    from superhub.events import Events
    from superhub.healing import Healing
    from superhub.running import Running
    from superhub.store import RegionStore
    from superhub.tracing import Tracing
    from wavemesh.artifacts.blobstore import BlobStore
    from wavemesh.artifacts.fetching import Fetches
    from wavemesh.artifacts.plan import Offer
    from wavemesh.identity.nodes import NodeId
    from wavemesh.runtime.clock import Clock
    from wavemesh.trust.metadata import TrustedMetadata
    from wavemesh.trust.releases import ReleaseManifest
    from wavemesh.trust.statements import Digest, WaveOrder

NOT_READY_RETRY_S = 2.0
_KEPT = ("named by an order, or being fetched",)


class Seeding:
    """The BlobSource of one region."""

    def __init__(
        self,
        *,
        region: str,
        max_age: timedelta,
        store: RegionStore,
        blobs: BlobStore,
        fetches: Fetches,
        acceptance: Acceptance,
        events: Events,
        healing: Healing,
        deriving: Deriving,
        running: Running,
        derive_on_entry: bool,
        clock: Clock,
        tracing: Tracing,
        check_time: Callable[[Digest], None] = lambda _: None,
    ) -> None:
        """``region`` is the region's name; ``max_age`` bounds the age of what may enter it.

        ``check_time`` raises GateError where a blob may not be fetched at this time. With ``derive_on_entry`` what
        enters the region is made ready for stores before any asks.
        """
        self._region = region
        self._max_age = max_age
        self._store = store
        self._blobs = blobs
        self._fetches = fetches
        self._acceptance = acceptance
        self._events = events
        self._healing = healing
        self._deriving = deriving
        self._running = running
        self._derive_on_entry = derive_on_entry
        self._clock = clock
        self._tracing = tracing
        self._check_time = check_time
        self._sent_bytes: Counter[str] = Counter()
        self._revision = 0
        self._bundles: dict[ReleaseManifest, Bundle] = {}
        self._bundles_by: TrustedMetadata | None = None

    @property
    def seeded(self) -> tuple[SeededBytes, ...]:
        """What went to stores since this process began, by how it travelled, by name."""
        return tuple(SeededBytes(method, sent) for method, sent in sorted(self._sent_bytes.items()))

    def changed(self) -> None:
        """Trust, holds or orders changed: judge anew, and stop fetching what nobody may have now."""
        self._revision += 1
        for digest in self._fetches.active if self._acceptance.trusted is not None else ():
            finding = self._judge((digest,), ())
            if isinstance(finding, Refusal):
                self._fetches.stop(digest, _error(finding))
        self._healing.call()
        if self._acceptance.trusted is not None:
            self._deriving.stop_unless(lambda target: isinstance(self._judge((target,), ()), Pass | BundleNeeded))

    async def find_missing(self, peer: NodeId, digests: Sequence[Digest]) -> Sequence[Digest]:
        """Those of the digests that would have to be fetched first."""
        del peer  # presence is no secret among the stores of a region
        return [digest for digest in digests if not self._blobs.has(digest)]

    async def open(self, peer: NodeId, digest: Digest, offset: int, length_bytes: int) -> AsyncGenerator[bytes, None]:
        """Judge and stream one blob; raises GateError, NotFoundError, BusyError, LinkDownError (origin)."""
        revision, began_at = self._revision, self._clock.now()
        made = self._deriving.source_of(digest)
        targets, method = ((), Method.FULL) if made is None else made
        named = (digest, *targets)
        await self._permit(peer, named)
        self._blobs.counters.opened(is_held=self._blobs.has(digest))
        if made is None:
            if not self._blobs.has(digest):
                self._check_time(digest)
            await self._make_room(digest)
            pieces = await self._fetched(digest, offset, length_bytes)
        else:
            pieces = self._blobs.read(digest, offset, length_bytes)
        guarded = self._guarded(peer, named, pieces, revision)
        return self._traced(peer, named, BlobMoved(digest, began_at, 0, method=method.value), guarded)

    async def _fetched(self, digest: Digest, offset: int, length_bytes: int) -> AsyncGenerator[bytes, None]:
        try:
            return await self._fetches.open(digest, offset, length_bytes)
        except BlobMismatchError:
            await self._healing.tell_suspects()
            raise

    async def offer(
        self, peer: NodeId, target: Digest, bases: Sequence[Digest], methods: Collection[Method]
    ) -> Sequence[Offer]:
        """Judge as a read of the target would be, and tell by what it can come; raises as ``open``."""
        await self._permit(peer, (target,))
        return await self._deriving.offers(target, bases, self._likely_bases(target), methods)

    async def bring(self, digest: Digest) -> None:
        """Have a blob here that may be seeded; raises as ``open``."""
        await self._make_room(digest)
        await self._fetches.ensure(digest)

    def _likely_bases(self, target: Digest) -> list[Digest]:
        """What most devices run that the target is firmware for, and is here."""
        trusted = self._acceptance.trusted
        releases = trusted.releases_with(target) if trusted is not None else ()
        classes = {release.device_class for release in releases if release.main.digest == target}
        ranked = self._running.ranked(classes)
        held = {entry.digest.sha256: entry.digest for entry in self._blobs.entries() if entry.is_complete}
        return [held[sha256] for sha256 in ranked if sha256 in held]

    async def _traced(
        self, peer: NodeId, named: Sequence[Digest], moved: BlobMoved, pieces: AsyncGenerator[bytes, None]
    ) -> AsyncGenerator[bytes, None]:
        """The pieces, and the span of the transfer at its end or refusal; one that the store gives up tells none."""
        sent_bytes = 0
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    sent_bytes += len(piece)
                    yield piece
        except WavemeshError as failed:
            gate = failed.details.get("gate", "")
            await self._trace(peer, named, replace(moved, sent_bytes=sent_bytes, gate=gate, error=str(failed)))
            raise
        finally:
            self._sent_bytes[moved.method] += sent_bytes
        await self._trace(peer, named, replace(moved, sent_bytes=sent_bytes))

    async def _trace(self, peer: NodeId, named: Sequence[Digest], moved: BlobMoved) -> None:
        trusted = self._acceptance.trusted
        releases = () if trusted is None else [one for digest in named for one in trusted.releases_with(digest)]
        names = {release.name for release in releases}
        orders = [order for order in self._acceptance.orders_of(peer.path) if order.release in names]
        await self._tracing.seeded(orders, moved)

    async def _guarded(
        self, peer: NodeId, named: Sequence[Digest], pieces: AsyncGenerator[bytes, None], revision: int
    ) -> AsyncGenerator[bytes, None]:
        async with aclosing(pieces):
            try:
                async for piece in pieces:
                    if revision != self._revision:
                        revision = self._revision
                        await self._permit(peer, named)
                    yield piece
                    self._blobs.counters.served_bytes += len(piece)
            except FetchStoppedError:
                await self._permit(peer, named)  # says why, if it was stopped for a reason
                self._check_time(named[0])
                raise
            except BlobMismatchError:
                await self._healing.tell_suspects()
                raise

    # -- judging ----------------------------------------------------------------------------------------------------

    async def _permit(self, peer: NodeId, named: Sequence[Digest]) -> None:
        """Return if a blob, or what was made of one of ``named``, may go to that store now; that is durable then."""
        while True:
            finding = self._judge(named, self._acceptance.orders_of(peer.path))
            match finding:
                case None:
                    await self._refuse_unknown(named)
                case Refusal():
                    await self._tell_refusal(finding)
                    raise _error(finding)
                case BundleNeeded(release):
                    await self._read_bundle(release)  # one release a turn goes from unread to good or bad
                case Pass(release, entry):
                    await self._note_entry(peer, release, entry)
                    return

    def _judge(self, named: Sequence[Digest], orders: Iterable[WaveOrder]) -> Finding | None:
        trusted = self._acceptance.trusted
        if trusted is None:
            msg = "no trust metadata has come from control yet"
            raise BusyError(msg, NOT_READY_RETRY_S)
        if trusted is not self._bundles_by:
            self._bundles, self._bundles_by = {}, trusted
        orders, now = list(orders), self._clock.now()
        return decide(
            assess(release, self._bundles.get(release, Bundle.UNREAD), orders, self._view(trusted, release), now)
            for digest in named
            for release in trusted.releases_with(digest)
        )

    def _view(self, trusted: TrustedMetadata, release: ReleaseManifest) -> RegionView:
        return RegionView(
            region=self._region,
            max_age=self._max_age,
            trust_expires_at=trusted.expires_at(release.name),
            holds=self._acceptance.holds,
            entered=self._store.entered,
        )

    async def _refuse_unknown(self, named: Sequence[Digest]) -> None:
        digest = named[0]
        names = (self._store.release_seen_with(one.sha256) for one in named)
        name = next((name for name in names if name is not None), None)
        trusted = self._acceptance.trusted
        if name is None or trusted is None or not trusted.is_revoked(name):
            msg = f"no release that is trusted here has blob {digest.sha256} of {digest.size_bytes} bytes"
            raise NotFoundError(msg, sha256=digest.sha256)
        refusal = Refusal(name, Gate.REVOKED.value, f"release {name} is revoked: {trusted.revocations()[name]}")
        await self._tell_refusal(refusal)
        raise _error(refusal)

    async def _tell_refusal(self, refusal: Refusal) -> None:
        await self._events.tell_once("compliance-refused", refusal.release, refusal.reason, gate=refusal.gate)

    async def _read_bundle(self, release: ReleaseManifest) -> None:
        """Fetch and check a signature bundle; what is known of it is kept until the metadata changes."""
        trusted, digest = self._acceptance.trusted, release.signature.digest
        if trusted is None or digest.size_bytes > MAX_BUNDLE_BYTES:
            self._bundles[release] = Bundle.BAD
            return
        await self._make_room(digest)
        await self._fetches.ensure(digest)
        async with aclosing(self._blobs.read(digest)) as pieces:
            content = b"".join([piece async for piece in pieces])
        try:
            verify_signature_bundle(content, release, trusted)
        except SignatureGateError:
            state = Bundle.BAD
        else:
            state = Bundle.GOOD
        if self._bundles_by is trusted:
            self._bundles[release] = state

    async def _note_entry(self, peer: NodeId, release: ReleaseManifest, entry: Entry) -> None:
        if entry is Entry.FIRST:
            async with self._store.database.transaction() as tx:
                await self._store.enter(tx, release, self._clock.now())
            if self._derive_on_entry:
                target = release.main.digest
                self._deriving.begin(target, self._likely_bases(target), list(Method))
        elif entry is Entry.OVER_AGE:
            detail = f"release {release.name}, signed {release.signed_at.isoformat()}, was seeded as the region has it"
            await self._events.tell_once("compliance-over-age", release.name, detail, about=peer.path)

    # -- room -------------------------------------------------------------------------------------------------------

    async def _make_room(self, digest: Digest) -> None:
        """Evict what it takes for the blob to fit; raises GateError cache-quota, and then nothing was evicted."""
        if self._blobs.has(digest) or self._blobs.is_arriving(digest):
            return
        await self._healing.tell_suspects()
        # What was made here goes before what was fetched, however lately it was used: it can be made again.
        held = [
            CachedBlob(
                entry.digest,
                entry.last_used_at - (_AN_AGE if self._deriving.is_derived(entry.digest) else timedelta()),
                entry.is_complete,
            )
            for entry in self._blobs.entries()
        ]
        keep = {blob.digest for blob in held if self._blobs.is_arriving(blob.digest)} | self._needed()
        room = Room(self._blobs.quota_bytes, self._blobs.free_bytes())
        for other in make_room(held, {kept.sha256: _KEPT for kept in keep}, [digest], room):
            await self._evict(other)
        try:
            self._blobs.check_room(digest)
        except QuotaExceededError as error:
            raise GateError(Gate.CACHE_QUOTA.value, str(error)) from error

    async def _evict(self, digest: Digest) -> None:
        counters = self._blobs.counters
        counters.evicted_bytes += await self._blobs.delete(digest)
        counters.evicted += 1

    async def make_room_for_derived(self, digest: Digest) -> None:
        """Evict what else was made here, longest unused, until this fits; raises QuotaExceededError: originals stay."""
        for entry in self._blobs.entries():
            if self._has_room(digest):
                return
            if self._deriving.is_derived(entry.digest) and not self._blobs.is_arriving(entry.digest):
                await self._evict(entry.digest)
        self._blobs.check_room(digest)

    def _has_room(self, digest: Digest) -> bool:
        try:
            self._blobs.check_room(digest)
        except QuotaExceededError:
            return False
        return True

    # -- healing ----------------------------------------------------------------------------------------------------

    def is_needed(self, digest: Digest) -> bool:
        """Whether an order names it; while nobody knows what is ordered, whether it may be."""
        return self._acceptance.trusted is None or digest in self._needed()

    async def refetch(self, digest: Digest) -> None:
        """Begin to fetch what was found wrong again; raises GateError where nobody may have it, BusyError."""
        finding = self._judge((digest,), ())
        if isinstance(finding, Refusal):
            raise _error(finding)
        await self._make_room(digest)
        self._fetches.begin(digest)

    def _needed(self) -> set[Digest]:
        """Blobs of releases that some order names."""
        return self._blobs_of({order.release for order in self._acceptance.orders()})

    def lacking(self) -> set[Digest]:
        """Blobs of releases that some order names and that are not held whole."""
        return {digest for digest in self._needed() if not self._blobs.has(digest)}

    def running(self) -> set[Digest]:
        """Blobs of releases that some order names which runs now."""
        now = self._clock.now()
        return self._blobs_of(
            {
                order.release
                for order in self._acceptance.orders()
                if order.state is WaveState.RUNNING and now < order.expires_at
            }
        )

    def _blobs_of(self, names: set[str]) -> set[Digest]:
        trusted = self._acceptance.trusted
        releases = trusted.releases() if trusted is not None else {}
        return {one.digest for name in names if name in releases for one in releases[name].artifacts}


def _error(refusal: Refusal) -> GateError:
    return GateError(refusal.gate, refusal.reason, release=refusal.release)
