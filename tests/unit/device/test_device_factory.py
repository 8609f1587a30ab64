"""A device as it leaves the factory: it boots what it was given, and is equipped once."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from device.backend import open_slots
from device.bootenv import Boot, BootEnvironment, BootEnvironmentError, SlotName
from device.config import load_device_config
from device.configs import ConfigStore
from device.platform import SlotLabel
from device.slots.images import read_json
from device.slots.simulated import SimulatedBootControl
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


CONFIG = """\
[device]
device_class = "pos"
hardware_revision = "r2"
[hub]
address = "127.0.0.1:1"
[board]
backend = "%s"
slot_capacity_bytes = 1048576
"""


@pytest.mark.parametrize("backend", ["grub", "uboot"])
def test_a_device_is_laid_as_its_configuration_says(tmp_path: Path, backend: str) -> None:
    """D10."""
    device = tmp_path / "device"
    device.mkdir()
    (device / "config.toml").write_text(CONFIG % backend)
    assert factory(device).returncode == 0
    system = open_slots(device, load_device_config(device), Disk())
    assert system.boot_control.read() == BootEnvironment(Boot(SlotName.A, 1))
    assert (device / "slots" / "A.img").read_bytes() == IMAGE.ljust(1024 * 1024, b"\0")
    assert [system.slots.capacity_bytes(slot) for slot in SlotName] == [1024 * 1024] * 2
    again = factory(device)
    assert (again.returncode, again.stderr.split(":")[1].strip()) == (1, "HAS_SLOTS")


def test_an_image_that_does_not_fit_is_named_and_makes_no_device(tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.mkdir()
    (device / "config.toml").write_text(CONFIG % "grub")
    (tmp_path / "large").write_bytes(bytes(2 * 1024 * 1024))
    done = factory(device, "--image", str(tmp_path / "large"))
    assert done.returncode == 1
    assert "slot A" in done.stderr
    assert "cannot hold 2097152 bytes (capacity 1048576)" in done.stderr
    assert not (device / "slots" / "A.json").exists()
    assert not (device / "slots" / "grubenv").exists()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    done = factory(tmp_path / "device", "--config", str(tmp_path / "absent"))
    assert done.returncode == 1
    assert "absent" in done.stderr
    assert not (tmp_path / "device" / "slots").exists()


def test_a_device_without_slots_says_who_makes_them(tmp_path: Path) -> None:
    with pytest.raises(BootEnvironmentError, match=r"python -m device\.factory"):
        SimulatedBootControl(tmp_path / "slots", Disk()).read()
