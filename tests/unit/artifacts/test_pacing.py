"""How large the messages of a transfer are: small for a slow reader, large for a fast one, within bounds."""

from __future__ import annotations

import pytest

from wavemesh.artifacts.pacing import (
    FIRST_MESSAGE_BYTES,
    LEAST_MESSAGE_BYTES,
    LEAST_WINDOWED_BYTES,
    MOMENT_S,
    MOST_MESSAGE_BYTES,
    most_message_bytes,
    next_message_bytes,
)

KIB = 1024


def settled(bytes_per_s: float) -> int:
    """The size after a while for a reader of that speed."""
    size = FIRST_MESSAGE_BYTES
    for _ in range(20):
        size = next_message_bytes(size, size / bytes_per_s)
    return size


@pytest.mark.parametrize(
    ("bytes_per_s", "size"),
    [(10 * KIB, LEAST_MESSAGE_BYTES), (1500 * KIB, 64 * KIB), (3000 * KIB, 128 * KIB), (1 << 30, MOST_MESSAGE_BYTES)],
)
def test_a_message_holds_what_its_reader_takes_in_a_moment(bytes_per_s: float, size: int) -> None:
    assert settled(bytes_per_s) == size


@pytest.mark.parametrize("speed_kib_s", range(200, 10_000, 97))
def test_no_speed_costs_more_than_a_moment_when_it_is_cut(speed_kib_s: int) -> None:
    assert settled(speed_kib_s * KIB) <= max(speed_kib_s * KIB * MOMENT_S, LEAST_MESSAGE_BYTES)


@pytest.mark.parametrize(
    ("window", "most"),
    [(0, MOST_MESSAGE_BYTES), (64 * KIB, 16 * KIB), (4096 * KIB, 1024 * KIB), (1, LEAST_WINDOWED_BYTES)],
)
def test_a_message_is_a_quarter_of_its_readers_window(window: int, most: int) -> None:
    assert most_message_bytes(window) == most
