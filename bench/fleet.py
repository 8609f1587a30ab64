"""One rollout on a fleet, from plan to closed ledger, and what it cost every tier.

Control, super hubs, store hubs, origin and proxies are real processes; devices are the real agents, many to a process,
each with its own key, certificate, connection, slots and directory (``bench/agents.py`` says what sharing leaves out).
A few devices, drawn by the seed, lose their scanner on the new slot and must roll back.

CPU is that of the processes from the moment the servers listen, before a device is switched on, to the closed ledger:
connecting, the rollout, and what idles meanwhile. Interpreter starts of servers are before it. ``probes`` is what the
kernel charged the agents' processes for their children: two to four contained probe commands a device. Bytes at control
are counted by the proxy that its super hubs connect through. ``peak_rss_mb`` adds up the peaks of all processes.
A loaded machine makes the same work cost more CPU. ``cpu_in_handshakes`` is the cost per device in bare mutual TLS
handshakes (both sides), measured once a second in the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.handshake import Yardstick
from bench.report import Result, Target, WrongResultError, write
from bench.rollout import TIERS, Fleet, Progress, plan, register, start_wave, wait_closed
from bench.site import Size, make_site
from bench.truth import explain, judge
from lab.evidence import EvidenceError
from wavemesh.errors import WavemeshError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from bench.cost import Cost
    from bench.truth import Verdict

MAX_CPU_MS = 90.0
BAD_SHARE = 50


def main(arguments: list[str]) -> int:
    """Measure and print; 1 when a device is bricked, unaccounted for or not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m bench fleet", description=__doc__)
    add_size(parser, stores=10, devices=50)
    parser.add_argument(
        "--profile", type=Path, metavar="DIR", help="write cProfile's files there; figures are then off"
    )
    options = parser.parse_args(arguments)
    size = size_of(options)
    if options.profile:
        options.profile.mkdir(parents=True, exist_ok=True)
    try:
        with directory_of(options.dir) as directory:
            result = _measure(directory, size, options.timeout, options.profile)
    except (WrongResultError, EvidenceError, WavemeshError) as error:
        sys.stderr.write(f"bench fleet: wrong result: {error}\n")
        return 1
    write(result, options.json)
    return 0


def add_size(parser: argparse.ArgumentParser, *, stores: int, devices: int) -> None:
    """The options that say how large a fleet, and where."""
    parser.add_argument("--stores", type=int, default=stores, help=f"store hubs (default {stores})")
    parser.add_argument("--devices", type=int, default=devices, help=f"devices per store (default {devices})")
    parser.add_argument("--regions", type=int, default=1, help="super hubs (default 1)")
    parser.add_argument("--swaps", type=int, default=10, help="devices of a store in a swap at once (default 10)")
    parser.add_argument("--bad", type=int, help="devices that must roll back (default one in fifty, at least one)")
    parser.add_argument("--image-kib", type=int, default=256, help="size of an image (default 256)")
    parser.add_argument("--seed", type=int, default=1, help="draws the bad devices (default 1)")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds the rollout may take (default 1800)")
    parser.add_argument("--dir", type=Path, help="empty directory to work in, kept afterwards (default: temporary)")
    parser.add_argument("--json", metavar="FILE", help="write one JSON object there; - is standard output")


