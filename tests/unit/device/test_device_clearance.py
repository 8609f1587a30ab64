"""Freshness at the moment of ARM: the view of holds, an operator's override of its age, and the trust metadata."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from device.clearance import Clearance, _Waiting
from tests.conftest import make_manifest
from wavemesh.identity.nodes import NodeId
from wavemesh.trust.metadata import load_trusted
from wavemesh.trust.statements import HoldList, IntentKind, OperatorIntent

if TYPE_CHECKING:
    from tests.conftest import TrustKeys
    from wavemesh.trust.metadata import TrustedMetadata

DEVICE = NodeId("test.example", "region/midwest/store/store-208/device/pos-01")
NOW = datetime.now(UTC)
DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)


@pytest.fixture
def trusted(trust_keys: TrustKeys) -> TrustedMetadata:
    published, _ = trust_keys.publish(make_manifest(), now=NOW)
    return load_trusted(trust_keys.pinned_root, published, NOW, None)


def override(given_at: datetime, **fields: Any) -> OperatorIntent:
    return OperatorIntent("o" * 32, IntentKind.OVERRIDE_HOLD_AGE, given_at, reason="WAN is down", **fields)


def clearance(
    trusted: TrustedMetadata | None, issued_at: datetime | None, *intents: OperatorIntent, now: datetime = NOW
) -> Clearance:
    holds = None if issued_at is None else HoldList(7, (), issued_at)
    sink = SimpleNamespace(trusted=trusted, belief=SimpleNamespace(holds=holds), intents=lambda: list(intents))
    equipment: Any = SimpleNamespace(sink=sink, clock=SimpleNamespace(now=lambda: now), node_id=DEVICE)
    target: Any = SimpleNamespace(
        release="firmware-v3.8.2", wave_id="142", rules=SimpleNamespace(hold_max_age_s=DAY.total_seconds())
    )
    return Clearance(equipment, target, 1, lambda _: None, asyncio.Event())


def test_a_young_view_clears(trusted: TrustedMetadata) -> None:
    clearance(trusted, NOW - DAY)._check_fresh()


def test_an_old_view_waits_for_control(trusted: TrustedMetadata) -> None:
    """24 h by default, and no view at all is no better: nothing is armed by what may have been held since."""
    for issued_at in (NOW - DAY - SECOND, None):
        with pytest.raises(_Waiting) as waits:
            clearance(trusted, issued_at)._check_fresh()
        assert waits.value.gate == "freshness"


@pytest.mark.parametrize(
    ("intent", "clears"),
    [
        (override(NOW - timedelta(hours=1)), True),
        (override(NOW - timedelta(hours=1), wave_id="142", stores=("store-208",)), True),
        (override(NOW - timedelta(hours=1), wave_id="143"), False),
        (override(NOW - timedelta(hours=1), stores=("store-209",)), False),
        (override(NOW - DAY - SECOND), False),
    ],
)
def test_an_operator_s_override_is_as_young_as_it_was_signed(
    trusted: TrustedMetadata,
    intent: OperatorIntent,
    clears: bool,  # noqa: FBT001
) -> None:
    subject = clearance(trusted, NOW - 9 * DAY, intent)
    if clears:
        subject._check_fresh()
        return
    with pytest.raises(_Waiting):
        subject._check_fresh()


def test_expired_metadata_waits(trusted: TrustedMetadata) -> None:
    later = NOW + 46 * DAY
    with pytest.raises(_Waiting, match="expired") as waits:
        clearance(trusted, later, now=later)._check_fresh()
    assert waits.value.gate == "freshness"
    with pytest.raises(_Waiting, match="is not held"):
        clearance(None, NOW)._check_fresh()
