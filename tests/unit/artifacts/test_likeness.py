"""Guesses of what a way costs (S5): never more for knowing more, nothing for what is held, the likest base first."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from wavemesh.artifacts.likeness import (
    DELTA_LEAST_BYTES,
    INDEX_BYTES_PER_CHUNK,
    Sketch,
    Weight,
    estimate,
    rank,
)
from wavemesh.artifacts.sketching import sketch_file

if TYPE_CHECKING:
    from pathlib import Path

NAMES = st.integers(0, 40).map(lambda number: number.to_bytes(8, "big"))
COARSE = st.dictionaries(NAMES, st.integers(1, 60_000).map(lambda length: Weight(length, length * 0.4)), max_size=20)
FINE = st.dictionaries(
    NAMES,
    st.tuples(st.integers(1, 600), st.integers(0, 5)).map(lambda drawn: Weight(drawn[0], drawn[0] * 0.4, drawn[1])),
    max_size=30,
)
SKETCHES = st.builds(Sketch, st.integers(1, 1 << 30), COARSE, FINE)


@given(SKETCHES, st.lists(SKETCHES, max_size=4), SKETCHES)
def test_one_more_base_never_costs_more(target: Sketch, bases: list[Sketch], one_more: Sketch) -> None:
    before, after = estimate(target, bases), estimate(target, [*bases, one_more])
    assert after.full_bytes == before.full_bytes
    assert after.chunks_bytes <= before.chunks_bytes
    assert after.delta_bytes <= before.delta_bytes
    assert after.make_s >= before.make_s


@given(SKETCHES, st.lists(SKETCHES, max_size=4))
def test_no_way_costs_more_than_the_whole_and_its_own_overhead(target: Sketch, bases: list[Sketch]) -> None:
    found = estimate(target, bases)
    assert 0 <= found.delta_bytes <= found.full_bytes + DELTA_LEAST_BYTES + 1
    assert 0 <= found.chunks_bytes <= found.full_bytes + INDEX_BYTES_PER_CHUNK * len(target.coarse) + 1


@given(SKETCHES, st.lists(SKETCHES, max_size=2))
def test_what_is_held_costs_nothing_but_the_overhead(target: Sketch, others: list[Sketch]) -> None:
    found = estimate(target, [*others, target])
    assert found.delta_bytes == DELTA_LEAST_BYTES
    assert found.chunks_bytes == INDEX_BYTES_PER_CHUNK * len(target.coarse)


@given(SKETCHES, st.lists(SKETCHES, max_size=4))
def test_only_bases_worth_it_are_ranked_and_the_likest_comes_first(target: Sketch, bases: list[Sketch]) -> None:
    ranked = rank(target, bases)
    alone = [estimate(target, [base]) for base in bases]
    assert sorted(ranked) == [place for place, one in enumerate(alone) if one.is_delta_worth_making]
    assert [alone[place].delta_bytes for place in ranked] == sorted(alone[place].delta_bytes for place in ranked)


def test_real_files_are_told_apart(tmp_path: Path) -> None:
    """A version with edits everywhere is worth a delta, an unrelated file is not."""
    seeded = random.Random(1)
    words = [seeded.randbytes(6).hex().encode() for _ in range(3_000)]
    old = b" ".join(seeded.choices(words, k=300_000))
    edited = bytearray(old)
    for place in range(0, len(edited), 50_000):
        edited[place : place + 8] = b"NEW WORD"
    sketches = {}
    for name, content in (("old", old), ("edited", bytes(edited)), ("unrelated", seeded.randbytes(len(old)))):
        (tmp_path / name).write_bytes(content)
        sketches[name] = sketch_file(tmp_path / name)
    target = sketches["edited"]
    like, unlike = estimate(target, [sketches["old"]]), estimate(target, [sketches["unrelated"]])
    assert like.delta_bytes < like.full_bytes / 10
    assert like.is_delta_worth_making
    assert not unlike.is_delta_worth_making
    assert unlike.chunks_bytes > 0.99 * unlike.full_bytes
    assert rank(target, [sketches["unrelated"], sketches["old"]]) == [1]
