"""A wrong wall clock for one node, put into its interpreter by PYTHONPATH; Python imports this module by its name.

``DIR/clock`` holds the seconds by which the product's clock is wrong from now on; looked at whenever it is read. TLS
and SQLite have clocks of their own and go on with the machine's: under libfaketime, which would mislead them too, the
event loops of gRPC spin.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

NODES = ("control", "superhub", "storehub", "device")


def mislead(file: Path) -> None:
    from wavemesh.runtime.clock import SystemClock

    def now(self: SystemClock) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=int(file.read_text()))

    SystemClock.now = now  # type: ignore[method-assign]


if sys.orig_argv[1:2] == ["-m"] and sys.orig_argv[2] in NODES:
    mislead(Path(sys.orig_argv[4], "clock"))
