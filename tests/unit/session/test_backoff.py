"""When a child comes back: soon to a parent that does not answer, late to one that refuses."""

from __future__ import annotations

from random import Random

import pytest

from wavemesh.errors import BusyError, LinkDownError
from wavemesh.session.backoff import delay_s
from wavemesh.session.frames import MAX_RETRY_AFTER_S
from wavemesh.session.liveness import Ending, SessionEnd
from wavemesh.session.upstream import UpstreamOptions, _end_by

PATIENCE = UpstreamOptions(backoff_base_s=0.25, backoff_cap_s=4.0)
UNANSWERED = (Ending.LOST, Ending.PEER_SILENT)


def longest(ending: Ending, attempt: int, away_s: float, retry_after_s: float = 0.0) -> float:
    return delay_s(SessionEnd(ending, "", retry_after_s), attempt, away_s, PATIENCE, max)


def shortest(ending: Ending, attempt: int, away_s: float, retry_after_s: float = 0.0) -> float:
    return delay_s(SessionEnd(ending, "", retry_after_s), attempt, away_s, PATIENCE, min)


@pytest.mark.parametrize("ending", UNANSWERED)
def test_a_parent_that_does_not_answer_is_dialled_soon_for_as_long_as_the_outage_is_short(ending: Ending) -> None:
    assert [longest(ending, attempt, 10.0) for attempt in range(4)] == [0.25, 0.5, 1.0, 1.0]
    assert longest(ending, 1000, 60.0) == 1.0
    assert longest(ending, 1000, 150.0) == 2.5
    assert longest(ending, 1000, 7 * 86_400.0) == PATIENCE.backoff_cap_s
    assert shortest(ending, 1000, 60.0) == 0.0


def test_a_parent_that_refuses_is_dialled_less_and_less() -> None:
    assert [longest(Ending.REFUSED, attempt, 0.0) for attempt in range(6)] == [0.25, 0.5, 1.0, 2.0, 4.0, 4.0]


def test_a_dial_into_nothing_is_no_refusal() -> None:
    assert _end_by(LinkDownError("10.0.0.1:443 did not answer in 5.0 s")).ending is Ending.LOST
    assert _end_by(BusyError("full", retry_after_s=0.0)).ending is Ending.REFUSED


def test_the_jitter_is_full() -> None:
    """So that the children of one parent, cut at once, come back spread over the whole time."""
    rng = Random(1)
    delays = sorted(delay_s(SessionEnd(Ending.LOST, ""), 9, 60.0, PATIENCE, rng.uniform) for _ in range(1000))
    assert delays[0] < 0.01
    assert delays[-1] <= 1.0
    assert all(abs(delays[int(share * 1000)] - share) < 0.05 for share in (0.25, 0.5, 0.75))


def test_a_wish_of_the_parent_is_heeded_within_its_bound() -> None:
    assert shortest(Ending.LOST, 0, 0.0, 0.5) == 0.5
    assert (shortest(Ending.LOST, 0, 0.0, 8.0), longest(Ending.LOST, 0, 0.0, 8.0)) == (8.0, 9.0)
    assert longest(Ending.REFUSED, 0, 0.0, 1e9) == MAX_RETRY_AFTER_S * 9 / 8


def test_who_needs_help_stays_away() -> None:
    """Between two attempts lies at least half of the time set for it, however short the other back-off is."""
    assert (shortest(Ending.INCOMPATIBLE, 0, 0.0), longest(Ending.INCOMPATIBLE, 9, 0.0)) == (30.0, 60.0)
    assert shortest(Ending.REVOKED, 0, 0.0) == PATIENCE.revoked_retry_s


@pytest.mark.parametrize("ending", [Ending.FENCED, Ending.REPORTS_LOST, Ending.GOODBYE_SENT])
def test_after_a_restart_of_the_log_once_at_once(ending: Ending) -> None:
    assert longest(ending, 0, 0.0) == 0.0
    assert longest(ending, 1, 0.0) == 0.5
