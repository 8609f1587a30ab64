"""``python -m tests.model [--scenario NAME] --json -``: every state of the session and permit machines.

Exit code 1, and the shortest trace, when an invariant does not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bench.report import surroundings
from tests.model.explorer import shown
from tests.model.scenarios import INVARIANTS, SCENARIOS, explore

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Explore from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scenario", action="append", choices=sorted(SCENARIOS), help="only this one; may be repeated")
    parser.add_argument("--reduced", action="store_true", help="the reduced form that the tests explore")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON; - is stdout, the table then stderr")
    arguments = parser.parse_args(argv)
    table = sys.stderr if arguments.json == "-" else sys.stdout
    table.write(f"{'scenario':16} {'states':>9} {'transitions':>11} {'depth':>5} {'at rest':>7} {'cpu s':>7}\n")
    began_s = time.monotonic()
    rows = {}
    for name in arguments.scenario or SCENARIOS:
        started_s = time.process_time()
        found = explore(name, is_full=not arguments.reduced)
        cpu_s = round(time.process_time() - started_s, 1)
        rows[name] = {**asdict(found), "cpu_s": cpu_s}
        counts = f"{found.states:9} {found.transitions:11} {found.depth:5} {found.at_rest:7} {cpu_s:7.1f}"
        table.write(f"{name:16} {counts}\n")
        table.writelines(f"  {line}\n" for violation in found.violations for line in shown(violation))
        table.flush()
    report = {
        **{key: sum(int(str(row[key])) for row in rows.values()) for key in ("states", "transitions")},
        "depth": max(int(str(row["depth"])) for row in rows.values()),
        "violations": sum(len(row["violations"]) for row in rows.values()),
        "invariants": list(INVARIANTS),
        "wall_s": round(time.monotonic() - began_s, 1),
        "scenarios": rows,
        **surroundings(),
    }
    table.write(f"{report['states']} states, {report['violations']} violations, {report['wall_s']} s\n")
    if arguments.json == "-":
        sys.stdout.write(json.dumps(report) + "\n")
    elif arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 1 if report["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
