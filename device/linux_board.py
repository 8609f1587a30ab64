"""Power of real hardware that runs Linux: what ``device/running.py`` concludes, the kernel's watchdog, real reboots.

Rules. Facts of a boot are concluded once and kept in ``DIR/run/boot.json`` under the kernel's boot id, so an agent that
starts again in the same boot goes by the same ones. The watchdog runs from the agent's start on, and is stopped by an
orderly end alone, and not in a trial: there only the end of the trial, or a reset, ends it. An agent that crashed more
often in one trial boot than ``TRIAL_CRASHES`` reboots, as the supervisor of a simulated board does. ``DIR/run/left`` is
how the agent left a boot of its own accord.
"""

from __future__ import annotations

import asyncio
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from device.board import boot_record_path, read_boot_record, write_boot_record
from device.bootenv import BootEnvironmentError, ResetReason, SlotName
from device.commands import run_command
from device.platform import BootRecord
from device.resets import TRIAL_CRASHES
from device.running import Boots, RunningSlotError, mount_at, reset_reason, running_boot
from device.watchdog import Watchdog
from wavemesh.errors import LocalError
from wavemesh.runtime.durable import disk_errors, write_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from device.backend import SlotSystem
    from device.config import DeviceConfig
    from device.logs import DeviceLog

MAX_BYTES = 1024 * 1024
MAX_LAYERS = 8
MAX_ENTRIES = 64
COMMAND_TIMEOUT_S = 5.0


class BoardError(LocalError):
    """The board does not say what it must, or does not do what it is told."""

    reason = "BOARD"


class LinuxPower:
    """Made by ``open_linux_board``."""

    def __init__(
        self, directory: Path, config: DeviceConfig, system: SlotSystem, log: DeviceLog, record: BootRecord
    ) -> None:
        """The boot is known; starts the watchdog where there is one. Raises WatchdogError."""
        self._run = directory / "run"
        self._config = config.linux
        self._rehearsal = config.rehearsal
        self._boot_control = system.boot_control
        self._log = log
        self._record = record
        self._rebooting = False
        self._watchdog: Watchdog | None = None
        path = config.linux.watchdog
        if path.exists():
            self._watchdog = Watchdog(path, config.board.watchdog_s)
        else:
            log.alert(f"{path} is absent: nothing resets this board when its system hangs")

    def boot(self) -> BootRecord:
        """The boot we are in."""
        return self._record

    def pet(self) -> None:
        """Tell the watchdog; not while a reboot that does not come about is waited for."""
        if self._watchdog is not None and not self._rebooting:
            self._watchdog.pet()

    async def step(self, name: str) -> None:
        """Nobody waits for it."""

    async def reboot(self) -> NoReturn:
        """Ask for it, then for a harder one; in the end only the watchdog is left, which is not petted any more."""
        self._rebooting = True
        self._leave(ResetReason.REBOOT)
        await self.unload()
        for command in (self._config.reboot, self._config.reboot_by_force):
            self._log.flush()
            ended = await run_command(command, self._config.reboot_bound_s)
            if ended.problem:
                self._log.alert(f"no reboot: {ended.problem}")
            else:
                await asyncio.sleep(self._config.reboot_bound_s)
                self._log.alert(f"no reboot within {self._config.reboot_bound_s:g} s of {' '.join(command)}")
        self._log.fail("the board does not reboot: reset it by hand, unless its watchdog does")
        while True:
            await asyncio.Event().wait()

    async def unload(self) -> None:
        """Forget a kernel that a rehearsal left loaded: systemd would reboot into it, past the bootloader."""
        if self._rehearsal.kexec_load:
            ended = await run_command(self._rehearsal.kexec_unload, COMMAND_TIMEOUT_S)
            if ended.problem:
                self._log.alert(f"a rehearsed kernel may still be loaded: {ended.problem}")

    def stop(self) -> None:
        """A trial that nobody watches any more must not go on, and a reboot under way must come about."""
        if self._rebooting:
            return
        self._leave(ResetReason.POWER_ON)
        if self._watchdog is not None and not self.is_trial():
            self._watchdog.disarm()

    def is_trial(self) -> bool:
        """Whether this boot is the one on trial; it may be where the environment cannot be read."""
        try:
            trial = self._boot_control.read().trial
        except LocalError:
            return True
        return trial is not None and trial.boot == self._record.boot

    def _leave(self, reason: ResetReason) -> None:
        # A full or broken disk must not keep the board from rebooting; the reason is then unproven.
        with suppress(LocalError):
            write_file(self._run / "left", f"{self._record.boot_id} {reason.value}\n".encode())


