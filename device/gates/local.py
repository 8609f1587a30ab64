"""All gates that the device itself looks at, from their real sources, in their fixed order.

The order makes an outcome deterministic: second slot, battery, temperature, free space, peripheral checks, vendor
hooks, and, before the first flash of a slot, whether it can be written. Nothing here raises for what a source does, and
nothing holds up the event loop: what may block is asked in a thread, within a bound.
"""

from __future__ import annotations

import enum
import os
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

from device.gates.findings import bad, cannot_tell, first_failure, good, settled
from device.gates.hardware import (
    check_battery,
    check_disk,
    check_dual_partition,
    check_inhibited,
    check_temperature,
)
from device.gates.medium import PROBE_BYTES, probe_medium
from device.gates.sensors import Reading, read_sensors
from device.gates.vendor import Hook, ask_hook, survey
from device.probes import peripheral_gates
from wavemesh.errors import WavemeshError
from wavemesh.policy.gates import Gate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from device.bootenv import SlotName
    from device.gates.asking import Questions
    from device.gates.findings import Finding
    from device.logs import DeviceLog
    from device.platform import BootControl, Sensors, Slots
    from device.probes import ProbeRunner
    from device.progress import Rules, Target
    from device.store import DeviceStore
    from wavemesh.runtime.durable import Disk

ANSWER_BOUND_S = 2.0
MEDIUM_BOUND_S = 30.0
RESUME_MARGIN_PERCENT = 5
RESUME_MARGIN_CELSIUS = 5.0


class Moment(enum.Enum):
    """When the gates are looked at."""

    PREFLIGHT = "preflight"
    ARM = "arm"


class Edge(enum.Enum):
    """Which side of a limit counts while bytes are written: the limit itself, or well within it."""

    LIMIT = "limit"
    WELL_WITHIN = "well-within"


class LocalGates:
    """The gates of one device."""

    def __init__(
        self,
        *,
        sensors: Sensors,
        slots: Slots,
        boot_control: BootControl,
        directory: Path,
        probes: ProbeRunner,
        hooks: Path | None,
        store: DeviceStore,
        disk: Disk,
        log: DeviceLog,
        questions: Questions,
    ) -> None:
        """``directory`` is on the data partition, ``hooks`` has the vendor's; ``store`` remembers probed slots."""
        self._sensors = sensors
        self._slots = slots
        self._boot_control = boot_control
        self._directory = directory
        self._probes = probes
        self._hooks = hooks
        self._store = store
        self._disk = disk
        self._log = log
        self._questions = questions
        self._reading = Reading()

    @property
    def reading(self) -> Reading:
        """What the sensors said when they were last read."""
        return self._reading

    async def look(self) -> Reading:
        """Read the sensors."""
        try:
            question = partial(read_sensors, self._sensors)
            self._reading = await self._questions.ask("sensors", question, ANSWER_BOUND_S)
        except TimeoutError:
            fault = (f"the sensors did not answer within {ANSWER_BOUND_S:g} s",)
            self._reading = Reading(power_faults=fault, heat_faults=fault)
        return self._reading

    async def refusal(self, target: Target, moment: Moment) -> Finding | None:
        """The first gate that does not pass."""
        async with aclosing(self._findings(target, moment)) as findings:
            async for found in findings:
                finding = settled(found, target.rules)
                if finding.evidence and finding.passes:
                    self._log.alert(f"gate {finding.gate} passes by policy: {finding.evidence}")
                if not finding.passes:
                    return finding
        return None

    async def flashing_refusal(self, rules: Rules, edge: Edge = Edge.LIMIT) -> Finding | None:
        """What must hold for as long as bytes are written: power and heat."""
        reading = await self.look()
        percent, celsius = (RESUME_MARGIN_PERCENT, RESUME_MARGIN_CELSIUS) if edge is Edge.WELL_WITHIN else (0, 0.0)
        return first_failure(
            (check_battery(reading, rules, percent), check_temperature(reading, rules, celsius)), rules
        )

    async def inhibited(self, rules: Rules) -> Finding:
        """Whether a local program forbids the reboot."""
        path = self._sensors.inhibit
        try:
            finding = await self._questions.ask("inhibit", partial(check_inhibited, path), ANSWER_BOUND_S)
        except TimeoutError:
            finding = _unanswered(Gate.INHIBITED, path, "no inhibitor")
        return settled(finding, rules)

    # --- the order ---------------------------------------------------------------------------------------------------

    async def _findings(self, target: Target, moment: Moment) -> AsyncGenerator[Finding, None]:
        rules = target.rules
        yield check_dual_partition(self._slots, target)
        reading = await self.look()
        yield check_battery(reading, rules)
        yield check_temperature(reading, rules)
        yield await self._free_space(target)
        for gate, command in peripheral_gates(rules.peripheral_checks):
            yield await self._probes.run(gate, command)
        extra = {"WAVEMESH_WAVE": target.wave_id, "WAVEMESH_MOMENT": moment.value, "WAVEMESH_TARGET": target.version}
        for hook in await self._vendor_hooks():
            yield await ask_hook(hook, self._probes, extra)
        if moment is Moment.PREFLIGHT and target.firmware is not None:
            yield await self._writable(target.boot.slot)

    async def _vendor_hooks(self) -> tuple[Hook, ...]:
        try:
            return await self._questions.ask("hooks", partial(survey, self._hooks), ANSWER_BOUND_S)
        except TimeoutError:
            return (Hook(f"{Gate.VENDOR.value}:hooks", self._hooks or self._directory, "did not answer in time"),)

    async def _free_space(self, target: Target) -> Finding:
        question = partial(check_disk, self._directory, target, self._sensors.reserved_disk_bytes)
        try:
            return await self._questions.ask("disk", question, ANSWER_BOUND_S)
        except TimeoutError:
            return _unanswered(Gate.DISK, self._directory, "free space")

    async def _writable(self, slot: SlotName) -> Finding:
        """Once in a slot's life, never on a slot that boots, nor on the last known good: staging packs that first."""
        gate, required = Gate.DUAL_PARTITION.value, "a slot that keeps what is written"
        if slot.value in self._store.document.probed_slots:
            return good(gate)
        try:
            path, previous = self._slots.path(slot), self._boot_control.read().previous
            if previous is not None and previous.slot is slot:
                return good(gate)
            self._boot_control.invalidate(slot)  # raises for the active one
            question = partial(probe_medium, path, self._disk, os.urandom(PROBE_BYTES))
            problem = await self._questions.ask("medium", question, MEDIUM_BOUND_S)
        except TimeoutError:
            return cannot_tell(gate, f"slot {slot.value} did not answer in time", required)
        except (WavemeshError, OSError) as error:
            return cannot_tell(gate, str(error), required)
        if problem:
            return bad(gate, f"slot {slot.value} {problem}", problem.partition(":")[0], required)
        self._store.note_probed(slot.value)
        return good(gate)


def _unanswered(gate: Gate, source: Path, required: str) -> Finding:
    return cannot_tell(gate.value, f"{source} did not answer in time", required)
