"""``python -m tests.simulation --from SEED --count N [--jobs 2] [--trace] --json -``: many nights, or one traced."""

from __future__ import annotations

import argparse
import functools
import json
import logging
import multiprocessing
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.simulation.kinds import Fault
from tests.simulation.run import Result, many_nights, run_seed, run_untraced
from tests.simulation.table import table
from tests.simulation.tales import TALES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

BAD_INPUT = 2
SHOWN = 20
TOLD_EVERY_S = 10.0
_PROCESSES = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def results(seeds: Sequence[int], jobs: int, tale: str = "") -> Iterator[Result]:
    """Each seed's result, in the order in which they are found."""
    night = functools.partial(run_untraced, tale=tale)
    if jobs == 1:
        many_nights()
        yield from map(night, seeds)
        return
    with multiprocessing.get_context("fork").Pool(jobs, many_nights) as pool:
        yield from pool.imap_unordered(night, seeds, chunksize=8)


def told_meanwhile(results: Iterable[Result], count: int) -> Iterator[Result]:
    """The same results, with a line now and then of how far it is, and one for each seed that failed."""
    began = told = time.monotonic()
    failed = 0
    for number, one in enumerate(results, start=1):
        if one.failures:
            failed += 1
            sys.stderr.write(f"seed {one.seed}: {one.failures[0]}\n")
        now = time.monotonic()
        if now - told >= TOLD_EVERY_S:
            told = now
            left_s = (now - began) / number * (count - number)
            sys.stderr.write(f"{number} of {count} nights, {failed} failed; {left_s:.0f} s to go\n")
        yield one


def summary(found: Sequence[Result], wall_s: float) -> dict[str, Any]:
    """What the command says."""
    faults: Counter[str] = Counter({kind.value: 0 for kind in Fault})
    for one in found:
        faults.update(one.faults)
    nights = sum(one.store_nights for one in found)
    bad = sorted((one for one in found if one.failures), key=lambda one: one.seed)
    return {
        "seeds": len(found),
        "failures": len(bad),
        "store_nights": nights,
        "wall_s": round(wall_s, 1),
        "per_minute": round(60 * nights / wall_s, 1),
        "cpu_s": round(sum(one.ru_utime + one.ru_stime for one in map(resource.getrusage, _PROCESSES)), 1),
        "failed": {str(one.seed): list(one.failures[:3]) for one in bad[:SHOWN]},
        "excused": dict(sum((one.excused for one in found), Counter())),
        "faults": dict(sorted(faults.items())),
    }


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--from", dest="first", type=int, required=True, help="the first seed")
    parser.add_argument("--count", type=int, default=1, help="how many seeds")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--trace", action="store_true", help="print the trace of each seed, up to its first violation")
    parser.add_argument("--tale", default="", choices=sorted(TALES), help="a story that happens in every night")
    parser.add_argument("--json", metavar="FILE", help="write the summary there; - is standard output")
    parser.add_argument(
        "--markdown", metavar="FILE", help="write the table of faults there, as docs/simulation.md has it"
    )
    arguments = parser.parse_args()
    if arguments.first < 0 or arguments.count < 1 or arguments.jobs < 1:
        sys.stderr.write("--from is 0 or more, --count and --jobs are 1 or more\n")
        return BAD_INPUT
    logging.disable(logging.CRITICAL)
    seeds = range(arguments.first, arguments.first + arguments.count)
    if arguments.trace:
        for seed in seeds:
            _print_trace(run_seed(seed, tale=arguments.tale))
    began = time.monotonic()
    jobs = arguments.jobs if arguments.count > 1 else 1
    found = list(told_meanwhile(results(seeds, jobs, arguments.tale), arguments.count))
    told = summary(found, time.monotonic() - began)
    rarest = min(told["faults"], key=told["faults"].__getitem__)
    sys.stderr.write(
        f"{told['store_nights']} store-nights, {told['failures']} failed, {told['per_minute']:g} a minute; "
        f"{sum(told['faults'].values())} faults of {len(told['faults'])} kinds, the rarest {rarest} "
        f"{told['faults'][rarest]} times\n"
    )
    _write(arguments.json, json.dumps(told, indent=1) + "\n")
    _write(arguments.markdown, table(told["faults"]))
    return 1 if told["failures"] else 0


def _write(where: str | None, text: str) -> None:
    if where == "-":
        sys.stdout.write(text)
    elif where:
        Path(where).write_text(text, encoding="utf-8")


def _print_trace(result: Result) -> None:
    for entry in result.trace:
        sys.stdout.write(f"{entry}\n")
        if entry.event == "violated":
            break
    sys.stdout.write(f"seed {result.seed}: {'; '.join(result.failures) or 'all invariants held'}\n")


if __name__ == "__main__":
    sys.exit(main())
