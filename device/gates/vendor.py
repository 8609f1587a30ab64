"""Vendor hooks: gates of the device's maker or owner, as executables in the directory ``[board] gates``.

Rules. Each executable is a gate ``vendor:NAME`` of its own, looked at in the order of names, before flashing and before
the reboot, shut in as probes are. Exit code 0 passes; 1 fails, and what it wrote is the evidence; anything else cannot
tell, nor can a hang. Names are those of gates; ``.hidden`` files and backups (``~``) are no hooks. What is no hook by
mistake is not passed over: it cannot tell.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from device.gates.findings import bad, cannot_tell, good
from wavemesh.policy.gates import NAME_LENGTH_MOST, BadGateError, Gate, gate_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from device.gates.findings import Finding
    from device.probes import ProbeRunner

MAX_HOOKS = 16
FAILED_EXIT_CODE = 1
_REQUIRED = "exit code 0"


@dataclass(frozen=True, slots=True)
class Hook:
    """One file of the directory, as a gate; ``fault`` says why it cannot be run, empty if it can."""

    gate: str
    path: Path
    fault: str = ""


def survey(directory: Path | None) -> tuple[Hook, ...]:
    """What is in the directory, by name. Blocks; never raises."""
    if directory is None:
        return ()
    try:
        files = sorted(path for path in directory.iterdir() if path.name[0] != "." and path.name[-1] != "~")
    except OSError as error:
        return (Hook(_gate("hooks"), directory, error.strerror or str(error)),)
    if len(files) > MAX_HOOKS:
        return (Hook(_gate("hooks"), directory, f"{len(files)} hooks, at most {MAX_HOOKS} are run"),)
    return tuple(Hook(_gate(path.name), path, _fault(path)) for path in files)


async def ask_hook(hook: Hook, probes: ProbeRunner, extra: Mapping[str, str]) -> Finding:
    """Its word; ``extra`` adds to its environment."""
    if hook.fault:
        return cannot_tell(hook.gate, f"{hook.path}: {hook.fault}", _REQUIRED)
    ended = await probes.execute(shlex.quote(str(hook.path)), extra)
    if not ended.problem:
        return good(hook.gate)
    if ended.exit_code == FAILED_EXIT_CODE:
        return bad(hook.gate, ended.output or f"{hook.path}: no output", ended.problem, _REQUIRED)
    return cannot_tell(hook.gate, f"{hook.path}: {ended.problem}; output: {ended.output or 'none'}", _REQUIRED)


def _fault(path: Path) -> str:
    if _gate(path.name) != f"{Gate.VENDOR.value}:{path.name}":
        return "no name for a gate; use a-z, 0-9, '.', '_' and '-'"
    if not os.access(path, os.X_OK) or path.is_dir():
        return "not an executable file; chmod +x it, or move it away"
    return ""


def _gate(name: str) -> str:
    """The gate of that name, or of the nearest name that a gate may have."""
    try:
        return gate_name(Gate.VENDOR, name)
    except BadGateError:
        nearest = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("._-")[:NAME_LENGTH_MOST].strip("._-")
        return gate_name(Gate.VENDOR, nearest or "hook")
