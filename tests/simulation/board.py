"""The hardware of a device, as far as anything looks at it, and what its agent is told to leave alone."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from device.bootenv import Boot, BootEnvironment, SlotName
from device.config import Device, DeviceConfig, Hub, Timing
from device.gates.findings import Finding, good
from device.gates.sensors import Reading

if TYPE_CHECKING:
    from collections.abc import Iterator

    from device.platform import SlotLabel
    from device.state import Document


CLASS, REVISION = "pos", "rev-a"
CONFIG = DeviceConfig(
    Device(CLASS, REVISION), Hub("hub:1"), timing=Timing(recheck_interval_s=1800.0, probe_settle_s=20.0)
)


@dataclass
class Slots:
    """Labels of the two slots; what is sealed is whole."""

    labels: dict[SlotName, SlotLabel | None]

    def label(self, slot: SlotName) -> SlotLabel | None:
        return self.labels[slot]


class BootControl:
    """The boot environment on the medium: one atomic write each."""

    redundant_bootloader = True

    def __init__(self, active: Boot) -> None:
        self.environment = BootEnvironment(active)

    def read(self) -> BootEnvironment:
        return self.environment

    def write(self, environment: BootEnvironment) -> None:
        self.environment = replace(environment, sequence=self.environment.sequence + 1)


class Gates:
    """The hardware's gates: they pass, but for one that a fault closed."""

    def __init__(self) -> None:
        self.reading = Reading()
        self.closed: Finding | None = None
        self.inhibition: Finding | None = None

    async def refusal(self, target: object, moment: object) -> Finding | None:
        return self.closed

    async def inhibited(self, rules: object) -> Finding:
        return self.inhibition or good("inhibited")


class Log:
    """The log on the device; the trace has what matters."""

    wave_id = ""

    def note(self, text: str) -> None:
        return

    alert = fail = note

    def tail_sha256(self) -> str:
        return ""


class Tracing:
    """Spans are not simulated."""

    def attach(self, *_: object) -> None:
        return

    def traced(self, document: Document, *_: object) -> Document:
        return document

    told = traced

    @contextmanager
    def check(self, name: str) -> Iterator[None]:
        yield


class Authorities:
    revocations = None

    def take(self, revocations: object) -> None:
        return
