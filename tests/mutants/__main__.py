"""Generic mutants of the modules that decide: ``python -m tests.mutants --module storehub.swaps --json -``.

Changes one thing at a time in a module and runs the unit tests that run the changed line. Exit code 1 when a mutant
survives that docs/mutants.md does not judge, 2 when the tests fail without any mutant or the input is bad.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.mutants import running
from tests.mutants.judged import MODULES, Recorded, judged, on_record, record
from tests.mutants.operators import Mutant, mutants_of
from tests.mutants.running import Coverage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.mutants.running import Verdict

MOST_JOBS = 64
TESTS = (
    "tests/unit/control",
    "tests/unit/device",
    "tests/unit/policy",
    "tests/unit/session",
    "tests/unit/storehub",
    "tests/unit/superhub",
    "tests/unit/trust",
    "tests/unit/test_queueing.py",
)


def all_mutants(modules: Sequence[str]) -> list[Mutant]:
    """The mutants of those modules."""
    return [mutant for module in modules for mutant in mutants_of(module, running.source_path(module).read_text())]


def sample(mutants: Sequence[Mutant], size: int, seed: int) -> list[Mutant]:
    """So many of them by the seed, from each module in turn."""
    chosen = random.Random(seed)
    by_module: dict[str, list[Mutant]] = {}
    for mutant in chosen.sample(mutants, len(mutants)):
        by_module.setdefault(mutant.module, []).append(mutant)
    modules = sorted(by_module)
    chosen.shuffle(modules)
    taken: list[Mutant] = []
    while len(taken) < min(size, len(mutants)):
        taken.extend(by_module[module].pop() for module in modules if by_module[module])
    return taken[:size]


def report_of(verdicts: Sequence[Verdict], reasons: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Scores by module, and every survivor with its reason."""
    rows: dict[str, dict[str, Any]] = {}
    for module in sorted({verdict.mutant.module for verdict in verdicts}):
        mine = [verdict for verdict in verdicts if verdict.mutant.module == module]
        survivors = [verdict.mutant for verdict in mine if not verdict.killed_by]
        rows[module] = {
            "mutants": len(mine),
            "killed": len(mine) - len(survivors),
            "score": round(1 - len(survivors) / len(mine), 3),
            "survivors": [
                {"line": mutant.line, "mutant": mutant.key, "judged": reasons.get(module, {}).get(mutant.key, "")}
                for mutant in survivors
            ],
        }
    mutants, killed = (sum(row[key] for row in rows.values()) for key in ("mutants", "killed"))
    unjudged = sum(not survivor["judged"] for row in rows.values() for survivor in row["survivors"])
    return {
        "mutants": mutants,
        "killed": killed,
        "score": round(killed / max(1, mutants), 3),
        "unjudged": unjudged,
        "modules": rows,
    }


def table_of(report: Mapping[str, Any]) -> str:
    """The report for people."""
    lines = [f"{'module':30} {'mutants':>7} {'killed':>6}  score\n"]
    for module, row in report["modules"].items():
        lines.append(f"{module:30} {row['mutants']:7} {row['killed']:6} {row['score']:6.1%}\n")
        lines += [
            f"  line {survivor['line']}: {survivor['mutant']}\n"
            for survivor in row["survivors"]
            if not survivor["judged"]
        ]
    lines.append(f"{'all':30} {report['mutants']:7} {report['killed']:6} {report['score']:6.1%}\n")
    return "".join(lines)


def _coverage(kept: Path | None) -> Coverage:
    """Which test runs which line, out of the file if there is one."""
    if kept is not None and kept.exists():
        seconds, lines = json.loads(kept.read_text())
        return Coverage(
            seconds, {module: {int(line): names for line, names in rows.items()} for module, rows in lines.items()}
        )
    coverage = running.record(MODULES, TESTS)
    if kept is not None:
        kept.write_text(json.dumps([coverage.seconds, coverage.lines]))
    return coverage


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--module", action="append", choices=MODULES, metavar="NAME", help="only this one; may be repeated"
    )
    parser.add_argument("--sample", type=int, metavar="N", help="so many mutants that are not on record as survivors")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument(
        "--coverage", type=Path, metavar="FILE", help="keep there which test runs which line, or take it"
    )
    parser.add_argument("--record", action="store_true", help="write the scores and survivors down, with their reasons")
    parser.add_argument(
        "--json", metavar="FILE", help="write the report as JSON; - is stdout, the table then goes to stderr"
    )
    arguments = parser.parse_args(argv)
    if not 1 <= arguments.jobs <= MOST_JOBS or (arguments.sample is not None and arguments.sample < 1):
        parser.error(f"--jobs: 1 to {MOST_JOBS}; --sample: 1 or more")
    if arguments.sample is not None and arguments.record:
        parser.error("--record: of complete runs only")
    began_s = time.monotonic()
    modules = arguments.module or MODULES
    mutants = all_mutants(modules)
    recorded = on_record()
    reasons = judged(recorded)
    running.preload()
    try:
        if arguments.sample is not None:
            open_ones = [mutant for mutant in mutants if mutant.key not in reasons.get(mutant.module, {})]
            mutants = sample(open_ones, arguments.sample, arguments.seed)
            choice: running.Choice = Recorded({module: row["tests"] for module, row in recorded.items()})
        else:
            choice = _coverage(arguments.coverage)
        verdicts = running.judge(mutants, choice, arguments.jobs)
    except running.BaselineError as error:
        sys.stderr.write(f"without any mutant: {error}\n")
        return 2
    if arguments.record:
        record(verdicts)
    report = {**report_of(verdicts, reasons), "wall_s": round(time.monotonic() - began_s, 1)}
    (sys.stderr if arguments.json == "-" else sys.stdout).write(table_of(report))
    if arguments.json is not None:
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        sys.stdout.write(text) if arguments.json == "-" else Path(arguments.json).write_text(text)
    return 1 if report["unjudged"] else 0


if __name__ == "__main__":
    sys.exit(main())
