"""What is asked of a store hub alone, after a cut and at rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.crashpoints.hub_oracle import judge_rest_of_cache, rows_of
from tests.crashpoints.hub_tale import HubTale, Kind, tales_of
from tests.crashpoints.storehub_cast import INSIDE, QUOTA_BYTES, StoreHub
from tests.crashpoints.storehub_scenarios import SCENARIOS, WAVE
from wavemesh.codec.statements import decode
from wavemesh.trust.statements import OperatorIntent, WaveOrder, WaveState

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

    from tests.crashpoints.hub_world import World
    from tests.crashpoints.medium import Image
    from tests.crashpoints.storehub_scenarios import Scenario

DATABASE = "state/hub.sqlite3"


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


def judge_rest(image: Image, _: World, scenario: Scenario) -> list[str]:
    """The cache, waves and holds in the end."""
    problems = judge_rest_of_cache(image, QUOTA_BYTES, scenario.needed)
    content = image[DATABASE]
    assert content is not None
    tables = rows_of(content)
    known = {row["wave_id"]: decode(WaveOrder, row["order_content"]).generation for row in tables["waves"]}
    if known != {WAVE: 1} | scenario.generations:
        problems.append(f"the waves are known in generations {known}")
    facts = {row["name"]: row["value"] for row in tables["facts"]}
    if facts["hold_epoch"] != str(scenario.hold_epoch):
        problems.append(f"the hold list is known in epoch {facts['hold_epoch']}")
    return problems


def tales() -> list[HubTale]:
    """All scenarios."""
    return tales_of(Kind(StoreHub, DATABASE, judge_store, judge_rest), SCENARIOS)
