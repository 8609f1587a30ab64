"""Everything an activity works with, put together once by ``app.py``, and what the device knows of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from device.bootenv import Boot, BootEnvironmentError, SlotName
from device.orders import Facts, Judge, Judgement
from wavemesh.trust.freshness import check_time_trusted
from wavemesh.trust.statements import SlotContent

if TYPE_CHECKING:
    from pathlib import Path

    from device.config import DeviceConfig
    from device.configs import ConfigStore
    from device.gates.local import LocalGates
    from device.health import HealthClient
    from device.lkg import PackedLkg
    from device.logs import DeviceLog
    from device.platform import BootControl, BootRecord, Installer, Power, SlotLabel, Slots
    from device.probes import ProbeRunner
    from device.sink import DeviceSink
    from device.store import DeviceStore
    from device.tracing import Tracing
    from wavemesh.artifacts.transfer import ArtifactClient
    from wavemesh.identity.nodes import NodeId
    from wavemesh.runtime.clock import Clock
    from wavemesh.trust.statements import WaveOrder


@dataclass(frozen=True, slots=True)
class Equipment:
    """The parts of one device."""

    directory: Path
    node_id: NodeId
    config: DeviceConfig
    clock: Clock
    log: DeviceLog
    store: DeviceStore
    sink: DeviceSink
    slots: Slots
    boot_control: BootControl
    power: Power
    gates: LocalGates
    configs: ConfigStore
    lkg: PackedLkg
    probes: ProbeRunner
    health: HealthClient
    artifacts: ArtifactClient
    record: BootRecord
    tracing: Tracing
    installer: Installer | None = None
    _judge: Judge = field(default_factory=Judge, compare=False, repr=False)
    _known: list[tuple[tuple[object, ...], Facts]] = field(default_factory=list, compare=False, repr=False)
    """The last facts, and what they rest on: every step asks for them, and seldom do they change."""

    def facts(self) -> Facts:
        """What the device is and runs; raises BootEnvironmentError when the running slot is unlabelled."""
        running = self.record.boot
        label = self.slots.label(running.slot)
        if label is None:
            msg = f"slot {running.slot.value} runs but nothing says what is on it: provision the device again"
            raise BootEnvironmentError(msg)
        configs = tuple((number, one.version, one.sha256) for number, one in self.configs.generations().items())
        labels = tuple([self.slots.label(slot) for slot in SlotName])
        floor, redundant = self.store.document.rollback_floor, self.boot_control.redundant_bootloader
        rests_on = (running, labels, configs, floor, redundant)
        if not self._known or self._known[0][0] != rests_on:
            self._known[:] = [(rests_on, self._facts(running, label, floor, redundant=redundant))]
        return self._known[0][1]

    def _facts(self, running: Boot, label: SlotLabel, floor: str, *, redundant: bool) -> Facts:
        configs = self.configs.generations()
        config = configs.get(running.config_generation)
        return Facts(
            store=self.node_id.path.rsplit("/", 2)[0],
            name=self.node_id.name,
            device_class=self.config.device.device_class,
            hardware_revision=self.config.device.hardware_revision,
            region=self.config.device.region or self.node_id.path.split("/")[1],
            running=running,
            firmware_version=label.version,
            firmware_sha256=label.firmware.sha256,
            config_version=config.version if config is not None else "",
            config_sha256=config.sha256 if config is not None else "",
            configs={number: found.sha256 for number, found in configs.items()},
            rollback_floor=floor,
            redundant_bootloader=redundant,
            slots=tuple(self._content(slot) for slot in SlotName),
        )

    def _content(self, slot: SlotName) -> SlotContent:
        label = self.slots.label(slot)
        return (
            SlotContent(slot.value) if label is None else SlotContent(slot.value, label.firmware.sha256, label.version)
        )

    def judge(self, order: WaveOrder) -> Judgement:
        """What an order means to this device now."""
        return self._judge.judge(order, self.sink.belief, self.facts(), self.clock.now())

    def packed_boot(self) -> Boot | None:
        """What the packed last known good would boot as, None without one and when just that runs."""
        packed, running = self.lkg.held(), self.record.boot
        label = self.slots.label(running.slot)
        if packed is None or label is None or packed.label.firmware == label.firmware:
            return None
        return Boot(running.slot.other, packed.config_generation)

    def check_time(self) -> None:
        """Raise GateError (clock) unless expiries may be judged by the clock."""
        check_time_trusted(self.clock.now(), self.sink.clock_floor, self.sink.clock_source)
