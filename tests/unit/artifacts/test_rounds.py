"""H2: the scrub's rounds: every blob once, where it stands outlives a restart, never faster than it may."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from wavemesh.artifacts.rounds import Round, pause_s, round_of

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
NAMES = [f"{digit * 64}-{size}" for digit, size in (("a", 10), ("3", 20), ("f", 5))]


def test_a_round_reads_each_blob_once_by_name() -> None:
    standing, read = Round(AT), []
    while (name := standing.next_of(NAMES)) is not None:
        standing = standing.read(name)
        read.append(name)
    assert read == sorted(NAMES)
    assert standing.next_of([]) is None


def test_a_blob_that_comes_behind_is_for_the_next_round() -> None:
    standing = Round(AT).read(NAMES[0])
    assert standing.next_of([*NAMES, "5" * 64 + "-1"]) == NAMES[2]


def test_how_far_it_is() -> None:
    sizes = [(name, int(name.rpartition("-")[2])) for name in NAMES]
    assert Round(AT).done_bytes(sizes) == 0
    assert Round(AT).read(NAMES[0]).done_bytes(sizes) == 30
    assert Round(AT).read(NAMES[2]).done_bytes(sizes) == 35


@pytest.mark.parametrize(
    "standing",
    [
        Round(AT),
        Round(AT, NAMES[0]),
        Round(AT, "", AT - timedelta(days=1)),
        Round(AT, NAMES[1], AT - timedelta(days=1)),
    ],
)
def test_what_is_kept_is_where_it_stood(standing: Round) -> None:
    assert round_of(standing.to_text(), AT) == standing


@pytest.mark.parametrize("text", ["", "junk", "1 2\n", f"1 2 {'A' * 64}-3\n", f"1 2 {'a' * 64}-3\nmore"])
def test_what_cannot_be_read_begins_a_round(text: str) -> None:
    assert round_of(text, AT) == Round(AT)


def test_a_round_did_not_begin_in_the_future() -> None:
    assert round_of(Round(AT + timedelta(days=9)).to_text(), AT).began_at == AT


def test_the_default_takes_about_a_day_for_32_gib() -> None:
    from wavemesh.artifacts.scrubbing import BYTES_PER_S

    assert 0.9 * 86_400 < pause_s(32 << 30, BYTES_PER_S) < 1.1 * 86_400
