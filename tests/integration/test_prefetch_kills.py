"""H1, M3: kill -9 in a prefetch costs no byte that was in a file, and nobody is served a wrong one.

Four moments a tier; the whole is ``python -m tests.prefetch_kills --moments 50``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.prefetch_kills import TAIL_BYTES, TIERS, asked_again, run_tier

if TYPE_CHECKING:
    from pathlib import Path

MOMENTS = 4


@pytest.mark.timeout(180)
@pytest.mark.parametrize("tier", TIERS)
async def test_a_prefetch_goes_on_where_it_was_killed(tier: str, tmp_path: Path) -> None:
    found = await run_tier(tier, MOMENTS, seed=3, top=tmp_path)
    assert found.violations == []
    assert len(found.kills_at) == MOMENTS
    assert found.served_bytes >= found.size_bytes
    assert 0 <= found.beyond_bytes < (MOMENTS + 1) * TAIL_BYTES


@pytest.mark.parametrize(
    ("asked", "again"),
    [
        ([0, 10, 20], 0),
        ([0, 10], 0),
        ([0, 10, 10, 20], 10),
        ([0, 4, 20], 6),
        ([0, 10, 15], 5),
        ([0, 0, 20], 10),
    ],
)
def test_what_is_asked_again_is_counted(asked: list[int], again: int) -> None:
    assert asked_again([10, 20], asked, 30) == again


def test_a_kill_before_any_byte_came_lets_the_same_be_asked_for_again() -> None:
    assert asked_again([10, 10], [0, 10, 10], 30) == 0
