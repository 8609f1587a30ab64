"""What each way to a target would cost, guessed from sketches, before anything is made. Pure.

A *sketch* of an image holds, of its content-defined chunks, the coarse ones (64 KiB, all of them) and a sample of the
fine ones (half a KiB; by their ids, so that two sketches sample alike). Each chunk has its length and what it costs
when it is compressed. Compressed streams inside images are sketched by their content, as deltas see them.

* Full: the sum of the distinct coarse chunks.
* Chunks: the same over the coarse chunks that no base has, and an index.
* Delta: the fine chunks that no base has. What surrounds a change of a few bytes is there, so a fresh fine chunk costs
  its whole share only where whole neighbourhoods are fresh; ``CHANGED_SHARE`` of it where they are not.

Guesses, not bounds: a super hub ranks bases by them and skips deltas that are not worth their 20 s of CPU. What is
offered has real sizes; ``bench/results/delta.md`` has guesses beside them. Deltas that are mostly changed addresses are
guessed several times too large, which never ranks them behind a whole image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FINE_SAMPLED = 16
"""One in so many fine chunks is in a sketch."""
INDEX_BYTES_PER_CHUNK = 20
DELTA_LEAST_BYTES = 400
CHANGED_SHARE = 0.25
FRESH_FROM = 0.5
"""From this share of fresh bytes within a neighbourhood on, it is taken for new and not for changed."""
LEAST_GAIN = 0.05
MAKE_BYTES_PER_S = 8e6
"""Bytes of bases and target that one core takes into a delta in a second."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A chunk's length, what it costs compressed, and (of a fine one) which coarse chunk it was first seen in."""

    length: int
    packed: float
    place: int = 0


@dataclass(frozen=True, slots=True)
class Sketch:
    """Of one image; chunks by the first bytes of their hash. ``size_bytes`` is the image's own."""

    size_bytes: int
    coarse: Mapping[bytes, Weight]
    fine: Mapping[bytes, Weight]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes to move each way, and seconds of one core to make the delta."""

    full_bytes: int
    chunks_bytes: int
    delta_bytes: int
    make_s: float

    @property
    def is_delta_worth_making(self) -> bool:
        """Whether it would move LEAST_GAIN less than the better of the others."""
        return self.delta_bytes < (1 - LEAST_GAIN) * min(self.full_bytes, self.chunks_bytes)


def estimate(target: Sketch, bases: Sequence[Sketch]) -> Estimate:
    """What the target costs whoever holds the bases; more bases never cost more bytes."""
    full = sum(weight.packed for weight in target.coarse.values())
    missing = sum(
        weight.packed for name, weight in target.coarse.items() if not any(name in base.coarse for base in bases)
    )
    delta = _delta(target, bases) if bases else full
    return Estimate(
        full_bytes=round(full),
        chunks_bytes=round(missing + INDEX_BYTES_PER_CHUNK * len(target.coarse)),
        delta_bytes=round(min(full, delta) + DELTA_LEAST_BYTES),
        make_s=(target.size_bytes + sum(base.size_bytes for base in bases)) / MAKE_BYTES_PER_S,
    )


def rank(target: Sketch, bases: Sequence[Sketch]) -> list[int]:
    """The places of the bases that are worth a delta each, the likest first; ties by place."""
    estimates = [estimate(target, [base]) for base in bases]
    worth = [place for place, one in enumerate(estimates) if one.is_delta_worth_making]
    return sorted(worth, key=lambda place: (estimates[place].delta_bytes, place))


def _delta(target: Sketch, bases: Sequence[Sketch]) -> float:
    """The fresh fine chunks, scaled up from the sample, each by how fresh its neighbourhood is."""
    seen: dict[int, int] = {}
    fresh: dict[int, int] = {}
    fresh_packed: dict[int, float] = {}
    for name, weight in target.fine.items():
        seen[weight.place] = seen.get(weight.place, 0) + weight.length
        if not any(name in base.fine for base in bases):
            fresh[weight.place] = fresh.get(weight.place, 0) + weight.length
            fresh_packed[weight.place] = fresh_packed.get(weight.place, 0.0) + weight.packed
    cost = 0.0
    for place, packed in fresh_packed.items():
        share = fresh[place] / seen[place]
        changed = min(1.0, CHANGED_SHARE + (1 - CHANGED_SHARE) * share / FRESH_FROM)
        cost += packed * changed
    return cost * FINE_SAMPLED
