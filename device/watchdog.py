"""The kernel's watchdog device, ``/dev/watchdog``: it resets the board unless it is written to in time.

Opening it starts it. A write pets it; closing it goes on counting unless an ``V`` was written last (magic close), which
a kernel with ``nowayout`` does not obey either. See Documentation/watchdog/watchdog-api.rst.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from wavemesh.errors import LocalError

if TYPE_CHECKING:
    from pathlib import Path

_SETTIMEOUT, _GETTIMEOUT = 0xC0045706, 0x80045707
_PET, _MAGIC_CLOSE = b"\0", b"V"
_INT = struct.Struct("i")
# A driver without these; a file that stands in for one.
_UNSUPPORTED = {errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL}


class WatchdogError(LocalError):
    """The watchdog device cannot be used as configured."""

    reason = "WATCHDOG"


class Watchdog:
    """One running watchdog."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        """Open and so start it; raises WatchdogError, also when its hardware cannot wait at least half that long."""
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            msg = f"{path}: {error.strerror}; who else holds it? systemd does with RuntimeWatchdogSec="
            raise WatchdogError(msg) from error
        granted_s = self._number(_SETTIMEOUT, round(timeout_s)) or self._number(_GETTIMEOUT, 0)
        if granted_s is not None and granted_s < timeout_s / 2:
            msg = f"{path} resets after {granted_s} s, wanted are {timeout_s:g} s: set [board] watchdog_s = {granted_s}"
            raise WatchdogError(msg)

    def pet(self) -> None:
        """The board is in good hands; a device that takes no pet will reset it, and there is nothing else to do."""
        with suppress(OSError):
            os.write(self._descriptor, _PET)

    def disarm(self) -> None:
        """Stop it, for an orderly end."""
        with suppress(OSError):
            os.write(self._descriptor, _MAGIC_CLOSE)
        os.close(self._descriptor)

    def _number(self, request: int, argument: int) -> int | None:
        """A request that gives and takes a number; None where the driver does not know it."""
        buffer = bytearray(_INT.pack(argument))
        try:
            fcntl.ioctl(self._descriptor, request, buffer)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return None
            msg = f"{self._path}: {error.strerror}"
            raise WatchdogError(msg) from error
        return int(_INT.unpack(buffer)[0])
