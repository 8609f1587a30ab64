"""A store hub with an empty disk takes nothing from its devices before it has heard its super hub (M3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.session_kit import CHILD_OPTIONS, Fleet, MemorySink, dialling, until
from tests.storehub_kit import STORE, Control, SuperHub, device_node, eventually, lay_out, running, wan
from wavemesh.session.frames import ResourceKey

if TYPE_CHECKING:
    from pathlib import Path

LEASE = ResourceKey("lease", "142")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet.create(tmp_path_factory.mktemp("fleet"))


async def test_its_emptiness_is_no_word_of_control(fleet: Fleet, tmp_path: Path) -> None:
    """Orders and what they need stay until control's own word is there, a lease of the old hub does not."""
    control, sink = Control(fleet), MemorySink()
    super_hub, directory = SuperHub(control), tmp_path / "hub"
    order, closed = control.order("pos-12"), control.closed()
    old = (control.tuf(), control.policy_resource(), control.holds(), order, closed)
    sink.resources = {one.key: one for one in (*old, control.make("lease", "142", b"lease"))}
    async with wan(super_hub) as parent:
        pass
    node = device_node("pos-12")
    async with running(lay_out(directory, control, parent)) as app:
        dial = dialling(fleet, f"127.0.0.1:{app.port}", node=node, parent=STORE, sink=sink, options=CHILD_OPTIONS)
        async with dial:
            await until(lambda: "settled" in sink.events, sink)
            assert sink.resources.keys() == {one.key for one in old}
            assert sink.applied == [([], [LEASE.name])]
            super_hub.want(*old[:4])
            async with wan(super_hub, parent):
                await until(lambda: closed.key not in sink.resources, sink)
                assert sink.resources.keys() == {one.key for one in old[:4]}
                assert app.hub.has_settled
                super_hub.drop(order)
                await until(lambda: order.key not in sink.resources, sink)


async def test_what_it_has_heard_once_counts_after_a_restart_in_the_dark(fleet: Fleet, tmp_path: Path) -> None:
    """A hub that knows its devices takes back what control took back, WAN or no WAN."""
    control, sink = Control(fleet), MemorySink()
    super_hub, directory = SuperHub(control), tmp_path / "hub"
    order = control.order("pos-12")
    sink.resources = {order.key: order}
    async with wan(super_hub) as parent, running(lay_out(directory, control, parent)) as app:
        super_hub.want(control.tuf(), control.holds())
        await eventually(lambda: app.hub.has_settled)
    async with running(directory) as app:
        node = device_node("pos-12")
        dial = dialling(fleet, f"127.0.0.1:{app.port}", node=node, parent=STORE, sink=sink, options=CHILD_OPTIONS)
        async with dial:
            await until(lambda: order.key not in sink.resources, sink)