async def open_linux_board(directory: Path, config: DeviceConfig, system: SlotSystem, log: DeviceLog) -> LinuxPower:
    """Find out what runs and why, and take the watchdog.

    Raises RunningSlotError when the running slot is not certain, BoardError, WatchdogError, DiskFaultError.
    """
    facts = _Facts(directory, config, system)
    record = await facts.record()
    power = LinuxPower(directory, config, system, log, record)
    if facts.count_start(record) > TRIAL_CRASHES + 1 and power.is_trial():
        log.fail(f"started more than {TRIAL_CRASHES} times again in this trial: reboots")
        await power.reboot()
    await power.unload()
    return power


class _Facts:
    """What the files of the kernel and the board say."""

    def __init__(self, directory: Path, config: DeviceConfig, system: SlotSystem) -> None:
        self._directory = directory
        self._run = directory / "run"
        self._config = config.linux
        self._system = system

    async def record(self) -> BootRecord:
        """Of the present boot: the one kept, or a new one."""
        boot_id = _text(self._config.proc / "sys/kernel/random/boot_id").strip().replace("-", "")
        if not boot_id:
            msg = f"{self._config.proc / 'sys/kernel/random/boot_id'} is empty or absent: this is no Linux /proc"
            raise BoardError(msg)
        boot = running_boot(self._boots())
        kept = self._kept()
        if kept is not None and kept.boot_id == boot_id:
            if kept.boot != boot:
                msg = f"{boot_record_path(self._directory)} says {kept.boot} of this same boot, the kernel {boot}"
                raise RunningSlotError(msg)
            record = kept
        else:
            record = BootRecord(boot_id, boot, await self._reason(kept))
            with disk_errors(self._run):
                self._run.mkdir(exist_ok=True)
            write_boot_record(self._directory, record)
        # Only an end without a word that comes after this is the end of this agent.
        (self._run / "left").unlink(missing_ok=True)
        return record

    def count_start(self, record: BootRecord) -> int:
        """How often the agent was started in this boot, this start included."""
        path = self._run / "starts"
        boot_id, _, number = _text(path).strip().partition(" ")
        starts = int(number) + 1 if boot_id == record.boot_id and number.isdigit() else 1
        with suppress(LocalError):  # a full disk ends a trial by its own gate, not by a start that cannot be counted
            write_file(path, f"{record.boot_id} {starts}\n".encode())
        return starts

    def _kept(self) -> BootRecord | None:
        try:
            return read_boot_record(self._directory)
        except BootEnvironmentError:
            return None

    def _boots(self) -> Boots:
        proc, root = self._config.proc, str(self._config.root)
        mount = mount_at(_text(proc / "self/mountinfo"), root)
        number = "" if mount is None else mount.number
        if mount is not None and number.startswith("0:"):  # of no device, but perhaps over one, as btrfs is
            number = _device_number(Path(mount.source)) or number
        paths = {slot: self._system.slots.path(slot) for slot in SlotName}
        slots = {slot: found for slot, path in paths.items() if (found := _device_number(path))}
        command_line = proc / "cmdline"
        return Boots(str(command_line), _text(command_line), root, self._layers(number), slots)

    def _layers(self, number: str) -> Sequence[str]:
        """The device and all that it rests on."""
        found: list[str] = []
        look = [number] if number else []
        while look and len(found) < MAX_LAYERS:
            found.append(look.pop())
            below = self._config.sys / "dev/block" / found[-1] / "slaves"
            look += [_text(path / "dev").strip() for path in _entries(below)]
        return found

    async def _reason(self, before: BootRecord | None) -> ResetReason:
        said = self._config.reset
        word = _text(said.file) if said.file is not None else ""
        if said.command:
            word = (await run_command(said.command, COMMAND_TIMEOUT_S)).output
        statuses = (_text(path / "bootstatus").strip() for path in _entries(self._config.sys / "class/watchdog"))
        boot_id, _, left = _text(self._run / "left").strip().partition(" ")
        ways = {reason.value: reason for reason in (ResetReason.REBOOT, ResetReason.POWER_ON)}
        return reset_reason(
            board=said.meanings.get(word.strip()),
            bootstatus=[int(status) for status in statuses if status.isdigit()],
            crashed=any(_entries(self._config.sys / "fs/pstore")),
            agent=ways.get(left) if before is not None and before.boot_id == boot_id else None,
        )


def _text(path: Path) -> str:
    """A small file; empty where there is none."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES).decode(errors="replace")
    except OSError:
        return ""


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())[:MAX_ENTRIES]
    except OSError:
        return []


def _device_number(path: Path) -> str:
    """The number of a block device ("8:2"), else empty."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}" if stat.S_ISBLK(found.st_mode) else ""
