"""How many bytes may be on the way: a model of a link and its queue, in steps of a hundredth of a second."""

from __future__ import annotations

from itertools import pairwise

import pytest

from wavemesh.artifacts.inflight import LIMIT_S, MAX_BYTES, MIN_BYTES, InFlight

STEP_S = 0.01


def run(
    flight: InFlight, *, link: float, trip_s: float, seconds: float, start: float = 0.0, reads: int = 1
) -> list[float]:
    """Let bytes arrive at what the window allows over that link; how long the queue was in each step."""
    flight.trip(trip_s)
    flight.begin(start)
    queues = []
    for step in range(1, round(seconds / STEP_S) + 1):
        in_flight = flight.window_bytes * reads
        rate = min(link, in_flight / trip_s)
        queues.append(max(0.0, in_flight / link - trip_s))
        flight.arrived(int(rate * STEP_S), reads, start + step * STEP_S)
    return queues


@pytest.mark.parametrize("link", [1e6, 2e6, 10e6, 100e6])
@pytest.mark.parametrize("trip_s", [0.0005, 0.02, 0.08])
def test_the_link_is_filled_and_its_queue_is_short(link: float, trip_s: float) -> None:
    flight = InFlight()
    queues = run(flight, link=link, trip_s=trip_s, seconds=15)
    assert flight.window_bytes >= min(0.99 * link * trip_s, MAX_BYTES)
    assert max(queues[-500:]) <= LIMIT_S
    assert max(queues) <= max(0.12, LIMIT_S + trip_s)


def test_a_thin_link_is_never_asked_for_more_than_it_began_with() -> None:
    flight = InFlight()
    run(flight, link=1e6, trip_s=0.01, seconds=20)
    assert flight.window_bytes == MIN_BYTES


def test_a_link_that_becomes_thin_is_relieved_within_seconds() -> None:
    flight = InFlight()
    run(flight, link=50e6, trip_s=0.02, seconds=5)
    wide = flight.window_bytes
    queues = run(flight, link=5e6, trip_s=0.02, seconds=5, start=5)
    assert wide > flight.window_bytes > MIN_BYTES
    assert queues[0] > LIMIT_S
    assert max(queues[160:]) <= LIMIT_S


def test_one_slow_look_is_a_busy_disk() -> None:
    flight = InFlight()
    run(flight, link=50e6, trip_s=0.02, seconds=5)
    wide = flight.window_bytes
    run(flight, link=1e6, trip_s=0.02, seconds=0.6, start=5)
    run(flight, link=50e6, trip_s=0.02, seconds=0.6, start=6)
    run(flight, link=1e6, trip_s=0.02, seconds=1.1, start=7)
    assert flight.window_bytes >= wide


def test_reads_side_by_side_share_the_queue() -> None:
    flight = InFlight()
    queues = run(flight, link=10e6, trip_s=0.02, seconds=15, reads=2)
    assert max(queues[-500:]) <= LIMIT_S


def test_a_pause_between_reads_is_no_slow_link() -> None:
    """A new beginning leaves out the time in which nobody read."""
    flight = InFlight()
    run(flight, link=50e6, trip_s=0.02, seconds=5)
    wide = flight.window_bytes
    for hour in range(1, 9):
        run(flight, link=50e6, trip_s=0.02, seconds=0.1, start=3600.0 * hour)
    assert flight.window_bytes == wide


def test_the_window_changes_by_doubling_upwards() -> None:
    flight, seen = InFlight(), [MIN_BYTES]
    flight.trip(0.001)
    flight.begin(0.0)
    for look in range(1, 10):
        flight.arrived(1 << 30, 1, float(look))
        seen.append(flight.window_bytes)
    assert seen[-1] == MAX_BYTES
    assert all(after in {before, 2 * before} for before, after in pairwise(seen))


def test_empty_frames_say_nothing() -> None:
    flight = InFlight()
    flight.trip(0.02)
    flight.begin(0.0)
    assert not any(flight.arrived(0, 1, float(second)) for second in range(1, 10))
