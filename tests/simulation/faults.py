"""What goes wrong in a night: draws the kinds of ``kinds.py`` by their weight, and does them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from device.gates.findings import bad
from tests.simulation.controls import operator_uri
from tests.simulation.engine import drive
from tests.simulation.hubs import StoreHub
from tests.simulation.kinds import Fault
from tests.simulation.links import Link
from tests.simulation.region import HOUR_S, LAN_S, NIGHT_S, WAN_S, Region
from tests.simulation.words import MINT, sign
from wavemesh.errors import WavemeshError
from wavemesh.identity.nodes import NodeId
from wavemesh.trust.statements import IntentKind, OperatorIntent, UpdateState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.simulation.devices import DeviceNode
    from tests.simulation.engine import Node

FAULTS_A_NIGHT = 20
LAST_FAULT_S = NIGHT_S - HOUR_S / 2
IN_SWAP = frozenset({UpdateState.ARMED, UpdateState.TRIAL, UpdateState.COMMITTING, UpdateState.ROLLING_BACK})


class Chaos:
    """Does the faults of one night."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.world = region.world
        self.rng = region.world.rng("faults")
        self.counts: Counter[str] = Counter()

    def plan(self) -> None:
        """Half of the faults fall anywhere in the night, half of them while waves run."""
        kinds = list(Fault)
        weights = [kind.weight for kind in kinds]
        for number in range(FAULTS_A_NIGHT):
            at = self.rng.uniform(30.0, LAST_FAULT_S)
            if number % 2:
                begun, _, _ = self.rng.choice(self.region.plan.waves)
                at = begun + self.rng.uniform(0.0, 1800.0)
            kind = self.rng.choices(kinds, weights)[0]
            self.world.at(at, self.do, kind)

    def do(self, kind: Fault) -> None:
        """Do one fault."""
        self.counts[kind.value] += 1
        self.world.note("FAULT", kind.value)
        handler: Callable[[], None] = getattr(self, f"_{kind.name.lower()}")
        handler()

    def end(self) -> None:
        """The night is over: everything that can be is well again."""
        region = self.region
        self.world.note("FAULT", "the faults end")
        for twin in list(region.twins):
            self._end_twin(twin)
        for node in (region.control, *region.hubs):
            node.disk_is_full = False
            node.crash_in = None
            node.clock.skew_s = 0.0
            node.start()
        for hub in region.hubs:
            hub.parent_link.heal()
        for device in region.devices:
            device.disk_is_full = False
            device.file.has_reserve = True
            device.crash_in = None
            device.clock.skew_s = 0.0
            device.gates.closed = None
            device.link.heal()
            device.power_on()
        for wave in list(region.control.rows.waves.values()):
            for origin in list(wave.pauses):
                region.control.do(region.control.resume, wave.wave_id, origin)
        for release in [one.release for one in region.control.rows.holds]:
            region.control.do(lambda name: region.control.hold(name, is_held=False), release)

    # -- choosing -----------------------------------------------------------------------------------------------------

    def _device(self) -> DeviceNode:
        return self.rng.choice(self.region.devices)

    def _store(self) -> StoreHub:
        """The big store more often than a small one."""
        return self.region.stores[0] if self.rng.random() < 0.75 else self.rng.choice(self.region.stores)

    def _link(self) -> Link:
        if self.rng.random() < 0.6:
            return self.rng.choice(self.region.hubs).parent_link
        return self._device().link

    def _wave(self) -> str | None:
        """A wave that is not closed, the latest."""
        open_ones = [w.wave_id for w in self.region.control.rows.waves.values() if w.closed_at is None]
        return open_ones[-1] if open_ones else None

    def _for_a_while(self, links: Sequence[Link], low: float, high: float) -> None:
        after = self.rng.uniform(low, high)
        for link in links:
            self.world.after(after, link.heal)

    # -- links --------------------------------------------------------------------------------------------------------

    def _cut_wan(self) -> None:
        link = self.rng.choice(self.region.hubs).parent_link
        link.cut()
        self._for_a_while([link], 1.0, 1200.0)

    def _cut_lan(self) -> None:
        link = self._device().link
        link.cut()
        self._for_a_while([link], 1.0, 600.0)

    def _dark_store(self) -> None:
        link = self._store().parent_link
        link.cut()
        self._for_a_while([link], HOUR_S, 5 * HOUR_S)

    def _partition(self) -> None:
        links = [hub.parent_link for hub in self.region.super_hubs]
        for link in links:
            link.cut() if self.rng.random() < 0.5 else link.block()
        self._for_a_while(links, 60.0, HOUR_S)

    def _half_open(self) -> None:
        link = self._link()
        up = self.rng.random() < 0.5
        link.block(up=up, down=not up)
        self._for_a_while([link], 5.0, 300.0)

    def _stall(self) -> None:
        link = self._link()
        link.block()
        self._for_a_while([link], 0.5, 40.0)

    def _delay(self) -> None:
        link = self._link()
        link.delay_s = self.rng.uniform(0.5, 8.0)
        self._for_a_while([link], 60.0, 900.0)

    def _slow_link(self) -> None:
        link = self._link()
        link.frame_s = self.rng.uniform(0.05, 1.0)
        self._for_a_while([link], 60.0, 900.0)

    def _dead_switch(self) -> None:
        store = self._store()
        links = [link for link in store.links if self.rng.random() < 0.5]
        for link in links:
            link.block()
        self._for_a_while(links, 60.0, HOUR_S)

    def _thundering_herd(self) -> None:
        links = [hub.parent_link for hub in self.region.hubs] + [device.link for device in self.region.devices]
        for link in links:
            link.cut()
        self._for_a_while(links, 1.0, 60.0)

    def _flapping_device(self) -> None:
        link = self._device().link
        at = 0.0
        for _ in range(self.rng.randint(3, 12)):
            at += self.rng.uniform(0.1, 30.0)
            self.world.after(at, link.cut)
            at += self.rng.uniform(0.1, 20.0)
            self.world.after(at, link.heal)

    # -- processes, hosts, power --------------------------------------------------------------------------------------

    def _crash(self, node: Node, most: int) -> None:
        node.crash_in = self.rng.randrange(most)

    def _crash_device(self) -> None:
        self._crash(self._device(), 12)

    def _crash_store_hub(self) -> None:
        self._crash(self._store(), 60)

    def _crash_super_hub(self) -> None:
        self._crash(self.rng.choice(self.region.super_hubs), 60)

    def _crash_control(self) -> None:
        self._crash(self.region.control, 40)

    def _host_down(self) -> None:
        self.rng.choice(self.region.hubs).stop(is_silent=True, back_after_s=self.rng.uniform(10.0, 1200.0))

    def _power_cut(self) -> None:
        self._device().power_cut(self.rng.uniform(1.0, 600.0))

    def _power_cut_in_swap(self) -> None:
        inside = [d for d in self.region.devices if d.is_up and d.progress.state in IN_SWAP]
        device = self.rng.choice(inside) if inside else self._device()
        device.power_cut(self.rng.uniform(1.0, 60.0))

    def _store_power_cut(self) -> None:
        store, after = self._store(), self.rng.uniform(5.0, 1800.0)
        store.stop(is_silent=True, back_after_s=after)
        for link in store.links:
            device: Any = link.child
            device.power_cut(after + self.rng.uniform(0.0, 20.0))

    def _closing_time(self) -> None:
        store, after = self._store(), self.rng.uniform(HOUR_S / 2, 3 * HOUR_S)
        for link in list(store.links)[self.rng.choice((0, 1, 2)) :]:
            device: Any = link.child
            device.power_cut(after + self.rng.uniform(0.0, 60.0))

    def _dead_device(self) -> None:
        device = self._device()
        device.power_cut(None)
        device.is_dead = True
        self.region.facts.blamed.add(device.path)

    def _gate_closed(self) -> None:
        device = self._device()
        device.gates.closed = bad("battery", "5 %", "5 %", "30 %")
        self.world.after(self.rng.uniform(300.0, 2 * HOUR_S), setattr, device.gates, "closed", None)

    # -- disks and clocks ---------------------------------------------------------------------------------------------

    def _full_disk_hub(self) -> None:
        node = self.rng.choice([self.region.control, *self.region.hubs])
        node.disk_is_full = True
        self.world.after(self.rng.uniform(10.0, 400.0), setattr, node, "disk_is_full", False)

    def _full_disk_device(self) -> None:
        device = self._device()
        device.disk_is_full = True

        def free() -> None:
            device.disk_is_full, device.file.has_reserve = False, True

        self.world.after(self.rng.uniform(10.0, 400.0), free)

    def _clock_skew(self) -> None:
        node = self.rng.choice([*self.region.stores, *self.region.super_hubs, self._device(), self._device()])
        node.clock.skew_s = self.rng.uniform(-240.0, 240.0)

    def _clock_jump(self) -> None:
        node = self.rng.choice([self._store(), self._device(), self._device()])
        node.clock.skew_s = self.rng.uniform(-3.0, 3.0) * HOUR_S
        self.world.after(self.rng.uniform(60.0, HOUR_S), setattr, node.clock, "skew_s", 0.0)

    def _restore(self, hub: Any) -> None:
        content = hub.disk.copy()
        self.region.facts.forgetful.add(hub.path)

        def put_back() -> None:
            hub.stop(is_silent=False, back_after_s=None)
            hub.disk.restore(content)
            hub.note("restored")
            hub.later(self.rng.uniform(1.0, 120.0), hub.start)

        self.world.after(self.rng.uniform(60.0, 1.5 * HOUR_S), put_back)

    def _restore_store_hub(self) -> None:
        self._restore(self._store())

    def _restore_super_hub(self) -> None:
        self._restore(self.rng.choice(self.region.super_hubs))

    def _lose_super_hub_disk(self) -> None:
        hub = self.rng.choice(self.region.super_hubs)
        self._replace(hub)

    def _replace_hub(self) -> None:
        self._replace(self._store())

    def _replace(self, hub: Any) -> None:
        hub.stop(is_silent=False, back_after_s=None)
        self.region.facts.forgetful.add(hub.path)
        hub.disk.lose()
        if isinstance(hub, StoreHub):
            hub.cached.clear()
        hub.note("replaced")
        hub.later(self.rng.uniform(10.0, 900.0), hub.start)

    def _restore_control(self) -> None:
        control = self.region.control
        content = control.backup()

        def put_back() -> None:
            control.stop(is_silent=False, back_after_s=None)
            control.restore(content)
            control.note("restored")
            control.later(self.rng.uniform(1.0, 120.0), control.start)

        self.world.after(self.rng.uniform(60.0, HOUR_S), put_back)

    def _clone_hub(self) -> None:
        """Copy and original push each other out, if both have a WAN: that lasts minutes, a dark copy longer."""
        store = self._store()
        self.region.facts.forgetful.add(store.path)
        twin = StoreHub(self.world, store.path)
        twin.label = f"{store.label}(copy)"
        twin.disk.restore(store.disk.copy())
        twin.cached = dict(store.cached)
        above: Any = store.parent_link.parent
        twin.parent_link = Link(twin, above, WAN_S)
        above.links.append(twin.parent_link)
        is_dark = self.rng.random() < 0.5
        twin.parent_link.is_cut = is_dark
        self.region.twins.append(twin)
        for device in [d for d in self.region.devices if d.link.parent is store and self.rng.random() < 0.4]:
            self._point(device, twin)
        twin.start()
        self.world.after(self.rng.uniform(600.0, 2400.0) if is_dark else 90.0, self._end_twin, twin)

    def _end_twin(self, twin: StoreHub) -> None:
        if twin not in self.region.twins:
            return
        self.region.twins.remove(twin)
        [store] = [one for one in self.region.stores if one.path == twin.path]
        twin.stop(is_silent=False, back_after_s=None)
        above: Any = twin.parent_link.parent
        above.links.remove(twin.parent_link)
        for device in [d for d in self.region.devices if d.link.parent is twin]:
            self._point(device, store)

    def _point(self, device: DeviceNode, hub: StoreHub) -> None:
        """The device finds another hub under the address of its own."""
        device.link.cut()
        device.link.parent.links.remove(device.link)  # type: ignore[attr-defined]
        self.region.connect(device, hub)
        if device.is_up:
            device.dialer.link = device.link
            device.link.dialer = device.dialer
            device.dialer.knock()

    # -- devices that come and go -------------------------------------------------------------------------------------

    def _leave(self, device: DeviceNode) -> None:
        device.power_cut(None)
        device.is_dead = True
        device.link.parent.links.remove(device.link)  # type: ignore[attr-defined]
        self.region.devices.remove(device)
        self.region.facts.inside.pop(device.hardware, None)
        self.region.facts.blamed.add(device.path)
        self.region.facts.gone.add(device.path)

    def _replace_device(self) -> None:
        old = self._device()
        hub: Any = old.link.parent
        if hub in self.region.twins:
            return
        self._leave(old)
        new = self.region.add_device(hub, old.path.rsplit("/", 1)[1])
        self.world.after(self.rng.uniform(30.0, 900.0), new.power_on)

    def _move_device(self) -> None:
        old = self._device()
        there = [store for store in self.region.stores if store.path != old.link.parent.path]
        self._leave(old)
        self.region.control.devices.discard(old.path)
        new = self.region.add_device(self.rng.choice(there), f"moved-{len(self.region.facts.blamed)}")
        new.slots, new.control = old.slots, old.control
        new.control.environment = replace(new.control.environment, trial=None)
        self.world.after(self.rng.uniform(30.0, 900.0), new.power_on)

    # -- words --------------------------------------------------------------------------------------------------------

    def _revoke(self) -> None:
        control = self.region.control
        control.do(control.revoke, "new")

    def _hold(self) -> None:
        control = self.region.control
        control.do(lambda: control.hold("new", is_held=True))
        self.world.after(self.rng.uniform(300.0, 2 * HOUR_S), control.do, lambda: control.hold("new", is_held=False))

    def _pause(self) -> None:
        control, wave = self.region.control, self._wave()
        if wave is not None:
            control.do(control.pause, wave, "operator:bob", "a look")
            self.world.after(self.rng.uniform(60.0, HOUR_S), control.do, control.resume, wave, "operator:bob")

    def _halt(self) -> None:
        control, wave = self.region.control, self._wave()
        if wave is not None:
            control.do(control.halt, wave, "the operator says so")

    def _intent(self, kind: IntentKind, wave: str, device: str = "") -> OperatorIntent:
        return OperatorIntent(
            MINT.name(),
            kind,
            self.region.control.clock.now(),
            wave_id=wave,
            device=device,
            reason="as the night has it",
        )

    def _at_hub(self, store: StoreHub, intent: OperatorIntent) -> None:
        """An operator stands in the store."""
        if not store.is_up:
            return

        def submit() -> None:
            try:
                drive(store.intents.submit(sign(intent, operator_uri()), NodeId.parse(operator_uri())))
            except WavemeshError as error:
                store.note("intent-refused", str(error))
            else:
                store.note("intent", f"{intent.kind.name} {intent.wave_id} {intent.device}")

        store.run(submit)

    def _pause_at_hub(self) -> None:
        store, wave = self._store(), self._wave()
        if wave is not None:
            self._at_hub(store, self._intent(IntentKind.PAUSE_WAVE, wave))
            resume = self._intent(IntentKind.RESUME_WAVE, wave)
            self.world.after(self.rng.uniform(60.0, HOUR_S), self._at_hub, store, resume)

    def _halt_at_hub(self) -> None:
        store, wave = self._store(), self._wave()
        if wave is not None:
            self._at_hub(store, self._intent(IntentKind.HALT_WAVE, wave))

    def _policy_change(self) -> None:
        self.region.policy = self.region._policy(self.rng)

    def _roll_back_device(self) -> None:
        device, control = self._device(), self.region.control
        self.region.facts.blamed.add(device.path)
        intent = self._intent(IntentKind.ROLLBACK_DEVICE, "", device.path)
        if self.rng.random() < 0.5:
            hub: Any = device.link.parent
            self._at_hub(hub, intent)
        else:
            control.do(control.roll_back, intent, operator_uri())


__all__ = ["LAN_S", "Chaos", "Fault"]
