"""``python -m bench NAME [options] --json FILE``: run one benchmark by name."""

from __future__ import annotations

import importlib
import sys

# Each is a module bench.NAME with main(arguments) -> exit status.
BENCHES = ("agent", "corpus", "delta", "sessions", "transfer", "fleet", "region", "resume", "halt")


def main(arguments: list[str]) -> int:
    """Run the benchmark named; its status is 0 when its results are right, be the targets met or missed."""
    if not arguments or arguments[0] not in BENCHES:
        sys.stderr.write(f"usage: python -m bench {{{','.join(BENCHES)}}} [options] [--json FILE]\n")
        return 2
    status: int = importlib.import_module(f"bench.{arguments[0]}").main(arguments[1:])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
