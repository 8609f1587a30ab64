"""When a heartbeat is due, when the peer is given up, and that heartbeats count up."""

from __future__ import annotations

import math

from wavemesh.session.liveness import DEAD_AFTER_INTERVALS, Liveness

INTERVAL_S = 4.0


def test_both_directions_are_counted_on_their_own() -> None:
    liveness = Liveness(INTERVAL_S, 100.0)
    assert (liveness.heartbeat_at, liveness.dead_at) == (104.0, 100.0 + DEAD_AFTER_INTERVALS * INTERVAL_S)
    liveness.sent(101.0)
    liveness.heard(102.0)
    assert (liveness.heartbeat_at, liveness.dead_at) == (105.0, 102.0 + DEAD_AFTER_INTERVALS * INTERVAL_S)


def test_silence_while_this_side_works_proves_nothing() -> None:
    liveness = Liveness(INTERVAL_S, 100.0)
    liveness.work()
    assert liveness.dead_at == math.inf
    liveness.rest(200.0)
    assert liveness.dead_at == 200.0 + DEAD_AFTER_INTERVALS * INTERVAL_S


def test_heartbeats_count_up() -> None:
    liveness = Liveness(INTERVAL_S, 100.0)
    assert [liveness.next_sequence() for _ in range(3)] == [1, 2, 3]
    assert [liveness.accept(sequence) for sequence in (1, 2, 2, 7, 6)] == [True, True, False, True, False]
