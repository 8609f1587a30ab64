"""Faults of an agent under test, put into its interpreter by PYTHONPATH; Python imports this module by its name.

``DIR/hardware/dies-on``  the slots on which the agent ends before it does anything.
``DIR/hardware/clock``    seconds by which the wall clock is wrong from now on; looked at whenever the agent reads it.
SIGUSR1                   the event loop is blocked, while the process and its other threads go on.
SIGUSR2                   ``DIR/run/modules`` tells what is imported, a name a line.

What only an extra installs is hidden, as on a device.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def spoil(directory: Path) -> None:
    from wavemesh.runtime.clock import SystemClock

    slot = json.loads((directory / "run" / "boot.json").read_text())["slot"]
    if slot in text(directory / "hardware" / "dies-on").split():
        os._exit(1)

    def now(self: SystemClock) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=float(text(directory / "hardware" / "clock") or 0))

    SystemClock.now = now  # type: ignore[method-assign]
    signal.signal(signal.SIGUSR1, lambda *_: threading.Event().wait())
    signal.signal(signal.SIGUSR2, lambda *_: tell(directory / "run" / "modules"))


def tell(path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text("\n".join(name for name, module in sys.modules.items() if module is not None))
    temporary.rename(path)


if sys.orig_argv[1:4] == ["-m", "device", "--dir"]:
    sys.modules["pkcs11"] = None  # type: ignore[assignment]
    spoil(Path(sys.orig_argv[4]))
