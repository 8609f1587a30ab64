"""Chaos on real processes: ``python -m tests.chaos --minutes 10 --seed 7 [--json FILE] [--tamper]``.

The lab's processes run wave after wave while a script drawn from the seed breaks them, their disks, clocks and links;
an independent checker reads what came of it. Prints a line a fault on stderr and a table at the end. Exit code 0 only
if nothing is lost, counted twice, bricked, over the limit, untrue, corrupt, orphaned or stuck, no bad release was kept,
no stop exposed more than was outstanding, and no rollback or halt was missed; 2 for bad input.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lab import processes
from tests.chaos import place, tampering
from tests.chaos.plots import Plot
from tests.chaos.run import ChaosRun, Result, Telling
from wavemesh.errors import WavemeshError

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_MINUTES = 24 * 60
_COUNTS = (
    *("lost", "duplicated", "bricked", "over_limit", "untrue", "exposed", "escaped", "unreturned", "ignored"),
    *("miscounted", "unexercised", "corrupt", "orphans", "stuck"),
)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ends with exit code 2 for a bad one."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long waves are started and broken")
    parser.add_argument("--seed", type=int, default=1, help="which faults strike whom; not where the wave is then")
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON; - is stdout")
    parser.add_argument("--network", choices=("auto", "sites", "proxies"), default="auto", help="sites need root")
    parser.add_argument(
        "--tamper", action="store_true", help="then falsify each fact and see that the checker finds it"
    )
    parser.add_argument(
        *("--plot", "--plots"),
        action="extend",
        nargs="+",
        default=[],
        choices=[plot.value for plot in Plot],
        help="what the waves are about, in this order and over again (default: all, in an order of the seed's)",
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="an empty directory to run in, which stays")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if not 0 < options.minutes <= _MOST_MINUTES:
        parser.error(f"--minutes: above 0, at most {_MOST_MINUTES}")
    obstacle = "" if options.inside or options.network == "proxies" else place.obstacle()
    if options.network == "sites" and obstacle:
        parser.error(f"--network sites: {obstacle}")
    if options.tamper and options.plot and not {plot.value for plot in tampering.NEEDED} <= set(options.plot):
        parser.error(f"--tamper needs --plot {' '.join(plot.value for plot in tampering.NEEDED)} among the plots")
    if options.keep is not None and options.keep.exists() and any(options.keep.iterdir()):
        parser.error(f"--keep {options.keep}: not empty")
    if options.network == "auto":
        options.network = "proxies" if obstacle else "sites"
    return options


def run(options: argparse.Namespace) -> int:
    """One run; returns the exit code. Raises WavemeshError when the lab cannot be set up."""
    # Not too deep: the path of a unix socket may have 107 bytes.
    directory = options.keep or Path(tempfile.mkdtemp(prefix="wavemesh-chaos-"))
    result = Result(options.seed, options.minutes, options.network)
    say = Telling(lambda line: (sys.stderr.write(line), sys.stderr.flush()))
    lab, network = place.build_sites(directory) if options.network == "sites" else place.build_plain(directory)
    try:
        chaos = ChaosRun(lab, network, options.seed, say, [Plot(name) for name in options.plot])
        try:
            chaos.play(options.minutes, result)
        finally:
            chaos.finish(result)
    finally:
        processes.kill(lab, list(processes.commands(lab)))
    if options.tamper and result.holds:
        result.falsified, unseen = tampering.falsified(directory)
        if unseen:
            result.found["unseen"] = unseen
    _show(result, directory, say)
    if options.json:
        text = json.dumps({"holds": result.holds, **asdict(result)}) + "\n"
        if options.json == "-":
            sys.stdout.write(text)
        else:
            Path(options.json).write_text(text, encoding="utf-8")
    if result.holds and options.keep is None:
        shutil.rmtree(directory)
    return 0 if result.holds else 1


def _show(result: Result, directory: Path, say: Telling) -> None:
    """The table, and with a violation where to look."""
    rows = [(kind, count) for kind, count in result.faults.items()]
    rows += [(f"halt {plot}", count) for plot, count in result.halts.items()]
    rows += [("at once", result.at_once), ("ended", len(result.ended_by_themselves)), ("waves", result.waves)]
    rows += [("falsified", result.falsified)] if result.falsified else []
    rows += [(kind, getattr(result, kind)) for kind in _COUNTS]
    sys.stderr.write("".join(f"{name:18}{count:6}\n" for name, count in rows))
    if result.holds:
        return
    events = "".join(f"  {line}\n" for line in say.last)
    found = "".join(f"{kind}: {text}\n" for kind, texts in result.found.items() for text in texts)
    sys.stderr.write(f"{found}the last events:\n{events}everything is kept in {directory}, logs in run/\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line, as root in namespaces of its own."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if options.network == "sites" and not options.inside:
        return place.enter(arguments)
    try:
        return run(options)
    except (WavemeshError, subprocess.SubprocessError) as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
