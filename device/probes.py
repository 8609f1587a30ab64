"""Probes: real commands from signed release metadata, run so that they can do little harm.

Rules: the exact text goes to ``/bin/sh -c`` in a session of its own, with a fixed environment (no inherited secrets),
no standard input, a deadline and a bound on output; when it ends, by itself or not, its whole process group is killed.
Exit code 0 passes. ``containment`` is put before the shell, where a platform can run it unprivileged and without
network (systemd-run, bwrap); it is empty for now.
"""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from device.gates import Finding, Verdict
from wavemesh.policy.gates import Gate, check_names, gate_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_OUTPUT_BYTES = 1024 * 1024
KEPT_OUTPUT_BYTES = 1024
_READ_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class ProbeRunner:
    """How probes are run on this platform."""

    environment: Mapping[str, str]
    timeout_s: float
    containment: Sequence[str] = ()

    async def run(self, gate: str, command: str, extra: Mapping[str, str] | None = None) -> Finding:
        """Run one probe; ``extra`` adds to the environment. The finding's evidence names command, end and output."""
        process = await asyncio.create_subprocess_exec(
            *self.containment,
            "/bin/sh",
            "-c",
            command,
            env={**self.environment, **(extra or {})},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        output = _Output(process)
        problem = ""
        try:
            async with asyncio.timeout(self.timeout_s), asyncio.TaskGroup() as group:
                group.create_task(output.collect())
                await process.wait()
                # What the shell left behind would keep the pipe open.
                _kill_group(process.pid)
        except TimeoutError:
            problem = f"did not end within {self.timeout_s:g} s"
        finally:
            _kill_group(process.pid)
            await process.wait()
        if output.total_bytes > MAX_OUTPUT_BYTES:
            problem = f"wrote more than {MAX_OUTPUT_BYTES} bytes"
        if not problem and process.returncode:
            problem = f"exit code {process.returncode}"
        if not problem:
            return Finding(gate, Verdict.GOOD)
        return Finding(gate, Verdict.BAD, f"{command!r}: {problem}{output.shown()}")


class _Output:
    """The last bytes of what a probe writes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._tail = b""
        self.total_bytes = 0

    async def collect(self) -> None:
        """Read to the end, or kill the probe once it wrote too much."""
        stream = self._process.stdout
        while stream is not None and (piece := await stream.read(_READ_BYTES)):
            self.total_bytes += len(piece)
            self._tail = (self._tail + piece)[-KEPT_OUTPUT_BYTES:]
            if self.total_bytes > MAX_OUTPUT_BYTES:
                _kill_group(self._process.pid)
                return

    def shown(self) -> str:
        """The output for the evidence."""
        text = self._tail.decode(errors="replace").strip()
        return f"; output: {text}" if text else "; no output"


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
