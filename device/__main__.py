"""The agent: ``python -m device --dir DIR``. Started by the supervisor of a simulated device, or by systemd."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from device.app import main as run
from wavemesh.errors import WavemeshError


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m device", description="The update agent of a device.")
    parser.add_argument("--dir", type=Path, required=True, help="directory of the device")
    arguments = parser.parse_args()
    code = 0
    try:
        asyncio.run(run(arguments.dir.resolve()))
    except* WavemeshError as group:
        for error in group.exceptions:
            sys.stderr.write(f"device: {getattr(error, 'reason', 'ERROR')}: {error}\n")
        code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
