"""kill -9 of every tier, at moments of the wave: ``python -m tests.kills [--tier T] [--moments N] [--json FILE]``.

One run is one wave of the demo, power cuts and WAN outage included, on small images. At a moment that the run's number
fixes (so many of the wave's steps announced by the devices' boards) the tier is killed with everything it started, and
started again at once. Then the checker's facts must hold: nothing lost, nothing counted twice, never over the swap
limit, whole images on every slot. Prints a row a run and the table; exits 1 if a fact is violated, 2 for bad input.
"""

from __future__ import annotations

import argparse
import enum
import json
import random
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab import checker, processes
from lab.demo import set_up
from lab.expectations import write_expectations
from lab.images import build_small_images, cache_directory
from lab.play import play_wave
from lab.policies import SWAP_LIMIT
from lab.scenario import SCANNER_DEVICE, Ending, Scenario, draw
from lab.story import Story
from lab.topology import STORES
from wavemesh.errors import WavemeshError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lab.story import Watch
    from lab.topology import Lab

# Steps that the boards of all devices announce from the wave's start to its end, about; moments are spread over them.
STEPS_OF_A_WAVE = 200
MAX_MOMENTS = 100


class Tier(enum.Enum):
    """Who is killed."""

    CONTROL = "control"
    SUPER_HUB = "superhub"
    STORE_HUB = "storehub"
    DEVICE = "device"


@dataclass(frozen=True, slots=True)
class Run:
    """One kill and what came of it; ``violations`` is empty when all facts hold."""

    tier: str
    moment: int
    victim: str
    after_steps: int
    wall_s: float
    violations: tuple[str, ...]


class Killer:
    """Kills one process at one moment of the wave, and starts it again."""

    def __init__(self, lab: Lab, victim: str, after_steps: int) -> None:
        """Strike once that many steps were announced."""
        self._lab = lab
        self._victim = victim
        self._after_steps = after_steps
        self.has_struck = False

    def strike(self, watch: Watch) -> None:
        """Kill and restart, if it is time."""
        if self.has_struck or watch.steps < self._after_steps:
            return
        self.has_struck = True
        processes.kill(self._lab, [self._victim])
        processes.start(self._lab, [self._victim])


def victim_of(tier: Tier, scenario: Scenario, seeded: random.Random) -> str:
    """Which process of the tier is killed; a device that the scenario leaves alone."""
    struck = {scenario.write_cut.device, scenario.swap_cut.device, SCANNER_DEVICE}
    sound = [d for d, e in scenario.expected.items() if e.ending is Ending.UPDATED and d not in struck]
    choices = {
        Tier.CONTROL: ["control"],
        Tier.SUPER_HUB: ["superhub"],
        Tier.STORE_HUB: sorted(STORES),
        Tier.DEVICE: sound,
    }
    return seeded.choice(choices[tier])


def run_one(tier: Tier, moment: int, moments: int, directory: Path) -> Run:
    """One wave with one kill."""
    seed = moment + 1
    scenario = draw(seed, STORES, ())
    victim = victim_of(tier, scenario, random.Random(f"{tier.value} {moment}"))
    after_steps = 1 + STEPS_OF_A_WAVE * moment // moments
    lab = set_up(directory, build_small_images(cache_directory()), scenario, SWAP_LIMIT)
    killer = Killer(lab, victim, after_steps)
    began_s = time.monotonic()
    violations: list[str] = []
    try:
        with (directory / "story.log").open("w", encoding="utf-8") as log, Story(lab, log) as story:
            play_wave(lab, scenario, story, killer.strike)
    except WavemeshError as exc:
        violations.append(f"the wave broke: {exc}")
    finally:
        processes.stop_all(lab)
    _expect_no_refusals(lab, directory)
    if not killer.has_struck:
        violations.append(f"never got to step {after_steps}")
    violations += [f"{found.fact}: {found.seen}" for found in checker.check(directory) if not found.holds]
    return Run(tier.value, moment, victim, after_steps, round(time.monotonic() - began_s, 1), tuple(violations))


def _expect_no_refusals(lab: Lab, directory: Path) -> None:
    """The bad releases are the demo's business; keep what else it expects."""
    expected = json.loads((directory / "expected.json").read_text(encoding="utf-8"))
    endings = {name: (device["ending"], device["gate"]) for name, device in expected["devices"].items()}
    cuts, outage = expected["power_cuts"], expected["outage"]
    write_expectations(lab, endings, power_cuts=cuts, outage=outage, refused_releases={})


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tier", choices=[tier.value for tier in Tier], help="only this tier")
    parser.add_argument("--moments", type=int, default=10, help="moments a tier, spread over the wave")
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON; - is stdout")
    parser.add_argument("--keep", type=Path, help="keep failing runs there")
    options = parser.parse_args(argv)
    if not 1 <= options.moments <= MAX_MOMENTS:
        parser.error(f"--moments: 1 to {MAX_MOMENTS}")
    tiers = [Tier(options.tier)] if options.tier else list(Tier)
    table = sys.stderr if options.json == "-" else sys.stdout
    table.write(f"{'tier':10} {'moment':>6} {'victim':10} {'after steps':>11} {'wall s':>7}  facts\n")
    runs = []
    for tier in tiers:
        for moment in range(options.moments):
            # Not too deep: the path of a unix socket may have 107 bytes.
            directory = Path(tempfile.mkdtemp(prefix="wavemesh-kill-"))
            run = run_one(tier, moment, options.moments, directory)
            runs.append(run)
            words = "hold" if not run.violations else "; ".join(run.violations)
            table.write(
                f"{run.tier:10} {run.moment:6} {run.victim:10} {run.after_steps:11} {run.wall_s:7.1f}  {words}\n"
            )
            table.flush()
            if run.violations and options.keep is not None:
                shutil.copytree(directory, options.keep / f"{run.tier}-{run.moment}", dirs_exist_ok=True, symlinks=True)
            shutil.rmtree(directory)
    failed = sum(bool(run.violations) for run in runs)
    table.write(f"{len(runs)} kills, {failed} with a violated fact\n")
    if options.json:
        text = json.dumps({"kills": len(runs), "failures": failed, "runs": [asdict(run) for run in runs]})
        if options.json == "-":
            sys.stdout.write(text + "\n")
        else:
            Path(options.json).write_text(text + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
