"""``python -m bench delta OLD NEW``: every way from an old image to a new one, and what others need for the same.

Or ``--pair NAME`` of bench/pairs.py, made in ``--corpus DIR`` first; ``--page DIR`` writes the table and the plot of
all results that lie there as JSON.

The planner chooses among what a super hub would have made: the delta only if the likeness of the two promises enough.
Then everything is made all the same, and the regret is what the choice moved beyond the best of them. Bytes moved are
counted as they come out of the payloads. ``apply_s`` rebuilds into memory where there is a tmpfs, ``apply_disk_s`` to
the disk, both with every byte hashed and fsynced; ``worker_s`` is the latter in a contained process.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench import delta_page, delta_peers
from bench.delta_ways import WAYS, apply_s, images_of, moved_bytes, ranges_of, worker_s
from bench.pairs import NAMES, pair
from bench.report import Result, Target, WrongResultError, write
from lab.images import ImageError, cache_directory
from wavemesh.artifacts.likeness import estimate
from wavemesh.artifacts.plan import Link, Method, choose, with_ranges
from wavemesh.artifacts.sketching import sketch_file

if TYPE_CHECKING:
    from bench.delta_ways import Images, Made
    from wavemesh.artifacts.plan import TransferPlan

LINK = Link(bytes_per_s=1.25e6, price_per_gib=1.0, price_per_hour=0.1)
"""10 Mbit/s, where a GiB costs what ten hours of waiting do: bytes decide."""
REFERENCE_BYTES = 160 * 1024 * 1024
PEER_SHARE, REGRET_MOST, FORECAST_MOST, APPLY_MOST_S = 0.9, 0.02, 0.05, 1.0
_MEMORY = Path("/dev/shm")  # noqa: S108 (a tmpfs to time without the disk)


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked."""

    old: Path
    new: Path
    name: str
    rounds: int
    peers: tuple[str, ...]
    work: Path | None


def main(arguments: list[str]) -> int:
    """Measure, print, and see that every way rebuilt the image."""
    parser = argparse.ArgumentParser(prog="python -m bench delta", description=__doc__)
    parser.add_argument("old", type=Path, nargs="?")
    parser.add_argument("new", type=Path, nargs="?")
    parser.add_argument("--pair", choices=NAMES, help="a pair of real images instead")
    parser.add_argument("--corpus", type=Path, default=cache_directory(), help="where pairs are kept")
    parser.add_argument("--page", type=Path, metavar="DIR", help="only write DIR/delta.md of DIR/delta-*.json")
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is rebuilt")
    parser.add_argument("--peers", default=",".join(delta_peers.NAMES), help="which others to ask, by commas; or none")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where temporary files go")
    parser.add_argument("--json", metavar="FILE", help="write one JSON object; - is stdout")
    given = parser.parse_args(arguments)
    if given.page is not None:
        delta_page.write(given.page)
        return 0
    if (given.pair is None) == (given.old is None or given.new is None):
        parser.error("name two images, OLD NEW, or a --pair")
    peers = tuple(name for name in given.peers.split(",") if name and name != "none")
    unknown = set(peers) - set(delta_peers.NAMES)
    if unknown or given.rounds < 1:
        parser.error(f"--peers knows {', '.join(delta_peers.NAMES)} and none; --rounds is at least 1")
    missing = [name for name in peers if name not in delta_peers.installed()]
    if missing:
        sys.stderr.write(f"bench delta: not installed: {', '.join(missing)}; apt-get install {' '.join(missing)}\n")
        if os.environ.get("CI"):
            return 2
    try:
        old, new = (given.old, given.new) if given.pair is None else pair(given.pair, given.corpus)
        here = tuple(name for name in peers if name not in missing)
        options = Options(old, new, given.pair or "", given.rounds, here, given.work)
        write(measure(options), given.json)
    except (WrongResultError, ImageError, OSError) as error:
        sys.stderr.write(f"bench delta: {error}\n")
        return 1
    return 0


