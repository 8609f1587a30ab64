"""A wrong wall clock for one node, put into its interpreter by PYTHONPATH; Python imports this module by its name.

A node starts again under libfaketime, which adds the seconds that ``DIR/clock`` holds to its wall clock, TLS and SQLite
included, and leaves the monotonic clock alone. Not by LD_PRELOAD from outside: a board gives its agent few variables.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

NODES = ("control", "superhub", "storehub", "device")


def mislead(library: Path) -> None:
    settings = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(Path(sys.orig_argv[4], "clock")),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }
    os.execve(sys.executable, sys.orig_argv, os.environ | settings)  # noqa: S606  # no shell is wanted


if sys.orig_argv[1:2] == ["-m"] and sys.orig_argv[2] in NODES and "LD_PRELOAD" not in os.environ:
    for path in Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"):
        mislead(path)
