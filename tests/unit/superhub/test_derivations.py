"""What is made, in which order, and what is promised of it (S5)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superhub.derivations import (
    AGAIN_AFTER,
    DELTAS_MOST,
    LEAST_TARGET_BYTES,
    UNLIKE,
    Dismissed,
    Limits,
    Made,
    Recipe,
    fits,
    forecast_bytes,
    is_likely,
    is_to_be_likened,
    is_to_be_tried,
    level_for,
    make_s,
    ready_in_s,
    rebuild_s,
    recipes,
    why_not_worth,
)
from wavemesh.artifacts.plan import Method
from wavemesh.trust.statements import Digest

MIB = 1024 * 1024
LIMITS = Limits(memory_mib=4096, max_s=1200.0, parallel=1)
NOW = datetime(2026, 5, 1, tzinfo=UTC)
ALL = list(Method)


def blob(number: int, size: int = 10 * MIB) -> Digest:
    return Digest(f"{number:064x}", size)


TARGET = blob(1)


def test_the_first_delta_comes_first_then_what_serves_all_then_the_others() -> None:
    made = recipes(TARGET, [blob(2), blob(3), blob(2)], ALL, LIMITS)
    assert made == [
        Recipe(Method.DELTA, TARGET, (blob(2),)),
        Recipe(Method.FULL_ZSTD, TARGET),
        Recipe(Method.CHUNKS, TARGET),
        Recipe(Method.DELTA, TARGET, (blob(3),)),
    ]


@given(
    st.integers(0, 1 << 40),
    st.lists(st.builds(blob, st.integers(1, 9), st.integers(0, 1 << 40)), max_size=20),
    st.sets(st.sampled_from(ALL)),
    st.integers(512, 100_000),
    st.floats(1, 86_400),
)
def test_nothing_is_made_that_is_not_wanted_or_does_not_fit(
    size: int, bases: list[Digest], methods: set[Method], memory_mib: int, max_s: float
) -> None:
    limits = Limits(memory_mib, max_s, 2)
    target = blob(1, size)
    made = recipes(target, bases, methods, limits)
    assert len(made) == len(set(made))
    assert size >= LEAST_TARGET_BYTES or made == []
    assert all(fits(one, limits) and one.method in methods and one.method is not Method.FULL for one in made)
    deltas = [one for one in made if one.method is Method.DELTA]
    assert len(deltas) <= DELTAS_MOST
    assert all(is_likely(target, base) and base in bases for one in deltas for base in one.bases)
    assert all(make_s(one, limits) <= max_s for one in made)


@pytest.mark.parametrize(
    ("base", "likely"),
    [
        (TARGET, False),
        (blob(2, 0), False),
        (blob(2, 10 * MIB * UNLIKE), True),
        (blob(2, 10 * MIB * UNLIKE + 1), False),
        (blob(2, -(-10 * MIB // UNLIKE)), True),
        (blob(2, 10 * MIB // UNLIKE - 1), False),
    ],
)
def test_bases_of_another_size_are_unlikely(base: Digest, *, likely: bool) -> None:
    assert is_likely(TARGET, base) is likely


def test_a_pair_too_large_for_the_memory_gets_no_delta() -> None:
    recipe = Recipe(Method.DELTA, blob(1, 200 * MIB), (blob(2, 200 * MIB),))
    assert fits(recipe, LIMITS)
    assert not fits(recipe, Limits(3999, 1200.0, 1))
    assert not fits(recipe, Limits(4096, 49.0, 1))


def test_the_level_is_the_best_there_is_time_for() -> None:
    assert level_for(blob(1, 160 * MIB), LIMITS) == 19
    assert level_for(blob(1, 1024 * MIB), LIMITS) == 15
    assert level_for(blob(1, 20_000 * MIB), LIMITS) == 6
    assert level_for(blob(1, 1 << 40), LIMITS) == 3
    assert not fits(Recipe(Method.FULL_ZSTD, blob(1, 1 << 40)), LIMITS)


def test_what_waits_is_ready_after_those_before_it() -> None:
    ahead, recipe = Recipe(Method.DELTA, TARGET, (blob(2),)), Recipe(Method.FULL_ZSTD, TARGET)
    alone = ready_in_s((), recipe, 0.0, LIMITS)
    assert alone == round(make_s(recipe, LIMITS))
    assert ready_in_s((ahead,), recipe, 0.0, LIMITS) == round(make_s(recipe, LIMITS) + make_s(ahead, LIMITS))
    assert ready_in_s((), recipe, 3.0, LIMITS) == round(make_s(recipe, LIMITS) - 3.0)
    assert ready_in_s((), recipe, 1e6, LIMITS) == 1, "late is not now"
    assert rebuild_s(recipe) > 0


def _made(recipe: Recipe, size: int) -> Made:
    return Made(recipe, blob(99, size), None, NOW, 1.0)


def test_the_forecast_learns_from_what_was_made_by_the_method() -> None:
    recipe = Recipe(Method.DELTA, TARGET, (blob(2),))
    assert forecast_bytes(recipe, ()) == round(0.25 * TARGET.size_bytes)
    others = [
        _made(Recipe(Method.FULL_ZSTD, blob(5, 1000)), 900),
        *(
            _made(Recipe(Method.DELTA, blob(number, 1000), (blob(2),)), size)
            for number, size in enumerate((10, 20, 90))
        ),
    ]
    assert forecast_bytes(recipe, others) == round(0.02 * TARGET.size_bytes)


@pytest.mark.parametrize(
    ("method", "size", "compressed", "kept"),
    [
        (Method.FULL_ZSTD, 9 * MIB, None, True),
        (Method.FULL_ZSTD, 9 * MIB + 1, None, False),
        (Method.DELTA, 9 * MIB, None, True),
        (Method.DELTA, 9 * MIB, 10 * MIB, True),
        (Method.DELTA, 9 * MIB, 9 * MIB, False),
        (Method.CHUNKS, 11 * MIB, 1, True),
    ],
)
def test_what_saves_too_little_is_not_kept(method: Method, size: int, compressed: int | None, *, kept: bool) -> None:
    assert (why_not_worth(Recipe(method, TARGET), size, compressed) == "") is kept


def test_what_was_dismissed_is_tried_again_after_a_while() -> None:
    dismissed = Dismissed(Recipe(Method.DELTA, TARGET, (blob(2),)), "no", NOW)
    assert is_to_be_tried(None, NOW)
    assert not is_to_be_tried(dismissed, NOW + AGAIN_AFTER - timedelta(seconds=1))
    assert is_to_be_tried(dismissed, NOW + AGAIN_AFTER)


def test_only_large_deltas_are_likened_first() -> None:
    assert is_to_be_likened(Recipe(Method.DELTA, TARGET, (blob(2),)))
    assert not is_to_be_likened(Recipe(Method.DELTA, blob(1, MIB), (blob(2),)))
    assert not is_to_be_likened(Recipe(Method.CHUNKS, TARGET))
