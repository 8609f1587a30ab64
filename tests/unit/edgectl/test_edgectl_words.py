"""``explain`` knows every word of the contract that a command can print."""

from __future__ import annotations

from typing import Any

import pytest

from edgectl import words
from edgectl.plain import enum_words
from wavemesh.policy.gates import Gate
from wavemesh.v1 import operator_pb2, report_pb2, rollout_pb2


@pytest.mark.parametrize(
    ("table", "enum"),
    [
        (words.OUTCOMES, report_pb2.OutcomeKind),
        (words.WAVE_STATES, rollout_pb2.WaveState),
        (words.DISPOSITIONS, operator_pb2.Disposition),
        (words.DEVICE_STATES, report_pb2.UpdateState),
        (words.DELIVERY_STATES, report_pb2.DeliveryState),
        (words.PERMIT_STATES, operator_pb2.PermitState),
        (words.DISCREPANCIES, operator_pb2.DiscrepancyCause),
    ],
)
def test_each_table_explains_its_enum_and_nothing_else(table: Any, enum: Any) -> None:
    assert sorted(table) == sorted(enum_words(enum.DESCRIPTOR))


@pytest.mark.parametrize("gate", list(Gate))
def test_every_gate_is_explained(gate: Gate) -> None:
    word = f"{gate.value}:scanner" if gate.is_named else gate.value
    assert "gate" in {one.kind for one in words.explain(word)}


def test_a_word_of_several_kinds_is_explained_as_each() -> None:
    assert [one.kind for one in words.explain("refused")] == ["outcome", "intent", "delivery", "device state"]
    assert [one.kind for one in words.explain("rolled-back")] == ["outcome", "device state"]


def test_an_error_reason_is_explained_with_its_exit_code_and_what_to_type_next() -> None:
    [one] = words.explain("link_down")
    assert (one.kind, dict(one.more)["exit"], "edgectl" in one.remedy) == ("error", "6 (unreachable)", True)
    assert words.explain("batery") == words.explain("battery:x") == words.explain("nonsense:y") == []
