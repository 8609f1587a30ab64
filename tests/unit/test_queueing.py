"""Places in a queue, and what undoes what was done."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from wavemesh.queueing import place_in_queue, refuse_applied, why_done
from wavemesh.trust.statements import DeviceStatus, IntentKind, OperatorIntent, UpdateState

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class One:
    intent_id: str
    received_at: datetime
    waiting_for: tuple[str, ...]


def one(name: str, after_s: int, *waiting_for: str) -> One:
    return One(name, NOW + timedelta(seconds=after_s), waiting_for)


def test_the_earlier_taken_comes_first_among_those_that_wait_for_the_same_node() -> None:
    queue = [one("a", 0, "x"), one("b", 1, "y"), one("d", 2, "x", "y"), one("c", 2, "x"), one("e", 3, "y", "x")]
    places = {each.intent_id: place_in_queue(each, queue) for each in queue}
    assert places == {"a": 1, "b": 1, "c": 2, "d": 3, "e": 3}
    assert place_in_queue(one("f", 9), queue) == 0
    # One that is not among them yet stands behind those that are.
    assert place_in_queue(one("f", 9, "x"), queue) == 5


@pytest.mark.parametrize("kind", list(IntentKind))
def test_every_refusal_names_what_to_do_instead(kind: IntentKind) -> None:
    error = refuse_applied("i-1", kind, "142", "it is applied")
    assert (error.reason, "i-1" in str(error), "it is applied; " in str(error)) == ("INTENT_APPLIED", True, True)
    assert "{" not in str(error)
    assert error.details == {"intent": "i-1"}
    without_wave = refuse_applied("i-1", kind, "", "it is applied")
    assert str(without_wave) == str(error).replace("--wave 142", "--wave WAVE")


def test_a_rollback_asked_without_a_wave_is_of_what_runs() -> None:
    asked = OperatorIntent("i", IntentKind.ROLLBACK_DEVICE, NOW, wave_id="", device="pos-17", reason="x")
    assert why_done(asked, STATUS) == "pos-17 is back on its previous slot already"


STATUS = DeviceStatus(
    "region/midwest/store/store-209/device/pos-17", UpdateState.ROLLED_BACK, NOW, "142", 2, "operator"
)


@pytest.mark.parametrize(
    ("kind", "changes", "done"),
    [
        (IntentKind.ROLLBACK_DEVICE, {}, True),
        (IntentKind.ROLLBACK_DEVICE, {"wave_id": ""}, False),
        (IntentKind.ROLLBACK_DEVICE, {"gate": "watchdog"}, False),
        (IntentKind.ROLLBACK_DEVICE, {"wave_id": "143"}, False),
        (IntentKind.ROLLBACK_DEVICE, {"state": UpdateState.COMMITTED}, False),
        (IntentKind.APPROVE_ROLLBACK, {"gate": "peripheral:scanner"}, True),
        (IntentKind.APPROVE_ROLLBACK, {"state": UpdateState.AWAITING_SIGNOFF}, False),
        (IntentKind.APPROVE_ROLLBACK, {"attempt": 3}, False),
        (IntentKind.APPROVE_ROLLBACK, {"wave_id": "143"}, False),
        (IntentKind.PREFETCH, {}, False),
    ],
)
def test_what_a_device_did_is_not_asked_again(kind: IntentKind, changes: dict[str, Any], done: bool) -> None:  # noqa: FBT001  # a column
    """M5: by its last status, whoever asks and under whatever id."""
    intent = OperatorIntent("i", kind, NOW, wave_id="142", device="pos-17", reason="x", attempt=2)
    status = replace(STATUS, **changes)
    back = "back on its previous slot" if kind is IntentKind.ROLLBACK_DEVICE else "rolled attempt 2 back"
    verb = "is " if kind is IntentKind.ROLLBACK_DEVICE else ""
    assert why_done(intent, status) == (f"pos-17 {verb}{back} already" if done else "")
    assert why_done(intent, None) == ""
