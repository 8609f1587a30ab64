"""What breaks things: the WAN proxies and the devices' supervisors, told over their unix sockets, a line each."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from wavemesh.errors import LocalError, NotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    from lab.topology import Lab

_TIMEOUT_S = 30.0
_MAX_ANSWER_BYTES = 64 * 1024


class InjectorError(LocalError):
    """The proxy or the supervisor does not answer, or refuses."""

    reason = "LAB_INJECTOR"


def tell_wan(lab: Lab, verb: str, link: str) -> str:
    """``cut``, ``restore`` or ``blackhole`` a link: a store's name, or the region's for control's."""
    links = [name.removeprefix("wan/") for name in lab.ports if name.startswith("wan/")]
    if link not in links:
        raise NotFoundError(f"no WAN link {link!r}; the lab's are {', '.join(links)}")
    return _tell(lab.wan_dir / "control.sock", f"{verb} {link}")


def tell_supervisor(lab: Lab, device: str, line: str) -> str:
    """``power-cut``, ``power-cut-at STEP``, ``off``, ``on`` or ``status`` to a device's supervisor."""
    if device not in lab.devices:
        raise NotFoundError(f"no device {device!r}; the lab's are {', '.join(lab.devices)}")
    return _tell(lab.device_dir(device) / "run" / "supervisor.sock", line)


def _tell(path: Path, line: str) -> str:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_TIMEOUT_S)
            connection.connect(str(path))
            connection.sendall(line.encode() + b"\n")
            answer = b""
            while not answer.endswith(b"\n") and len(answer) < _MAX_ANSWER_BYTES:
                more = connection.recv(4096)
                if not more:
                    break
                answer += more
    except OSError as exc:
        raise InjectorError(f"{path}: {exc.strerror or exc}; is the lab up? `edgectl lab status`") from exc
    text = answer.decode(errors="replace").strip()
    if text.startswith(("error", "unknown")):
        raise InjectorError(f"{line}: {text}")
    return text
