"""Every scenario of the device: all single cuts, a sample of torn media, and a sample of double cuts (D9, Q2).

The complete campaign is ``python -m tests.crashpoints``; see docs/crash-points.md.
"""

from __future__ import annotations

import pytest

from device.config import Backend
from tests.crashpoints.campaign import Options, explore
from tests.crashpoints.components import COMPONENTS, tale_of, tales_of
from tests.crashpoints.oracle_formats import FORMATS
from tests.crashpoints.published import published, shortfalls

OPTIONS = Options(torn_of=20, double_of=600)
NAMES = [tale.name for tale in tales_of("device", Backend.SIMULATED.value)]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", NAMES)
def test_no_power_cut_breaks_the_device(name: str) -> None:
    result = explore(tale_of("device", Backend.SIMULATED.value, name), OPTIONS)
    assert result.failures == []
    assert result.survived == result.points
    assert shortfalls(name, result.steps) == []


@pytest.mark.timeout(180)
@pytest.mark.parametrize("backend", sorted(set(FORMATS) - {Backend.SIMULATED.value}))
def test_no_power_cut_breaks_other_environments(backend: str) -> None:
    """Single cuts of the scenario that goes through all of the boot environment's changes but the way back."""
    result = explore(tale_of("device", backend, "update"), Options(torn_of=20, double_of=0))
    assert result.failures == []
    assert result.survived == result.points > 2 * 150


def test_every_scenario_is_published() -> None:
    names = [tale.name for component in COMPONENTS for tale in tales_of(component, Backend.SIMULATED.value)]
    assert sorted(published()) == sorted(names)
