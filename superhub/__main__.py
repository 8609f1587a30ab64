"""``python -m superhub --dir DIR``: run the super hub of a directory."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from superhub.app import main
from wavemesh.errors import LocalError
from wavemesh.runtime.grpc import run
from wavemesh.telemetry.loglines import log_to_stderr

EXIT_LOCAL_FAULT = 2


def start() -> int:
    """Parse the command line and run; a fault of configuration or disk is one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m superhub", description="The super hub of one region.")
    parser.add_argument("--dir", type=Path, required=True, help="directory with config.toml, identity/ and trust/")
    arguments = parser.parse_args()
    log_to_stderr()
    logging.getLogger("tuf").setLevel(logging.WARNING)  # it tells of each key that did not sign, at each update
    code = 0
    try:
        run(main(arguments.dir))
    except* LocalError as faults:
        for fault in leaves(faults):
            print(f"superhub: {fault}", file=sys.stderr)  # noqa: T201  # what whoever started it must read
        code = EXIT_LOCAL_FAULT
    return code


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The errors of a group of groups."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


if __name__ == "__main__":
    sys.exit(start())
