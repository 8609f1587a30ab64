"""The simulation finds what it is for: rules broken by hand. All of them: ``python -m tests.simulation.mutants``."""

from __future__ import annotations

import pytest

from tests.simulation import mutants_of_devices, mutants_of_hubs  # noqa: F401  # they add theirs
from tests.simulation.mutant import MUTANTS
from tests.simulation.run import run_seed
from tests.simulation.tales import TALES

# Those that are found fastest, each with a night that shows it; test_simulation.py has these nights without it.
FASTEST = {
    "cursor-forgotten": (1, "M3"),
    "device-forgets-when-acknowledged": (1, "S3"),
    "halt-on-inconclusive": (1, "C2"),
    "maxima-forgotten": (1, "H6"),
    "older-order": (1, "P6"),
    "acknowledgement-forgotten": (1, "M6"),
    "closed-with-pending": (1, "H7"),
    "committed-before-health": (2, "D9"),
    "one-lease-more": (1, "H6"),
    "orders-kept": (1, "M3"),
    "outcome-forgotten": (1, "P6"),
    "removals-dropped": (1, "M3"),
    "updates-dropped": (1, "M3"),
}


def test_mutants_have_names_of_their_own_and_say_what_is_broken() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 25
    assert all(mutant.broken.endswith(".") for mutant in MUTANTS)


@pytest.mark.parametrize("name", FASTEST)
def test_a_broken_rule_is_found(name: str) -> None:
    seed, requirement = FASTEST[name]
    mutant = next(one for one in MUTANTS if one.name == name)
    failures = run_seed(seed, patches=mutant.patches(), keeps_trace=False, tale=mutant.tale).failures
    assert {failure.partition(":")[0] for failure in failures} >= {requirement}


@pytest.mark.parametrize("name", TALES)
def test_a_tale_is_told_in_a_night_that_holds(name: str) -> None:
    assert run_seed(1, keeps_trace=False, tale=name).failures == ()


def test_every_mutant_is_looked_for_in_tales_that_there_are() -> None:
    assert {mutant.tale for mutant in MUTANTS} <= {"", *TALES}
