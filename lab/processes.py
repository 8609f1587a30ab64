"""The lab's processes: started detached, found again from another shell, stopped, killed, restarted.

Each process leads its own session and process group, so that a signal reaches what it started (a device's supervisor
and its agent) and closing a terminal reaches none. ``DIR/run/NAME.json`` holds the process id with the start time the
kernel gave it, so that a recycled id is never taken for ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wavemesh.errors import LocalError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lab.topology import Lab

STOP_GRACE_S = 15.0
_POLL_S = 0.05
_STARTTIME_FIELD = 19  # of /proc/PID/stat, counted after the command's closing parenthesis
_ROOT = Path(__file__).resolve().parent.parent


class ProcessError(LocalError):
    """A process of the lab did not start or did not get ready."""

    reason = "LAB_PROCESS"


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the lab as found now; ``pid`` is None when it does not run."""

    name: str
    pid: int | None
    log: Path

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self.pid is not None


def commands(lab: Lab) -> dict[str, tuple[str, ...]]:
    """Every process by name, as a module and its arguments, in the order they start."""
    tiers = {
        "origin": (
            *("lab.origin", "--dir", str(lab.origin_dir / "data"), "--listen", lab.address("origin")),
            *("--identity", str(lab.origin_dir / "identity"), "--log", str(lab.origin_dir / "access.jsonl")),
        ),
        "wan": ("lab.wan", "--config", str(lab.wan_dir / "config.toml")),
        "control": ("control", "--dir", str(lab.control_dir)),
        "superhub": ("superhub", "--dir", str(lab.superhub_dir)),
    }
    tiers |= {store: ("storehub", "--dir", str(lab.store_dir(store))) for store in lab.stores}
    return tiers | {device: ("device.supervisor", "--dir", str(lab.device_dir(device))) for device in lab.devices}


def find(lab: Lab, name: str) -> Process:
    """The process of that name as it is now."""
    log = lab.run_dir / f"{name}.log"
    try:
        record = json.loads((lab.run_dir / f"{name}.json").read_text(encoding="utf-8"))
        pid, started = int(record["pid"]), str(record["started"])
    except (OSError, ValueError, KeyError):
        return Process(name, None, log)
    return Process(name, pid if _start_time(pid) == started else None, log)


def states(lab: Lab) -> list[Process]:
    """All processes as they are now."""
    return [find(lab, name) for name in commands(lab)]


def start(lab: Lab, names: Sequence[str]) -> None:
    """Start those that do not run."""
    lab.run_dir.mkdir(parents=True, exist_ok=True)
    known = commands(lab)
    for name in names:
        if find(lab, name).running:
            continue
        with (lab.run_dir / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*lab.launcher(name), sys.executable, "-m", *known[name]],
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        process.returncode = 0  # it is detached: found again by its file, never through this object, which would warn
        record = {"pid": process.pid, "started": _start_time(process.pid)}
        (lab.run_dir / f"{name}.json").write_text(json.dumps(record) + "\n", encoding="utf-8")


def stop_all(lab: Lab) -> list[str]:
    """Stop everything, children before parents; returns the names of those that ran."""
    running = [process.name for process in states(lab) if process.running]
    stop(lab, [name for name in lab.devices if name in running])
    stop(lab, [name for name in reversed(running) if name not in lab.devices])
    return running


def stop(lab: Lab, names: Sequence[str]) -> None:
    """Ask processes to end (SIGTERM) and kill those that have not after STOP_GRACE_S."""
    for name in names:
        send(find(lab, name), signal.SIGTERM)
    try:
        wait_until(lambda: not any(find(lab, name).running for name in names), STOP_GRACE_S, "processes to end")
    except ProcessError:
        kill(lab, names)


def kill(lab: Lab, names: Sequence[str]) -> None:
    """Kill processes and what they started, at once (SIGKILL)."""
    for name in names:
        send(find(lab, name), signal.SIGKILL)
    wait_until(lambda: not any(find(lab, name).running for name in names), STOP_GRACE_S, "processes to be gone")


def wait_until(holds: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Look again until it holds; raises ProcessError after the timeout."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise ProcessError(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(_POLL_S)


def log_tail(log: Path, lines: int = 5) -> str:
    """The last lines of a process's log, for an error message."""
    try:
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def send(process: Process, number: signal.Signals) -> None:
    """Send a signal to a process and what it started, if it runs."""
    if process.pid is None:
        return
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def _start_time(pid: int) -> str | None:
    """When the kernel says the process started; None when it does not run, a zombie included (which is reaped)."""
    with contextlib.suppress(ChildProcessError):  # started by another process of the lab
        os.waitpid(pid, os.WNOHANG)
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[_STARTTIME_FIELD]
