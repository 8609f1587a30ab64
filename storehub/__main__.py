"""``python -m storehub --dir DIR``: run a store hub until SIGTERM."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from storehub.app import main
from wavemesh.errors import LocalError
from wavemesh.runtime.grpc import run
from wavemesh.telemetry.loglines import log_to_stderr

EXIT_LOCAL_FAULT = 1


def entry() -> int:
    """Read the command line and run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="storehub", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="directory of the node: config.toml, identity/, trust/")
    arguments = parser.parse_args()
    log_to_stderr()
    status = 0
    try:
        run(main(arguments.dir))
    except* LocalError as errors:
        for error in _leaves(errors):
            sys.stderr.write(f"storehub: {error}\n")
        status = EXIT_LOCAL_FAULT
    return status


def _leaves(group: BaseExceptionGroup[LocalError]) -> list[LocalError]:
    """The errors themselves."""
    leaves: list[LocalError] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves


if __name__ == "__main__":
    sys.exit(entry())
