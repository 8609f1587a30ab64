"""The local gates: what the hardware itself says for or against an update, each read from its real source.

A finding passes, fails with evidence (observed and required value), or cannot tell. Rules: an absent sensor passes, for
a device on mains has no battery to be low; a sensor that is there and cannot be read cannot tell, and what cannot tell
does not pass. Roots are configuration, so a simulated device has its own kernel files. Reads are of a few bytes each.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wavemesh.policy.gates import Gate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from device.platform import Sensors, Slots
    from device.progress import Target

MAX_SENSORS = 64
_MAX_READ_BYTES = 64
_MAX_REASON_BYTES = 200


class Verdict(enum.Enum):
    """What a gate says."""

    GOOD = "good"
    BAD = "bad"
    CANNOT_TELL = "cannot-tell"


@dataclass(frozen=True, slots=True)
class Finding:
    """One gate's word, with the evidence behind it."""

    gate: str
    verdict: Verdict
    evidence: str = ""

    @property
    def passes(self) -> bool:
        """Whether the update may go on as far as this gate is concerned."""
        return self.verdict is Verdict.GOOD


@dataclass(frozen=True, slots=True)
class Reading:
    """What the sensors say now: percent of the weakest battery, degrees Celsius of the hottest zone; None if absent."""

    battery_percent: int | None
    temperature_celsius: float | None
    faults: tuple[str, ...] = ()


def read_sensors(sensors: Sensors) -> Reading:
    """Read every battery and thermal zone."""
    faults: list[str] = []
    charges = list(_numbers(_files(sensors.power_supply, "BAT*/capacity"), faults))
    heats = list(_numbers(_files(sensors.thermal, "thermal_zone*/temp"), faults))
    return Reading(
        min((round(charge) for charge in charges), default=None),
        max((heat / 1000 for heat in heats), default=None),
        tuple(faults),
    )


def check_battery(reading: Reading, target: Target) -> Finding:
    """Whether the weakest battery holds the policy's minBattery."""
    least = target.rules.min_battery_percent
    charge = reading.battery_percent
    if _broken(reading, "capacity"):
        return Finding(Gate.BATTERY.value, Verdict.CANNOT_TELL, "; ".join(reading.faults))
    if charge is not None and charge < least:
        return Finding(Gate.BATTERY.value, Verdict.BAD, f"battery at {charge} %, {least} % required")
    return Finding(Gate.BATTERY.value, Verdict.GOOD)


def check_temperature(reading: Reading, target: Target) -> Finding:
    """Whether the hottest zone is within the policy's maxTemperature."""
    most = target.rules.max_temperature_celsius
    heat = reading.temperature_celsius
    if _broken(reading, "temp"):
        return Finding(Gate.TEMPERATURE.value, Verdict.CANNOT_TELL, "; ".join(reading.faults))
    if heat is not None and heat > most:
        return Finding(Gate.TEMPERATURE.value, Verdict.BAD, f"{heat:.1f} °C, at most {most:.1f} °C allowed")
    return Finding(Gate.TEMPERATURE.value, Verdict.GOOD)


def check_disk(directory: Path, target: Target, reserved_bytes: int = 0) -> Finding:
    """Whether the data partition has the policy's minFreeDisk beside what is reserved and what the update adds."""
    statistics = os.statvfs(directory)
    free_bytes = max(0, statistics.f_bavail * statistics.f_frsize - reserved_bytes)
    needed = target.rules.min_free_disk_bytes + (target.config.size_bytes if target.config else 0)
    if free_bytes < needed:
        return Finding(Gate.DISK.value, Verdict.BAD, f"{free_bytes} bytes free at {directory}, {needed} required")
    return Finding(Gate.DISK.value, Verdict.GOOD)


def check_dual_partition(slots: Slots, target: Target) -> Finding:
    """Whether a second slot really exists and is large enough."""
    required = target.rules.require_dual_partition or target.firmware is not None
    if required and not slots.present():
        return Finding(
            Gate.DUAL_PARTITION.value, Verdict.BAD, f"no second slot: {slots.path(target.boot.slot)} is absent"
        )
    capacity = slots.capacity_bytes(target.boot.slot)
    if target.firmware is not None and target.firmware.size_bytes > capacity:
        evidence = f"slot {target.boot.slot.value} holds {capacity} bytes, the image has {target.firmware.size_bytes}"
        return Finding(Gate.DUAL_PARTITION.value, Verdict.BAD, evidence)
    return Finding(Gate.DUAL_PARTITION.value, Verdict.GOOD)


def check_inhibited(sensors: Sensors) -> Finding:
    """Whether a local program forbids the reboot; the file's text says who and why."""
    try:
        with sensors.inhibit.open("rb") as file:
            reason = file.read(_MAX_REASON_BYTES).decode(errors="replace").strip()
    except FileNotFoundError:
        return Finding(Gate.INHIBITED.value, Verdict.GOOD)
    except OSError as error:
        return Finding(Gate.INHIBITED.value, Verdict.CANNOT_TELL, f"{sensors.inhibit}: {error.strerror}")
    return Finding(Gate.INHIBITED.value, Verdict.BAD, reason or f"{sensors.inhibit} exists")


def first_failure(findings: Iterator[Finding] | tuple[Finding, ...]) -> Finding | None:
    """The first finding that does not pass: an outcome names exactly one gate, and the order makes it deterministic."""
    return next((finding for finding in findings if not finding.passes), None)


def check_flashing(sensors: Sensors, target: Target) -> Finding | None:
    """What must hold for as long as bytes are written: power and heat."""
    reading = read_sensors(sensors)
    return first_failure((check_battery(reading, target), check_temperature(reading, target)))


def check_local(sensors: Sensors, slots: Slots, directory: Path, target: Target) -> Finding | None:
    """All local gates but the probes, in their fixed order."""
    reading = read_sensors(sensors)
    return first_failure(
        (
            check_dual_partition(slots, target),
            check_battery(reading, target),
            check_temperature(reading, target),
            check_disk(directory, target, sensors.reserved_disk_bytes),
        )
    )


def _files(root: Path, pattern: str) -> list[Path]:
    return sorted(root.glob(pattern))[:MAX_SENSORS] if root.is_dir() else []


def _numbers(paths: list[Path], faults: list[str]) -> Iterator[float]:
    for path in paths:
        try:
            with path.open("rb") as file:
                yield float(file.read(_MAX_READ_BYTES))
        except OSError as error:
            faults.append(f"{path}: {error.strerror}")
        except ValueError:
            faults.append(f"{path}: not a number")


def _broken(reading: Reading, file_name: str) -> bool:
    return any(f"/{file_name}:" in fault for fault in reading.faults)
