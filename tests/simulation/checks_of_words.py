"""Invariants of what was said and heard, beside those of ``checkers.py``: nothing said is lost, doubled or taken back.

Where ``checkers.py`` looks at devices between ARM and outcome and at what is left at quiescence, these follow words on
their way: of a halt, of a permit, of an outcome, of a report. Each says what it leaves out, and why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wavemesh.trust.statements import OutcomeKind, WaveState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from control.ledger import Outcome
    from device.progress import Outcome as Said
    from device.state import Document
    from tests.simulation.devices import DeviceNode
    from tests.simulation.engine import Node
    from tests.simulation.hubs import StoreHub
    from tests.simulation.region import Region
    from tests.simulation.rows import Wave
    from wavemesh.trust.statements import Permit, WaveOrder

_BAD = frozenset({OutcomeKind.ROLLED_BACK, OutcomeKind.FAILED, OutcomeKind.SILENT})
_ENDED = frozenset({WaveState.HALTED, WaveState.CLOSED})
HALT_REACHES_S = 600.0
"""How long a halt may take to a hub whose sessions up to control all stand: many times a slow link's queue."""


class Words:
    """All of them, over one region."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.facts = region.facts
        self._unsure: set[str] = set()
        """Waves of which a restored control forgot something: it may halt, close and permit them once more."""
        self._ranks: dict[tuple[str, str], tuple[int, int, bool]] = {}
        self._hubs_stopped: set[tuple[int, str]] = set()
        self._devices_stopped: set[tuple[int, str]] = set()
        self._said: dict[tuple[str, DeviceNode], int] = {}
        self._spoke: set[tuple[str, str]] = set()

    # -- halts --------------------------------------------------------------------------------------------------------

    def on_halt(self, wave: Wave) -> None:
        """C2: a wave halts itself by the ratio of semantics.md, counted here once more, and by nothing else."""
        kinds = [one.kind for path, one in wave.outcomes.items() if path in wave.devices]
        bad = sum(kind in _BAD for kind in kinds)
        evidence = bad + kinds.count(OutcomeKind.UPDATED)
        guardrails = wave.policy.guardrails
        if evidence < guardrails.halt_min_outcomes or bad <= guardrails.halt_rollback_ratio * evidence:
            self.facts.fail("C2", f"wave {wave.wave_id} halts itself with {bad} bad outcomes of {evidence}")

    def ordered(self, wave: Wave) -> None:
        """P6: there is no way back from a halt, but for a control that forgot it with a backup."""
        if wave.wave_id in self.facts.halts and wave.state not in _ENDED:
            self.facts.fail("P6", f"the order of halted wave {wave.wave_id} says {wave.state.name} again")

    def heard(self, node: DeviceNode) -> None:
        """P6, M3: what a device holds changed: a halt that it heard of stays one, whatever older order it is shown.

        One that it believed and could not make durable, on a full disk, is forgotten with the process.
        """
        waves = node.file.document.waves
        for order in node.equipment.sink.orders():
            record = waves.get(order.wave_id)
            if order.wave_id not in self._unsure and record is not None and record.generation >= order.generation:
                self._stays_halted(node.path, node.hardware, order, self._devices_stopped)

    def passed(self, hub: StoreHub) -> None:
        """P6, M3, M5: the same of a hub, and that a halt reaches it.

        Sessions that stood at the halt and stand still have passed it on, however slow their links: a blocked one would
        have ended. Hubs whose disk was restored, replaced or copied are left out, since they may know less than before.
        """
        if hub.path in self.facts.forgetful:
            return
        for order in hub.hub.belief.orders.values():
            if order.wave_id in self._unsure:
                continue
            record = hub.hub.store.waves.get(order.wave_id)
            if record is not None and record.order.generation >= order.generation:
                self._stays_halted(hub.path, id(hub), order, self._hubs_stopped)
            halt = self.facts.halts.get(order.wave_id)
            if halt is not None and order.state not in _ENDED and self._has_reached(hub, halt.at):
                self.facts.fail("M5", f"{hub.path} holds {order.wave_id} as {order.state.name}: no halt reached it")

    def _stays_halted(self, path: str, who: int, order: WaveOrder, known: set[tuple[int, str]]) -> None:
        if order.state is WaveState.HALTED:
            known.add((who, order.wave_id))
        elif order.state is not WaveState.CLOSED and (who, order.wave_id) in known:
            self.facts.fail("P6", f"{path} holds {order.wave_id} as {order.state.name}, and had heard of its halt")

    def on_arm(self, node: DeviceNode) -> None:
        """P6: a device that has heard of a halt arms no more in that wave, whatever older order it is shown."""
        wave_id = node.progress.wave_id
        if (node.hardware, wave_id) in self._devices_stopped and wave_id not in self._unsure:
            self.facts.fail("P6", f"{node.path} arms in {wave_id}, of whose halt it had heard")

    def on_decision(self, hub: StoreHub, decision: Any) -> None:
        """P6: no lease of a wave of whose halt this hub had heard, with the same disk as now."""
        if hub.path in self.facts.forgetful:
            return
        for slot in decision.granted:
            if slot.wave_id not in self._unsure and (id(hub), slot.wave_id) in self._hubs_stopped:
                self.facts.fail("P6", f"{hub.path} lets {slot.device} into {slot.wave_id}, of whose halt it had heard")

    def _has_reached(self, hub: StoreHub, at: float) -> bool:
        """Whether what control said at that time must have reached the hub."""
        if self.region.world.now < at + HALT_REACHES_S:
            return False
        link, above = hub.parent_link, hub.parent_link.parent.parent_link  # type: ignore[attr-defined]  # a super hub
        return all(
            one.stream is not None
            and one.stream.child_is_open
            and one.stream.parent_is_open
            and one.stream.opened_at is not None
            and one.stream.opened_at < at
            and one.passes
            for one in (link, above)
        )

    # -- permits ------------------------------------------------------------------------------------------------------

    def permit_signed(self, permit: Permit) -> None:
        """P6: no permit for another incarnation of a hub while what the last one holds is not written off."""
        before = self.facts.permits.get((permit.wave_id, permit.device))
        is_sure = permit.wave_id not in self._unsure and (permit.wave_id, permit.device) not in self.facts.spent
        if before and is_sure and before[-1].hub_incarnation != permit.hub_incarnation:
            self.facts.fail(
                "P6", f"{permit.device} is permitted anew, and the permit of its former hub is not written off"
            )

    # -- outcomes -----------------------------------------------------------------------------------------------------

    def kept(self, wave: Wave, outcome: Outcome) -> None:
        """H7: what control holds of a device only ever goes on: (attempt, sequence), a device's word before a hub's."""
        key, rank = (wave.wave_id, outcome.device), (outcome.attempt, outcome.sequence, outcome.by_device)
        before = self._ranks.get(key)
        if before is not None and rank < before and wave.wave_id not in self._unsure:
            self.facts.fail("H7", f"control goes back from {before} to {rank} for {outcome.device} in {wave.wave_id}")
        self._ranks[key] = rank

    def said(self, node: DeviceNode, said: Said | None) -> None:
        """A device made an outcome durable; it may forget it once control closed the wave, and not before."""
        if said is not None and node.progress.wave_id:
            self._said[node.progress.wave_id, node] = node.progress.attempt

    def closing(self, wave: Wave) -> None:
        """H7: whose own word control counts has spoken in that wave."""
        silent = [
            path for path, one in wave.outcomes.items() if one.by_device and (wave.wave_id, path) not in self._spoke
        ]
        if silent:
            self.facts.fail("H7", f"wave {wave.wave_id} closes with words of {silent[0]}, which said none in it")

    def quiet(self) -> None:
        """S3: control knows of what every device said that is still there, though the devices may not any more."""
        for wave in self.region.control.rows.waves.values():
            if wave.closed_at is not None or wave.wave_id in self.facts.closed:
                continue
            for node in self.region.devices:
                attempt = self._said.get((wave.wave_id, node))
                at_control = wave.outcomes.get(node.path)
                if attempt is None or not node.is_up or node.path not in wave.devices:
                    continue
                if at_control is None or at_control.attempt < attempt:
                    self.facts.fail(
                        "S3", f"{node.path} said an outcome of attempt {attempt} in {wave.wave_id}: it is lost"
                    )

    # -- logs ---------------------------------------------------------------------------------------------------------

    def wrote(self, node: Node, before: Document, after: Document) -> None:
        """M6: a log gives up a report when it is acknowledged, or all of them for a snapshot, and never one alone."""
        self._spoke |= {(wave_id, node.path) for wave_id, record in after.waves.items() if record.envelope}
        if before.incarnation != after.incarnation:
            return
        kept = before.reports[after.acknowledged - before.acknowledged :]
        if after.reports[: len(kept)] != kept:
            self.facts.fail("M6", f"{node.path} drops a report that nobody acknowledged")

    def restarted(self, child: Node, parent: Node) -> None:
        """M3: nobody takes a new incarnation because of a parent that knows less, or more, than it may.

        Left out are nodes whose disk was restored, replaced or copied, and the children of a control from a backup.
        """
        forgetful = self.facts.forgetful
        if child.path in forgetful or parent.path in forgetful or (parent is self.region.control and self._unsure):
            return
        if parent is self.region.control and self.region.control.was_restored:
            return
        self.facts.fail("M3", f"{child.path} has to tell {parent.path} everything anew, and neither lost anything")

    # -- what excuses -------------------------------------------------------------------------------------------------

    def forgot(self, waves: Iterable[Wave]) -> None:
        """Control goes on from a backup: it knows these as they were then."""
        self._unsure |= {wave.wave_id for wave in waves} | {wave_id for wave_id, _ in self._ranks}
        self._unsure |= {wave_id for wave_id, _ in self.facts.permits}
        self._ranks.clear()
