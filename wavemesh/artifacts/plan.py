"""Decides by which delivery a blob comes to a store: before the first byte, by the price of bytes and of time. Pure.

    cost = price_per_gib x bytes to read / 2^30 + price_per_hour x (wait + bytes / bytes_per_s + rebuilding) / 3600

Rules.
1. The blob as it is can always be had, whether it was offered or not; nothing that costs more than it is chosen, unless
   the budget of bytes excludes it. So a peer that offers nonsense can make a transfer no dearer than no offers would.
2. What is made already is charged the sizes in its digests, not what the peer says; an offer that contradicts itself is
   passed over and named. A delivery that is still being made counts its wait as time: it is chosen, and waited for,
   only where that pays, and what its wait really was is seen by asking again.
3. What does not fit the budget is not chosen. When nothing fits, the plan is refused with gate ``byte-budget``, which
   says what the smallest would read and what is left.
4. Ties go to fewer bytes, then to the sooner, then to the simpler method, then by name: the order of the offers never
   matters. *Hysteresis*: a plan that has begun is left for another only when that saves a ``LEAST_GAIN`` of what is
   still to be paid, so that two of a price do not take turns.
5. What failed is excluded from then on, and the next plan says so. A plan that reads the whole blob always says why
   nothing better was chosen.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from wavemesh.artifacts.chunkindex import Range
from wavemesh.errors import GateError, PeerError
from wavemesh.policy.gates import Gate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from wavemesh.trust.statements import Digest

GIB = 1 << 30
HOUR_S = 3600.0
LEAST_GAIN = 0.1
WAIT_MOST_S = 3600.0
"""An offer that takes longer to make is no offer: the store asks again later."""
RANGES_MOST = 65_536
WHY_MOST = 1000


class BadPlanError(PeerError):
    """What a peer says about a delivery cannot be: ranges beyond the pack, out of order, or too many."""

    reason = "BAD_PLAN"


class Method(enum.Enum):
    """How a blob travels, the simplest first: the order in which ties are decided."""

    FULL = "full"
    FULL_ZSTD = "full-zstd"
    CHUNKS = "chunks"
    DELTA = "delta"


_SIMPLEST_FIRST = {method: place for place, method in enumerate(Method)}


@dataclass(frozen=True, slots=True)
class Offer:
    """One way to a blob, as a parent offers it.

    ``payload`` is None while it is being made, which takes ``ready_in_s`` more seconds; ``read_bytes`` is then an
    estimate. ``index`` is of chunks alone, and so are ``ranges``: what is lacking of the pack, None until the index
    was read. ``rebuild_s`` is what rebuilding takes here, on one core.
    """

    method: Method
    bases: tuple[Digest, ...] = ()
    payload: Digest | None = None
    index: Digest | None = None
    read_bytes: int = 0
    ready_in_s: float = 0.0
    rebuild_s: float = 0.0
    ranges: tuple[Range, ...] | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """What moving bytes to this store costs: its speed, and the prices of a GiB and of an hour in any one currency."""

    bytes_per_s: float
    price_per_gib: float = 1.0
    price_per_hour: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what no link is."""
        if not (math.isfinite(self.bytes_per_s) and self.bytes_per_s > 0):
            raise RuntimeError(f"a link of {self.bytes_per_s} bytes a second")
        if not all(math.isfinite(price) and price >= 0 for price in (self.price_per_gib, self.price_per_hour)):
            raise RuntimeError(f"prices of {self.price_per_gib} a GiB and {self.price_per_hour} an hour")

    def cost(self, read_bytes: int, seconds: float) -> float:
        """The price of reading so much and taking so long."""
        return self.price_per_gib * read_bytes / GIB + self.price_per_hour * seconds / HOUR_S


