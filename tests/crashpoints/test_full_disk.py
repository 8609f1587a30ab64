"""H1, Q2: the disk of a hub fills up at any of its writes: a clear error, nothing lost, recovery by itself.

Sampled; all sites are ``python -m tests.crashpoints.full_disk``.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

from storehub.scheduler import LEAST_PAUSE_S, Scheduler
from tests.crashpoints.full_disk import HUBS, campaign, run_site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.crashpoints.hub_tale import HubTale

SITES = 4
MOST_SITES = {"storehub": 60, "superhub": 30}
TALES = [(tier, tale) for tier, tales in HUBS.items() for tale in tales()]


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("tier", "tale"), TALES, ids=lambda one: getattr(one, "name", one))
def test_a_full_disk_costs_a_hub_nothing(tier: str, tale: HubTale) -> None:
    outcomes = campaign(tale, one_of=MOST_SITES[tier] // SITES, offset=2)
    assert outcomes
    assert [one for one in outcomes if one.problems] == []
    assert [one for one in outcomes if one.ended_running] == []


@contextmanager
def scheduler_dies() -> Iterator[None]:
    """Nobody catches what the scheduler could not make durable."""

    async def run(self: Any) -> None:
        seen = -1
        while True:
            seen = await self._hub.bell.wait(seen, self._hub.config.scheduling_interval_s)
            await self.step()
            await asyncio.sleep(LEAST_PAUSE_S)

    with patch.object(Scheduler, "run", run):
        yield


def tale_named(name: str) -> HubTale:
    return next(tale for _, tale in TALES if tale.name == name)


@pytest.mark.timeout(180)
def test_a_hub_that_ends_over_a_full_disk_is_found() -> None:
    """What is lost, told twice or left over is found by the oracle of the crash points, which has faults of its own."""
    with scheduler_dies():
        outcomes = [run_site(tale_named("store-wave"), at) for at in range(20, 30)]
    assert any(one is not None and one.ended_running for one in outcomes)
