"""What a super hub makes of a blob for stores that hold others, and what it promises of it meanwhile (S5). Pure.

Rules.
1. Only blobs of at least ``LEAST_TARGET_BYTES`` are worth it; smaller ones are gone before a delta is made.
2. Of a target: itself compressed, and its pack of chunks with the index, each once. Of a pair: a delta, where the base
   is here, is not the target, is at most ``UNLIKE`` times as large or as small (others share too little to be worth
   minutes), and where both fit the bounds of memory and of time. At most ``DELTAS_MOST`` deltas of one target, from the
   likeliest bases: first those of who asks, then what most devices of the region run.
3. The first delta comes first, because stores will choose it; then what serves every store, then the other deltas.
4. A delta is kept if it is at most ``WORTH`` of the least that serves without a base, a compressed blob if it is at
   most that of the blob. What is not, and what could not be made within its bounds, is remembered and not tried again
   before ``AGAIN_AFTER``.
5. Before a large delta is made, the likeness of target and base is looked at (``artifacts/likeness.py``), which
   takes a tenth of the time; one that is not likely to be worth it is dismissed at once.
6. What is not made yet is forecast by what the same method made of other blobs here, and by ``_SHARE`` before it made
   any; the time by ``_BYTES_PER_S``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from statistics import median
from typing import TYPE_CHECKING

from wavemesh.artifacts.plan import Method
from wavemesh.trust.delivered import DerivedSize

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from datetime import datetime

    from wavemesh.trust.statements import Digest

LEAST_TARGET_BYTES = 64 * 1024
UNLIKE = 4
DELTAS_MOST = 4
WORTH = 0.9
AGAIN_AFTER = timedelta(days=1)
LEARNED_FROM = 32
LIKENED_FROM_BYTES = 8 * 1024 * 1024
"""Of a target: smaller deltas are made as quickly as their likeness is found."""
TOLD_MOST = 256

_MIB = 1024 * 1024
DELTA_MEMORY_PER_BYTE = 10
"""What making a delta takes for each byte of target and bases (``delta/worker.py``)."""
_FIXED_MEMORY_BYTES = 512 * _MIB
_LEVEL_BYTES_PER_S = {19: 1.5 * _MIB, 15: 6.0 * _MIB, 12: 12.0 * _MIB, 6: 50.0 * _MIB, 3: 120.0 * _MIB}
_DELTA_BYTES_PER_S = 8.0 * _MIB
_SHARE = {Method.FULL: 1.0, Method.FULL_ZSTD: 0.6, Method.CHUNKS: 0.6, Method.DELTA: 0.25}
_REBUILD_BYTES_PER_S = {Method.FULL_ZSTD: 400e6, Method.CHUNKS: 200e6, Method.DELTA: 160e6}


@dataclass(frozen=True, slots=True)
class Recipe:
    """One thing that can be made: by which method, of which target, with which bases."""

    method: Method
    target: Digest
    bases: tuple[Digest, ...] = ()


@dataclass(frozen=True, slots=True)
class Made:
    """What was made: the blobs, when, and how many seconds it took. ``index`` is of chunks alone."""

    recipe: Recipe
    payload: Digest
    index: Digest | None
    made_at: datetime
    cost_s: float

    @property
    def blobs(self) -> tuple[Digest, ...]:
        """All blobs of it, the index first, as they are read."""
        return (self.payload,) if self.index is None else (self.index, self.payload)


@dataclass(frozen=True, slots=True)
class Dismissed:
    """What was tried and not kept: why, and when."""

    recipe: Recipe
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Limits:
    """What making may take: memory of one job in MiB, seconds of one job, jobs at a time."""

    memory_mib: int
    max_s: float
    parallel: int


def recipes(target: Digest, bases: Sequence[Digest], methods: Collection[Method], limits: Limits) -> list[Recipe]:
    """What to make of a target for who holds ``bases`` (which are here, the likeliest first), in this order."""
    if target.size_bytes < LEAST_TARGET_BYTES:
        return []
    deltas = [
        Recipe(Method.DELTA, target, (base,))
        for base in dict.fromkeys(bases)
        if Method.DELTA in methods and is_likely(target, base)
    ][:DELTAS_MOST]
    plain = [Recipe(method, target) for method in (Method.FULL_ZSTD, Method.CHUNKS) if method in methods]
    ordered = [*deltas[:1], *plain, *deltas[1:]]
    return [recipe for recipe in ordered if fits(recipe, limits)]


def is_likely(target: Digest, base: Digest) -> bool:
    """Whether a delta from that base may be worth its making, by their sizes."""
    if base == target or not base.size_bytes:
        return False
    return base.size_bytes <= UNLIKE * target.size_bytes and target.size_bytes <= UNLIKE * base.size_bytes


def fits(recipe: Recipe, limits: Limits) -> bool:
    """Whether a job stays within its bounds, by what jobs take."""
    if make_s(recipe, limits) > limits.max_s:
        return False
    if recipe.method is not Method.DELTA:
        return limits.memory_mib * _MIB >= _FIXED_MEMORY_BYTES
    return DELTA_MEMORY_PER_BYTE * _input_bytes(recipe) <= limits.memory_mib * _MIB


def level_for(target: Digest, limits: Limits) -> int:
    """The zstd level: the best with which the target is done in half the time there is, else the quickest."""
    for level, bytes_per_s in _LEVEL_BYTES_PER_S.items():
        if target.size_bytes / bytes_per_s <= limits.max_s / 2:
            return level
    return min(_LEVEL_BYTES_PER_S)


def make_s(recipe: Recipe, limits: Limits) -> float:
    """How long making takes, about, seconds on one core."""
    if recipe.method is Method.DELTA:
        return _input_bytes(recipe) / _DELTA_BYTES_PER_S
    return recipe.target.size_bytes / _LEVEL_BYTES_PER_S[level_for(recipe.target, limits)]


def rebuild_s(recipe: Recipe) -> float:
    """How long rebuilding takes at a store, about, seconds on one core."""
    return recipe.target.size_bytes / _REBUILD_BYTES_PER_S[recipe.method]


def ready_in_s(ahead: Iterable[Recipe], recipe: Recipe, worked_s: float, limits: Limits) -> int:
    """Seconds until a recipe that is in work or waits behind others is made, at least 1; an estimate."""
    waiting = sum(make_s(one, limits) for one in ahead) / limits.parallel
    return max(1, round(waiting + make_s(recipe, limits) - worked_s))


def forecast_bytes(recipe: Recipe, made: Iterable[Made]) -> int:
    """How large what is not made yet will be, about, by what was made here by the same method."""
    shares = [
        one.payload.size_bytes / one.recipe.target.size_bytes for one in made if one.recipe.method is recipe.method
    ][-LEARNED_FROM:]
    share = median(shares) if shares else _SHARE[recipe.method]
    return max(1, round(share * recipe.target.size_bytes))


def why_not_worth(recipe: Recipe, payload_bytes: int, compressed_bytes: int | None) -> str:
    """Why a result is not kept, empty if it is. ``compressed_bytes`` is the target compressed, where that was made.

    A pack is always kept: what it saves depends on who reads it.
    """
    if recipe.method is Method.CHUNKS:
        return ""
    best = recipe.target.size_bytes
    if recipe.method is Method.DELTA and compressed_bytes is not None:
        best = min(best, compressed_bytes)
    if payload_bytes <= WORTH * best:
        return ""
    return f"{payload_bytes} bytes, where {best} do without it"


def is_to_be_likened(recipe: Recipe) -> bool:
    """Whether to look at the likeness before the making."""
    return recipe.method is Method.DELTA and recipe.target.size_bytes >= LIKENED_FROM_BYTES


def is_to_be_tried(dismissed: Dismissed | None, now: datetime) -> bool:
    """Whether what was dismissed then may be tried again."""
    return dismissed is None or now - dismissed.at >= AGAIN_AFTER


def _input_bytes(recipe: Recipe) -> int:
    return recipe.target.size_bytes + sum(base.size_bytes for base in recipe.bases)


def sizes_told(made: Iterable[Made]) -> tuple[DerivedSize, ...]:
    """What a status says was made, for control to forecast by: the newest TOLD_MOST.

    Of chunks nothing: what a store reads of a pack depends on what it holds.
    """
    told = sorted(
        (one for one in made if one.recipe.method is not Method.CHUNKS),
        key=lambda one: (-one.made_at.timestamp(), one.payload.sha256),
    )
    return tuple(
        DerivedSize(
            one.recipe.target.sha256,
            one.recipe.method.value,
            one.payload.size_bytes,
            tuple(base.sha256 for base in one.recipe.bases),
        )
        for one in told[:TOLD_MOST]
    )
