"""Decides what makes room in a cache: what goes, in which order, and what would help where that is not enough.

Rules (H1): what is *pinned* stays, and so does what is wanted itself. Everything else goes oldest use first, and no
more than the shortest such run that makes the room: its last one is needed. Room is of two kinds, the quota and the
disk, and both must suffice. Where they cannot, nothing goes at all: the plan is refused beforehand with gate
``cache-quota`` and says what would help.

Partial blobs have their room reserved in full, on the quota and on the disk.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wavemesh.errors import GateError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import datetime, timedelta

    from wavemesh.trust.statements import Digest

GATE = "cache-quota"


@dataclass(frozen=True, slots=True)
class CachedBlob:
    """A blob on disk, whole or in part (room for all of it is reserved), and when it was last asked for."""

    digest: Digest
    last_used_at: datetime
    is_complete: bool = True


@dataclass(frozen=True, slots=True)
class Need:
    """Blobs that something active needs here, and what: "target of wave 142"."""

    reason: str
    blobs: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class Room:
    """``quota_bytes`` bound all blobs together; ``free_bytes`` is what the disk has beyond those that are here and
    what is reserved for their rest, negative when more is promised than there is. None: nobody looked at the disk.
    """

    quota_bytes: int
    free_bytes: int | None = None


class Bound(enum.Enum):
    """What is too small."""

    QUOTA = "quota"
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class Help:
    """What would make room: the end of a reason, and how many bytes only that reason keeps here."""

    reason: str
    frees_bytes: int


@dataclass(frozen=True, slots=True)
class RoomPlan:
    """What fetching all that is wanted takes. ``missing`` is wanted and not here; ``evicted`` would go for it.

    ``excess_bytes`` is by how much ``bound`` is too small even so: then nothing is evicted, and ``helps`` says what
    would make room, the largest first. Bytes before and after are those accounted against the quota.
    """

    missing: tuple[Digest, ...]
    evicted: tuple[Digest, ...]
    before_bytes: int
    after_bytes: int
    excess_bytes: int = 0
    bound: Bound | None = None
    helps: tuple[Help, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether it can be done."""
        return self.bound is None


def oldest_first(blobs: Iterable[CachedBlob]) -> tuple[CachedBlob, ...]:
    """The order of eviction, pinned ones included: least recently used first, ties by name."""
    return tuple(sorted(blobs, key=lambda blob: (blob.last_used_at, blob.digest.sha256, blob.digest.size_bytes)))


def plan_room(
    blobs: Sequence[CachedBlob], pinned: Mapping[str, Collection[str]], wanted: Iterable[Digest], room: Room
) -> RoomPlan:
    """What to evict so that all of ``wanted`` fits; ``pinned`` has the reasons to keep blobs, by SHA-256."""
    needed = dict.fromkeys(wanted)
    present = {blob.digest for blob in blobs}
    missing = tuple(digest for digest in needed if digest not in present)
    used, coming = _size(present), _size(missing)
    over = {Bound.QUOTA: used + coming - room.quota_bytes}
    if room.free_bytes is not None and not needed.keys() <= {blob.digest for blob in blobs if blob.is_complete}:
        over[Bound.DISK] = coming - room.free_bytes
    evicted: list[Digest] = []
    freed = 0
    for blob in oldest_first(blobs):
        if freed >= max(over.values()):
            break
        if blob.digest.sha256 not in pinned and blob.digest not in needed:
            evicted.append(blob.digest)
            freed += blob.digest.size_bytes
    bound = max(over, key=lambda one: over[one])
    if freed < over[bound]:
        helps = _helps(present.difference(needed), pinned)
        return RoomPlan(missing, (), used, used, over[bound] - freed, bound, helps)
    return RoomPlan(missing, tuple(evicted), used, used - freed + coming)


def _size(digests: Iterable[Digest]) -> int:
    return sum(digest.size_bytes for digest in digests)


def _helps(blobs: Iterable[Digest], pinned: Mapping[str, Collection[str]]) -> tuple[Help, ...]:
    """What each reason alone keeps here, of that which is not wanted itself."""
    kept: dict[str, int] = {}
    for digest in blobs:
        reasons = pinned.get(digest.sha256, ())
        if len(reasons) == 1:
            [reason] = reasons
            kept[reason] = kept.get(reason, 0) + digest.size_bytes
    found = [Help(reason, frees_bytes) for reason, frees_bytes in kept.items()]
    return tuple(sorted(found, key=lambda one: (-one.frees_bytes, one.reason)))


def refusal(plan: RoomPlan, room: Room) -> GateError:
    """The gate behind a plan that does not fit, in words, with what would help most."""
    if plan.bound is Bound.DISK:
        msg = f"the disk lacks {plan.excess_bytes} bytes for what is wanted, whatever may be evicted"
    else:
        msg = (
            f"the cache quota of {room.quota_bytes} bytes is {plan.excess_bytes} bytes too small for what is wanted "
            "and pinned"
        )
    if plan.helps:
        most = plan.helps[0]
        msg += f"; {most.frees_bytes} bytes are kept by this alone: {most.reason}"
    bound = plan.bound.value if plan.bound is not None else ""
    details = {"excess_bytes": str(plan.excess_bytes), "quota_bytes": str(room.quota_bytes), "bound": bound}
    return GateError(GATE, msg, **details)


def make_room(
    blobs: Sequence[CachedBlob], pinned: Mapping[str, Collection[str]], wanted: Iterable[Digest], room: Room
) -> tuple[Digest, ...]:
    """What to evict so that all of ``wanted`` fits; raises GateError ``cache-quota`` where it cannot."""
    plan = plan_room(blobs, pinned, wanted, room)
    if not plan.fits:
        raise refusal(plan, room)
    return plan.evicted


def stale(
    partials: Iterable[CachedBlob], pinned: Collection[str], wanted: Collection[Digest], now: datetime, keep: timedelta
) -> tuple[Digest, ...]:
    """Partial blobs to sweep: nobody wants or pins them, and nobody has written to them for longer than ``keep``."""
    return tuple(
        blob.digest
        for blob in oldest_first(partials)
        if blob.digest not in wanted and blob.digest.sha256 not in pinned and now - blob.last_used_at > keep
    )
