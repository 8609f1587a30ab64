"""A hub's scenarios as the campaign drives them: the same for both hubs, but for who plays and what is asked of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.crashpoints.hub_key import key_of
from tests.crashpoints.hub_oracle import HubOracle, behind, ledger_of
from tests.crashpoints.hub_story import HubStanding, HubStory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.crashpoints.campaign import Look
    from tests.crashpoints.hub_story import Component
    from tests.crashpoints.hub_world import World
    from tests.crashpoints.medium import Image
    from tests.crashpoints.storehub_scenarios import Scenario


@dataclass(frozen=True, slots=True)
class Kind:
    """One of the hubs: who plays it, where its database is, and what is asked of it alone after a cut and at rest."""

    component: Callable[[], Component]
    database: str
    judge_cut: Callable[[Image, World], list[str]]
    judge_rest: Callable[[Image, World, Scenario], list[str]]


@dataclass(frozen=True, slots=True)
class HubTale:
    """Implements ``Tale``."""

    kind: Kind
    scenario: Scenario
    log: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The scenario's."""
        return self.scenario.name

    def begin(self) -> HubStanding:
        """Where the scenario begins."""
        return self.scenario.begin()

    def tell(self, standing: HubStanding, look: Look[HubStanding] | None) -> list[str]:
        """Run to rest and judge that."""
        self.log.clear()
        hub, scenario = self.kind.component(), self.scenario
        rest = HubStory(hub, scenario.acts, scenario.is_over, standing, look, self.log).tell()
        return self.judge(rest) or self.judge_rest(rest.image, rest.world)

    def judge(self, standing: HubStanding) -> list[str]:
        """By the oracle."""
        image, world = standing.image, standing.world
        return HubOracle(self.kind.database).judge(image, world) + self.kind.judge_cut(image, world)

    def key(self, standing: HubStanding) -> str:
        """By everything that matters."""
        return key_of(standing)

    def judge_rest(self, image: Image, world: World) -> list[str]:
        """What everybody knows in the end, the same as what was said; then what is asked of this hub alone."""
        told = ledger_of((one.kind, one.body) for child in world.children for one in child.reports)
        heard = ledger_of((kind, body) for _, _, kind, body in world.parent.heard)
        problems = [f"control never heard {what}" for what in behind(told, heard)]
        problems += [f"nobody said {what}" for what in behind(heard, told)]
        problems += self.kind.judge_rest(image, world, self.scenario)
        incarnations = len(world.parent.cursors)
        if incarnations != self.scenario.incarnations:
            problems.append(f"the hub had {incarnations} incarnations, {self.scenario.incarnations} were to be")
        return problems


def tales_of(kind: Kind, scenarios: Iterable[Callable[[], Scenario]]) -> list[HubTale]:
    """All scenarios of a hub."""
    return [HubTale(kind, make()) for make in scenarios]
