"""How long a sign-off is waited for, and what an approval is about."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from device.progress import Progress
from device.signoff import remaining_s, why_not_approved
from wavemesh.trust.statements import IntentKind, OperatorIntent, UpdateState

NOW = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.mark.parametrize(("began_s_ago", "remaining"), [(None, 60.0), (0, 60.0), (45, 15.0), (61, 0.0), (-3600, 60.0)])
def test_the_wait_runs_on_across_boots(began_s_ago: int | None, remaining: float) -> None:
    """A till that is switched off each night is overdue all the same; a clock that was set back waits no longer."""
    since = None if began_s_ago is None else NOW - timedelta(seconds=began_s_ago)
    assert remaining_s(Progress(awaiting_since=since), NOW, 60.0) == remaining


@pytest.mark.parametrize("state", UpdateState)
@pytest.mark.parametrize("about", [("142", 1), ("142", 2), ("141", 2)])
def test_an_approval_is_for_what_waits_and_nothing_else(state: UpdateState, about: tuple[str, int]) -> None:
    """D5: neither for an earlier attempt, another wave, nor for a trial that has not failed."""
    wave, attempt = about
    intent = OperatorIntent("i", IntentKind.APPROVE_ROLLBACK, NOW, wave_id=wave, device="pos-01", attempt=attempt)
    why = why_not_approved(Progress(state, "142", attempt=2), intent)
    assert (not why) == (state is UpdateState.AWAITING_SIGNOFF and about == ("142", 2))
