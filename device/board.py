"""The agent's end of the board channel, and the simulated board's Power.

The supervisor starts the agent with one end of a SOCK_SEQPACKET pair in ``WAVEMESH_BOARD_FD``. The agent sends ``pet``
(no answer) and ``step NAME`` (answered by ``go``, unless the power is cut there); its end of file means that the board
is gone, and the agent ends at once. A reboot is the exit code ``REBOOT_EXIT_CODE``. The facts of the boot are in
``DIR/run/boot.json``, written before the agent starts.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import TYPE_CHECKING

from device.bootenv import Boot, BootEnvironmentError
from device.platform import BootRecord
from device.values import from_plain, to_plain
from wavemesh.runtime.durable import write_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import NoReturn

BOARD_FD_VARIABLE = "WAVEMESH_BOARD_FD"
REBOOT_EXIT_CODE = 64
BOARD_GONE_EXIT_CODE = 70
MAX_MESSAGE_BYTES = 200
PET = b"pet"
STEP = b"step "
GO = b"go"


def boot_record_path(directory: Path) -> Path:
    """Where the facts of the present boot are."""
    return directory / "run" / "boot.json"


def write_boot_record(directory: Path, record: BootRecord) -> None:
    """For the supervisor, before it starts the agent."""
    plain = to_plain(record)
    flat = {"boot_id": plain["boot_id"], **plain["boot"], "reset_reason": plain["reset_reason"]}
    write_file(boot_record_path(directory), json.dumps(flat).encode())


def read_boot_record(directory: Path) -> BootRecord:
    """The facts of the present boot; raises BootEnvironmentError."""
    path = boot_record_path(directory)
    try:
        flat = json.loads(path.read_bytes())
        boot = from_plain(Boot, {"slot": flat["slot"], "config_generation": flat["config_generation"]})
        return from_plain(BootRecord, {**flat, "boot": to_plain(boot)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{path}: no boot record ({error}): start the device with python -m device.supervisor"
        raise BootEnvironmentError(msg, path=str(path)) from error


class SimulatedPower:
    """The board that a supervisor plays."""

    def __init__(self, directory: Path, before_reset: Callable[[], None]) -> None:
        """``before_reset`` flushes what a reset would lose (the log); the channel comes from the environment."""
        self._directory = directory
        self._before_reset = before_reset
        descriptor = os.environ.pop(BOARD_FD_VARIABLE, "")
        self._socket = socket.socket(fileno=int(descriptor)) if descriptor else None
        self._go = asyncio.Event()
        self._stepping = asyncio.Lock()

    def attach(self) -> None:
        """Watch the channel; call it on the running loop."""
        if self._socket is not None:
            self._socket.setblocking(False)
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._receive)

    def boot(self) -> BootRecord:
        """The boot we are in."""
        return read_boot_record(self._directory)

    def pet(self) -> None:
        """Tell the watchdog; a full channel is as good as a pet on its way."""
        self._send(PET)

    async def step(self, name: str) -> None:
        """Announce a step and wait until the board lets it pass."""
        if self._socket is None:
            return
        async with self._stepping:
            self._go.clear()
            self._send(STEP + name.encode()[: MAX_MESSAGE_BYTES - len(STEP)])
            await self._go.wait()

    async def reboot(self) -> NoReturn:
        """Reset. Nothing is torn down first: a device must survive worse."""
        await self.step("reboot")
        self._before_reset()
        os._exit(REBOOT_EXIT_CODE)

    def stop(self) -> None:
        """The supervisor sees by itself that the agent ended."""

    def _send(self, message: bytes) -> None:
        if self._socket is None:
            return
        try:
            self._socket.send(message)
        except BlockingIOError:
            return
        except OSError:
            self._gone()

    def _receive(self) -> None:
        if self._socket is None:
            return
        try:
            message = self._socket.recv(MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if message == GO:
            self._go.set()
        elif not message:
            self._gone()

    def _gone(self) -> NoReturn:
        self._before_reset()
        os._exit(BOARD_GONE_EXIT_CODE)
