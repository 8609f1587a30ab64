"""Many devices in one process: ``python -m bench.agents FILE``, where FILE names one device directory a line.

Each device is the agent that ``python -m device`` runs, composed from its own directory with its own key, certificate,
connection, slots and state, on a board that follows ``device/resets.py`` as the process supervisor does. Only the
process is shared: a reboot ends the agent's task group, and composes the agent anew from what is on disk.

What that leaves out: a new interpreter at each boot, and a kill in the middle of a step (a killed agent's open files
are closed and its running write ends, which the process supervisor's tests cover). SIGTERM ends all agents in order.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from device.app import Launch, open_log, run_agent
from device.backend import open_slots
from device.board import read_boot_record
from device.config import load_device_config
from device.firmware import Firmware
from device.resets import Board, BootUp, End, KillAgent, LetPass, LoseUnflushed, StartAgent
from wavemesh.errors import WavemeshError
from wavemesh.runtime.durable import Disk

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn

    from device.logs import DeviceLog
    from device.platform import BootRecord
    from device.resets import Action

MAX_DEVICES = 2000
#: Whose log the records of the shared modules belong to: that of the device whose task writes them.
_LOG: ContextVar[DeviceLog] = ContextVar("log")


class _Router(logging.Handler):
    """Hands each record to the log of the device that wrote it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Of the present task's device; what belongs to none goes to standard error."""
        log = _LOG.get(None)
        if log is None:
            sys.stderr.write(f"{record.getMessage()}\n")
        else:
            log.emit(record)


class HostedDevice:
    """One device: its board, and its agent as tasks of this process; see device.platform.Power for what it plays."""

    def __init__(self, directory: Path, stop: asyncio.Event) -> None:
        """``run`` does the rest; ``stop`` ends the agent in order."""
        self._directory = directory
        self._config = load_device_config(directory)
        system = open_slots(directory, self._config, Disk())
        self._firmware = Firmware(directory, system, 2 * self._config.staging.fsync_step_bytes)
        self._board = Board(self._config.board.watchdog_s, self._config.board.boot_timer_s)
        self._stop = stop
        self._agent: asyncio.Task[None] | None = None
        self._record: BootRecord | None = None
        # The agent waits for the answer to a step, ends once, and is stopped once.
        self._events: asyncio.Queue[str | End | None] = asyncio.Queue(8)
        self._go = asyncio.Event()
        self._stepping = asyncio.Lock()
        self._log: DeviceLog | None = None

    async def run(self) -> None:
        """Play the board until stopped."""
        (self._directory / "run").mkdir(exist_ok=True)
        now_s = asyncio.get_running_loop().time
        async with asyncio.TaskGroup() as group:
            await self._perform(group, self._board.power_up(self._firmware.first_reason(), now_s()))
            while (event := await self._next_event()) is not None or not self._stop.is_set():
                match event:
                    case End():
                        actions = self._board.agent_ended(event, now_s())
                    case str() if self._record is not None:
                        self._firmware.step(self._record, event)
                        actions = self._board.stepped(event, now_s())
                    case _:
                        actions = self._board.due(now_s())
                await self._perform(group, actions)
        self._firmware.shut_down()

    async def _next_event(self) -> str | End | None:
        """A step, the agent's end, or None when a timer is due or the agent was stopped."""
        try:
            async with asyncio.timeout_at(self._board.due_s):
                return await self._events.get()
        except TimeoutError:
            return None

    async def _perform(self, group: asyncio.TaskGroup, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case KillAgent():
                    await self._kill()
                case LoseUnflushed():
                    self._record = None
                    self._firmware.lose_unflushed()
                case BootUp(reason):
                    await self._kill()
                    self._record = self._firmware.boot(reason)
                    if self._firmware.is_bootable(self._record.boot.slot):
                        self._start(group)
                case StartAgent():
                    self._start(group)
                case LetPass():
                    self._go.set()

    def _start(self, group: asyncio.TaskGroup) -> None:
        if self._record is not None and not self._stop.is_set():
            self._agent = group.create_task(self._run_agent(self._record))

    async def _kill(self) -> None:
        agent, self._agent = self._agent, None
        if agent is not None and not agent.done():
            agent.cancel()
            await asyncio.wait([agent])
        while not self._events.empty():
            self._events.get_nowait()  # of one that is gone

    async def _run_agent(self, record: BootRecord) -> None:
        """One life of the agent; what a real one would end its process with is a crash, a bug ends the benchmark."""
        log = self._log = open_log(self._directory, self._config)
        _LOG.set(log)
        try:
            await run_agent(Launch(self._directory, self._config, log, self), self._stop)
        except* (WavemeshError, OSError) as group:
            log.fail(f"the agent crashed: {group.exceptions}")
            on_trial = self._firmware.is_trial(record.boot)
            self._events.put_nowait(End.CRASH_ON_TRIAL if on_trial else End.CRASH)
        finally:
            log.close()

    def stopped(self) -> None:
        """``stop`` is set: look at it."""
        self._events.put_nowait(None)

    # --- device.platform.Power ---------------------------------------------------------------------------------------

    def boot(self) -> BootRecord:
        """As it was recorded."""
        return read_boot_record(self._directory)

    def pet(self) -> None:
        """The event loop turns."""
        self._board.petted(asyncio.get_running_loop().time())

    async def step(self, name: str) -> None:
        """Wait until the board lets it pass."""
        async with self._stepping:
            self._go.clear()
            self._events.put_nowait(name)
            await self._go.wait()

    async def reboot(self) -> NoReturn:
        """The agent waits here for its end."""
        await self.step("reboot")
        if self._log is not None:
            self._log.flush()
        self._events.put_nowait(End.REBOOT)
        while True:
            await asyncio.Event().wait()

    def stop(self) -> None:
        """``run`` sees by itself that the agent ended."""


async def serve(directories: list[Path]) -> None:
    """Run all devices until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    devices = [HostedDevice(directory, stop) for directory in directories]
    async with asyncio.TaskGroup() as group:
        for device in devices:
            group.create_task(device.run())
        await stop.wait()
        for device in devices:
            device.stopped()


def main(arguments: list[str]) -> int:
    """Command line; returns the exit code."""
    directories = [Path(line) for line in Path(arguments[0]).read_text(encoding="utf-8").split("\n") if line]
    if not 0 < len(directories) <= MAX_DEVICES:
        sys.stderr.write(f"bench.agents: {len(directories)} devices; one process takes 1 to {MAX_DEVICES}\n")
        return 2
    root = logging.getLogger()
    root.addHandler(_Router())
    asyncio.run(serve(directories))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
