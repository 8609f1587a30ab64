"""Which wave a device renews its certificate for, and when it may."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from device.rotation import may_renew, wave_to_renew_for
from tests.device_kit import POLICY as POLICY_TEXT
from wavemesh.policy.reader import parse_policy
from wavemesh.trust.statements import UpdateState, WaveOrder, WaveState

PLANNED = datetime(2026, 5, 1, 12, tzinfo=UTC)
TICK = timedelta(microseconds=1)
ORDER = WaveOrder(
    wave_id="142",
    generation=1,
    state=WaveState.PLANNED,
    cohort="c",
    device_class="pos-tablet",
    hardware_revision="r2",
    store="region/midwest/store/store-208",
    devices=("pos-01",),
    release="firmware-v3.8.2",
    policy_digest="d",
    least_hold_epoch=0,
    issued_at=PLANNED,
    expires_at=PLANNED + timedelta(days=1),
    planned_at=PLANNED,
)
_VALUES = {"budget_mins": "5", "offline_rollback": "true", "authority": "hub", "min_free_disk": "64MiB"}
POLICY = parse_policy((POLICY_TEXT % _VALUES).encode(), "policy.yaml")
POLICIES = {"d": POLICY}
OFF = {"d": replace(POLICY, guardrails=replace(POLICY.guardrails, rotate_certificates=False))}


@pytest.mark.parametrize(
    ("order", "policies", "issued_at", "wave"),
    [
        (ORDER, POLICIES, PLANNED - TICK, "142"),
        (ORDER, POLICIES, PLANNED, ""),
        (replace(ORDER, state=WaveState.RUNNING), POLICIES, PLANNED - TICK, "142"),
        (replace(ORDER, state=WaveState.PAUSED), POLICIES, PLANNED - TICK, ""),
        (replace(ORDER, state=WaveState.HALTED), POLICIES, PLANNED - TICK, ""),
        (replace(ORDER, planned_at=None), POLICIES, PLANNED - TICK, ""),
        (ORDER, OFF, PLANNED - TICK, ""),
        (ORDER, {}, PLANNED - TICK, ""),
    ],
)
def test_the_wave_to_renew_for(order: WaveOrder, policies: dict[str, object], issued_at: datetime, wave: str) -> None:
    assert wave_to_renew_for([order], policies, issued_at) == wave  # type: ignore[arg-type]


def test_never_in_a_trial() -> None:
    inside = {state for state in UpdateState if not may_renew(state)}
    assert inside == {
        UpdateState.ARMED,
        UpdateState.TRIAL,
        UpdateState.COMMITTING,
        UpdateState.ROLLING_BACK,
        UpdateState.AWAITING_SIGNOFF,
    }
