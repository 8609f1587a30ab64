"""What every benchmark prints: a table for people, one JSON object for programs, and the machine it ran on.

A speed counts only as a ratio against a floor or a peer of the same run. A missed target shows and exits 0; a wrong
result is ``WrongResultError`` and exits 1.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TextIO

_PACKAGES = (
    *("wavemesh", "grpcio", "protobuf", "cryptography", "uvloop", "aiosqlite"),
    *("hdiffpatch", "lz4", "pyfastcdc", "zstandard"),
)


class WrongResultError(Exception):
    """What was measured did not do what it should have; its speed means nothing."""


@dataclass(frozen=True, slots=True)
class Target:
    """A figure with its bound, for the table."""

    name: str
    value: float
    bound: str
    is_met: bool


@dataclass(frozen=True, slots=True)
class Result:
    """A benchmark's keys, and what to say about them."""

    keys: dict[str, object]
    targets: tuple[Target, ...]


def write(result: Result, destination: str | None) -> None:
    """Print the table, and the JSON object to a file ("-" for standard output; the table then goes to stderr)."""
    _table(result, sys.stderr if destination == "-" else sys.stdout)
    if destination is None:
        return
    text = json.dumps({**result.keys, **surroundings()}, indent=2) + "\n"
    if destination == "-":
        sys.stdout.write(text)
    else:
        Path(destination).write_text(text, encoding="utf-8")


def surroundings() -> dict[str, object]:
    """Machine, versions and commit."""
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    machine = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "memory_gib": round(pages * page_bytes / 2**30, 1),
        "load": os.getloadavg()[0],
    }
    return {"machine": machine, "versions": _versions(), "commit": _commit()}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _commit() -> str:
    git = shutil.which("git")
    if git is None:
        return "unknown"
    root = Path(__file__).parent
    found = subprocess.run([git, "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def _table(result: Result, out: TextIO) -> None:
    width = max(len(name) for name in (*result.keys, *(target.name for target in result.targets)))
    for name, value in result.keys.items():
        if isinstance(value, (int, float, str)):
            out.write(f"{name:<{width}}  {value}\n")
    for target in result.targets:
        verdict = "met" if target.is_met else "MISSED"
        out.write(f"{target.name:<{width}}  {target.value:.2f}  target {target.bound}: {verdict}\n")
