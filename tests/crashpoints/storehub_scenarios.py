"""The store hub's scenarios: with what each begins, its plot, and when it is over."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from tests.crashpoints.fleet import HUB, NEW, Served
from tests.crashpoints.hub_fleet import DEVICES, the_hub_fleet
from tests.crashpoints.hub_story import Act, HubStanding
from tests.crashpoints.hub_world import Child, Parent, World

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.crashpoints.medium import Image

CONFIG = """\
listen = "127.0.0.1:0"
parent = "super.invalid:1"
quota_bytes = 1048576
lease_s = 300.0
scheduling_interval_s = 60.0
status_interval_s = 60.0
hub_status_interval_s = 3600.0
telemetry = {enabled = false}
"""
WAVE = "142"
QUOTA_BYTES = 1 << 20


def files_of(node: str, config: str) -> Image:
    """A hub's directory before its first start."""
    fleet = the_hub_fleet()
    image: Image = {"config.toml": config.encode(), "identity": None, "trust": None}
    image |= {f"identity/{name}": content for name, content in fleet.files[node].items()}
    return image | {"trust/root.json": fleet.base.keys.pinned_root}


def trust() -> list[Served]:
    """What control serves first."""
    return [Served("tuf", "metadata", the_hub_fleet().base.metadata), the_hub_fleet().holds(1)]


def serve(*served: Served) -> Callable[[World], World]:
    """Control wants these."""
    return lambda world: replace(world, parent=world.parent.serving(*served, audience=HUB.path))


def take_back(*types: str) -> Callable[[World], World]:
    """Control wants nothing of these types any more."""
    return lambda world: replace(world, parent=world.parent.without(*types))


def all_are(state: str) -> Callable[[World], bool]:
    """Whether all devices are in that state."""
    return lambda world: all(child.state == state for child in world.children)


@dataclass(frozen=True, slots=True)
class Scenario:
    """``begin`` makes the first standing; ``needed`` are the blobs that are held at rest, by SHA-256, and
    ``incarnations`` how many the parent has met by then.
    """

    name: str
    begin: Callable[[], HubStanding]
    acts: Sequence[Act]
    is_over: Callable[[World], bool] = lambda _: True
    needed: tuple[str, ...] = ()
    incarnations: int = 1


def fresh(*scripts: tuple[str, ...], **notes: Any) -> HubStanding:
    """A new hub; a device for each script."""
    children = tuple(Child(node.path, script=script) for node, script in zip(DEVICES, scripts, strict=False))
    notes = {"incarnations": (), "permits": (WAVE, NEW, DEVICES[: len(scripts)]), "versions": {WAVE: NEW}, **notes}
    world = World(Parent(), children, notes=tuple(notes.items()))
    return HubStanding(files_of(HUB.path, CONFIG), world)


def _order_acts(version: str, count: int) -> list[Act]:
    return [
        Act("control publishes trust and an order", serve(*trust(), *the_hub_fleet().order(WAVE, version, DEVICES[:count]))),
    ]


def _closing() -> list[Act]:
    return [
        Act("control closes the wave", serve(the_hub_fleet().closed(WAVE)), all_are("DONE")),
        Act("control takes order and permits back", take_back("order", "permit", "policy")),
    ]


@cache
def wave() -> Scenario:
    """A wave from a hub's first start to its closing: prefetch, leases, outcomes, two attempts of one device."""
    return Scenario(
        "wave",
        lambda: fresh(("INCONCLUSIVE", "UPDATED"), ("ROLLED_BACK",)),
        [*_order_acts(NEW, 2), *_closing()],
        all_are("IDLE"),
    )


SCENARIOS = (wave,)