def measure(options: Options) -> Result:
    """All ways, the plan and the peers."""
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        work = Path(name)
        images = images_of(options.old, options.new)
        guess = estimate(sketch_file(options.new), [sketch_file(options.old)])
        made = {way: make(images, work) for way, make in WAYS.items()}
        offered = {way: one for way, one in made.items() if way != "pairwise" or guess.is_delta_worth_making}
        plan = choose(images.target, [one.offer for one in offered.values()], LINK, None)
        chosen = _chosen(plan, made)
        forecast = plan.read_bytes
        if plan.method is Method.CHUNKS and chosen is not None:
            plan = with_ranges(plan, ranges_of(chosen, images), LINK, None)
        chosen_bytes = moved_bytes(plan, chosen, work)
        best = min(images.target.size_bytes, *(one.offer.read_bytes for one in made.values()))
        ways = {way: _way(one, images, work, options.rounds) for way, one in made.items()}
        own = ways[_name(plan.method)] if chosen is not None else {"make_s": 0.0, "apply_s": 0.0}
        peers = {peer: asdict(delta_peers.measure(peer, images.old, images.new, work)) for peer in options.peers}
    keys: dict[str, object] = {
        "pair": options.name or f"{options.old.name} {options.new.name}",
        "old_bytes": images.base.size_bytes,
        "new_bytes": images.target.size_bytes,
        **{way: int(figures["bytes"]) for way, figures in ways.items()},
        "chosen": plan.method.value,
        "why": plan.why,
        "chosen_bytes": chosen_bytes,
        "forecast_bytes": forecast,
        "forecast_error": abs(forecast - chosen_bytes) / chosen_bytes,
        "regret": chosen_bytes / best - 1,
        "make_s": own["make_s"],
        "apply_s": own["apply_s"],
        "ways": ways,
        "guess": asdict(guess) | {"is_delta_worth_making": guess.is_delta_worth_making},
        "peers": peers,
    }
    return Result(keys, _targets(keys, peers))


def _chosen(plan: TransferPlan, made: dict[str, Made]) -> Made | None:
    """None where the image itself is read."""
    return None if plan.method is Method.FULL else made[_name(plan.method)]


def _name(method: Method) -> str:
    return {Method.FULL_ZSTD: "full_zstd", Method.CHUNKS: "chunks", Method.DELTA: "pairwise"}[method]


def _way(one: Made, images: Images, work: Path, rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=_MEMORY if os.access(_MEMORY, os.W_OK) else work) as memory:
        in_memory = apply_s(one, images, Path(memory) / "out", rounds)
    figures = {
        "bytes": float(one.offer.read_bytes),
        "make_s": one.make_s,
        "apply_s": in_memory,
        "apply_disk_s": apply_s(one, images, work / "out", min(rounds, 3)),
    }
    if one.offer.method is Method.DELTA:
        figures["worker_s"] = worker_s(one, images, work / "out")
    return figures


def _targets(keys: dict[str, object], peers: dict[str, dict[str, int | float]]) -> tuple[Target, ...]:
    chosen_bytes, new_bytes = int(str(keys["chosen_bytes"])), int(str(keys["new_bytes"]))
    apply_most = APPLY_MOST_S * max(new_bytes / REFERENCE_BYTES, 1.0)
    applied, regret, error = (float(str(keys[name])) for name in ("apply_s", "regret", "forecast_error"))
    targets = [
        Target("apply_s", applied, f"<= {apply_most:.2f}", applied <= apply_most),
        Target("regret %", regret * 100, f"<= {REGRET_MOST:.0%}", regret <= REGRET_MOST),
        Target("forecast error %", error * 100, f"<= {FORECAST_MOST:.0%}", error <= FORECAST_MOST),
    ]
    if peers:
        name = min(peers, key=lambda peer: peers[peer]["bytes"])
        share = chosen_bytes / peers[name]["bytes"]
        targets.append(Target(f"of {name}'s bytes", share, f"<= {PEER_SHARE}", share <= PEER_SHARE))
    return tuple(targets)
