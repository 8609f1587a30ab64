"""A device as it leaves the factory: it boots what it was given, and is equipped once."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from device.bootenv import Boot, BootEnvironmentError, SlotName
from device.configs import ConfigStore
from device.platform import SlotLabel
from device.slots.simulated import SimulatedBootControl, read_json
from wavemesh.artifacts.digests import digest_of
from wavemesh.runtime.durable import Disk

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = b"kernel" * 1000


def factory(directory: Path, *more: str) -> subprocess.CompletedProcess[str]:
    image = directory.parent / "image"
    image.write_bytes(IMAGE)
    command = [sys.executable, "-m", "device.factory", "--dir", str(directory), "--image", str(image)]
    command += ["--release", "firmware-v3.8.1", "--version", "3.8.1", *more]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def test_a_new_device_boots_the_image_from_slot_a(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_bytes(b"{}")
    done = factory(tmp_path / "device", "--config", str(config), "--config-version", "12.0.0")
    assert done.returncode == 0, done.stderr
    environment = SimulatedBootControl(tmp_path / "device" / "slots", Disk()).read()
    assert (environment.active, environment.trial) == (Boot(SlotName.A, 1), None)
    assert (tmp_path / "device" / "slots" / "A.img").read_bytes() == IMAGE
    label = read_json(tmp_path / "device" / "slots" / "A.json", SlotLabel)
    assert label == SlotLabel("firmware-v3.8.1", "3.8.1", digest_of(IMAGE))
    configs = ConfigStore(tmp_path / "device" / "state" / "config", Disk()).generations()
    assert [(number, one.version) for number, one in configs.items()] == [(1, "12.0.0")]


def test_a_device_with_slots_is_left_alone(tmp_path: Path) -> None:
    assert factory(tmp_path / "device").returncode == 0
    before = (tmp_path / "device" / "slots" / "bootenv.json").read_bytes()
    again = factory(tmp_path / "device")
    assert (again.returncode, again.stderr.split(":")[1].strip()) == (1, "HAS_SLOTS")
    assert (tmp_path / "device" / "slots" / "bootenv.json").read_bytes() == before


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    done = factory(tmp_path / "device", "--config", str(tmp_path / "absent"))
    assert done.returncode == 1
    assert "absent" in done.stderr
    assert not (tmp_path / "device" / "slots").exists()


def test_a_device_without_slots_says_who_makes_them(tmp_path: Path) -> None:
    with pytest.raises(BootEnvironmentError, match=r"python -m device\.factory"):
        SimulatedBootControl(tmp_path / "slots", Disk()).read()
