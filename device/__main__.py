"""The agent: ``python -m device --dir DIR``. Started by the supervisor of a simulated device, or by systemd."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from device.app import main as run
from wavemesh.errors import WavemeshError

if TYPE_CHECKING:
    from collections.abc import Iterator


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m device", description="The update agent of a device.")
    parser.add_argument("--dir", type=Path, required=True, help="directory of the device")
    arguments = parser.parse_args()
    code = 0
    try:
        asyncio.run(run(arguments.dir.resolve()))
    except* WavemeshError as group:
        for error in _errors(group):
            sys.stderr.write(f"device: {getattr(error, 'reason', 'ERROR')}: {error}\n")
        code = 1
    return code


def _errors(group: BaseExceptionGroup[WavemeshError]) -> Iterator[BaseException]:
    """Those that are no groups: a task group within another wraps what ends it twice."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _errors(error)
        else:
            yield error


if __name__ == "__main__":
    ended = main()
    sys.stderr.flush()
    # gRPC has a thread for each channel whose key signs elsewhere, in a TPM, and the interpreter would wait for those
    # that something still holds, for ever. What has to be durable is so by now.
    os._exit(ended)
