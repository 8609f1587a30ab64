"""A device's fake hardware: sound to begin with, and a way to break it for every gate a demo supports."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from device.backend import open_slots
from device.bootenv import Boot, ResetReason, SlotName
from device.config import unconfigured
from device.firmware import Firmware
from device.platform import BootRecord
from lab.hardware import break_device, build, lose_scanner
from lab.scenario import FAULTS
from lab.topology import DEVICE_CLASS, HARDWARE_REVISION
from wavemesh.runtime.durable import Disk

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = f'[device]\ndevice_class = "{DEVICE_CLASS}"\nhardware_revision = "{HARDWARE_REVISION}"\n[board]\n'


@pytest.fixture
def device(tmp_path: Path) -> Path:
    build(tmp_path)
    for folder in ("slots", "run"):
        (tmp_path / folder).mkdir()
    (tmp_path / "slots" / "A.json").write_text('{"version": "3.8.1"}')
    (tmp_path / "slots" / "B.img").touch()
    (tmp_path / "config.toml").write_text(CONFIG)
    boot(tmp_path, "A")
    return tmp_path


def boot(device: Path, slot: str) -> None:
    (device / "run" / "boot.json").write_text(f'{{"boot_id": "1", "slot": "{slot}"}}')


def probe(device: Path, command: str) -> int:
    """As the agent does: the probe's environment says which slot runs."""
    slot = json.loads((device / "run" / "boot.json").read_text())["slot"]
    environment = {"PATH": f"{device / 'hardware' / 'bin'}:/usr/bin:/bin", "WAVEMESH_SLOT": slot}
    return subprocess.run(["/bin/sh", "-c", command], env=environment, capture_output=True, check=False).returncode


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_sound_hardware_passes_the_probes(device: Path) -> None:
    assert probe(device, "lsusb | grep scanner") == 0
    assert probe(device, "systemd-analyze verify /boot/inactive") == 0


def test_an_image_without_the_driver_shows_only_while_it_runs(device: Path) -> None:
    lose_scanner(device, "B")
    assert probe(device, "lsusb | grep scanner") == 0
    boot(device, "B")
    assert probe(device, "lsusb | grep scanner") == 1


@pytest.mark.parametrize("gate", FAULTS)
def test_each_fault_changes_something(device: Path, gate: str) -> None:
    before = content(device)
    break_device(device, gate, "3.8.2")
    assert content(device) != before


def test_a_faulty_unit_fails_the_boot_probe_with_its_words(device: Path) -> None:
    break_device(device, "boot-probe", "3.8.2")
    assert probe(device, "systemd-analyze verify /boot/inactive") == 1


def test_a_bad_medium_spoils_the_slot_that_does_not_run_and_no_other(device: Path) -> None:
    for slot in ("A", "B"):
        (device / "slots" / f"{slot}.img").write_bytes(b"written")
    record = BootRecord("b" * 32, Boot(SlotName.A, 1), ResetReason.POWER_ON)
    (device / "run").mkdir(exist_ok=True)
    firmware = Firmware(device, open_slots(device, unconfigured(device), Disk()), 0)
    firmware.step(record, "staging:1%")
    assert (device / "slots" / "B.img").read_bytes() == b"written"
    break_device(device, "checksum", "3.8.2")
    firmware.step(record, "state:VERIFIED")
    assert (device / "slots" / "B.img").read_bytes() == b"written"
    firmware.step(record, "staging:1%")
    assert (device / "slots" / "A.img").read_bytes() == b"written"
    assert (device / "slots" / "B.img").read_bytes() != b"written"
