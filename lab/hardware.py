"""A device's hardware as files: what its sensors read, what its probes find, and how a fault changes that.

Each simulated device has its own kernel files and its own commands, as a real one has. ``lsusb`` prints what
``usb/SLOT.txt`` says for the slot that runs, so that an image that lost a driver shows by what is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lab.policies import OLD_RELEASE
from lab.topology import DEVICE_CLASS, HARDWARE_REVISION

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Breakage = Callable[[Path, str], None]

_HUB = "Bus 001 Device 001: ID 1d6b:0002 Linux Foundation 2.0 root hub\n"
_SCANNER = "Bus 001 Device 004: ID 05e0:1200 Symbol Technologies Bar Code scanner\n"
_LSUSB = """\
#!/bin/sh
# What this device's USB bus shows, by the slot that runs.
here=$(dirname "$0")/..
cat "$here/usb/${WAVEMESH_SLOT:-A}.txt"
"""
_SYSTEMD_ANALYZE = """\
#!/bin/sh
# Stands in for systemd-analyze verify: finds fault with what "boot-faults" lists.
here=$(dirname "$0")/..
[ -s "$here/boot-faults" ] || exit 0
cat "$here/boot-faults" >&2
exit 1
"""
_FAULTY_UNIT = "/boot/inactive/etc/systemd/system/pos.service:7: Unknown key name 'ExecStrat' in section 'Service'\n"


def build(device: Path) -> None:
    """A sound device's hardware."""
    hardware = device / "hardware"
    (hardware / "bin").mkdir(parents=True, exist_ok=True)
    for name, script in (("lsusb", _LSUSB), ("systemd-analyze", _SYSTEMD_ANALYZE)):
        path = hardware / "bin" / name
        path.write_text(script, encoding="utf-8")
        path.chmod(0o755)
    _write(hardware / "power_supply" / "BAT0" / "capacity", "87\n")
    _write(hardware / "thermal" / "thermal_zone0" / "temp", "41500\n")
    for slot in ("A", "B"):
        _write(hardware / "usb" / f"{slot}.txt", _HUB + _SCANNER)


def lose_scanner(device: Path, *slots: str) -> None:
    """The image on those slots has no driver for the scanner."""
    for slot in slots:
        _write(device / "hardware" / "usb" / f"{slot}.txt", _HUB)


def break_device(device: Path, gate: str, new_version: str) -> None:
    """Make that gate fail, before the device is switched on; ``new_version`` is the release's. KeyError for another."""
    _BREAKAGES[gate](device, new_version)


def _reads(relative: str, text: str) -> Breakage:
    """Hardware whose file says something else."""
    return lambda device, _: _write(device / "hardware" / relative, text)


def _says(relative: str, old: str, new: str) -> Breakage:
    """A device that was set up otherwise than everybody believes."""

    def change(device: Path, _: str) -> None:
        path = device / relative
        _write(path, path.read_text(encoding="utf-8").replace(old, new, 1))

    return change


_BREAKAGES: dict[str, Breakage] = {
    "battery": _reads("power_supply/BAT0/capacity", "5\n"),
    "temperature": _reads("thermal/thermal_zone0/temp", "95000\n"),
    "disk": _says("config.toml", "[board]", f"[board]\nreserved_disk_bytes = {1 << 60}"),
    "dual-partition": lambda device, _: (device / "slots" / "B.img").unlink(),
    "peripheral:scanner": lambda device, _: lose_scanner(device, "A", "B"),
    "boot-probe": _reads("boot-faults", _FAULTY_UNIT),
    "hardware": _says("config.toml", f'revision = "{HARDWARE_REVISION}"', 'revision = "other"'),
    "class": _says("config.toml", f'class = "{DEVICE_CLASS}"', 'class = "other"'),
    "rollback-floor": _says("slots/A.json", f'"{OLD_RELEASE.version}"', '"9.0.0"'),
    "checksum": _reads("bad-medium", ""),
    "inhibited": _reads("inhibit", "payment terminal: a payment is open\n"),
    "watchdog": lambda device, new_version: _write(device / "hardware" / "unbootable", f"{new_version}\n"),
}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
