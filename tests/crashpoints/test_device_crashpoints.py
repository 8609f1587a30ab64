"""Every scenario of the device: all single cuts, and a sample of double ones (D9, Q2).

The complete campaign is ``python -m tests.crashpoints``; see docs/crash-points.md.
"""

from __future__ import annotations

import pytest

from device.config import Backend
from tests.crashpoints.campaign import Options, explore
from tests.crashpoints.components import tale_of, tales_of
from tests.crashpoints.published import published, shortfalls

OPTIONS = Options(double_of=500)
NAMES = [tale.name for tale in tales_of("device", Backend.SIMULATED.value)]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", NAMES)
def test_no_power_cut_breaks_the_device(name: str) -> None:
    result = explore(tale_of("device", Backend.SIMULATED.value, name), OPTIONS)
    assert result.failures == []
    assert result.survived == result.points
    assert shortfalls(name, result.steps, result.points - result.double, None) == []


def test_every_scenario_is_published() -> None:
    assert sorted(published()) == sorted(NAMES)
