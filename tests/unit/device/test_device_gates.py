"""Local gates read their real sources (D2, D7)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from device.bootenv import Boot, SlotName
from device.gates import Verdict, check_disk, check_flashing, check_inhibited, check_local, read_sensors
from device.platform import Sensors
from device.probes import peripheral_gates
from device.progress import Rules, Target
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from pathlib import Path

RULES = Rules("either", 300.0, False, 86_400.0, 40, 70.0, 0, True, "", (), ())
TARGET = Target(
    "142",
    1,
    "r",
    "3.8.2",
    Digest("a" * 64, 10),
    None,
    "",
    "",
    datetime(2026, 5, 1, tzinfo=UTC),
    Boot(SlotName.B, 1),
    RULES,
)


class Medium:
    """Slots that are there or not."""

    def __init__(self, path: Path, *, both: bool, capacity: int = 100) -> None:
        self._path = path
        self._both = both
        self._capacity = capacity

    def present(self) -> bool:
        return self._both

    def capacity_bytes(self, slot: SlotName) -> int:
        return self._capacity

    def path(self, slot: SlotName) -> Path:
        return self._path / slot.value

    def __getattr__(self, name: str) -> object:
        raise AssertionError(name)


@pytest.fixture
def sensors(tmp_path: Path) -> Sensors:
    write(tmp_path / "power" / "BAT0" / "capacity", "87\n")
    write(tmp_path / "thermal" / "thermal_zone0" / "temp", "41500\n")
    return Sensors(tmp_path / "power", tmp_path / "thermal", tmp_path / "inhibit")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def local(sensors: Sensors, tmp_path: Path, target: Target = TARGET, *, both: bool = True, capacity: int = 100) -> str:
    finding = check_local(sensors, Medium(tmp_path, both=both, capacity=capacity), tmp_path, target)  # type: ignore[arg-type]  # the parts a gate uses
    return "" if finding is None else finding.gate


def test_a_sound_device_passes(sensors: Sensors, tmp_path: Path) -> None:
    assert local(sensors, tmp_path) == ""
    reading = read_sensors(sensors)
    assert (reading.battery_percent, reading.temperature_celsius) == (87, 41.5)


def test_each_gate_fires_from_its_source(sensors: Sensors, tmp_path: Path) -> None:
    assert local(sensors, tmp_path, both=False) == "dual-partition"
    assert local(sensors, tmp_path, capacity=5) == "dual-partition"
    assert local(sensors, tmp_path, replace(TARGET, rules=replace(RULES, min_free_disk_bytes=1 << 60))) == "disk"
    write(sensors.thermal / "thermal_zone1" / "temp", "95000")
    assert local(sensors, tmp_path) == "temperature"
    write(sensors.power_supply / "BAT1" / "capacity", "5")
    assert local(sensors, tmp_path) == "battery"
    finding = check_flashing(sensors, TARGET)
    assert finding is not None
    assert finding.evidence == "battery at 5 %, 40 % required"


def test_an_absent_sensor_passes_and_a_broken_one_does_not(sensors: Sensors, tmp_path: Path) -> None:
    mains = replace(sensors, power_supply=tmp_path / "none", thermal=tmp_path / "none")
    assert check_flashing(mains, TARGET) is None
    write(sensors.power_supply / "BAT0" / "capacity", "garbage")
    finding = check_flashing(sensors, TARGET)
    assert finding is not None
    assert (finding.gate, finding.verdict) == ("battery", Verdict.CANNOT_TELL)


def test_disk_counts_what_the_update_brings(tmp_path: Path) -> None:
    assert check_disk(tmp_path, TARGET).passes
    reserved = check_disk(tmp_path, replace(TARGET, config=Digest("b" * 64, 1)), 1 << 60)
    assert (reserved.gate, reserved.verdict) == ("disk", Verdict.BAD)
    assert not check_disk(tmp_path, replace(TARGET, config=Digest("b" * 64, 1 << 60))).passes


def test_inhibited_says_who(sensors: Sensors) -> None:
    assert check_inhibited(sensors).passes
    write(sensors.inhibit, "payment open\n")
    assert check_inhibited(sensors).evidence == "payment open"


def test_gates_are_named_after_their_checks() -> None:
    assert peripheral_gates(("lsusb | grep scanner",)) == (("peripheral:scanner", "lsusb | grep scanner"),)
