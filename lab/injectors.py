"""What breaks things: the WAN proxies and the devices' supervisors, told over their unix sockets, a line each."""

from __future__ import annotations

import json
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from wavemesh.errors import LocalError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lab.topology import Lab

_TIMEOUT_S = 30.0
_MAX_ANSWER_BYTES = 64 * 1024


class InjectorError(LocalError):
    """The proxy or the supervisor does not answer, or refuses."""

    reason = "LAB_INJECTOR"


def tell_wan(lab: Lab, verb: str, link: str) -> dict[str, Any]:
    """``cut``, ``restore`` or ``blackhole`` a link: a store's name, or the region's for control's."""
    links = [name.removeprefix("wan/") for name in lab.ports if name.startswith("wan/")]
    if link not in links:
        raise NotFoundError(f"no WAN link {link!r}; the lab's are {', '.join(links)}")
    return tell(lab.wan_dir / "control.sock", f"{verb} {link}")


def tell_supervisor(lab: Lab, device: str, line: str) -> dict[str, Any]:
    """``power-cut``, ``power-cut-at STEP``, ``off``, ``on`` or ``status`` to a device's supervisor."""
    if device not in lab.devices:
        raise NotFoundError(f"no device {device!r}; the lab's are {', '.join(lab.devices)}")
    return tell(lab.device_dir(device) / "run" / "supervisor.sock", line)


@contextmanager
def _open_directory(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def tell(path: Path, line: str) -> dict[str, Any]:
    """Tell the socket at the path a line and return its answer; raises InjectorError."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, _open_directory(path.parent) as directory:
            connection.settimeout(_TIMEOUT_S)
            # Through the directory's descriptor, because a unix socket's address is bounded to 107 bytes.
            connection.connect(f"/proc/self/fd/{directory}/{path.name}")
            connection.sendall(line.encode() + b"\n")
            answer = b""
            while not answer.endswith(b"\n") and len(answer) < _MAX_ANSWER_BYTES:
                more = connection.recv(4096)
                if not more:
                    break
                answer += more
    except OSError as exc:
        raise InjectorError(f"{path}: {exc.strerror or exc}; is the lab up? `edgectl lab status`") from exc
    try:
        told = json.loads(answer)
    except ValueError as exc:
        raise InjectorError(f"{path}: not an answer: {answer[:100]!r}") from exc
    if not isinstance(told, dict) or "error" in told:
        raise InjectorError(f"{line}: {told}")
    return told
