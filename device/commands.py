"""Runs a command of the board's own, from the device's configuration. Probes come from a release and run contained."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_OUTPUT_BYTES = 64 * 1024
SHOWN_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: ``problem`` is empty if well."""

    output: str
    problem: str = ""


async def run_command(command: Sequence[str], timeout_s: float) -> Ended:
    """Run it, without input, for as long as it may take; never raises for what the command does."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as error:
        return Ended("", f"{command[0]}: {error.strerror}")
    try:
        async with asyncio.timeout(timeout_s):
            output = await _read(process)
            code = await process.wait()
    except TimeoutError:
        return Ended("", f"{' '.join(command)} did not end within {timeout_s:g} s")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = output.decode(errors="replace").strip()
    return Ended(text, f"{' '.join(command)} ended with {code}: {text[-SHOWN_CHARACTERS:]}" if code else "")


async def _read(process: asyncio.subprocess.Process) -> bytes:
    """The beginning of the output; the rest is read and forgotten."""
    kept = b""
    while process.stdout is not None and (piece := await process.stdout.read(MAX_OUTPUT_BYTES)):
        kept = (kept + piece)[:MAX_OUTPUT_BYTES]
    return kept
