"""Standing before a device: its agent's own socket, with no network, hub or identity; device/local.py has the lines.

A rollback reboots the device, so the socket goes away and comes back; whoever asked is shown what came of it.
"""

from __future__ import annotations

import json
import os
import socket
import time
from typing import TYPE_CHECKING, Any

from edgectl.exits import UsageError
from wavemesh.errors import ConflictError, ForbiddenError, LinkDownError

if TYPE_CHECKING:
    from pathlib import Path

MAX_ANSWER_BYTES = 64 * 1024
ANSWER_TIMEOUT_S = 10.0
# It reads a whole slot, runs a probe and loads a kernel.
REHEARSAL_TIMEOUT_S = 600.0
LOOK_INTERVAL_S = 0.3
_FAILED = "rollback failed"
_ON_ITS_WAY = frozenset({"ROLLING_BACK"})


def look(path: Path) -> dict[str, Any]:
    """Where the device is; raises LinkDownError, ForbiddenError, ConflictError."""
    return _ask(path, "status")


def roll_back(path: Path, verb: str, reason: str) -> None:
    """Ask for a rollback; ``verb`` is the line's. Raises ConflictError if nothing will come of it, and as ``look``."""
    if not reason.strip() or "\n" in reason:
        raise UsageError("--reason: one line that says why")
    try:
        _ask(path, f"{verb} {reason}")
    except ConnectionResetError:
        return  # it was in a trial, and has reset itself already


def outcome(path: Path, timeout_s: float) -> tuple[dict[str, Any], bool]:
    """Where the device is once it came to rest, and whether it went back; raises LinkDownError when it does not."""
    until_s = time.monotonic() + timeout_s
    while True:
        try:
            status = look(path)
        except (LinkDownError, ConnectionResetError):
            status = {}
        if status and status["state"] not in _ON_ITS_WAY:
            return status, not status["evidence"].startswith(_FAILED)
        if time.monotonic() > until_s:
            where = f"it is {status['state']}" if status else "its agent does not answer"
            msg = f"{path}: the device did not come to rest within {timeout_s:g} s: {where}; it goes on by itself"
            raise LinkDownError(msg)
        time.sleep(LOOK_INTERVAL_S)


def rehearse(path: Path) -> dict[str, Any]:
    """What came of a rehearsal of what is staged; raises ConflictError if nothing is, and as ``look``."""
    try:
        return _ask(path, "rehearse", REHEARSAL_TIMEOUT_S)
    except ConnectionResetError as error:
        msg = f"{path}: the agent ended meanwhile; what is staged is as it was: rehearse again"
        raise LinkDownError(msg) from error


def rehearsal_lines(answer: dict[str, Any]) -> list[str]:
    """A rehearsal, for people."""
    verdict = "passes" if answer["passes"] else "fails"
    what = f"{answer['release'] or 'the config'} on slot {answer['slot']}"
    checks = (f"{'ok' if one['passes'] else 'FAILS':5} {one['name']}: {one['detail']}" for one in answer["checks"])
    return [f"{what} {verdict}; nothing was committed", *(f"  {check}" for check in checks)]


def lines(status: dict[str, Any]) -> list[str]:
    """A device's own word of itself, for people."""
    wave = f" in wave {status['wave_id']}" if status["wave_id"] else ""
    runs = f"slot {status['slot']} runs {status['firmware_version']}, config {status['config_version'] or 'none'}"
    found = [f"{status['device'].rsplit('/', 1)[-1]}: {status['state'].lower()}{wave}; {runs}"]
    why = ": ".join(part for part in (status["gate"], status["evidence"]) if part)
    if why:
        found.append(f"  {why}")
    previous = f"slot {status['previous_slot']}" if status["previous_slot"] else "nothing"
    packed = f", packed {status['packed_version']}" if status["packed_version"] else ""
    found.append(f"  goes back to: {previous}{packed}")
    if status["hub_refusal"]:
        found.append(f"  its hub and it cannot speak: {status['hub_refusal']}")
    return found


def _ask(path: Path, line: str, timeout_s: float | None = None) -> dict[str, Any]:
    """One line, one answer; ConnectionResetError when the agent ended meanwhile."""
    with _connected(path) as channel:
        patience_s = timeout_s or ANSWER_TIMEOUT_S
        channel.settimeout(patience_s)
        try:
            channel.sendall(line.encode() + b"\n")
            text = _read(channel)
        except TimeoutError as error:
            raise LinkDownError(f"{path}: the agent did not answer within {patience_s:g} s") from error
    if not text:
        raise ConnectionResetError
    answer: dict[str, Any] = json.loads(text)
    if not answer["ok"]:
        raise ConflictError(answer["error"])
    return answer


def _connected(path: Path) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # By the directory's descriptor: an address has room for 107 bytes only.
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            channel.connect(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
    except PermissionError as error:
        channel.close()
        raise ForbiddenError(f"{path} is for the device's own user: become that user, or root") from error
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
        channel.close()
        msg = f"no agent listens at {path}: is the device on, and is this its DIR/run/agent.sock?"
        raise LinkDownError(msg) from error
    return channel


def _read(channel: socket.socket) -> bytes:
    text = b""
    while not text.endswith(b"\n") and len(text) < MAX_ANSWER_BYTES:
        piece = channel.recv(4096)
        if not piece:
            break
        text += piece
    return text
