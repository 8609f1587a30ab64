"""What happens to one device of a store costs nothing for the others: M4, and the simulation's speed."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

from device.orders import Actionable, Gone, Judge
from device.platform import SlotLabel
from device.update import BEFORE_ARM
from storehub.service import DeviceRegistry
from tests.simulation import region as region_module
from tests.simulation import words
from tests.simulation.engine import drive
from tests.simulation.words import encode, sign
from wavemesh.session.frames import Resource, ResourceKey, ResourceVersion

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wavemesh.trust.statements import Permit

CALM_S = 900.0


@pytest.fixture
def region() -> Iterator[Any]:
    """A while without faults, into a wave."""
    words.fresh()
    with ExitStack() as stack:
        stack.enter_context(words.patched())
        stack.enter_context(patch.object(region_module, "BIG", 12))
        region = region_module.Region(3)
        region.plan.waves = ((60.0, "new", 100),)
        region.facts.qualities.clear()  # a good release, or the wave halts itself
        region.begin()
        while len(region.stores[0].scheduler.view().words) < 2:
            region.world.run(region.world.now + 5.0)
            assert region.world.now < CALM_S
        yield region


def _permit(region: Any) -> Resource:
    """A newer permit of one device, as the super hub sends it."""
    hub = region.stores[0].hub
    (wave_id, device), held = next(iter(hub.belief.permits.items()))
    permit: Permit = replace(held.permit, generation=held.permit.generation + 1)
    content = encode(sign(permit))
    name = f"{wave_id}/{hub.path.rsplit('/', 1)[1]}/{device.rsplit('/', 1)[1]}"
    return Resource(ResourceKey("permit", name), ResourceVersion("e", 9), "d", content)


def test_a_permit_alone_wakes_no_session(region: Any) -> None:
    store = region.stores[0]
    looked: Counter[str] = Counter()
    whole = DeviceRegistry.desired

    def desired(self: DeviceRegistry, child: Any) -> Any:
        looked[child.path] += 1
        return whole(self, child)

    with patch.object(DeviceRegistry, "desired", desired):
        sink = store.upstream._sink
        drive(sink.apply([_permit(region)], ()))
        region.world.run(region.world.now)
        assert not looked
        drive(sink.apply(list(store.hub.resources.all("holds").values()), ()))
        region.world.run(region.world.now)
        assert len(looked) == len(store.hub.present) > 1


def test_a_pass_sees_anew_what_changed_and_only_that(region: Any) -> None:
    store = region.stores[0]
    first, second = (store.scheduler.view() for _ in range(2))
    path, other = sorted(first.devices)[:2]
    assert first.devices == second.devices
    assert all(first.devices[one] is second.devices[one] for one in first.devices)
    record = store.hub.store.devices[path]
    store.hub.store.touch_device(replace(record, status=replace(record.status, attempt=3)))
    assert store.scheduler.view().devices[path].attempt == 3
    store.hub.present[path].is_heard = False
    third = store.scheduler.view()
    assert not third.devices[path].heard_in_session
    del store.hub.present[path]
    fourth = store.scheduler.view()
    assert fourth.devices[path].connected_since is None
    assert fourth.devices[other] is first.devices[other]
    drive(store.upstream._sink.apply([_permit(region)], ()))
    [key] = [key for key in fourth.permits if fourth.permits[key] is not store.scheduler.view().permits[key]][:1]
    assert store.scheduler.view().permits[key] == fourth.permits[key]
    wave_id, order = next(iter(store.hub.belief.orders.items()))
    store.hub.belief.accept(ResourceKey("order", "x"), replace(order, devices=order.devices[:2]))
    [wave] = [one for one in store.scheduler.view().waves if one.wave_id == wave_id]
    assert len(wave.devices) == 2


def test_words_of_the_ledger_are_seen_anew(region: Any) -> None:
    store = region.stores[0]
    before = store.scheduler.view().words
    assert len(before) > 1
    (wave_id, device), word = next(iter(before.items()))
    entry = store.hub.store.ledger(wave_id)[device]
    store.hub.store._ledgers[wave_id][device] = replace(entry, outcome=replace(entry.outcome, attempt=3))
    after = store.scheduler.view().words
    assert after[wave_id, device] == replace(word, attempt=3)
    assert all(after[key] is before[key] for key in before if key != (wave_id, device))


def test_facts_of_a_device_follow_its_slots_and_configs(region: Any) -> None:
    device = region.devices[0]
    equipment = device.equipment
    assert equipment.facts() is equipment.facts()
    slot = device.record.boot.slot
    label = device.slots.labels[slot]
    device.slots.labels[slot] = SlotLabel("other", "9.0.0", label.firmware)
    assert equipment.facts().firmware_version == "9.0.0"
    device.configs[0] = type(device.configs[0])(version="1.1.0", sha256="c1")
    assert (equipment.facts().config_version, equipment.facts().configs) == ("1.1.0", {0: "c1"})
    device.slots.labels[slot.other] = None
    assert {one.slot: one.version for one in equipment.facts().slots} == {slot.value: "9.0.0", slot.other.value: ""}


def test_a_judgement_is_remembered_until_something_it_rests_on_changes(region: Any) -> None:
    device = next(one for one in region.devices if one.progress.state in BEFORE_ARM)
    equipment, judge = device.equipment, Judge()
    [order] = equipment.sink.orders()
    belief, facts, now = equipment.sink.belief, equipment.facts(), equipment.clock.now()
    first = judge.judge(order, belief, facts, now)
    assert isinstance(first, Actionable)
    assert judge.judge(order, belief, facts, now) is first
    assert judge.judge(order, belief, facts, order.expires_at) == Gone()
    assert judge.judge(order, belief, facts, now) == first
    assert judge.judge(replace(order, devices=()), belief, facts, now) == Gone()
    assert judge.judge(order, belief, facts, now) == first
    assert judge.judge(order, replace(belief, holds=None), facts, now) != first
    assert judge.judge(order, belief, facts, now) == first
    assert judge.judge(order, belief, replace(facts, name="another"), now) == Gone()
