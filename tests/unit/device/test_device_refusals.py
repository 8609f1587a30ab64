"""Refusals are told once an hour for each kind and gate, and the latest of each is kept (P2, S3)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from device.refusals import MAX_KEPT, TOLD_AGAIN_AFTER, Refusal, is_due, kind_of, with_refusal

NOW = datetime(2026, 11, 1, tzinfo=UTC)
KEPT = (Refusal("order", "replay", NOW, b"1"),)


@pytest.mark.parametrize(
    ("subject", "gate", "later", "due"),
    [
        ("order/142/store-208", "replay", timedelta(minutes=59), False),
        ("order/143/store-208", "replay", timedelta(0), False),
        ("order/142/store-208", "replay", TOLD_AGAIN_AFTER, True),
        ("order/142/store-208", "replay", -timedelta(days=400), True),
        ("order/142/store-208", "signature", timedelta(0), True),
        ("lease/142", "replay", timedelta(0), True),
    ],
)
def test_each_kind_and_gate_is_told_once_an_hour(subject: str, gate: str, later: timedelta, *, due: bool) -> None:
    assert is_due(KEPT, subject, gate, NOW + later) is due


def test_the_latest_of_each_is_kept() -> None:
    kept = with_refusal(KEPT, Refusal("lease", "permit", NOW, b"2"))
    kept = with_refusal(kept, Refusal("order", "replay", NOW, b"3"))
    assert [one.report for one in kept] == [b"2", b"3"]
    for number in range(2 * MAX_KEPT):
        kept = with_refusal(kept, Refusal("order", str(number), NOW, b""))
    assert len(kept) == MAX_KEPT


@pytest.mark.parametrize("what", ["tuf", "policy", "holds", "revocations", "order", "closed", "lease", "intent"])
def test_a_refused_resource_is_told_by_its_type(what: str) -> None:
    assert kind_of(f"{what}/142") == what


@pytest.mark.parametrize("what", ["session", "blob", "certificate", "health-ack", "authority-down"])
def test_what_else_a_device_refuses_is_told_by_its_name(what: str) -> None:
    assert kind_of(what) == what


def test_what_a_hub_makes_up_is_all_one() -> None:
    assert {kind_of(subject) for subject in ("shell/x", "", "orders/x", "../tuf")} == {"unknown"}
