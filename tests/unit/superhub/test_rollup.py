"""Merging outcomes: whatever the order, however often, the same ledger comes out (S3)."""

from __future__ import annotations

from datetime import UTC, datetime
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from superhub.rollup import Heard, Key, news
from wavemesh.outcomes import Rank
from wavemesh.trust.statements import DeviceOutcome, Envelope, OutcomeKind

NOW = datetime(2026, 5, 20, tzinfo=UTC)


def heard(device: str, attempt: int, sequence: int, *, by_device: bool = True, payload: str = "a") -> Heard:
    outcome = DeviceOutcome(
        wave_id="142",
        device=device,
        attempt=attempt,
        sequence=sequence,
        kind=OutcomeKind.UPDATED,
        gate="",
        evidence="",
        boot_id="",
        slot="A",
        firmware_sha256="",
        firmware_version="",
        log_sha256="",
        at=NOW,
    )
    return Heard(outcome, Rank(attempt, sequence, by_device, payload), Envelope("t", payload.encode(), ()))


HEARD = st.builds(
    heard,
    st.sampled_from(["pos-01", "pos-02"]),
    st.integers(0, 3),
    st.integers(0, 3),
    by_device=st.booleans(),
    payload=st.sampled_from("ab"),
)


def merged(batches: list[list[Heard]]) -> dict[Key, Rank]:
    known: dict[Key, Rank] = {}
    for batch in batches:
        known |= {one.key: one.rank for one in news(batch, known)}
    return known


@given(st.lists(HEARD, max_size=20), st.integers(0, 1000), st.integers(1, 5))
def test_order_repetition_and_batching_change_nothing(outcomes: list[Heard], seed: int, size: int) -> None:
    expected = merged([outcomes])
    shuffled = outcomes * 2
    Random(seed).shuffle(shuffled)
    assert merged([shuffled[start : start + size] for start in range(0, len(shuffled), size)]) == expected
    assert news(outcomes, expected) == []


@given(st.lists(HEARD, max_size=20))
def test_at_most_one_news_a_device_and_only_better_ones(outcomes: list[Heard]) -> None:
    known = merged([outcomes[::2]])
    fresh = news(outcomes, known)
    assert len({one.key for one in fresh}) == len(fresh)
    assert all(one.key not in known or one.rank > known[one.key] for one in fresh)


def test_what_beats_what_is_known_is_news_once() -> None:
    worse, better, other = heard("pos-01", 1, 1), heard("pos-01", 1, 2), heard("pos-02", 1, 1)
    assert news([worse, better, other, better], {}) == [better, other]
    assert news([worse, better], {worse.key: worse.rank}) == [better]
    assert news([worse], {better.key: better.rank}) == []


def test_the_ranks_are_those_of_the_semantics() -> None:
    """The highest (attempt, sequence) wins; at equal numbers the device's word beats its hub's."""
    ranks = [
        Rank(1, 9, by_device=False, payload_sha256="b"),
        Rank(1, 9, by_device=True, payload_sha256="a"),
        Rank(1, 10, by_device=False, payload_sha256="a"),
        Rank(2, 0, by_device=False, payload_sha256="a"),
    ]
    assert ranks == sorted(ranks)