@dataclass(frozen=True, slots=True)
class Piece:
    """What is to be read: of a blob, from a byte on, so many bytes."""

    digest: Digest
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Alternative:
    """A way that was not chosen: what it would have cost, and why it was not. ``cost`` is infinite where it is none."""

    method: Method
    read_bytes: int
    seconds: float
    cost: float
    reason: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A delivery that was tried and did not become its target, and what was wrong with it."""

    method: Method
    bases: tuple[Digest, ...]
    payload: Digest | None
    reason: str


@dataclass(frozen=True, slots=True)
class TransferPlan:
    """How a blob is brought.

    ``pieces`` are read in this order; none while the payload is being made, and of chunks the index alone until it was
    read (``with_ranges``). ``read_bytes`` and ``seconds`` are the forecast, ``cost`` its price, ``ready_in_s`` how long
    the payload is still being made, ``why`` the decision in words and ``alternatives`` what it was taken against.
    """

    target: Digest
    method: Method
    bases: tuple[Digest, ...]
    payload: Digest | None
    index: Digest | None
    pieces: tuple[Piece, ...]
    read_bytes: int
    seconds: float
    ready_in_s: float
    rebuild_s: float
    cost: float
    why: str
    alternatives: tuple[Alternative, ...]

    @property
    def is_waiting(self) -> bool:
        """Whether its payload is still being made: ask again after ``ready_in_s``."""
        return self.payload is None

    @property
    def saved_bytes(self) -> int:
        """What reading the blob as it is would move more."""
        return self.target.size_bytes - self.read_bytes


@dataclass(frozen=True, slots=True)
class _Candidate:
    offer: Offer
    read_bytes: int
    seconds: float
    cost: float

    def order(self) -> tuple[float, int, float, int, tuple[str, ...]]:
        """Cheapest first; rule 4 for ties."""
        offer = self.offer
        names = [digest.sha256 for digest in (offer.payload, offer.index, *offer.bases) if digest is not None]
        return (self.cost, self.read_bytes, self.seconds, _SIMPLEST_FIRST[offer.method], tuple(names))

    def rejected(self, reason: str) -> Alternative:
        return Alternative(self.offer.method, self.read_bytes, self.seconds, self.cost, reason)


def choose(target: Digest, offers: Sequence[Offer], link: Link, budget_bytes: int | None) -> TransferPlan:
    """The cheapest of the offers and of reading the blob itself; ``budget_bytes`` may be read, None sets no bound.

    Raises GateError ``byte-budget`` when nothing fits.
    """
    return replan(target, offers, link, budget_bytes, ())


def replan(
    target: Digest, offers: Sequence[Offer], link: Link, budget_bytes: int | None, failures: Sequence[Failure]
) -> TransferPlan:
    """As ``choose``, without what failed before; the plan says what that was."""
    candidates, rejected = [_candidate(target, _itself(target), link)], []
    for offer in offers:
        if offer.method is Method.FULL:
            continue
        fault = _fault(target, offer)
        failure = next((one for one in failures if _is_of(one, offer)), None)
        if fault:
            rejected.append(Alternative(offer.method, max(offer.read_bytes, 0), 0.0, math.inf, fault))
        elif failure is not None:
            rejected.append(_candidate(target, offer, link).rejected(f"failed before: {failure.reason}"))
        else:
            candidates.append(_candidate(target, offer, link))
    candidates.sort(key=_Candidate.order)
    fitting = [one for one in candidates if budget_bytes is None or one.read_bytes <= budget_bytes]
    if not fitting:
        raise _over_budget(target, candidates, budget_bytes or 0, rejected)
    chosen = fitting[0]
    for one in candidates:
        if one is not chosen:
            is_over = budget_bytes is not None and one.read_bytes > budget_bytes
            reason = f"over the {budget_bytes} bytes left of the budget" if is_over else f"costs {one.cost:.6g}"
            rejected.append(one.rejected(reason))
    return _plan(target, chosen, tuple(sorted(rejected, key=_alternative_order)))


def reconsider(
    plan: TransferPlan,
    held_bytes: int,
    *,
    offers: Sequence[Offer],
    link: Link,
    budget_bytes: int | None,
    failures: Sequence[Failure] = (),
) -> TransferPlan:
    """The plan itself, of which ``held_bytes`` were read, or another that saves LEAST_GAIN of what it still costs.

    ``budget_bytes`` is what may still be read. Raises GateError ``byte-budget`` when neither fits any more.
    """
    left = max(plan.read_bytes - held_bytes, 0)
    still = link.cost(left, plan.ready_in_s + left / link.bytes_per_s + plan.rebuild_s)
    fits = budget_bytes is None or left <= budget_bytes
    try:
        other = replan(plan.target, offers, link, budget_bytes, failures)
    except GateError:
        if fits:
            return plan
        raise
    if fits and (_is_same(plan, other) or other.cost >= still * (1 - LEAST_GAIN)):
        return plan
    return replace(other, why=_clip(f"{other.why}; instead of {plan.method.value}, which still costs {still:.6g}"))


def coalesced(ranges: Sequence[Range], gap_bytes: int) -> tuple[Range, ...]:
    """Ascending ranges, those made one that lie at most ``gap_bytes`` apart: what is between costs less than asking."""
    joined: list[Range] = []
    for one in ranges:
        if joined and one.offset - (joined[-1].offset + joined[-1].length) <= gap_bytes:
            joined[-1] = Range(joined[-1].offset, one.offset + one.length - joined[-1].offset)
        else:
            joined.append(one)
    return tuple(joined)


def with_ranges(plan: TransferPlan, ranges: Sequence[Range], link: Link, budget_bytes: int | None) -> TransferPlan:
    """A plan of chunks whose index is read: the ranges of the pack that are lacking become its pieces.

    ``budget_bytes`` is what may be read beyond the index. Raises BadPlanError, GateError ``byte-budget``.
    """
    if plan.method is not Method.CHUNKS or plan.payload is None or plan.index is None:
        raise RuntimeError(f"a plan by {plan.method.value} has no ranges")
    fault = _ranges_fault(ranges, plan.payload)
    if fault:
        raise BadPlanError(f"chunks of blob {plan.target.sha256}: {fault}")
    lacking = sum(one.length for one in ranges)
    if budget_bytes is not None and lacking > budget_bytes:
        raise _budget_error(plan.target, Method.CHUNKS, lacking, budget_bytes)
    read_bytes = plan.index.size_bytes + lacking
    seconds = read_bytes / link.bytes_per_s + plan.rebuild_s
    pieces = (_whole(plan.index), *(Piece(plan.payload, one.offset, one.length) for one in ranges))
    cost = link.cost(read_bytes, seconds)
    return replace(plan, pieces=pieces, read_bytes=read_bytes, seconds=seconds, ready_in_s=0.0, cost=cost)


def _itself(target: Digest) -> Offer:
    return Offer(Method.FULL, payload=target, read_bytes=target.size_bytes)


def _candidate(target: Digest, offer: Offer, link: Link) -> _Candidate:
    read_bytes = _read_bytes(target, offer)
    seconds = offer.ready_in_s + read_bytes / link.bytes_per_s + offer.rebuild_s
    return _Candidate(offer, read_bytes, seconds, link.cost(read_bytes, seconds))


def _read_bytes(target: Digest, offer: Offer) -> int:
    """What is read by this offer: from digests where there are any."""
    if offer.method is Method.FULL:
        return target.size_bytes
    if offer.payload is None:
        return offer.read_bytes
    if offer.method is not Method.CHUNKS:
        return offer.payload.size_bytes
    index_bytes = offer.index.size_bytes if offer.index is not None else 0
    if offer.ranges is not None:
        return index_bytes + sum(one.length for one in offer.ranges)
    return min(max(offer.read_bytes, index_bytes), index_bytes + offer.payload.size_bytes)


def _fault(target: Digest, offer: Offer) -> str:
    """Why an offer is none; empty if it is one."""
    times = (offer.ready_in_s, offer.rebuild_s)
    has_index = offer.index is not None
    faults = (
        (not all(math.isfinite(one) and one >= 0 for one in times), "seconds that are none"),
        (offer.read_bytes < 0, "bytes below nothing"),
        (offer.ready_in_s > WAIT_MOST_S, f"not ready within {WAIT_MOST_S:g} s"),
        (target in {offer.payload, offer.index}, "its payload is the blob itself"),
        (target in offer.bases, "its base is the blob itself"),
        (offer.method is Method.DELTA and not offer.bases, "a delta without a base"),
        (offer.method is Method.FULL_ZSTD and bool(offer.bases), "the whole blob, and a base"),
        (
            has_index != (offer.method is Method.CHUNKS and offer.payload is not None),
            "chunks have an index, and nothing else has",
        ),
        (offer.ranges is not None and not has_index, "ranges of no pack"),
    )
    fault = next((words for is_so, words in faults if is_so), "")
    if not fault and offer.ranges is not None and offer.payload is not None:
        return _ranges_fault(offer.ranges, offer.payload)
    return fault


def _ranges_fault(ranges: Sequence[Range], pack: Digest) -> str:
    """Why these are no ranges of a pack to read one after the other; empty if they are."""
    if len(ranges) > RANGES_MOST:
        return f"{len(ranges)} ranges; at most {RANGES_MOST}"
    end = 0
    for one in ranges:
        if one.offset < end or one.length <= 0:
            return f"the range of {one.length} bytes from {one.offset} on is empty or begins before {end}"
        end = one.offset + one.length
    return f"a range ends at {end}, beyond the pack of {pack.size_bytes} bytes" if end > pack.size_bytes else ""


def _is_of(failure: Failure, offer: Offer) -> bool:
    """Whether an offer is what failed: the same payload; or, still unmade, the same way from the same bases.

    So what was not made in time may be taken once it is made, and what was wrong is not waited for again.
    """
    if offer.payload is not None:
        return failure.payload == offer.payload
    return failure.method is offer.method and failure.bases == offer.bases


def _is_same(plan: TransferPlan, other: TransferPlan) -> bool:
    return (plan.method, plan.payload, plan.bases) == (other.method, other.payload, other.bases)


def _whole(digest: Digest) -> Piece:
    return Piece(digest, 0, digest.size_bytes)


def _pieces(offer: Offer) -> tuple[Piece, ...]:
    if offer.payload is None:
        return ()
    if offer.method is not Method.CHUNKS or offer.index is None:
        return (_whole(offer.payload),)
    ranges = offer.ranges or ()
    return (_whole(offer.index), *(Piece(offer.payload, one.offset, one.length) for one in ranges))


def _plan(target: Digest, chosen: _Candidate, alternatives: tuple[Alternative, ...]) -> TransferPlan:
    offer = chosen.offer
    return TransferPlan(
        target=target,
        method=offer.method,
        bases=offer.bases,
        payload=offer.payload,
        index=offer.index,
        pieces=_pieces(offer),
        read_bytes=chosen.read_bytes,
        seconds=chosen.seconds,
        ready_in_s=offer.ready_in_s,
        rebuild_s=offer.rebuild_s,
        cost=chosen.cost,
        why=_why(chosen, alternatives),
        alternatives=alternatives,
    )


def _why(chosen: _Candidate, alternatives: Sequence[Alternative]) -> str:
    """The decision in words."""
    offer = chosen.offer
    words = f"{offer.method.value} reads {chosen.read_bytes} bytes and costs {chosen.cost:.6g}"
    if offer.payload is None:
        words = f"{words}, its wait of {offer.ready_in_s:g} s included"
    others = "; ".join(f"{one.method.value} ({one.read_bytes} bytes): {one.reason}" for one in alternatives)
    return _clip(f"{words}; {others or 'nothing else is offered'}")


def _clip(words: str) -> str:
    return words if len(words) <= WHY_MOST else f"{words[: WHY_MOST - 1]}…"


def _alternative_order(one: Alternative) -> tuple[bool, float, int, int, str]:
    """What failed or cannot be comes first: it is what a reader must not miss."""
    is_cost = one.reason.startswith(("costs ", "over "))
    return (is_cost, one.cost, one.read_bytes, _SIMPLEST_FIRST[one.method], one.reason)


def _over_budget(
    target: Digest, candidates: Iterable[_Candidate], budget_bytes: int, rejected: Sequence[Alternative]
) -> GateError:
    smallest = min(candidates, key=lambda one: (one.read_bytes, one.order()))
    failed = "; ".join(f"{one.method.value}: {one.reason}" for one in sorted(rejected, key=_alternative_order))
    return _budget_error(target, smallest.offer.method, smallest.read_bytes, budget_bytes, failed)


def _budget_error(target: Digest, method: Method, read_bytes: int, budget_bytes: int, failed: str = "") -> GateError:
    msg = (
        f"blob {target.sha256} of {target.size_bytes} bytes: the smallest way there is, {method.value}, reads "
        f"{read_bytes} bytes and {budget_bytes} are left of this store's byte budget for the wave"
    )
    return GateError(
        Gate.BYTE_BUDGET.value,
        _clip(f"{msg}; {failed}" if failed else msg),
        observed=str(read_bytes),
        required=f"at most {budget_bytes}",
        sha256=target.sha256,
    )
