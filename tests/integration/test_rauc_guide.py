"""The section "RAUC" of docs/guide/devices.md as a person follows it, and what deploy/rauc ships."""

from __future__ import annotations

import re
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from device.config import DeviceConfig, load_device_config
from device.slots.rauc_board import lay_out
from tests.rauc_kit import BundleKey

ROOT = Path(__file__).resolve().parents[2]
SECTION = (ROOT / "docs" / "guide" / "devices.md").read_text().split("\n## RAUC\n")[1].split("\n## ")[0]
HEAD = '[device]\ndevice_class = "pos-tablet"\nhardware_revision = "r2"\n[hub]\naddress = "hub:1"\n'


def fences(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)


def settings(path: Path) -> dict[str, dict[str, str]]:
    parser = ConfigParser(interpolation=None)
    parser.read(path)
    return {name: dict(section) for name, section in parser.items() if name != "DEFAULT"}


@pytest.fixture
def config(tmp_path: Path) -> DeviceConfig:
    [text] = fences("toml")
    (tmp_path / "config.toml").write_text(HEAD + text)
    return load_device_config(tmp_path)


def test_the_configuration_is_one(config: DeviceConfig) -> None:
    assert (config.board.backend.value, config.rauc.environment.value) == ("rauc", "grub")
    assert config.rauc.bus == "unix:path=/run/dbus/system_bus_socket"


def test_the_commands_make_a_bundle_that_rauc_knows(tmp_path: Path) -> None:
    BundleKey.make(tmp_path, "signer")
    (tmp_path / "firmware.img").write_bytes(bytes(65536))
    for commands in fences("sh"):
        done = subprocess.run(
            ["/bin/bash", "-euc", commands], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=30
        )
        assert done.returncode == 0, done.stderr
    assert "Compatible: \t'pos-tablet'" in done.stdout
    assert "system.img" in done.stdout


def test_what_is_shipped_is_what_is_tested(config: DeviceConfig, tmp_path: Path) -> None:
    """A simulated board's system.conf differs from deploy/rauc in places alone, and the guide's slots are in it."""
    lay_out(tmp_path, config)
    laid, shipped = settings(tmp_path / "rauc" / "system.conf"), settings(ROOT / "deploy" / "rauc" / "system.conf")
    assert [shipped[f"slot.system.{number}"]["device"] for number in (0, 1)] == [
        str(config.slots.a),
        str(config.slots.b),
    ]
    for place in (laid, shipped):
        assert place["handlers"].pop("bootloader-custom-backend").endswith("/boot-environment")
        for section, key in (("system", "mountprefix"), ("system", "statusfile"), ("keyring", "path")):
            assert place[section].pop(key)
        for number in (0, 1):
            assert place[f"slot.system.{number}"].pop("device")
    assert laid == shipped
    script = (ROOT / "deploy" / "rauc" / "boot-environment").read_text()
    assert '-m device.slots.rauc_handler --dir /var/lib/edge-agent "$@"' in script
