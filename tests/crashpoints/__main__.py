"""Crash points, exhaustively: ``python -m tests.crashpoints --component device|storehub|superhub --json -``.

Runs every scenario of a component, cuts the power before and after each durable step and with each of several torn
media, lets the component recover, cuts again at every step of the recovery, and judges what is left. Exit code 1 unless
all points survived. A failing point is run again with ``--point NAME``, which shows what the component logged.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.report import surroundings
from device.config import Backend
from tests.crashpoints.campaign import Options, replay
from tests.crashpoints.components import COMPONENTS, run_scenario, tale_of, tales_of
from tests.crashpoints.medium import lay_image
from tests.crashpoints.oracle_formats import FORMATS
from tests.crashpoints.published import shortfalls

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

MAX_JOBS = 64


def run_all(arguments: argparse.Namespace, options: Options, table: TextIO) -> dict[str, Any]:
    """All scenarios asked for, ``--jobs`` at a time; the report."""
    names = arguments.scenario or [tale.name for tale in tales_of(arguments.component, arguments.backend)]
    table.write(
        f"{'scenario':18} {'steps':>5} {'points':>8} {'survived':>8} {'torn':>7} {'double':>8} {'states':>7} cpu s\n"
    )
    rows: dict[str, dict[str, Any]] = {}
    began_s = time.monotonic()
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        running = [pool.submit(run_scenario, arguments.component, arguments.backend, name, options) for name in names]
        for done in as_completed(running):
            result, cpu_s = done.result()
            row = asdict(result)
            rows[row.pop("scenario")] = {**row, "cpu_s": round(cpu_s, 1)}
            table.write(
                f"{result.scenario:18} {result.steps:5} {result.points:8} {result.survived:8} {result.torn:7}"
                f" {result.double:8} {result.states:7} {cpu_s:5.0f}\n"
            )
            table.writelines(f"  {failure.point}: {'; '.join(failure.problems)}\n" for failure in result.failures)
            table.flush()
    sums = {key: sum(row[key] for row in rows.values()) for key in ("points", "survived", "torn", "double", "states")}
    return {
        "component": arguments.component,
        "backend": arguments.backend,
        **sums,
        "seed": options.seed,
        "torn_of": options.torn_of,
        "double_of": options.double_of,
        "shortfalls": _shortfalls(rows, arguments, options),
        "wall_s": round(time.monotonic() - began_s, 1),
        "scenarios": {name: rows[name] for name in names},
        **surroundings(),
    }


def _shortfalls(rows: dict[str, dict[str, Any]], arguments: argparse.Namespace, options: Options) -> list[str]:
    """Where a complete run has fewer points than are published."""
    if arguments.backend != Backend.SIMULATED.value or options.torn_of != 1:
        return []
    return [
        shortfall
        for name, row in rows.items()
        for shortfall in shortfalls(
            name, row["steps"], row["points"] - row["double"], row["double"] if options.double_of == 1 else None
        )
    ]


def run_point(arguments: argparse.Namespace, options: Options, out: TextIO) -> int:
    """One point again, with what is wrong and what the medium held."""
    scenario = arguments.point.split("/")[0]
    tale = tale_of(arguments.component, arguments.backend, scenario)
    problems, standing = replay(tale, arguments.point, options)
    out.write("".join(f"  {line}\n" for line in tale.log))
    if arguments.keep is not None:
        lay_image(arguments.keep, standing.image)
        out.write(f"what the cut left is in {arguments.keep}\n")
    out.write("".join(f"{problem}\n" for problem in problems) or "survives\n")
    return 1 if problems else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.crashpoints", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--component", choices=COMPONENTS, default="device")
    parser.add_argument("--backend", choices=sorted(FORMATS), default=Backend.SIMULATED.value, help="of a device")
    parser.add_argument(
        "--scenario", action="append", metavar="NAME", help="only this one; may be given more than once"
    )
    parser.add_argument(
        "--sample", type=int, default=1, metavar="K", help="one double cut in K steps, by the seed; 0: none"
    )
    parser.add_argument("--sample-torn", type=int, default=1, metavar="K", help="one torn medium in K")
    parser.add_argument("--seed", type=int, default=1, help="of torn media and samples")
    parser.add_argument("--jobs", type=int, default=2, help="scenarios at a time")
    parser.add_argument(
        "--json", metavar="FILE", help="write the report as JSON; - is stdout, tables then go to stderr"
    )
    parser.add_argument("--point", metavar="NAME", help="run one point again")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="with --point: lay there what the cut left")
    arguments = parser.parse_args(argv)
    if not 1 <= arguments.jobs <= MAX_JOBS or arguments.sample < 0 or arguments.sample_torn < 1:
        parser.error(f"--jobs: 1 to {MAX_JOBS}; --sample: 0 or more; --sample-torn: 1 or more")
    options = Options(seed=arguments.seed, double_of=arguments.sample, torn_of=arguments.sample_torn)
    table = sys.stderr if arguments.json == "-" else sys.stdout
    try:
        if arguments.point:
            return run_point(arguments, options, table)
        report = run_all(arguments, options, table)
    except LookupError as error:
        parser.error(str(error.args[0]))
    table.write(f"{report['survived']} of {report['points']} points survived, {report['wall_s']} s\n")
    if arguments.json == "-":
        sys.stdout.write(json.dumps(report) + "\n")
    elif arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for shortfall in report["shortfalls"]:
        table.write(f"{shortfall}\n")
    return 0 if report["survived"] == report["points"] and not report["shortfalls"] else 1


if __name__ == "__main__":
    sys.exit(main())