def size_of(options: argparse.Namespace) -> Size:
    """The fleet that was asked for."""
    total = options.stores * options.devices
    return Size(
        stores=options.stores,
        devices=options.devices,
        regions=options.regions,
        swaps=options.swaps,
        bad=max(1, total // BAD_SHARE) if options.bad is None else options.bad,
        image_kib=options.image_kib,
        seed=options.seed,
    )


@contextlib.contextmanager
def directory_of(given: Path | None) -> Iterator[Path]:
    """The directory given, or one that is gone afterwards; SIGTERM unwinds as Ctrl-C does and leaves no process."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if given is not None:
            yield given
            return
        with tempfile.TemporaryDirectory(prefix="wavemesh-bench-") as directory:
            yield Path(directory)
    finally:
        signal.signal(signal.SIGTERM, before)


def check(directory: Path) -> Verdict:
    """The verdict on what came of it; raises WrongResultError unless it is as it must be."""
    verdict = judge(directory)
    if not verdict.holds:
        raise WrongResultError("; ".join(explain(verdict)))
    return verdict


def _measure(directory: Path, size: Size, timeout_s: float, profile: Path | None) -> Result:
    progress = Progress(sys.stderr)
    progress.show(f"making {size.total} devices")
    site = make_site(directory, size)
    store, device = next(iter(site.stores)), site.devices[0]
    yardstick = Yardstick(site.device_dir(device), site.store_dir(store), site.store_id(store).dns_name)
    with Fleet(site, progress, profile) as fleet:
        listening = fleet.costs()
        began_s = time.monotonic()
        register(fleet)
        fleet.start_devices()
        connect_s = time.monotonic() - began_s
        connected = fleet.costs()
        processes = fleet.processes("agents")
        planned_s = time.monotonic()
        plan(fleet, size)
        start_wave(fleet)
        wait_closed(fleet, progress, timeout_s, yardstick.sample)
        wall_s = time.monotonic() - planned_s
        closed = fleet.costs()
        links = [fleet.link(name) for name in site.links]
    progress.done()
    verdict = check(directory)
    idle = connected["agents"]
    keys: dict[str, object] = {
        "stores": size.stores,
        "regions": size.regions,
        "devices": verdict.devices,
        "updated": verdict.updated,
        "rolled_back": verdict.rolled_back,
        "failed": verdict.failed,
        "bricked": len(verdict.bricked),
        "unaccounted": len(verdict.unaccounted),
        # The proxy counts both ends of each connection.
        "control_streams": sum(link["connections"] for link in links) // 2,
        "control_bytes_per_device": round(sum(link["up_bytes"] + link["down_bytes"] for link in links) / size.total),
        "wall_s": round(wall_s, 1),
        "connect_s": round(connect_s, 1),
        "peak_rss_mb": round(sum(cost.peak_rss_kib for cost in closed.values()) / 1024),
        "image_kib": size.image_kib,
        **_cpu(listening, connected, closed, size.total),
        "handshake_cpu_ms": round(yardstick.cpu_ms, 3),
        "peak_rss_mb_by_tier": {tier: round(cost.peak_rss_kib / 1024, 1) for tier, cost in closed.items()},
        "agent_kib_per_device": round(idle.rss_kib / size.total),
        "idle_threads_per_agent_process": round(idle.threads / processes, 1),
        "idle_files_per_device": round(idle.files / size.total, 2),
    }
    keys["cpu_in_handshakes"] = round(float(str(keys["cpu_ms_per_device"])) / yardstick.cpu_ms, 1)
    return Result(keys, _targets(keys))


def _cpu(
    listening: Mapping[str, Cost], connected: Mapping[str, Cost], closed: Mapping[str, Cost], devices: int
) -> dict[str, object]:
    """CPU per device by tier and by phase, milliseconds."""
    # A tier that had no process yet had cost nothing.
    connect = {tier: connected[tier].since(listening[tier]) for tier in TIERS}
    rollout = {tier: closed[tier].since(connected[tier]) for tier in TIERS}

    def per_device(seconds: float) -> float:
        return round(1000 * seconds / devices, 2)

    tiers = {tier: connect[tier].cpu_s + rollout[tier].cpu_s for tier in TIERS}
    probes = sum(rollout[tier].children_cpu_s for tier in TIERS)
    return {
        "cpu_ms_per_device": per_device(sum(tiers.values())),
        "cpu_ms_per_device_by_tier": {tier: per_device(seconds) for tier, seconds in tiers.items()},
        "cpu_ms_per_device_to_connect": {tier: per_device(cost.cpu_s) for tier, cost in connect.items()},
        "probe_cpu_ms_per_device": per_device(probes),
    }


def _targets(keys: Mapping[str, object]) -> tuple[Target, ...]:
    """What is to be shown against its bound; a wrong result never gets here."""
    cpu_ms = float(str(keys["cpu_ms_per_device"]))
    streams, regions = int(str(keys["control_streams"])), int(str(keys["regions"]))
    return (
        Target("CPU ms per device, all tiers", cpu_ms, f"<= {MAX_CPU_MS:g}", cpu_ms <= MAX_CPU_MS),
        Target("streams at control / super hubs", streams / regions, "1", streams == regions),
    )
