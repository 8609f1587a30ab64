"""``python -m control --dir DIR``: run a control plane on the files in DIR; logs go to stderr; SIGTERM drains."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

from control.app import run as run_control
from wavemesh.errors import WavemeshError
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.grpc import run
from wavemesh.telemetry.loglines import log_to_stderr


def main() -> int:
    """Run until SIGTERM or SIGINT; exit status 1 when the files in DIR do not allow it."""
    parser = argparse.ArgumentParser(prog="python -m control", description="wavemesh control plane")
    parser.add_argument("--dir", type=Path, required=True, help="directory with config.toml, identity/, keys/, trust/")
    directory: Path = parser.parse_args().dir
    log_to_stderr()
    for chatty in ("alembic", "tuf"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        run(_main(directory))
    except WavemeshError as error:
        sys.stderr.write(f"control: {error.reason}: {error}\n")
        return 1
    return 0


async def _main(directory: Path) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await run_control(directory, SystemClock(), stop)


if __name__ == "__main__":
    sys.exit(main())
