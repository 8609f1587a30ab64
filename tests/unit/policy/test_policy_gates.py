"""Gates: names, wire form, and that every gate can be explained (D7)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wavemesh.policy.gates import (
    INCONCLUSIVE_GATES,
    BadGateError,
    Gate,
    Lasting,
    NamedGate,
    Stage,
    check_names,
    gate_name,
    parse_gate,
)

SEMANTICS = Path(__file__).parents[3] / "docs" / "semantics.md"


def test_the_gates_are_those_of_the_semantics() -> None:
    section = SEMANTICS.read_text().split("## Gates", 1)[1]
    listed = re.search(r"`(battery.*)`", section)
    assert listed is not None
    assert [name.split(":")[0] for name in listed[1].split(", ")] == [gate.value for gate in Gate]


@pytest.mark.parametrize("gate", Gate)
def test_every_gate_says_what_it_means_what_to_do_and_where(gate: Gate) -> None:
    assert gate.notes.meaning.endswith(".")
    assert gate.notes.remedy.endswith(".")
    order = list(Stage)
    assert gate.notes.stages
    assert list(gate.notes.stages) == sorted(gate.notes.stages, key=order.index)


def test_what_may_heal_within_a_wave_is_transient() -> None:
    assert Gate.BATTERY.is_transient
    assert Gate.WINDOW.is_transient
    assert not Gate.DUAL_PARTITION.is_transient
    assert not Gate.SIGNATURE.is_transient
    assert Gate.HALTED.notes.lasting is Lasting.FINAL


def test_which_outcomes_may_say_nothing_about_the_release() -> None:
    """Semantics, "Populations and numbers"."""
    words = {gate.value for gate in INCONCLUSIVE_GATES}
    assert words == {"power-loss", "health-authority", "lease-expired", "clock", "halted"}


def test_a_gate_that_can_be_inconclusive_is_one_a_trial_can_meet() -> None:
    assert all(Stage.TRIAL in gate.notes.stages for gate in INCONCLUSIVE_GATES)


def test_wire_forms() -> None:
    assert gate_name(Gate.BATTERY) == "battery"
    assert gate_name(Gate.PERIPHERAL, "scanner") == "peripheral:scanner"
    assert parse_gate("peripheral:scanner") == NamedGate(Gate.PERIPHERAL, "scanner")
    assert parse_gate("watchdog") == NamedGate(Gate.WATCHDOG)


@given(st.sampled_from(Gate), st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?", fullmatch=True))
def test_every_wire_form_reads_back(gate: Gate, name: str) -> None:
    named = NamedGate(gate, name if gate.is_named else "")
    assert parse_gate(named.wire) == named


@pytest.mark.parametrize(
    "text",
    ["", "health failed", "peripheral", "peripheral:", "battery:", "battery:low", "PERIPHERAL:x", "peripheral:a b",
     "peripheral:" + "x" * 64, "peripheral:-x", "peripheral:a:b", "vendor:\n"],
)  # fmt: skip
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(BadGateError):
        parse_gate(text)


def test_checks_are_named_by_the_last_word_and_never_alike() -> None:
    commands = (
        "lsusb | grep scanner",
        "lsusb | grep -q 'Scanner'",
        "/usr/bin/printer-test",
        "true || ''",
        "grep scanner-2",
    )
    assert check_names(commands) == ("scanner", "scanner-2", "usr-bin-printer-test", "check", "scanner-2-2")
    assert check_names(("", "x" * 90, "x" * 90)) == ("check", "x" * 60, "x" * 60 + "-2")


@given(st.lists(st.text(max_size=90), max_size=16).map(tuple))
def test_any_commands_get_distinct_names_fit_for_a_gate(commands: tuple[str, ...]) -> None:
    names = check_names(commands)
    assert len(set(names)) == len(names) == len(commands)
    assert all(parse_gate(gate_name(Gate.PERIPHERAL, name)).name == name for name in names)
