"""The shelf agrees with the audience rule of identity/nodes.py."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from superhub.shelf import Shelf
from tests.session_kit import resource
from wavemesh.identity.nodes import is_for
from wavemesh.session.frames import Resource, ResourceKey

REGION = "region/midwest"
STORES = (f"{REGION}/store/a", f"{REGION}/store/b")
PATHS = st.sampled_from(
    [
        "control/main",
        REGION,
        "region/north",
        "region/north/store/a",
        *STORES,
        f"{STORES[0]}/device/d",
        f"{STORES[1]}/device/d",
        f"{REGION}/store/ab",
    ]
)


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.lists(PATHS, max_size=3) | st.none()), max_size=12))
def test_the_shelf_is_the_audience_rule_made_fast(steps: list[tuple[str, list[str] | None]]) -> None:
    shelf = Shelf(REGION)
    held: dict[ResourceKey, Resource] = {}
    for name, audience in steps:
        key = ResourceKey("order", name)
        if audience is None:
            shelf.remove(key)
            held.pop(key, None)
        else:
            held[key] = replace(resource(name, kind="order"), audience=tuple(audience))
            shelf.put(held[key])
    for store in STORES:
        assert shelf.desired(store) == {key: one for key, one in held.items() if is_for(one.audience, store)}
