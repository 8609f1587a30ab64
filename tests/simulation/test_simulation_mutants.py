"""The simulation finds what it is for: rules broken by hand, those that it finds fastest (all of them: the command)."""

from __future__ import annotations

import pytest

from tests.simulation.mutant import MUTANTS
from tests.simulation.mutants import catch

# Each with the seed that finds it first in the published run.
FASTEST: dict[str, int] = {}


def test_mutants_have_names_of_their_own_and_say_what_is_broken() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 25
    assert all(mutant.broken.endswith(".") for mutant in MUTANTS)


@pytest.mark.parametrize("name", FASTEST)
def test_a_broken_rule_is_found(name: str) -> None:
    found = catch(name, FASTEST[name], most=1)
    assert found.seed == FASTEST[name]
