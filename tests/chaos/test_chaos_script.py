"""The script of faults: what the seed fixes, and what every deck has."""

from __future__ import annotations

import random
from itertools import islice

from tests.chaos.script import Fault, Fleet, Kind, draw

FLEET = Fleet("control", "superhub", ("s-1", "s-2"), ("d-1", "d-2", "d-3"), ("uplink", "wan/s-1"))
DECK = 26
TRIAL_S = 45.0


def faults(seed: int, count: int, fleet: Fleet = FLEET) -> list[Fault]:
    return list(islice(draw(fleet, random.Random(seed)), count))


def test_a_seed_is_a_script() -> None:
    assert faults(7, 200) == faults(7, 200)
    assert faults(7, 200) != faults(8, 200)


def test_each_deck_has_each_kind_and_kills_each_tier() -> None:
    for first in range(0, 10 * DECK, DECK):
        deck = faults(3, first + DECK)[first:]
        assert {fault.kind for fault in deck} == set(Kind)
        killed = {fault.target for fault in deck if fault.kind is Kind.KILL}
        assert {"control", "superhub"} <= killed
        assert killed & set(FLEET.stores)
        assert killed & set(FLEET.devices)


def test_a_third_of_all_is_a_kill_and_another_a_cut() -> None:
    kinds = [fault.kind for fault in faults(3, 10 * DECK)]
    assert kinds.count(Kind.KILL) == kinds.count(Kind.CUT) == 90


def test_each_disk_is_filled() -> None:
    filled = {fault.target for fault in faults(4, 50 * DECK) if fault.kind is Kind.FULL_DISK}
    assert filled == {"control", "superhub", *FLEET.stores, *FLEET.devices}


def test_no_fault_outlasts_a_trial_and_some_come_together() -> None:
    drawn = faults(5, 500)
    assert max(fault.lasts_s for fault in drawn) < TRIAL_S
    assert 20 < sum(fault.gap_s == 0 for fault in drawn) < 150


def test_only_what_can_be_struck_is_struck() -> None:
    for fault in faults(9, 500):
        if fault.kind is Kind.POWER:
            assert fault.target in FLEET.devices
        if fault.kind is Kind.CUT:
            assert fault.target in FLEET.links
    without = Fleet("control", "superhub", ("s-1",), ("d-1",), ("uplink",), frozenset(Kind) - {Kind.FULL_DISK})
    assert not any(fault.kind is Kind.FULL_DISK for fault in faults(9, 500, without))
