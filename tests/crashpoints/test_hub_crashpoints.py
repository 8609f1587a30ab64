"""Every scenario of both hubs: single cuts and torn media, sampled (D9's rule for hubs, H1, H6, S3).

The complete campaign is ``python -m tests.crashpoints --component storehub|superhub``; see docs/crash-points.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.crashpoints.campaign import Options, explore
from tests.crashpoints.components import HUBS
from tests.crashpoints.published import published, shortfalls

if TYPE_CHECKING:
    from tests.crashpoints.campaign import Tale

STEPS = 5
TOGETHER = 4
"""Steps that a busy machine may do in one with others: reports and bytes that come together are one commit."""
TALES: list[Tale[Any]] = [tale for tales in HUBS.values() for tale in tales()]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("tale", TALES, ids=lambda tale: tale.name)
def test_no_power_cut_breaks_a_hub(tale: Tale[Any]) -> None:
    one_of = max(1, published()[tale.name].steps // STEPS)
    result = explore(tale, Options(single_of=one_of, torn_of=4, double_of=0))
    assert result.failures == []
    assert result.survived == result.points > 0
    assert shortfalls(tale.name, result.steps + TOGETHER) == []
