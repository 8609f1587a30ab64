"""RAUC on a board that a supervisor plays: a bus of its own, the service, and what a factory lays out for them.

Rules. Both live from one reset to the next, as everything does that is no firmware: a power cut kills them, in the
middle of an installation too, and what the kernel still holds for them (a mount, a loop device) is gone with them. They
die with the supervisor. The service is told which slot runs, as ``rauc.slot=`` on the kernel's command line does on a
real board, where systemd starts it on the system's bus and this module has no part.
"""

from __future__ import annotations

import hashlib
import os
import select
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from wavemesh.errors import LocalError
from wavemesh.runtime.durable import disk_errors, write_file

if TYPE_CHECKING:
    from pathlib import Path

    from device.bootenv import SlotName
    from device.config import DeviceConfig

START_S = 10.0
TOOL_S = 10.0
# With these, and from the supervisor's own PATH, the handler's Python finds what ours finds.
_INHERITED = ("PYTHONPATH", "PYTHONHOME", "LANG", "PATH")

_BUS_CONF = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>{address}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""

_SYSTEM_CONF = """\
[system]
compatible={compatible}
bootloader=custom
activate-installed=false
mountprefix={directory}/mnt
statusfile={directory}/status
bundle-formats=plain verity

[keyring]
path={directory}/keyring.pem

[handlers]
bootloader-custom-backend={directory}/boot-environment

[slot.system.0]
device={a}
type=raw
bootname=A

[slot.system.1]
device={b}
type=raw
bootname=B
"""


class RaucBoardError(LocalError):
    """The bus or RAUC cannot be run here; the message says what is missing."""

    reason = "RAUC_BOARD"


def bus_address(directory: Path) -> str:
    """Address of the bus of the device in ``directory``: a name, for dbus-daemon takes paths of 99 bytes at most."""
    return f"unix:abstract=wavemesh-{hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()[:32]}"


def lay_out(directory: Path, config: DeviceConfig) -> None:
    """What a factory writes for RAUC; the keyring is for whoever signs bundles to give. Raises LocalError."""
    place = config.rauc.directory.resolve()
    with disk_errors(place):
        (place / "mnt").mkdir(parents=True, exist_ok=True)
    handler = f"exec {sys.executable} -m device.slots.rauc_handler --dir {directory.resolve()}"
    write_file(place / "boot-environment", f'#!/bin/sh\n{handler} "$@"\n'.encode(), 0o755)
    system = _SYSTEM_CONF.format(
        compatible=config.device.device_class,
        directory=place,
        a=config.slots.a.resolve(),
        b=config.slots.b.resolve(),
    )
    write_file(place / "system.conf", system.encode())


class RaucBoard:
    """The two processes; ``start`` them at a reset, ``stop`` them at a power cut or the end."""

    def __init__(self, directory: Path, config: DeviceConfig) -> None:
        """``directory`` is the device's."""
        self._address = bus_address(directory)
        self._run = directory / "run"
        self._place = config.rauc.directory.resolve()
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, slot: SlotName) -> None:
        """Run both anew, booted from this slot; raises RaucBoardError, DiskFaultError."""
        self.stop()
        for tool in ("dbus-daemon", "rauc", "setpriv"):
            if shutil.which(tool) is None:
                raise RaucBoardError(f"{tool} is not installed: apt-get install rauc rauc-service dbus util-linux")
        configuration = self._run / "bus.conf"
        write_file(configuration, _BUS_CONF.format(address=self._address).encode())
        self._await_bus(["dbus-daemon", f"--config-file={configuration}", "--nofork", "--nopidfile", "--print-address"])
        command = ["rauc", f"--conf={self._place / 'system.conf'}", f"--override-boot-slot={slot.value}", "service"]
        self._spawn(command, subprocess.DEVNULL)

    def stop(self) -> None:
        """Kill both, and let go of what the kernel held for them."""
        for process in reversed(self._processes):
            process.kill()
            process.wait()
        self._processes.clear()
        mounts = [line.split()[1] for line in _text("/proc/self/mounts").splitlines()]
        for mount in mounts:
            if mount.startswith(f"{self._place}/mnt/"):
                _tool("umount", "--lazy", mount)
        bundle = str(self._place / "update.raucb")
        for line in _tool("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE").splitlines():
            name, _, file = line.strip().partition(" ")
            if file.strip().removesuffix(" (deleted)") == bundle:
                _tool("losetup", "--detach", name)

    def _await_bus(self, command: list[str]) -> None:
        bus = self._spawn(command, subprocess.PIPE)
        if bus.stdout is None:
            raise RaucBoardError("dbus-daemon has no stdout")
        with bus.stdout as output:
            ready, _, _ = select.select([output], [], [], START_S)
            if not ready or not output.readline():
                raise RaucBoardError(f"no bus at {self._address}: see {self._run / 'rauc.log'}")

    def _spawn(self, command: list[str], stdout: int) -> subprocess.Popen[bytes]:
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        environment["DBUS_SYSTEM_BUS_ADDRESS"] = self._address
        log, words = self._run / "rauc.log", ["setpriv", "--pdeathsig", "KILL", *command]
        with disk_errors(log), log.open("ab") as errors:
            process = subprocess.Popen(
                words,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=errors,
            )
        self._processes.append(process)
        return process


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123  # no file of ours
        return file.read()


def _tool(*command: str) -> str:
    """What a tool says; one that fails has nothing to let go of."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TOOL_S)
    return done.stdout
