"""Hand-written mutants of the mesh: ``python -m tests.simulation.mutants --json -``.

Each breaks one rule of the product, or the order in which a node persists, acts and says, for a whole night. The
simulation must find every one of them within ``--most`` seeds, in a night that holds without it; of those the most
promising are tried first. Exit code 1 when one is not found, 2 when the input is bad. The mutants themselves are in
``mutants_of_hubs.py`` and ``mutants_of_devices.py``.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from tests.simulation import mutants_of_devices, mutants_of_hubs  # noqa: F401  # they add theirs
from tests.simulation.faults import Chaos, Fault
from tests.simulation.mutant import MUTANTS
from tests.simulation.region import Region
from tests.simulation.run import many_nights, run_untraced

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_SEEDS = 500
# What these break has not been seen yet, in the nights that were tried (docs/mutants.md): run by name only.
NOT_FOUND_YET = frozenset(
    {
        "oldest-report-dropped",
        "permits-at-once",
    }
)
MAX_JOBS = 64


@dataclass(frozen=True, slots=True)
class Catch:
    """The seed that found a mutant, 0 when none did, and by which checker."""

    name: str
    seed: int
    checker: str
    seconds: float


def _prepare() -> None:
    """What each process does first: no word of the product's log, and no looking through what is loaded."""
    logging.disable(logging.CRITICAL)
    many_nights()


@cache
def _faults(seed: int) -> Counter[Fault]:
    """How often each fault is planned for that night."""
    region = Region(seed)
    Chaos(region).plan()
    return Counter(arguments[0] for *_, arguments in region.world._heap)


def catch(name: str, first: int, most: int, tries: int = MOST_SEEDS) -> Catch:
    """A seed that finds that mutant; one that fails without it as well does not count.

    Of equally promising seeds the first is tried first.
    """
    mutant = next(one for one in MUTANTS if one.name == name)
    began_s = time.perf_counter()
    seeds: Sequence[int] = range(first, first + most)
    if mutant.shows_by and not mutant.tale:
        seeds = sorted(seeds, key=lambda seed: -sum(_faults(seed)[fault] for fault in mutant.shows_by))
    for seed in seeds[:tries]:
        found = run_untraced(seed, mutant.patches(), mutant.tale).failures
        failures = [failure for failure in found if not failure.startswith("code:")]  # a mutant must run to be found
        if failures and not run_untraced(seed, tale=mutant.tale).failures:
            return Catch(name, seed, failures[0], round(time.perf_counter() - began_s, 1))
    return Catch(name, 0, "", round(time.perf_counter() - began_s, 1))


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants", description=__doc__)
    parser.add_argument("--mutant", action="append", metavar="NAME", help="only this one; may be given more than once")
    parser.add_argument("--from", type=int, default=1, dest="first", metavar="SEED", help="the first seed")
    parser.add_argument("--most", type=int, default=MOST_SEEDS, metavar="N", help="seeds to try with each")
    parser.add_argument("--tries", type=int, default=MOST_SEEDS, metavar="N", help="of these seeds, the most promising")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument(
        "--json", metavar="FILE", help="write the report as JSON; - is stdout, the table goes to stderr"
    )
    arguments = parser.parse_args(argv)
    names = arguments.mutant or [mutant.name for mutant in MUTANTS if mutant.name not in NOT_FOUND_YET]
    unknown = set(names) - {mutant.name for mutant in MUTANTS}
    if unknown or not 1 <= arguments.jobs <= MAX_JOBS or arguments.most < 1:
        parser.error(f"no mutant {', '.join(sorted(unknown))}" if unknown else "--jobs, --most: 1 or more")
    table = sys.stderr if arguments.json == "-" else sys.stdout
    caught: list[Catch] = []
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn"), _prepare) as pool:
        running = [pool.submit(catch, name, arguments.first, arguments.most, arguments.tries) for name in names]
        for done in as_completed(running):
            found = done.result()
            caught.append(found)
            table.write(f"{found.name:32} {found.seed or '-':>5} {found.seconds:7.1f} s  {found.checker[:90]}\n")
            table.flush()
    caught.sort(key=lambda found: names.index(found.name))
    missed = [found.name for found in caught if not found.seed]
    report = {"mutants": len(caught), "caught": len(caught) - len(missed), "missed": missed, "most": arguments.most}
    report["not_found_yet"] = sorted(NOT_FOUND_YET)
    if arguments.json is not None:
        rows = {mutant.name: mutant.broken for mutant in MUTANTS}
        details = [{**asdict(found), "broken": rows[found.name]} for found in caught]
        text = json.dumps({**report, "each": details}, indent=2, ensure_ascii=False) + "\n"
        sys.stdout.write(text) if arguments.json == "-" else Path(arguments.json).write_text(text)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
