"""The lab reads boot environments by its own code; it must see what the product wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from device.backend import open_slots
from device.bootenv import Boot, BootEnvironment, SlotName
from device.config import load_device_config
from lab.evidence import EvidenceError, boot_environment
from lab.scenario import BadScenarioError, parse_backends
from wavemesh.runtime.durable import Disk

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = '[device]\ndevice_class = "pos"\nhardware_revision = "r2"\n[hub]\naddress = "h:1"\n[board]\nbackend = "%s"\n'
BACKENDS = ("simulated", "grub", "uboot")
A1, B2 = Boot(SlotName.A, 1), Boot(SlotName.B, 22)


def plain(boot: Boot | None) -> dict[str, object] | None:
    return None if boot is None else {"slot": boot.slot.value, "config_generation": boot.config_generation}


@pytest.fixture(params=BACKENDS)
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    (tmp_path / "slots").mkdir()
    (tmp_path / "config.toml").write_text(CONFIG % request.param)
    return tmp_path


def test_it_sees_what_was_written(device: Path) -> None:
    bootloader = open_slots(device, load_device_config(device), Disk()).bootloader
    environments = [BootEnvironment(A1, B2), BootEnvironment(B2, A1).arm(A1), BootEnvironment(A1).arm(B2)]
    for environment in environments * 90:  # beyond the 255 that a copy counts to
        bootloader.lay(environment)
        seen = boot_environment(device)
        trial = seen["trial"]
        assert (seen["active"], seen["previous"]) == (plain(environment.active), plain(environment.previous))
        assert (trial is None) == (environment.trial is None)
        if isinstance(trial, dict) and environment.trial is not None:
            assert trial["slot"] == environment.trial.boot.slot.value


def test_what_is_broken_is_no_evidence(device: Path) -> None:
    open_slots(device, load_device_config(device), Disk()).bootloader.lay(BootEnvironment(A1))
    for name in ("bootenv.json", "grubenv", "uboot-env"):
        path = device / "slots" / name
        if path.exists():
            path.write_bytes(path.read_bytes()[:-1] + b"\0x")
            path.write_bytes(b"x" + path.read_bytes()[1:])
    with pytest.raises(EvidenceError, match="boot environment"):
        boot_environment(device)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pos-01:floppy", "DEVICE:BACKEND with one of simulated, grub, uboot"),
        ("pos-01", "DEVICE:BACKEND"),
        ("pos-99:grub", "no device 'pos-99'; the lab's are pos-01, pos-02"),
    ],
)
def test_a_backend_that_there_is_not_is_named_with_those_that_are(text: str, words: str) -> None:
    """Q2."""
    with pytest.raises(BadScenarioError, match=words):
        parse_backends([text], BACKENDS, ("pos-01", "pos-02"))


def test_a_device_has_one_backend() -> None:
    assert parse_backends(["pos-01:grub"] * 2, BACKENDS, ("pos-01",)) == {"pos-01": "grub"}
    with pytest.raises(BadScenarioError, match="pos-01 has back-end grub already"):
        parse_backends(["pos-01:grub", "pos-01:uboot"], BACKENDS, ("pos-01",))
