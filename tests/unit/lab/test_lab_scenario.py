"""The demo's plan: what every seed must have in common, and what faults change."""

from __future__ import annotations

import pytest

from lab.scenario import (
    FAULTS,
    OUTAGE_STORE,
    SCANNER_DEVICE,
    BadScenarioError,
    Ending,
    Expected,
    draw,
    parse_fault,
    parse_tamper,
)
from lab.topology import STORES

DEVICES = [device for store in STORES.values() for device in store]


def test_every_seed_tells_the_same_story_with_other_victims() -> None:
    plans = [draw(seed, STORES, ()) for seed in range(200)]
    for plan in plans:
        assert plan.write_cut.device != plan.swap_cut.device
        assert SCANNER_DEVICE not in {plan.write_cut.device, plan.swap_cut.device}
        assert plan.outage.store == OUTAGE_STORE
        assert sum(e.ending is Ending.UPDATED for e in plan.expected.values()) == 11
        assert plan.expected[SCANNER_DEVICE] == Expected(Ending.ROLLED_BACK, "peripheral:scanner")
    assert len({plan.write_cut.device for plan in plans}) == 11
    assert len({plan.swap_cut.step for plan in plans}) > 1
    assert len({plan.outage.step for plan in plans}) > 1


def test_a_seed_is_a_plan() -> None:
    assert draw(7, STORES, ()) == draw(7, STORES, ())


@pytest.mark.parametrize("gate", FAULTS)
def test_a_fault_changes_its_device_alone(gate: str) -> None:
    fault = parse_fault(f"pos-03:{gate}")
    for seed in range(30):
        before, after = draw(seed, STORES, ()), draw(seed, STORES, [fault])
        assert after.expected["pos-03"] == Expected(FAULTS[gate].ending, gate)
        assert {d: e for d, e in after.expected.items() if d != "pos-03"} == {
            d: e for d, e in before.expected.items() if d != "pos-03"
        }
        assert "pos-03" not in {after.write_cut.device, after.swap_cut.device}


def test_a_fault_of_the_scanner_device_replaces_its_part() -> None:
    plan = draw(1, STORES, [parse_fault(f"{SCANNER_DEVICE}:battery")])
    assert not plan.scanner_lost
    assert plan.expected[SCANNER_DEVICE] == Expected(Ending.REFUSED, "battery")


def test_expected_rollbacks_cannot_halt_the_wave() -> None:
    faults = [parse_fault(f"{device}:watchdog") for device in ("pos-01", "pos-02", "pos-03")]
    plan = draw(1, STORES, faults)
    assert 4 / plan.halt_least_outcomes <= 0.5
    with pytest.raises(BadScenarioError, match="halt"):
        draw(1, STORES, [parse_fault(f"{device}:watchdog") for device in DEVICES[:6]])


@pytest.mark.parametrize("text", ["pos-01:attestation", "pos-01", "pos-01:peripheral:printer"])
def test_an_unsupported_gate_is_refused_with_the_list(text: str) -> None:
    with pytest.raises(BadScenarioError) as caught:
        parse_fault(text)
    assert all(gate in str(caught.value) for gate in FAULTS)


def test_unknown_devices_and_modes_are_refused() -> None:
    with pytest.raises(BadScenarioError, match="pos-99"):
        draw(1, STORES, [parse_fault("pos-99:battery")])
    with pytest.raises(BadScenarioError, match="two faults"):
        draw(1, STORES, [parse_fault("pos-01:battery"), parse_fault("pos-01:class")])
    with pytest.raises(BadScenarioError, match="slot, limit, report"):
        parse_tamper("clock")
