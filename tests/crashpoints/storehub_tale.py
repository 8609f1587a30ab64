"""The store hub's scenarios as the campaign drives them, and what is asked of a store hub alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.crashpoints.hub_key import key_of
from tests.crashpoints.hub_oracle import HubOracle, behind, judge_rest_of_cache, ledger_of, rows_of
from tests.crashpoints.hub_story import HubStanding, HubStory
from tests.crashpoints.storehub_cast import INSIDE, QUOTA_BYTES, StoreHub
from tests.crashpoints.storehub_scenarios import SCENARIOS, WAVE, Scenario
from wavemesh.codec.statements import decode
from wavemesh.trust.statements import OperatorIntent, WaveOrder, WaveState

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

    from tests.crashpoints.campaign import Look
    from tests.crashpoints.hub_world import World
    from tests.crashpoints.medium import Image

DATABASE = "state/hub.sqlite3"


@dataclass(frozen=True, slots=True)
class StoreHubTale:
    """Implements ``Tale``."""

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
        rest = HubStory(StoreHub(), self.scenario.acts, self.scenario.is_over, standing, look, self.log).tell()
        return self.judge(rest) or judge_rest(rest.image, rest.world, self.scenario)

    def judge(self, standing: HubStanding) -> list[str]:
        """By the oracle."""
        image, world = standing.image, standing.world
        return HubOracle(DATABASE).judge(image, world) + judge_store(image, world)

    def key(self, standing: HubStanding) -> str:
        """By everything that matters."""
        return key_of(standing)


def judge_store(image: Image, world: World) -> list[str]:
    """Leases, orders and operators' words."""
    content = image.get(DATABASE)
    tables = rows_of(content) if content else {}
    slots = {row["device"]: row["lease_id"] for row in tables.get("slots", ())}
    problems = [
        f"{child.path} may be inside a swap by lease {child.lease_id[:8]}, and no slot says so"
        for child in world.children
        if child.state in INSIDE
        and slots.get(child.path) != child.lease_id
        and child.lease_id not in (world.note("restored") or ())
    ]
    if "pause" in world.answered and "resume" not in dict(world.asked) and not _is_paused(tables):
        problems.append("the pause was answered and is gone")
    intents = {row["intent_id"] for row in tables.get("intents", ())}
    problems += [
        f"{name} was answered and is gone"
        for name, envelope in world.asked
        if name in world.answered
        and not name.startswith("cancel")
        and decode(OperatorIntent, envelope.payload).intent_id not in intents
    ]
    return problems


def _is_paused(tables: Mapping[str, list[sqlite3.Row]]) -> bool:
    """By the operator's word here, or by control's that carries it."""
    orders = [decode(WaveOrder, row["order_content"]) for row in tables["waves"]]
    return bool(tables["pauses"]) or any(order.state is WaveState.PAUSED for order in orders)


def judge_rest(image: Image, world: World, scenario: Scenario) -> list[str]:
    """What everybody knows in the end."""
    told = ledger_of((one.kind, one.body) for child in world.children for one in child.reports)
    heard = ledger_of((kind, body) for _, _, kind, body in world.parent.heard)
    problems = [f"control never heard {what}" for what in behind(told, heard)]
    problems += [f"nobody said {what}" for what in behind(heard, told)]
    problems += judge_rest_of_cache(image, QUOTA_BYTES, scenario.needed)
    content = image[DATABASE]
    assert content is not None
    tables = rows_of(content)
    known = {row["wave_id"]: decode(WaveOrder, row["order_content"]).generation for row in tables["waves"]}
    if known != {WAVE: 1} | scenario.generations:
        problems.append(f"the waves are known in generations {known}")
    facts = {row["name"]: row["value"] for row in tables["facts"]}
    if facts["hold_epoch"] != str(scenario.hold_epoch):
        problems.append(f"the hold list is known in epoch {facts['hold_epoch']}")
    incarnations = len(world.parent.cursors)
    if incarnations != scenario.incarnations:
        problems.append(f"the hub had {incarnations} incarnations, {scenario.incarnations} were to be")
    return problems


def tales() -> list[StoreHubTale]:
    """All scenarios."""
    return [StoreHubTale(make()) for make in SCENARIOS]
