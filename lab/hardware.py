"""A device's hardware as files: what its sensors read, what its probes find, and how a fault changes that.

Each simulated device has its own kernel files and its own commands, as a real one has. ``lsusb`` prints what
``usb/SLOT.txt`` says for the slot that runs, so that an image that lost a driver shows by what is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wavemesh.errors import LocalError

if TYPE_CHECKING:
    from pathlib import Path

    from lab.scenario import Fault

_HUB = "Bus 001 Device 001: ID 1d6b:0002 Linux Foundation 2.0 root hub\n"
_SCANNER = "Bus 001 Device 004: ID 05e0:1200 Symbol Technologies Bar Code scanner\n"
_LSUSB = """\
#!/bin/sh
# What this device's USB bus shows, by the slot that runs.
here=$(dirname "$0")/..
slot=$(sed -n 's/.*"slot": "\\([AB]\\)".*/\\1/p' "$here/../run/boot.json")
cat "$here/usb/${slot:-A}.txt"
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


class HardwareError(LocalError):
    """A fault the lab does not know how to cause."""

    reason = "LAB_HARDWARE"


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


def break_device(device: Path, fault: Fault, new_version: str) -> None:
    """Cause a fault, before the device is switched on; raises HardwareError."""
    hardware, gate = device / "hardware", fault.kind.gate
    if gate == "battery":
        _write(hardware / "power_supply" / "BAT0" / "capacity", "5\n")
    elif gate == "temperature":
        _write(hardware / "thermal" / "thermal_zone0" / "temp", "95000\n")
    elif gate == "dual-partition":
        (device / "slots" / "B.img").unlink()
    elif gate == "peripheral:scanner":
        lose_scanner(device, "A", "B")
    elif gate == "boot-probe":
        _write(hardware / "boot-faults", _FAULTY_UNIT)
    elif gate == "inhibited":
        _write(hardware / "inhibit", "payment terminal: a payment is open\n")
    elif gate == "watchdog":
        _write(hardware / "unbootable", f"{new_version}\n")
    elif gate in {"class", "hardware"}:
        _enrol_otherwise(device / "config.toml", gate)
    else:
        raise HardwareError(f"no way to cause {gate}")


def _enrol_otherwise(config: Path, gate: str) -> None:
    """Enrol the device as something else than control's inventory believes."""
    key = {"class": "device_class", "hardware": "hardware_revision"}[gate]
    lines = config.read_text(encoding="utf-8").splitlines()
    changed = [f'{key} = "other"' if line.startswith(f"{key} =") else line for line in lines]
    _write(config, "\n".join(changed) + "\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
