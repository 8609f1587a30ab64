"""What is wrong with one node, put into its interpreter by PYTHONPATH; Python imports this module by its name.

*Its clock.*
``DIR/clock`` holds the seconds by which the product's clock is wrong from now on; looked at whenever it is read. TLS
and SQLite have clocks of their own and go on with the machine's: under libfaketime, which would mislead them too, the
event loops of gRPC spin.

*Its release.* The image that a device's slot holds says by its first bytes what it does to the device: one has no
driver for the scanner, so that the slot shows none while it runs; one sends everything to a proxy that is not there, so
that gRPC reaches nobody.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

NODES = ("control", "superhub", "storehub", "device")
USB_HUB = "Bus 001 Device 001: ID 1d6b:0002 Linux Foundation 2.0 root hub\n"
USB_SCANNER = "Bus 001 Device 004: ID 05e0:1200 Symbol Technologies Bar Code scanner\n"
NOBODY = "http://127.0.0.1:9"


def mislead(file: Path) -> None:
    from wavemesh.runtime.clock import SystemClock

    def now(self: SystemClock) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=int(file.read_text()))

    SystemClock.now = now  # type: ignore[method-assign]


def regress(device: Path) -> None:
    for slot in ("A", "B") if (device / "hardware" / "usb").exists() else ():
        shown = device / "hardware" / "usb" / f"{slot}.txt"
        # Whole at each moment: a probe may read it now.
        temporary = shown.with_suffix(".tmp")
        temporary.write_text(USB_HUB + ("" if mark(device, slot) == "no-scanner" else USB_SCANNER))
        temporary.replace(shown)
    record = device / "run" / "boot.json"
    if record.exists() and mark(device, json.loads(record.read_text())["slot"]) == "no-network":
        os.environ["grpc_proxy"] = NOBODY  # noqa: SIM112  # as gRPC spells it


def mark(device: Path, slot: str) -> str:
    try:
        with (device / "slots" / f"{slot}.img").open("rb") as file:
            return file.read(16).rstrip(b"\0").decode(errors="replace")
    except FileNotFoundError:
        return ""


if sys.orig_argv[1:2] == ["-m"] and sys.orig_argv[2] in NODES:
    mislead(Path(sys.orig_argv[4], "clock"))
    if sys.orig_argv[2] == "device":
        regress(Path(sys.orig_argv[4]))
