"""Firmware, board and watchdog of a simulated device: ``python -m device.supervisor --dir DIR``.

It boots what the boot environment says (device/firmware.py) and runs the agent, ``python -m device --dir DIR``, as its
child: a reboot is a new process, asked for by the exit code ``REBOOT_EXIT_CODE``. When it resets is decided by
``device/resets.py``; this module performs that. SIGTERM ends the agent in order, so the next start is ``power-on``; a
start after anything else is ``power-loss``.

The unix socket ``DIR/run/supervisor.sock`` takes one line per connection and answers one line of JSON: ``status``,
``power-cut`` (kill, lose what was not flushed, boot again), ``power-cut-at STEP`` (the same when the agent announces
that step; it waits there for leave, so the cut is exact), ``off``, ``on``. Steps: ``state:STATE`` after each persisted
transition, ``staging:N%``, ``armed``, ``trial``, ``committed``, ``reboot``; ``swap`` is ``trial``; ``staging:50%``
matches the first one at or past it.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from device.backend import open_slots
from device.board import BOARD_FD_VARIABLE, GO, MAX_MESSAGE_BYTES, PET, REBOOT_EXIT_CODE, STEP
from device.bootenv import ResetReason
from device.config import load_device_config
from device.firmware import Firmware
from device.resets import Board, BootUp, End, KillAgent, LetPass, LoseUnflushed, StartAgent
from device.sockets import bind_unix
from wavemesh.errors import LocalError, WavemeshError
from wavemesh.runtime.durable import Disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from device.platform import BootRecord
    from device.resets import Action

STOP_GRACE_S = 10.0
MAX_COMMAND_BYTES = 200
# What staging may have written and not marked: steps being read back, flushed and written, and what arrived meanwhile.
UNFLUSHED_STEPS, UNFLUSHED_BYTES = 3, 8 * 1024 * 1024
# Names that the agent's environment takes over; nothing else of ours is any of its business.
_INHERITED = ("PYTHONPATH", "PYTHONHOME", "LANG", "TZ", "TMPDIR", "COVERAGE_PROCESS_START")


class AlreadyRunningError(LocalError):
    """Another supervisor plays this device."""

    reason = "ALREADY_RUNNING"


class Supervisor:
    """One board. Single-threaded: everything happens in ``run``."""

    def __init__(self, directory: Path) -> None:
        """Read the configuration and open the control socket; raises LocalError."""
        self._directory = directory.resolve()
        self._config = load_device_config(self._directory)
        self._run = self._directory / "run"
        self._run.mkdir(exist_ok=True)
        self._lock = (self._run / "supervisor.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            msg = f"{self._directory}: a supervisor plays this device already"
            raise AlreadyRunningError(msg) from error
        lossy_bytes = UNFLUSHED_STEPS * self._config.staging.fsync_step_bytes + UNFLUSHED_BYTES
        system = open_slots(self._directory, self._config, Disk())
        self._firmware = Firmware(self._directory, system, lossy_bytes)
        self._selector = selectors.DefaultSelector()
        self._agent: subprocess.Popen[bytes] | None = None
        self._agent_descriptor = -1
        self._channel: socket.socket | None = None
        self._services = system.services
        self._record: BootRecord | None = None
        self._board = Board(self._config.board.watchdog_s, self._config.board.boot_timer_s)
        self._stopping = False

    def run(self) -> int:
        """Play until SIGTERM or SIGINT; returns the exit code."""
        self._watch_signals()
        self._listen()
        self._perform(self._board.power_up(self._firmware.first_reason(), time.monotonic()))
        while not self._stopping:
            due_s = self._board.due_s
            for key, _ in self._selector.select(None if due_s is None else max(0.0, due_s - time.monotonic())):
                handler: Callable[[], None] = key.data
                handler()
            self._perform(self._board.due(time.monotonic()))
        self._stop_agent()
        self._stop_services()
        self._firmware.shut_down()
        return 0

    # --- what the board does -----------------------------------------------------------------------------------------

    def _perform(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case KillAgent():
                    self._kill_agent()
                case LoseUnflushed():
                    self._record = None
                    self._stop_services()
                    self._firmware.lose_unflushed()
                case BootUp(reason):
                    self._boot(reason)
                case StartAgent():
                    self._start_agent()
                case LetPass():
                    self._let_pass()

    def _boot(self, reason: ResetReason) -> None:
        self._record = self._firmware.boot(reason)
        if self._services is not None:
            self._services.start(self._record.boot.slot)
        if self._firmware.is_bootable(self._record.boot.slot):
            self._start_agent()

    def _stop_services(self) -> None:
        if self._services is not None:
            self._services.stop()

    def _let_pass(self) -> None:
        if self._channel is not None:
            # An agent that was killed since then does not hear it any more; its pidfd says so.
            with suppress(OSError):
                self._channel.send(GO)

    # --- the agent ---------------------------------------------------------------------------------------------------

    def _start_agent(self) -> None:
        if self._record is None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            self._agent = subprocess.Popen(
                [sys.executable, "-m", "device", "--dir", str(self._directory)],
                env=self._environment(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
            )
        self._channel = ours
        self._selector.register(ours, selectors.EVENT_READ, self._receive)
        self._agent_descriptor = os.pidfd_open(self._agent.pid)
        agent = self._agent
        self._selector.register(self._agent_descriptor, selectors.EVENT_READ, lambda: self._agent_ended(agent))

    def _environment(self, board_descriptor: int) -> dict[str, str]:
        kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        path = f"{self._config.board.hardware / 'bin'}:{self._config.board.path}"
        return kept | {"PATH": path, BOARD_FD_VARIABLE: str(board_descriptor)}

    def _agent_ended(self, agent: subprocess.Popen[bytes]) -> None:
        if agent is not self._agent:
            return  # news of one that was replaced in the meantime
        end = End.CRASH
        if self._reap() == REBOOT_EXIT_CODE:
            end = End.REBOOT
        elif self._record is not None and self._firmware.is_trial(self._record.boot):
            end = End.CRASH_ON_TRIAL
        self._perform(self._board.agent_ended(end, time.monotonic()))

    def _kill_agent(self) -> None:
        if self._agent is not None:
            self._agent.kill()
            self._reap()

    def _stop_agent(self) -> None:
        if self._agent is None:
            return
        self._agent.terminate()
        try:
            self._agent.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            self._agent.kill()
        self._reap()

    def _reap(self) -> int:
        self._close_channel()
        agent, self._agent = self._agent, None
        if agent is None:
            return 0
        self._selector.unregister(self._agent_descriptor)
        os.close(self._agent_descriptor)
        return agent.wait()

    def _close_channel(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            self._selector.unregister(channel)
            channel.close()

    # --- the board channel -------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        if self._channel is None:
            return
        try:
            message = self._channel.recv(MAX_MESSAGE_BYTES)
        except (BlockingIOError, ConnectionResetError):
            return
        if message == PET:
            self._board.petted(time.monotonic())
        elif message.startswith(STEP):
            self._on_step(message.removeprefix(STEP).decode(errors="replace"))
        elif not message:
            self._close_channel()  # the agent is ending: its pidfd tells how, else the watchdog does

    def _on_step(self, step: str) -> None:
        if self._record is not None:
            self._firmware.step(self._record, step)
            self._perform(self._board.stepped(step, time.monotonic()))

    # --- the power injector ------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        listener = bind_unix(self._run / "supervisor.sock")
        listener.listen(8)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, lambda: self._accept(listener))

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        with connection:
            connection.settimeout(1.0)
            try:
                command = connection.recv(MAX_COMMAND_BYTES).decode(errors="replace").strip()
                connection.sendall(json.dumps(self._command(command)).encode() + b"\n")
            except OSError:
                return

    def _command(self, command: str) -> dict[str, object]:
        verb, _, argument = command.partition(" ")
        now_s = time.monotonic()
        if verb == "power-cut":
            self._perform(self._board.power_cut(now_s))
        elif verb == "off":
            self._perform(self._board.power_off())
        elif verb == "on" and not self._board.is_on:
            self._perform(self._board.power_up(ResetReason.POWER_LOSS, now_s))
        elif verb not in {"status", "on"} and not (verb == "power-cut-at" and self._board.cut_at(argument)):
            return {"ok": False, "error": "use status, power-cut, power-cut-at STEP (at most 16), off, on"}
        return {"ok": True, **self._status()}

    def _status(self) -> dict[str, object]:
        record = self._record
        return {
            "power": "off" if record is None else "on",
            "boot_id": "" if record is None else record.boot_id,
            "slot": "" if record is None else record.boot.slot.value,
            "reset_reason": "" if record is None else record.reset_reason.value,
            "on_trial": record is not None and self._firmware.is_trial(record.boot),
            "agent_pid": None if self._agent is None else self._agent.pid,
            "last_step": self._board.last_step,
            "triggers": list(self._board.triggers),
        }

    # --- signals -----------------------------------------------------------------------------------------------------

    def _watch_signals(self) -> None:
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        receiver.setblocking(False)
        signal.set_wakeup_fd(sender.fileno())
        self._signal_sockets = (receiver, sender)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop())
        self._selector.register(receiver, selectors.EVENT_READ, lambda: self._drain(receiver))

    def _stop(self) -> None:
        self._stopping = True

    def _drain(self, receiver: socket.socket) -> None:
        receiver.recv(64)


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m device.supervisor", description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True, help="directory of the device")
    arguments = parser.parse_args()
    try:
        return Supervisor(arguments.dir).run()
    except WavemeshError as error:
        sys.stderr.write(f"device.supervisor: {error.reason}: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
