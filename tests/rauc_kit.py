"""RAUC for tests: real bundles by the real tool, and a device whose slots the real service writes.

Needs root, for RAUC mounts what it installs, and a loop device.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from device.config import load_device_config
from device.slots.rauc_board import RaucBoard, bus_address, lay_out
from tests.device_directory import MIB, DeviceDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from device.bootenv import SlotName

COMPATIBLE = "pos-tablet"
SLOT_BYTES = 8 * MIB
RAUC_TOML = """\
[rauc]
bus = ""
install_timeout_s = 30.0
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="RAUC mounts what it installs: run as root")


@dataclass(frozen=True, slots=True)
class BundleKey:
    """Who signs bundles: a certificate, which is its own authority, and its key."""

    certificate: Path
    key: Path

    @classmethod
    def make(cls, directory: Path, name: str = "release") -> BundleKey:
        made = cls(directory / f"{name}.crt", directory / f"{name}.key")
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        command += ["-subj", f"/CN={name}", "-days", "30", "-keyout", str(made.key), "-out", str(made.certificate)]
        subprocess.run(command, check=True, capture_output=True, timeout=30)
        return made

    def bundle(self, directory: Path, image: bytes, *, compatible: str = COMPATIBLE, slot: str = "system") -> bytes:
        """A bundle with this image, as ``rauc bundle`` makes it; ``directory`` is new."""
        content = directory / "content"
        content.mkdir(parents=True)
        (content / "system.img").write_bytes(image)
        (content / "manifest.raucm").write_text(
            f"[update]\ncompatible={compatible}\nversion=1\n[bundle]\nformat=plain\n"
            f"[image.{slot}]\nfilename=system.img\n"
        )
        made = directory / "made.raucb"
        command = ["rauc", "bundle", "--mksquashfs-args=-comp zstd -Xcompression-level 1"]
        command += [f"--cert={self.certificate}", f"--key={self.key}", str(content), str(made)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return made.read_bytes()


def give_rauc(device: DeviceDirectory, key: BundleKey) -> None:
    """Turn a configured device into one whose slots RAUC writes."""
    device.set("[board]\n", '[board]\nbackend = "rauc"\n')
    device.write("config.toml", (device.path / "config.toml").read_text() + RAUC_TOML)
    for slot in ("A", "B"):
        os.truncate(device.path / "slots" / f"{slot}.img", SLOT_BYTES)
    lay_out(device.path, load_device_config(device.path))
    (device.path / "rauc" / "keyring.pem").write_bytes(key.certificate.read_bytes())


class PlayedBoard:
    """RAUC on its bus, without a supervisor; a context."""

    def __init__(self, device: DeviceDirectory, slot: SlotName) -> None:
        self.board = RaucBoard(device.path, load_device_config(device.path))
        self._slot = slot

    def __enter__(self) -> RaucBoard:
        self.board.start(self._slot)
        return self.board

    def __exit__(self, *_: object) -> None:
        self.board.stop()


def hold_handler(device: DeviceDirectory) -> Path:
    """Keep RAUC in the middle of whatever it does until the file that is returned is removed."""
    script = device.path / "rauc" / "boot-environment"
    held = device.path / "rauc" / "held"
    waiting = device.path / "rauc" / "waiting"
    lines = script.read_text().splitlines()
    gate = f'case "$1" in set-*) while [ -e {held} ]; do : >{waiting}; sleep 0.02; done;; esac'
    script.write_text("\n".join([lines[0], gate, *lines[1:], ""]))
    held.touch()
    return held


def rauc_pid(device: DeviceDirectory) -> int:
    """The service of that device."""
    return int(tool("pgrep", "-f", f"^rauc --conf={device.path}/rauc/system.conf"))


def rauc(device: DeviceDirectory, *command: str) -> subprocess.CompletedProcess[str]:
    """RAUC's own command line, as a technician types it."""
    environment = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": bus_address(device.path)}
    words = ["rauc", *command]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=30)


def tool(*command: str) -> str:
    """What a tool says that must not fail."""
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


@contextmanager
def service(device: DeviceDirectory, slot: SlotName) -> Iterator[None]:
    """RAUC started again on a bus that still runs, as systemd does."""
    command = ["rauc", f"--conf={device.path}/rauc/system.conf", f"--override-boot-slot={slot.value}", "service"]
    environment = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": bus_address(device.path)}
    with (device.path / "run" / "rauc.log").open("ab") as errors:
        process = subprocess.Popen(command, env=environment, stderr=errors)
    try:
        yield
    finally:
        process.kill()
        process.wait()
