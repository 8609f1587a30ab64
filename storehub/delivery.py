"""Brings blobs to the store by the cheapest delivery, once rebuilt at the hub (S5, H4); ``deliveries.py`` decides.

    state/cache/pieces/    what was read of packs of chunks, and what is being rebuilt

Rules.
1. Before the first byte the super hub is asked what it offers to who holds what this store holds; the plan is durable
   before anything is read, and a restart goes on with it. Pieces are partial blobs and resume to the byte (M3).
2. Room for the pieces and for the result is accounted before the first byte; bases and pieces are pinned meanwhile.
3. Rebuilding runs in a contained process. Its result becomes the blob by the target's digest alone, which this process
   computes. What was wrong is removed, never planned again for this target, and told upstream (``delivery-replanned``)
   in the transaction that gives the plan up; the next plan says so.
4. The wave's byte budget is looked at before each plan; a plan beyond it is refused with gate ``byte-budget``, and the
   super hub is asked again later, when a delta may be ready.
5. A super hub that knows no deliveries gets the blob read as it is.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from storehub import deliveries as decide
from storehub.deliveries import FAILURES_MOST, LEAST_PLANNED_BYTES, Delivery, HeldBlob, pieces_needed
from storehub.pieces import FETCH_ATTEMPTS, DeliveryReader, Pieces, stand_in
from storehub.records import Disposition
from wavemesh.artifacts.blobstore import BlobMismatchError, QuotaExceededError
from wavemesh.artifacts.chunks import BadIndexError, BadPackError
from wavemesh.artifacts.compressed import BadCompressedError
from wavemesh.artifacts.delta.codec import BadDeltaError
from wavemesh.artifacts.delta.worker import DeltaBoundError, Workers
from wavemesh.artifacts.download import Patience
from wavemesh.artifacts.plan import BadPlanError, Failure, Link, Method, choose, reconsider, replan, with_ranges
from wavemesh.artifacts.room import Need
from wavemesh.errors import BusyError, GateError, NotFoundError, WavemeshError
from wavemesh.policy.document import DeliveryTerms
from wavemesh.policy.gates import Gate
from wavemesh.trust.delivered import DeliveryState
from wavemesh.trust.statements import IntentKind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
    from datetime import datetime
    from random import Random

    from storehub.hub import Hub
    from wavemesh.artifacts.blobstore import BlobStore
    from wavemesh.artifacts.plan import Offer, TransferPlan
    from wavemesh.trust.delivered import DeliveryView
    from wavemesh.trust.statements import Digest

    MakeRoom = Callable[[Sequence[Digest]], Awaitable[None]]
    Rotten = Callable[[BlobMismatchError], Awaitable[None]]

_LOG = logging.getLogger(__name__)
_RATE = "link-bytes-per-s"
_METHODS = (Method.FULL, Method.FULL_ZSTD, Method.CHUNKS, Method.DELTA)

_WRONG = (BadDeltaError, BadIndexError, BadPackError, BadCompressedError, BadPlanError, BlobMismatchError)
"""Who sent the payload is at fault, or a base has rotted."""
_GIVEN_UP = (*_WRONG, DeltaBoundError, NotFoundError, QuotaExceededError)
"""What ends a plan and not the delivery."""


class Deliveries:
    """All deliveries of this store."""

    def __init__(
        self,
        hub: Hub,
        blobs: BlobStore,
        reader: DeliveryReader,
        rng: Random,
        *,
        make_room: MakeRoom,
        rotten: Rotten,
    ) -> None:
        """``make_room`` evicts for what will be written, ``rotten`` is told of a base that is not what it was."""
        self._hub = hub
        self._blobs = blobs
        self._reader = reader
        self._pieces = Pieces(blobs, reader, Workers(disk=blobs.disk), rng)
        self._make_room = make_room
        self._rotten = rotten
        self._is_swept = False
        self._full_reads: dict[Digest, tuple[float, int]] = {}

    # -- what others ask --------------------------------------------------------------------------------------------

    @property
    def all(self) -> Mapping[Digest, Delivery]:
        """Deliveries by target, under way and ended."""
        return self._hub.store.deliveries.all

    def targets_of(self, digest: Digest) -> Iterator[Digest]:
        """The blob itself, and those of whose planned delivery it is a piece."""
        yield digest
        for delivery in self.all.values():
            if delivery.is_open and (plan := delivery.plan) is not None and digest in {plan.payload, plan.index}:
                yield delivery.target

    def moved_bytes(self, delivery: Delivery) -> int:
        """What was read for it so far."""
        return decide.read_so_far(delivery, self._pieces.present, self._pieces.gathered_bytes(delivery.plan))

    def shown(self) -> tuple[DeliveryView, ...]:
        """The deliveries for a ledger."""
        waves = [wave_id for wave_id, record in self._hub.store.waves.items() if record.closed_at is None]
        if not self.all:
            return ()
        return decide.shown(self.all.values(), waves, self.moved_bytes, self._hub.belief.known_blobs())

    def held(self) -> list[HeldBlob]:
        """Complete blobs of this store."""
        return [HeldBlob(one.digest, one.last_used_at) for one in self._blobs.entries() if one.is_complete]

    def needs(self) -> Iterator[Need]:
        """What must not be evicted: the bases and pieces of planned deliveries."""
        for delivery in self.all.values():
            if delivery.is_open and (plan := delivery.plan) is not None:
                named = self._name(delivery.target)
                if plan.bases:
                    yield Need(f"base of the planned delivery of {named}", plan.bases)
                held = stand_in(plan)
                pieces = (*pieces_needed(plan), *(() if held is None else (held,)))
                if pieces:
                    yield Need(f"piece of the planned delivery of {named}", pieces)

    def _name(self, target: Digest) -> str:
        return ", ".join(self._hub.belief.known_blobs().get(target, (target.sha256,)))

    # -- a delivery from its plan to its end ------------------------------------------------------------------------

    async def bring(self, target: Digest) -> None:
        """Bring a blob to where its writer has only to verify it, or leave all of it to the writer: its plan says.

        Raises GateError ``byte-budget``, BusyError while a payload is being made, and as ``download``.
        """
        if target.size_bytes < LEAST_PLANNED_BYTES:
            return
        while True:
            delivery = await self._planned(target)
            plan = delivery.plan
            if plan is None or plan.method is Method.FULL:
                self._full_reads[target] = (self._hub.clock.monotonic(), self._pieces.present(target))
                return
            try:
                await self._carry_out(delivery, plan)
            except _GIVEN_UP as error:
                await self._give_up(self.all.get(target, delivery), error)
            except GateError as error:
                await self._refused(self.all.get(target, delivery), error)
                raise
            else:
                return

    async def _carry_out(self, delivery: Delivery, plan: TransferPlan) -> None:
        await self._room_for(plan)
        for base in plan.bases:
            if not self._blobs.has(base):
                msg = f"base {base.sha256} is not held any more"
                raise NotFoundError(msg, sha256=base.sha256)
        for digest in pieces_needed(plan):
            await self._timed(self._pieces.fetch(digest, self._patience), plan)
        if plan.method is Method.CHUNKS:
            if len(plan.pieces) == 1:
                delivery, plan = await self._know_ranges(delivery, plan)
                await self._room_for(plan)
            await self._timed(self._pieces.gather(plan, self._patience), plan)
        await self._pieces.rebuild(plan)

    async def _room_for(self, plan: TransferPlan) -> None:
        """Evict and account for all that will be written; what does not fit ends the plan, not the delivery."""
        try:
            await self._make_room(self._pieces.room_of(plan))
        except GateError as error:
            if plan.method is Method.FULL or error.gate != Gate.CACHE_QUOTA.value:
                raise
            raise QuotaExceededError(f"no room for the pieces of {plan.method.value}: {error}") from error
        self._pieces.reserve(plan)

    async def _know_ranges(self, delivery: Delivery, plan: TransferPlan) -> tuple[Delivery, TransferPlan]:
        """The index is here: which parts of the pack are lacking becomes part of the durable plan."""
        lacking = await self._pieces.lacking(plan)
        _, terms = self._terms(delivery.target)
        left = self._left(delivery, terms)
        spent = self.moved_bytes(delivery) - delivery.settled_bytes
        plan = with_ranges(plan, lacking, self._link(terms), None if left is None else max(0, left - spent))
        delivery = replace(delivery, plan=plan)
        async with self._hub.store.database.transaction() as tx:
            await self._hub.store.deliveries.put(tx, delivery)
        return delivery, plan

    async def _timed(self, reading: Awaitable[None], plan: TransferPlan) -> None:
        """Read, and learn how fast the link is."""
        clock, before = self._hub.clock, self._present(plan)
        began_s = clock.monotonic()
        await reading
        await self._learn(self._present(plan) - before, clock.monotonic() - began_s)

    def _present(self, plan: TransferPlan) -> int:
        return sum(map(self._pieces.present, pieces_needed(plan))) + self._pieces.gathered_bytes(plan)

    async def _learn(self, read_bytes: int, took_s: float) -> None:
        rate = decide.rate_after(self._rate, read_bytes, took_s)
        if rate != self._rate:
            async with self._hub.store.database.transaction() as tx:
                await self._hub.store.put_fact(tx, _RATE, f"{rate:.0f}")

    @property
    def _rate(self) -> float:
        return max(1.0, float(self._hub.store.fact(_RATE) or self._hub.config.link_bytes_per_s))

    @property
    def _patience(self) -> Patience:
        config = self._hub.config
        return Patience(FETCH_ATTEMPTS, config.fetch_retry_min_s, config.fetch_retry_max_s)

    async def arrived(self, target: Digest) -> None:
        """The blob is whole and verified: what it took stays for the ledger, its pieces go."""
        delivery = self.all.get(target)
        began = self._full_reads.pop(target, None)
        if delivery is None or not delivery.is_open:
            return
        if began is not None:
            await self._learn(target.size_bytes - began[1], self._hub.clock.monotonic() - began[0])
        moved = self.moved_bytes(delivery)
        done = replace(delivery, state=DeliveryState.DONE, moved_bytes=moved, waits_since=None, wait_until=None)
        async with self._hub.store.database.transaction() as tx:
            await self._hub.store.deliveries.put(tx, done)
        if delivery.plan is not None:
            _LOG.info("blob %s came by %s, %d bytes", target.sha256, delivery.plan.method.value, moved)
            await self._pieces.discard(delivery.plan, self._needed_by_others(delivery))

    async def failed(self, target: Digest, error: BlobMismatchError) -> bool:
        """Bytes that were to be the blob are not; whether they were rebuilt, so that the payload is to blame."""
        delivery = self.all.get(target)
        if delivery is None or not delivery.is_open or delivery.plan is None or delivery.plan.method is Method.FULL:
            return False
        await self._give_up(delivery, error)
        return True

    async def _give_up(self, delivery: Delivery, error: WavemeshError) -> None:
        """Plan without what failed from now on, durably, and say so upstream; what was read for it goes."""
        plan = delivery.plan
        if plan is None:
            return
        reason, failures = str(error), delivery.failures
        if isinstance(error, _WRONG) and (rotten := await self._rotten_base(plan)) is not None:
            reason = f"base {rotten.sha256} had rotted: {reason}"
        else:
            failures = (*failures, Failure(plan.method, plan.bases, plan.payload, reason[:300]))[-FAILURES_MOST:]
        settled = self.moved_bytes(delivery)
        next_one = replace(delivery, plan=None, settled_bytes=settled, held_bytes=0, failures=failures, said=reason)
        gate = Gate.CHECKSUM.value if isinstance(error, _WRONG) else ""
        detail = f"{plan.method.value}, {settled} bytes read: {reason}"
        async with self._hub.store.database.transaction() as tx:
            await self._hub.store.deliveries.put(tx, next_one)
            await self._hub.report_event(
                tx,
                "delivery-replanned",
                gate=gate,
                wave_id=delivery.wave_id,
                subject=self._name(delivery.target),
                detail=detail,
            )
        _LOG.warning("blob %s is planned anew: %s", delivery.target.sha256, detail)
        await self._pieces.discard(plan, self._needed_by_others(delivery))

    async def _rotten_base(self, plan: TransferPlan) -> Digest | None:
        """The first base whose bytes are not its own any more; it is gone then, and told."""
        for base in plan.bases:
            try:
                await self._blobs.scrub(base)
            except BlobMismatchError as error:
                await self._rotten(error)
                return base
            except NotFoundError:
                return base
        return None

    async def _refused(self, delivery: Delivery, error: GateError) -> None:
        if error.gate == Gate.BYTE_BUDGET.value and delivery.state is not DeliveryState.REFUSED:
            async with self._hub.store.database.transaction() as tx:
                refused = replace(delivery, state=DeliveryState.REFUSED, said=str(error))
                await self._hub.store.deliveries.put(tx, refused)

    def _needed_by_others(self, delivery: Delivery) -> set[Digest]:
        """Blobs that another delivery or a release needs: not to go with the pieces of this one."""
        needed = set(self._hub.belief.known_blobs())
        for other in self.all.values():
            if other.target != delivery.target and other.is_open and other.plan is not None:
                needed.update((*pieces_needed(other.plan), *other.plan.bases))
        return needed

    # -- planning ---------------------------------------------------------------------------------------------------

    async def _planned(self, target: Digest) -> Delivery:
        """The delivery with a plan to carry out, durable; raises GateError, BusyError, and what Offer raises."""
        now, old = self._hub.clock.now(), self.all.get(target)
        if old is not None and old.state is DeliveryState.READING and old.plan is not None:
            if old.plan.method is not Method.FULL:
                return old
        elif old is not None and old.wait_until is not None and now < old.wait_until:
            raise BusyError(old.said, retry_after_s=(old.wait_until - now).total_seconds())
        wave_id, terms = self._terms(target)
        delivery = self._begun(target, old, wave_id, now)
        if (lateness := decide.late(delivery, now)) is not None:
            delivery = replace(delivery, failures=(*delivery.failures, lateness), waits_since=None)
        if delivery.plan is not None and delivery.plan.method is not Method.FULL:
            delivery = replace(delivery, settled_bytes=self.moved_bytes(delivery), plan=None, held_bytes=0)
        offers = await self._offers(delivery)
        try:
            plan = self._decide(delivery, offers or (), terms)
        except GateError as error:
            await self._refused(delivery, error)
            raise
        said = plan.why if offers is not None else f"the super hub is older than deliveries; {plan.why}"
        delivery = self._with_plan(delivery, plan, said, now)
        async with self._hub.store.database.transaction() as tx:
            await self._hub.store.deliveries.put(tx, delivery)
        _LOG.info("blob %s: %s", target.sha256, said)
        if delivery.wait_until is not None:
            raise BusyError(said, retry_after_s=(delivery.wait_until - now).total_seconds())
        return delivery

    def _begun(self, target: Digest, old: Delivery | None, wave_id: str, now: datetime) -> Delivery:
        if old is not None and old.is_open:
            return old
        # It came before and was evicted or went bad: for the same wave that is paid twice.
        if old is not None and old.wave_id == wave_id:
            paid, forecast = old.moved_bytes, old.forecast_bytes
            return Delivery(target, wave_id, now, DeliveryState.WAITING, settled_bytes=paid, forecast_bytes=forecast)
        return Delivery(target, wave_id, now, DeliveryState.WAITING)

    async def _offers(self, delivery: Delivery) -> Sequence[Offer] | None:
        """What the super hub offers; nothing more of one that failed too often."""
        if len(delivery.failures) >= FAILURES_MOST:
            return ()
        trusted, devices = self._hub.belief.trusted, self._hub.store.devices
        running: dict[str, int] = {}
        for record in devices.values():
            sha256 = record.status.firmware_sha256
            running[sha256] = running.get(sha256, 0) + 1
        releases = trusted.releases().values() if trusted is not None else ()
        bases = decide.likely_bases(delivery.target, self.held(), releases, running)
        return await self._reader.offer(delivery.target, bases, _METHODS)

    def _decide(self, delivery: Delivery, offers: Sequence[Offer], terms: DeliveryTerms) -> TransferPlan:
        target, link, left = delivery.target, self._link(terms), self._left(delivery, terms)
        present = self._blobs.partial_size(target)
        begun = delivery.plan if delivery.plan is not None and delivery.plan.method is Method.FULL else None
        if begun is None and not present:
            return replan(target, offers, link, left, delivery.failures)
        if begun is not None and left is not None:
            left = max(0, left - max(0, present - delivery.held_bytes))
        plan = begun or choose(target, (), link, None)
        return reconsider(plan, present, offers=offers, link=link, budget_bytes=left, failures=delivery.failures)

    def _with_plan(self, delivery: Delivery, plan: TransferPlan, said: str, now: datetime) -> Delivery:
        """The delivery with this plan, which may be the one it has."""
        if plan == delivery.plan and not plan.is_waiting:
            return replace(delivery, state=DeliveryState.READING, said=said)
        is_first = delivery.plan is None and not delivery.failures and not delivery.settled_bytes
        is_full = plan.method is Method.FULL
        return replace(
            delivery,
            plan=plan,
            state=DeliveryState.WAITING if plan.is_waiting else DeliveryState.READING,
            forecast_bytes=plan.read_bytes if is_first else delivery.forecast_bytes,
            settled_bytes=self.moved_bytes(delivery),
            held_bytes=self._blobs.partial_size(plan.target) if is_full else self._present(plan),
            said=said,
            waits_since=(delivery.waits_since or now) if plan.is_waiting else None,
            wait_until=decide.next_look(plan.ready_in_s, now) if plan.is_waiting else None,
        )

    def _terms(self, target: Digest) -> tuple[str, DeliveryTerms]:
        """The wave that pays for a blob, and what its policy says of deliveries."""
        store, belief = self._hub.store, self._hub.belief
        waves = ((wave, one.first_seen_at, one.blobs) for wave, one in store.waves.items() if one.closed_at is None)
        wave_id = decide.charged_wave(target, waves)
        known = self.all.get(target)
        if known is not None and known.is_open and known.wave_id in store.waves:
            wave_id = known.wave_id
        record = store.waves.get(wave_id)
        policy = belief.policies.get(record.order.policy_digest) if record is not None else None
        return wave_id, policy.delivery if policy is not None else DeliveryTerms()

    def _link(self, terms: DeliveryTerms) -> Link:
        return Link(self._rate, terms.price_per_gib, terms.price_per_hour)

    def _left(self, delivery: Delivery, terms: DeliveryTerms) -> int | None:
        """What may still be read for its wave, before what its own plan has read."""
        moved = [(one, self.moved_bytes(one)) for one in self.all.values() if one.wave_id == delivery.wave_id]
        if all(one.target != delivery.target for one, _ in moved):
            moved.append((delivery, delivery.settled_bytes))
        return decide.budget_left(terms.byte_budget, delivery.wave_id, moved, delivery.target)

    # -- keeping it tidy --------------------------------------------------------------------------------------------

    async def tidy(self, busy: Collection[Digest]) -> None:
        """Settle what arrived while nobody looked, and drop what nobody wants any more and is not ``busy``."""
        store = self._hub.store
        if not self._is_swept:
            self._is_swept = True
            await self._pieces.sweep([one.plan for one in self.all.values() if one.is_open and one.plan is not None])
        wanted = {blob for record in store.waves.values() if record.closed_at is None for blob in record.blobs}
        for intent in store.intents.values():
            if intent.intent.kind is IntentKind.PREFETCH and intent.disposition is Disposition.QUEUED:
                wanted.update(intent.digests)
        for delivery in list(self.all.values()):
            if delivery.is_open and self._blobs.has(delivery.target):
                await self.arrived(delivery.target)
            elif delivery.target in busy:
                continue
            elif (delivery.is_open and delivery.target not in wanted) or self._is_forgotten(delivery):
                async with store.database.transaction() as tx:
                    await store.deliveries.drop(tx, delivery.target)
                if delivery.is_open and delivery.plan is not None:
                    await self._pieces.discard(delivery.plan, self._needed_by_others(delivery))

    def _is_forgotten(self, delivery: Delivery) -> bool:
        """Whether its ledger is gone with its wave."""
        return not delivery.is_open and bool(delivery.wave_id) and delivery.wave_id not in self._hub.store.waves
