"""The gates over what was read: battery, temperature, free space, the second slot, the inhibitor. Pure but for statvfs.

Battery: the weakest must hold ``minBattery``. While the device is fed and no battery discharges, FED_LEAST_PERCENT is
enough where the policy asks for more: what counts then is to outlive the moment in which somebody pulls the plug, after
which the policy's level holds again. ``margin`` is added to what is required (taken from what is allowed) before a
paused write resumes, so that a value at the edge does not make it flap.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from device.gates.findings import bad, cannot_tell, good
from device.gates.sensors import read_text
from wavemesh.errors import WavemeshError
from wavemesh.policy.gates import Gate

if TYPE_CHECKING:
    from pathlib import Path

    from device.gates.findings import Finding
    from device.gates.sensors import Reading
    from device.platform import Slots
    from device.progress import Rules, Target

FED_LEAST_PERCENT = 10
_FULL_PERCENT = 100
_MAX_REASON_BYTES = 200


def check_battery(reading: Reading, rules: Rules, margin: int = 0) -> Finding:
    """Whether the weakest battery holds enough."""
    least = rules.min_battery_percent
    if reading.is_fed:
        least = min(least, FED_LEAST_PERCENT)
    least = min(least + margin, _FULL_PERCENT) if least else 0
    required = f"at least {least} %"
    charge = reading.battery_percent
    if charge is not None and charge < least:
        evidence = f"battery at {charge} %, {least} % required{' on mains' if reading.is_fed else ''}"
        return bad(Gate.BATTERY.value, evidence, f"{charge} %", required)
    if reading.power_faults:
        return cannot_tell(Gate.BATTERY.value, "; ".join(reading.power_faults[:4]), required)
    return good(Gate.BATTERY.value)


def check_temperature(reading: Reading, rules: Rules, margin: float = 0.0) -> Finding:
    """Whether the hottest sensor is cool enough."""
    most = rules.max_temperature_celsius - margin
    required = f"at most {most:.1f} °C"
    heat = reading.temperature_celsius
    if heat is not None and heat > most:
        evidence = f"{heat:.1f} °C at {reading.hottest}, at most {most:.1f} °C allowed"
        return bad(Gate.TEMPERATURE.value, evidence, f"{heat:.1f} °C", required)
    if reading.heat_faults:
        return cannot_tell(Gate.TEMPERATURE.value, "; ".join(reading.heat_faults[:4]), required)
    return good(Gate.TEMPERATURE.value)


def check_disk(directory: Path, target: Target, reserved_bytes: int = 0) -> Finding:
    """Whether the data partition has the policy's minFreeDisk beside what is reserved and what the update adds."""
    needed = target.rules.min_free_disk_bytes + (target.config.size_bytes if target.config else 0)
    required = f"at least {needed} bytes free"
    try:
        statistics = os.statvfs(directory)
    except OSError as error:
        return cannot_tell(Gate.DISK.value, f"{directory}: {error.strerror}", required)
    free_bytes = max(0, statistics.f_bavail * statistics.f_frsize - reserved_bytes)
    if free_bytes < needed:
        evidence = f"{free_bytes} bytes free at {directory}, {needed} required"
        return bad(Gate.DISK.value, evidence, f"{free_bytes} bytes free", required)
    return good(Gate.DISK.value)


def check_dual_partition(slots: Slots, target: Target) -> Finding:
    """Whether a second slot really exists and is large enough."""
    gate, slot = Gate.DUAL_PARTITION.value, target.boot.slot
    try:
        if (target.rules.require_dual_partition or target.firmware is not None) and not slots.present():
            return bad(gate, f"no second slot: {slots.path(slot)} is absent", "one slot", "two slots")
        capacity = slots.capacity_bytes(slot)
    except (WavemeshError, OSError) as error:
        return cannot_tell(gate, str(error), "two slots")
    if target.firmware is not None and target.firmware.size_bytes > capacity:
        evidence = f"slot {slot.value} holds {capacity} bytes, the image has {target.firmware.size_bytes}"
        return bad(gate, evidence, f"{capacity} bytes", f"at least {target.firmware.size_bytes} bytes")
    return good(gate)


def check_inhibited(inhibitor: Path) -> Finding:
    """Whether a local program forbids the reboot; the file's text says who and why."""
    gate, required = Gate.INHIBITED.value, "no inhibitor"
    try:
        content = read_text(inhibitor, _MAX_REASON_BYTES)
    except OSError as error:
        return cannot_tell(gate, f"{inhibitor}: {error.strerror}", required)
    if content is None:
        return good(gate)
    reason = content.decode(errors="replace").strip()
    return bad(gate, reason or f"{inhibitor} exists", "inhibited", required)
