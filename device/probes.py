"""Probes: real commands from signed release metadata, run so that they can do little harm.

Rules: the exact text goes to ``/bin/sh -c`` through ``device/probe_launcher.py``, which takes away network, privileges,
the agent's directory and every place to write, and ends whatever the probe leaves behind. It gets a fixed environment
(no inherited secrets), no standard input, a deadline and a bound on output. Exit code 0 passes; a probe that cannot be
contained although it must does not run, and its gate fails with what is missing.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from device.gates.findings import Finding, bad, good
from wavemesh.policy.gates import Gate, check_names, gate_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from device.config import ProbeContainment

MAX_OUTPUT_BYTES = 1024 * 1024
KEPT_OUTPUT_BYTES = 1024
LAST_WORDS_S = 1.0
# A program of its own, never a part of the agent.
_LAUNCHER = Path(__file__).resolve().with_name("probe_launcher.py")


@dataclass(frozen=True, slots=True)
class Containment:
    """How far a probe is shut in: as ``user`` where the agent is root; of ``hidden`` it sees ``shown`` alone."""

    mode: ProbeContainment
    user: str
    hidden: Path
    shown: Path

    def launcher(self, cpu_s: int) -> tuple[str, ...]:
        """What goes before the command."""
        program = (sys.executable, "-I", "-S", str(_LAUNCHER))
        return (*program, self.mode.value, self.user, str(cpu_s), str(self.hidden), str(self.shown))


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: ``problem`` is empty after exit code 0; no code if it had to be ended. The output's end."""

    exit_code: int | None
    problem: str
    output: str


@dataclass(frozen=True, slots=True)
class ProbeRunner:
    """How probes are run on this platform."""

    environment: Mapping[str, str]
    timeout_s: float
    containment: Containment

    async def run(self, gate: str, command: str, extra: Mapping[str, str] | None = None) -> Finding:
        """Run one probe; ``extra`` adds to the environment. The finding's evidence names command, end and output."""
        ended = await self.execute(command, extra or {})
        if not ended.problem:
            return good(gate)
        shown = f"output: {ended.output}" if ended.output else "no output"
        return bad(gate, f"{command!r}: {ended.problem}; {shown}", ended.problem, "exit code 0")

    async def execute(self, command: str, extra: Mapping[str, str]) -> Ended:
        """Run one command, shut in; what cannot be started did not end well, and raises nothing."""
        try:
            return await self._execute(command, extra)
        except OSError as error:  # no process, memory or descriptor left
            return Ended(None, f"could not be started: {error.strerror or error}", "")

    async def _execute(self, command: str, extra: Mapping[str, str]) -> Ended:
        output = _Output()
        reading, writing = os.pipe2(os.O_CLOEXEC)
        with os.fdopen(reading, "rb", buffering=0) as end:
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: output, end)
            try:
                process = await self._start(command, writing, extra)
                return await self._wait(process, output)
            finally:
                transport.close()

    async def _start(self, command: str, writing: int, extra: Mapping[str, str]) -> asyncio.subprocess.Process:
        try:
            return await asyncio.create_subprocess_exec(
                *self.containment.launcher(math.ceil(self.timeout_s) + 1),
                command,
                env={**self.environment, **extra},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                start_new_session=True,
            )
        finally:
            os.close(writing)

    async def _wait(self, process: asyncio.subprocess.Process, output: _Output) -> Ended:
        """How it ended; its process group is gone afterwards."""
        output.too_much = lambda: _kill_group(process.pid)
        try:
            async with asyncio.timeout(self.timeout_s):
                await process.wait()
        except TimeoutError:
            return Ended(None, f"did not end within {self.timeout_s:g} s", output.shown())
        finally:
            _kill_group(process.pid)
            await process.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await output.ended.wait()
        if output.total_bytes > MAX_OUTPUT_BYTES:
            return Ended(None, f"wrote more than {MAX_OUTPUT_BYTES} bytes", output.shown())
        code = process.returncode
        return Ended(code, f"exit code {code}" if code else "", output.shown())


class _Output(asyncio.Protocol):
    """Keeps the last bytes of what a probe writes; a probe that writes too much is killed."""

    def __init__(self) -> None:
        self._tail = b""
        self.total_bytes = 0
        self.ended = asyncio.Event()
        self.too_much: Callable[[], None] = _nothing

    def data_received(self, data: bytes) -> None:
        """Count, and keep the end."""
        self.total_bytes += len(data)
        self._tail = (self._tail + data)[-KEPT_OUTPUT_BYTES:]
        if self.total_bytes > MAX_OUTPUT_BYTES:
            self.too_much()

    def connection_lost(self, _exc: Exception | None) -> None:
        """All writers are gone, or we stopped listening."""
        self.ended.set()

    def shown(self) -> str:
        """The output for the evidence."""
        return self._tail.decode(errors="replace").strip()


def _nothing() -> None:
    """Before there is a probe to kill."""


def _kill_group(group_id: int) -> None:
    try:
        os.killpg(group_id, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def peripheral_gates(commands: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Each peripheral check with its gate: ("peripheral:scanner", "lsusb | grep scanner")."""
    names = check_names(commands)
    return tuple((gate_name(Gate.PERIPHERAL, name), command) for name, command in zip(names, commands, strict=True))


def vendor_gates(commands: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Each vendor probe with its gate."""
    names = check_names(commands)
    return tuple((gate_name(Gate.VENDOR, name), command) for name, command in zip(names, commands, strict=True))
