"""Unix sockets at paths of any length: an address has room for 107 bytes only, a device's directory may be deeper."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def bind_unix(path: Path) -> socket.socket:
    """A stream socket bound at the path, in place of one left behind; reached through the directory's descriptor."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        listener.bind(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)
    return listener
