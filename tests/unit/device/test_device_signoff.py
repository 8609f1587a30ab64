"""How long a sign-off is waited for, and what an approval is about."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from device.bootenv import Boot, BootEnvironment, SlotName
from device.progress import Asker, Progress, RollbackAsked, SecondRollbackAsked
from device.signoff import remaining_s, why_no_rollback, why_not_approved
from wavemesh.trust.statements import IntentKind, OperatorIntent, UpdateState

NOW = datetime(2026, 5, 1, tzinfo=UTC)
S = UpdateState
ALONE = BootEnvironment(Boot(SlotName.A, 1))
NEW = BootEnvironment(Boot(SlotName.B, 2), Boot(SlotName.A, 1))
LOCAL, SIGNED = RollbackAsked("why", NEW, Asker.LOCAL), RollbackAsked("why", NEW)
SECOND = SecondRollbackAsked("why", Boot(SlotName.B, 3))


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
    assert (why == "") == (state is UpdateState.AWAITING_SIGNOFF and about == ("142", 2))
    if state in {UpdateState.ROLLING_BACK, UpdateState.ROLLED_BACK}:
        assert ("is rolled back already" in why) == (about == ("142", 2))


@pytest.mark.parametrize(
    ("progress", "asked", "why"),
    [
        (Progress(S.COMMITTED, "142"), SIGNED, ""),
        (Progress(S.COMMITTED, "142"), LOCAL, ""),
        (Progress(S.ROLLED_BACK, "142"), SECOND, ""),
        (Progress(S.AWAITING_SIGNOFF, "142", attempt=2, gate="disk"), LOCAL, "attempt 2 of wave 142 failed at disk"),
        (Progress(S.COMMITTED, "142", supervised=True), LOCAL, "by an operator's signed word alone"),
        (Progress(S.COMMITTED, "142", supervised=True), SIGNED, ""),
        (Progress(S.ROLLING_BACK, "142"), SIGNED, "the device is on its way back already from wave 142"),
        (Progress(S.ROLLED_BACK, "142"), LOCAL, "the device has rolled back already from wave 142"),
        (Progress(S.ROLLED_BACK), SIGNED, "the device has rolled back already"),
        (Progress(S.IDLE), SECOND, "follows a first one; the device is IDLE"),
        (Progress(S.IDLE), RollbackAsked("why", ALONE), "there is no previous slot to go back to"),
        (Progress(S.IDLE), RollbackAsked("why", ALONE, Asker.LOCAL), "there is no previous slot to go back to"),
    ],
)
def test_why_nothing_comes_of_a_rollback(
    progress: Progress, asked: RollbackAsked | SecondRollbackAsked, why: str
) -> None:
    """D4, D5: empty when something does, else the one reason that stands in the way."""
    said = why_no_rollback(progress, asked, "pos-01")
    assert said == "" if not why else why in said
