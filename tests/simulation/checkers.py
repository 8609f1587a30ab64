"""Invariants, each with the requirement that it comes from; fed by ``Facts`` after every step and at quiescence."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from control.ledger import is_final
from tests.simulation.engine import EPOCH
from tests.simulation.hubs import STORE_CONFIG
from tests.simulation.rows import ATTEMPTS
from tests.simulation.words import decode
from wavemesh.trust.freshness import CLOCK_SKEW
from wavemesh.trust.statements import DeviceOutcome, Envelope, OutcomeKind, UpdateState, WaveState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.simulation.devices import DeviceNode
    from tests.simulation.facts import Swap
    from tests.simulation.hubs import StoreHub
    from tests.simulation.region import Region
    from tests.simulation.rows import Wave

AT_REST = frozenset({UpdateState.IDLE, UpdateState.COMMITTED, UpdateState.ROLLED_BACK, UpdateState.REFUSED})


class Checkers:
    """All of them, over one region."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.facts = region.facts

    # -- at each ARM --------------------------------------------------------------------------------------------------

    def on_arm(self, node: DeviceNode, swap: Swap) -> None:
        """Everything that must hold at the moment of ARM."""
        self.limit(node, swap)
        self.burned_once(node, swap)
        self.own_permit(node, swap)
        self.right_image(node, swap)
        self.exposure(swap)

    def limit(self, node: DeviceNode, swap: Swap) -> None:
        """H6: never more than N devices of a hub between ARM and outcome, or the maxima of a swap without a word."""
        wave = self.region.control.rows.waves.get(swap.wave_id)
        if wave is None:
            return
        most = wave.policy.guardrails.max_concurrent_swaps
        now = swap.hub.clock.now()
        others = [
            s for s in self.facts.inside.values() if s.hub is swap.hub and s.hardware != swap.hardware and now < s.until
        ]
        if len(others) >= most:
            names = ", ".join(sorted(s.device.rsplit("/", 1)[1] for s in others))
            self.facts.fail("H6", f"{node.path} arms beside {names}: the limit is {most}")

    def burned_once(self, node: DeviceNode, swap: Swap) -> None:
        """P6: no attempt is burned twice by one device."""
        if (swap.device, swap.hardware, swap.wave_id, swap.attempt) in self.facts.burned:
            self.facts.fail("P6", f"{node.path} burns attempt {swap.attempt} of {swap.wave_id} a second time")

    def own_permit(self, node: DeviceNode, swap: Swap) -> None:
        """P6: no ARM without its own live permit."""
        permits = self.facts.permits.get((swap.wave_id, swap.device), [])
        now = self.facts.control_time()
        if not any(swap.attempt <= one.attempts and now < one.expires_at + CLOCK_SKEW for one in permits):
            self.facts.fail("P6", f"{node.path} arms attempt {swap.attempt} of {swap.wave_id} without a live permit")
        ended = node.progress.lease_expires_at
        if ended is not None and ended + CLOCK_SKEW <= min(node.clock.now(), self._world_time()):
            self.facts.fail("P6", f"{node.path} arms in {swap.wave_id} after its lease had ended at {ended}")
        if (node.hardware, swap.wave_id) in self.facts.stopped:
            self.facts.fail("P6", f"{node.path} arms in {swap.wave_id}, of which it knew that it is halted")

    def _world_time(self) -> datetime:
        return EPOCH + timedelta(seconds=self.region.world.now)

    def right_image(self, node: DeviceNode, swap: Swap) -> None:
        """D3, P2: verified, not revoked, not known held, by a fresh view, of its class, and not older."""
        target, sink = node.progress.target, node.equipment.sink
        if target is None or target.firmware is None:
            return
        label, running = node.slots.label(target.boot.slot), node.slots.label(node.record.boot.slot)
        if label is None or label.firmware != target.firmware:
            self.facts.fail("D3", f"{node.path} arms slot {target.boot.slot.value}, which is not the release's image")
        trusted, holds = sink.trusted, sink.belief.holds
        if trusted is None or trusted.is_revoked(target.release):
            self.facts.fail("P2", f"{node.path} arms {target.release}, which it knows to be revoked")
        elif trusted.releases()[target.release].device_class != "pos":
            self.facts.fail("P2", f"{node.path} arms {target.release} of another class")
        if holds is None or any(one.release == target.release for one in holds.holds):
            self.facts.fail("P2", f"{node.path} arms {target.release}, which it knows to be held")
        elif node.clock.now() - holds.issued_at > timedelta(seconds=target.rules.hold_max_age_s):
            self.facts.fail("P2", f"{node.path} arms by a view of holds of {holds.issued_at}")
        if running is not None and [int(x) for x in target.version.split(".")] <= [
            int(x) for x in running.version.split(".")
        ]:
            self.facts.fail("P2", f"{node.path} arms {target.version} over {running.version}")

    def exposure(self, swap: Swap) -> None:
        """P6: a halt not yet delivered exposes at most the devices of the outstanding permits."""
        halt = self.facts.halts.get(swap.wave_id)
        if halt is None:
            return
        halt.swapped.add(swap.device)
        if swap.device not in halt.exposed:
            self.facts.fail("P6", f"{swap.device} arms after the halt of {swap.wave_id} and had no permit left")

    # -- at decisions -------------------------------------------------------------------------------------------------

    def on_decision(self, hub: StoreHub, decision: Any) -> None:
        """H6: within an availability group one at a time, and enough of the others connected.

        One that is inside past the maxima of its swap is down, and no longer inside.
        """
        now = hub.clock.now()
        for slot in decision.granted:
            order = hub.hub.belief.orders.get(slot.wave_id)
            policy = hub.hub.belief.policies.get(order.policy_digest) if order is not None else None
            for group in policy.guardrails.availability if policy is not None and order is not None else ():
                members = {
                    hub.hub.device_path(name)
                    for one in hub.hub.config.groups
                    for name in one.devices
                    if (one.role, one.group) == (group.role, group.group)
                }
                if slot.device not in members:
                    continue
                others = members - {slot.device}
                inside = [
                    s.device
                    for s in self.facts.inside.values()
                    if s.hub is hub and s.device in others and now < s.until
                ]
                up = sum(path in hub.hub.present for path in others)
                if inside or up < group.min_up:
                    self.facts.fail("H6", f"{slot.device} is let in with {inside} inside and {up} others up")

        self.silence(hub, decision)

    def silence(self, hub: StoreHub, decision: Any) -> None:
        """H7: SILENT is said only while another device of that store has been heard for a while."""
        since = hub.clock.now() - timedelta(seconds=STORE_CONFIG.witness_s)
        for one in decision.inferred:
            witnesses = [path for path, presence in hub.hub.present.items() if presence.since <= since]
            if one.kind is OutcomeKind.SILENT and set(witnesses) <= {one.device}:
                self.facts.fail("H7", f"{one.device} is called silent, and nobody else of its store is heard")

    def on_healthy(self, node: DeviceNode) -> None:
        """P6: a trial that knows of a halt, or that began after its lease had ended, does not pass."""
        progress = node.progress
        orders = [one for one in node.equipment.sink.orders() if one.wave_id == progress.wave_id]
        if any(one.state is WaveState.HALTED for one in orders):
            self.facts.fail("P6", f"{node.path} finds the trial of {progress.wave_id} healthy and knows of its halt")
        ended, began_s = progress.lease_expires_at, progress.trial_began_s
        began = [EPOCH + timedelta(seconds=began_s + skew_s) for skew_s in (0.0, node.clock.skew_s)]
        if ended is not None and ended + CLOCK_SKEW <= min(began):  # neither by its own clock nor by the world's
            self.facts.fail("P6", f"{node.path} passes a trial that began after its lease had ended at {ended}")

    def on_halt(self, wave: Wave) -> None:
        """C2: no halt by itself but for what the release, or a device that is to blame, really did.

        A device that could not reach its hub for the whole of its trial rolls back, and that counts in the ratio, as
        does silence while any other device is heard: by the rules of semantics.md, "Populations", nobody tells it from
        a release that breaks the network. A halt that rests on these is a false one all the same; it is not a
        violation of those rules, so it is counted by itself (``Facts.excused``) and shown in every summary.
        """
        bad = {OutcomeKind.ROLLED_BACK, OutcomeKind.FAILED, OutcomeKind.SILENT}
        firmware = self.region.releases[wave.release].firmware
        quality = self.facts.qualities.get(firmware.digest.sha256) if firmware is not None else None
        if quality is not None and not quality.is_good:
            return
        ours = [o for o in wave.outcomes.values() if o.kind in bad and o.device not in self.facts.blamed]
        unfounded = [o for o in ours if not self._is_cut_off(wave.wave_id, o.device)]
        if ours and not unfounded:
            self.facts.excuse("C2: halted by devices that nobody could reach")
        if unfounded:
            said = ", ".join(f"{o.device.rsplit('/', 1)[1]} {o.kind.name} {o.gate}" for o in unfounded)
            self.facts.fail("C2", f"wave {wave.wave_id} halted itself over a good release: {said}")

    def _is_cut_off(self, wave_id: str, path: str) -> bool:
        """Whether the world, and not the image, kept a device from being heard."""
        if (wave_id, path) in self.facts.unreached:
            return True
        return any(
            device.path == path and not (device.is_powered and device.link.passes) for device in self.region.devices
        )

    def on_close(self, wave: Wave) -> None:
        """H7: outcomes sum to the target, and a wave is not over while some of them are missing.

        But for one that was closed before: control was restored from a backup, is shown its own last word, and says it
        again. Everybody below was told to forget what happened in between.
        """
        was_closed = wave.wave_id in self.facts.closed
        self.facts.closed.add(wave.wave_id)
        if not set(wave.outcomes) <= set(wave.devices):
            self.facts.fail("H7", f"wave {wave.wave_id} counts devices that are no targets")
        pending = set(wave.devices) - set(wave.outcomes)
        is_early = wave.state is WaveState.CLOSED and self.region.control.clock.now() < wave.expires_at
        if pending and is_early and not was_closed:
            self.facts.fail("H7", f"wave {wave.wave_id} closes before its time with {len(pending)} devices pending")

    # -- at quiescence ------------------------------------------------------------------------------------------------

    def quiet(self) -> None:
        """The faults are over and the bound has passed: everybody agrees."""
        self.resources_agree()
        self.ledgers_agree()
        self.queues_are_empty()
        self.devices_are_well()
        self.waves_are_through()

    def resources_agree(self) -> None:
        """M3, M5: each child's resources equal its parent's desired ones, deletions too."""
        region = self.region
        for hub in region.super_hubs:
            wanted = {key: one.digest for key, one in region.control.desired(hub.path).items()}
            self._same(hub.path, wanted, {one.key: one.digest for one in hub.resources.held()})
        for store in region.stores:
            above: Any = store.parent_link.parent
            wanted = {key: one.digest for key, one in above.shelf.desired(store.path).items()}
            self._same(store.path, wanted, {one.key: one.digest for one in store.hub.resources.held()})
        for device in region.devices:
            if device.is_up:
                wanted = {key: one.digest for key, one in device.hub.registry.desired(device.id).items()}
                self._same(device.path, wanted, {one.key: one.digest for one in device.equipment.sink.held()})

    def _same(self, path: str, wanted: dict[Any, str], held: dict[Any, str]) -> None:
        for key in sorted({*wanted, *held}):
            if wanted.get(key) != held.get(key):
                how = "lacks" if key not in held else "keeps" if key not in wanted else "has another"
                self.facts.fail("M3", f"{path} {how} {key.type}/{key.name}")

    def ledgers_agree(self) -> None:
        """H7, S3: the ledgers of device, hub, super hub and control agree on every target; none is lost.

        What a hub inferred of a device is its own word, and a device that is gone, or was replaced by a new one of its
        name, repeats nothing: a hub that lost its disk since, or got an older one, does not know these any more, and
        control keeps them.
        """
        region = self.region
        devices = {device.path: device for device in region.devices if device.is_up}
        for wave in region.control.rows.waves.values():
            if wave.closed_at is not None:
                continue
            for store in region.stores:
                ledger = store.hub.store.ledger(wave.wave_id)
                for path in wave.targets.get(store.path, ()):
                    at_hub = ledger.get(path)
                    at_control = wave.outcomes.get(path)
                    hub_rank = at_hub.rank if at_hub is not None else None
                    if self._nobody_repeats(path, at_control, devices) and store.path in self.facts.forgetful:
                        continue
                    if hub_rank != (at_control.rank if at_control is not None else None):
                        self.facts.fail("S3", f"{path} of {wave.wave_id}: hub has {hub_rank}, control {at_control}")
                    if path in devices:
                        self._device_agrees(devices[path], wave, at_control)

    def _nobody_repeats(self, path: str, at_control: Any, devices: Mapping[str, DeviceNode]) -> bool:
        """Whether control has a word that nobody will say again: an inference, or that of a device that is gone."""
        is_there = path in devices and path not in self.facts.gone
        return at_control is not None and not (at_control.by_device and is_there)

    def _device_agrees(self, device: DeviceNode, wave: Wave, at_control: Any) -> None:
        record = device.file.document.waves.get(wave.wave_id)
        if record is None or not record.envelope:
            return
        envelope = decode(Envelope, record.envelope)
        said = decode(DeviceOutcome, envelope.payload)
        if at_control is None or (at_control.attempt, at_control.sequence) < (said.attempt, said.sequence):
            self.facts.fail("S3", f"{device.path} said {said.kind.name} in {wave.wave_id}; control has {at_control}")

    def queues_are_empty(self) -> None:
        """M6: with everything delivered no log holds a report."""
        for hub in self.region.hubs:
            log = hub.upstream._log
            if log.first_number != log.next_number:
                self.facts.fail("M6", f"{hub.path} holds reports {log.first_number} to {log.next_number - 1}")
        for device in self.region.devices:
            if device.is_up and device.file.document.reports:
                self.facts.fail("M6", f"{device.path} holds {len(device.file.document.reports)} reports")

    def devices_are_well(self) -> None:
        """D9: none is bricked, and whoever is at rest runs a good image."""
        for device in self.region.devices:
            if device.is_dead or not device.is_powered:
                continue
            if not device.is_up:
                self.facts.fail("D9", f"{device.path} does not start")
            elif device.progress.state in AT_REST and not self.facts.quality(device).is_good:
                self.facts.fail("D9", f"{device.path} is {device.progress.state.name} on a bad image")

    def waves_are_through(self) -> None:
        """P6, H5: of a wave that runs every device that is there has had its last word: nobody waits for nothing.

        A supervised device waits for a person and keeps its slot until the maxima have passed: whoever waits beside one
        is left out. So is who waits for its availability group, when so many of that died or were taken away that the
        floor cannot be kept any more: the hub's operator reads that, and nobody else can help.
        """
        devices = {device.path: device for device in self.region.devices if device.is_up}
        for wave in self.region.control.rows.waves.values():
            is_held = self.region.control.is_held(wave.release)
            if wave.shown_state is not WaveState.RUNNING or is_held:
                continue
            there = [path for path in wave.devices if path in devices]
            waiting = [
                path
                for path in there
                if not is_final(wave.outcomes.get(path), ATTEMPTS) and not self._is_short(wave, devices[path], devices)
            ]
            if any(devices[path].progress.state is UpdateState.AWAITING_SIGNOFF for path in waiting):
                continue
            if waiting:
                states = dict(Counter(devices[path].progress.state.name for path in waiting))
                self.facts.fail("P6", f"wave {wave.wave_id} runs on, and waits for {len(waiting)} devices: {states}")

    def _is_short(self, wave: Wave, device: DeviceNode, devices: Mapping[str, DeviceNode]) -> bool:
        """Whether a floor of the policy cannot be kept without that device by all who are there."""
        for floor in wave.policy.guardrails.availability:
            members = {
                f"{device.hub.path}/device/{name}"
                for group in STORE_CONFIG.groups
                if (group.role, group.group) == (floor.role, floor.group)
                for name in group.devices
            }
            if device.path in members and len((members & devices.keys()) - {device.path}) < floor.min_up:
                return True
        return False

    def over(self) -> None:
        """M3: past their expiry nobody holds a halted or expired order as live, and all waves are closed."""
        for wave in self.region.control.rows.waves.values():
            if wave.closed_at is None:
                self.facts.fail("M3", f"wave {wave.wave_id} is not closed: {wave.state.name}")
        self.resources_agree()
        for store in self.region.stores:
            live = [o.wave_id for o in store.hub.belief.orders.values() if o.state is WaveState.RUNNING]
            if live:
                self.facts.fail("M3", f"{store.path} still runs {live}")
