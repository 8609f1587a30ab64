"""Which word makes a device leave what it runs (D5)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from device.bootenv import Boot, SlotName
from device.progress import Progress, Rules, Target
from wavemesh.trust.statements import UpdateState

RULES = Rules("either", 300.0, False, 86_400.0, 40, 70.0, 0, True, "probe", (), ())
TARGET = Target(
    "142", 1, "r", "3.8.2", None, None, "12.4.1", "", datetime(2026, 5, 1, tzinfo=UTC), Boot(SlotName.B, 2), RULES
)
SUPERVISED = replace(TARGET, rules=replace(RULES, supervised=True))


@pytest.mark.parametrize("state", UpdateState)
@pytest.mark.parametrize("target", [None, TARGET, SUPERVISED], ids=["idle", "plain", "supervised"])
@pytest.mark.parametrize("was_supervised", [False, True])
def test_what_runs_decides_who_may_make_the_device_leave_it(
    state: UpdateState,
    target: Target | None,
    was_supervised: bool,  # noqa: FBT001 - a table
) -> None:
    """In trial and after the commit the target runs, and its rules hold; otherwise those of what ran before."""
    on_trial = state in {UpdateState.TRIAL, UpdateState.COMMITTING}
    target_runs = on_trial or state is UpdateState.COMMITTED
    by_target = target_runs and target is SUPERVISED
    progress = Progress(state, target=target, supervised=was_supervised)
    assert progress.leaves_signed_only is (by_target or (was_supervised and not on_trial))
