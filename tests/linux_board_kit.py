"""A device that thinks it runs on a Linux board: its own /proc and /sys, a FIFO for the watchdog, scripts that reboot.

``LinuxDevice`` starts the real agent as systemd does and plays the hardware: ``boot`` is what a bootloader's script
does.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from device.backend import open_slots
from device.bootenv import ResetReason
from device.config import load_device_config
from tests.device_directory import PATIENCE_S, DeviceDirectory
from wavemesh.runtime.durable import Disk

if TYPE_CHECKING:
    from collections.abc import Callable

    from wavemesh.identity.ca import FleetCa

LINUX = """\
[linux]
proc = "proc"
sys = "sys"
watchdog = "watchdog"
reboot = ["{reboot}"]
reboot_by_force = ["{force}"]
reboot_bound_s = 0.5
[linux.reset]
file = "sys/reset_reason"
meanings = {{ POR = "power-loss", WDT = "watchdog" }}
[rehearsal]
kexec_load = ["true"]
kexec_unload = ["{unload}"]
"""
_ASKED = ("reboot", "force", "unload")
MOUNTINFO = "27 1 0:31 / / rw,relatime - overlay overlay rw\n"


class LinuxDevice(DeviceDirectory):
    """A provisioned device in the hands of its test."""

    def __init__(self, path: Path, ca: FleetCa, pinned_root: bytes) -> None:
        super().__init__(path, ca, pinned_root)
        self.agent: subprocess.Popen[bytes] | None = None
        self.notified: list[str] = []
        self.confined_by: list[str] = []
        os.mkfifo(path / "watchdog")
        # Read and write: so that it neither blocks nor ends while nobody writes.
        self._watchdog = os.open(path / "watchdog", os.O_RDWR | os.O_NONBLOCK)
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.setblocking(False)
        self._notify.bind(f"\0wavemesh-{uuid.uuid4().hex}")
        self.write("proc/self/mountinfo", MOUNTINFO)

    def configure(self, port: int) -> None:
        super().configure(port)
        self.set("[board]\n", '[board]\nkind = "linux"\n')
        for name in _ASKED:
            self.script(name, f"echo {name} >> {self.path}/asked")
        commands = {name: self.path / "hardware" / "bin" / name for name in _ASKED}
        self.write("config.toml", (self.path / "config.toml").read_text() + LINUX.format(**commands))

    # --- hardware ----------------------------------------------------------------------------------------------------

    def boot(self, reset_reason: str = "", bootstatus: int = 0) -> None:
        """Reset, whatever runs: the bootloader decides, the kernel starts, systemd starts the agent."""
        self.kill()
        self.write("asked", "")
        bootloader = open_slots(self.path, load_device_config(self.path), Disk()).bootloader
        environment = bootloader.read()
        boot, trial = environment.active, environment.trial
        if trial is not None and trial.tries_left:
            boot = trial.boot
            bootloader.attempt()
        elif trial is not None:
            power_lost = reset_reason == "POR" and not bootstatus
            bootloader.fall_back(ResetReason.POWER_LOSS if power_lost else ResetReason.WATCHDOG)
        self.write("proc/cmdline", f"quiet wavemesh.slot={boot.slot.value} wavemesh.config={boot.config_generation}\n")
        self.write("proc/sys/kernel/random/boot_id", f"{uuid.uuid4()}\n")
        self.write("sys/reset_reason", f"{reset_reason}\n")
        self.write("sys/class/watchdog/watchdog0/bootstatus", f"{bootstatus}\n")
        self.start_agent()

    def start_agent(self) -> None:
        """As the unit does; what an agent before it wrote to the watchdog is forgotten."""
        self.read_watchdog()
        environment = {
            "PATH": f"{self.path / 'hardware' / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "NOTIFY_SOCKET": "@" + self._notify.getsockname().decode()[1:],
            "WATCHDOG_USEC": "400000",
        }
        with (self.path / "run" / "stderr.log").open("ab") as errors:
            self.agent = subprocess.Popen(
                [*self.confined_by, sys.executable, "-m", "device", "--dir", str(self.path)],
                env=environment,
                stderr=errors,
            )

    def kill(self) -> None:
        if self.agent is not None:
            self.agent.kill()
            self.agent.wait(20)

    def stop(self) -> None:
        self.kill()
        os.close(self._watchdog)
        self._notify.close()

    # --- what the test sees ------------------------------------------------------------------------------------------

    def read_watchdog(self) -> bytes:
        """What was written to the watchdog since it was read last."""
        with suppress(BlockingIOError):
            return os.read(self._watchdog, 65536)
        return b""

    async def until_notified(self, word: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while word not in self.notified:
                self.notified.append((await asyncio.get_running_loop().sock_recv(self._notify, 4096)).decode())

    def asked(self) -> list[str]:
        """The reboots that were asked for in this boot, and each unloading of a rehearsed kernel."""
        return (self.path / "asked").read_text().split()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Nobody tells when a FIFO, a file or a process changed."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def until_asked(self, word: str = "reboot") -> None:
        await self.until(lambda: word in self.asked())

    async def ends(self) -> int:
        """The agent's exit code, once it ended."""
        agent = self.agent
        assert agent is not None
        await self.until(lambda: agent.poll() is not None)
        return agent.returncode

    def errors(self) -> str:
        return (self.path / "run" / "stderr.log").read_text()
