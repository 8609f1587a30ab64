"""N cold store hubs ask a real super hub for one release's image at once; what crosses the origin's link is counted.

Control, super hub and origin are processes; each store has its own identity and mTLS connection and takes the image
with the product's own client and the store hub's patience (``bench/region_stores.py``). The origin sends at a rate, as
a WAN does, and writes down what it sent. With ``--kill`` the super hub is killed (-9) when half of the image is on its
disk, and started again. The peer, in the same run and from an origin of its own, is nginx as a caching reverse proxy
over mutual TLS, with the lock that lets one of many fetch.

* ``origin_bytes``: what the origin sent for the image; ``ratio_origin`` by the image's size;
* ``first_byte_s``, ``fetch_s``: from the word "go" to the first byte at any store, and to the origin's last byte;
* ``store_bytes``: what all stores received; ``refetched_bytes`` beyond one image each;
* ``sheds``: how often a store was told to come later; ``gave_up``: how often one's patience was at an end (its devices
  ask again); ``reads``: how many the super hub serves at a time;
* ``peak_rss_mb``: of the super hub, the more of both of its lives.

A store that gets other bytes is a wrong result.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.nginx import listens
from bench.region_proxy import caching_nginx
from bench.region_site import CONTROL, ORIGIN, PROXY, REGION, RegionSite, make_region
from bench.region_stores import HUB
from bench.region_stores import PROXY as BY_PROXY
from bench.report import Result, Target, WrongResultError, write
from wavemesh.runtime.grpc import run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from wavemesh.identity.nodes import NodeId
    from wavemesh.trust.statements import Digest

RATIO_BOUND = 1.01
STEP_TIMEOUT_S = 1800.0
STORES = (sys.executable, "-m", "bench.region_stores")
_LINE_BYTES = 16 * 1024 * 1024
_POLL_S = 0.02
_STDERR = 2
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Options:
    """What is run."""

    processes: int
    origin_bytes_per_s: int
    is_killed: bool


@dataclass(slots=True)
class Hub:
    """The super hub, its lives counted."""

    site: RegionSite
    process: asyncio.subprocess.Process | None = None
    peak_rss_mb: float = 0.0
    kills: int = 0

    async def start(self) -> None:
        """Start, and wait until it serves."""
        self.process = await _start("superhub", "--dir", str(self.site.of(REGION)))
        await _until_listening(self.site.ports["hub"], self.process)

    async def kill(self) -> None:
        """Take a look at its memory, and kill -9."""
        if self.process is not None and self.process.returncode is None:
            self.peak_rss_mb = max(self.peak_rss_mb, _peak_rss_mb(self.process.pid))
            self.process.kill()
            await self.process.wait()

    async def die_half_way(self) -> None:
        """Kill when half of the image is on disk, and start again."""
        partials = self.site.of(REGION) / "state" / "cache" / "partial"
        while not _holds_half(partials, self.site.image):  # noqa: ASYNC110  # another process writes it
            await asyncio.sleep(_POLL_S)
        await self.kill()
        self.kills += 1
        await self.start()


def main(arguments: list[str]) -> int:
    """Run the benchmark; returns 1 when a store got something else than the image."""
    parser = argparse.ArgumentParser(prog="python -m bench region", description=__doc__.partition("\n")[0])
    parser.add_argument("--stores", type=int, default=200, help="store hubs (default 200)")
    parser.add_argument("--size-mib", type=int, default=128, help="size of the image (default 128)")
    parser.add_argument("--processes", type=int, default=4, help="processes that the stores share (default 4)")
    parser.add_argument("--reads", type=int, default=64, help="the super hub's maximum_reads (default 64)")
    parser.add_argument("--origin-mib-s", type=float, default=8.0, help="the origin's rate a transfer (default 8)")
    parser.add_argument("--kill", action="store_true", help="kill -9 the super hub once, half way")
    parser.add_argument("--no-peer", action="store_true", help="leave nginx out")
    parser.add_argument("--dir", type=Path, help="where files go (default: TMPDIR)")
    parser.add_argument("--json", metavar="FILE", help="write one JSON object there; - is standard output")
    options = parser.parse_args(arguments)
    how = Options(min(options.processes, options.stores), int(options.origin_mib_s * _MIB), options.kill)
    try:
        with tempfile.TemporaryDirectory(prefix="wavemesh-bench-", dir=options.dir) as directory:
            site = asyncio.run(
                make_region(Path(directory), options.stores, options.size_mib, maximum_reads=options.reads)
            )
            ours = run(_ours(site, how))
            peer = None if options.no_peer else run(_peer(site, how))
    except (WrongResultError, FileNotFoundError) as error:
        sys.stderr.write(f"bench region: {error}\n")
        return 1
    keys = {"stores": options.stores, "artifact_bytes": site.image.size_bytes, "reads": options.reads, **ours}
    if peer is not None:
        keys |= {"peer": peer, "ratio_peer_wall": round(peer["wall_s"] / ours["wall_s"], 3)}
    write(Result(keys, tuple(_targets(ours, peer))), options.json)
    return 0


def _targets(ours: dict[str, Any], peer: dict[str, Any] | None) -> list[Target]:
    ratio, first_s, fetch_s = ours["ratio_origin"], ours["first_byte_s"], ours["fetch_s"]
    targets = [
        Target("origin bytes / image", ratio, f"<= {RATIO_BOUND}", ratio <= RATIO_BOUND),
        Target("first byte at a store, s", first_s, f"< {fetch_s}, the end of the fetch", first_s < fetch_s),
    ]
    if peer is not None:
        wall = ours["wall_s"]
        targets.append(Target("wall, s", wall, f"<= the peer's {peer['wall_s']}", wall <= peer["wall_s"]))
    return targets


async def _ours(site: RegionSite, how: Options) -> dict[str, Any]:
    """The stores at the super hub."""
    async with AsyncExitStack() as stack:
        log = await stack.enter_async_context(_origin(site, "hub", how))
        control = await _start("control", "--dir", str(site.of(CONTROL)))
        stack.push_async_callback(_end, control)
        await _until_listening(site.ports["control"], control)
        hub = Hub(site)
        stack.push_async_callback(hub.kill)
        await hub.start()
        words = (HUB, site.address("hub"), REGION.uri)
        figures: dict[str, Any] = {}
        wrong: ExceptionGroup[WrongResultError] | None = None
        try:
            async with asyncio.TaskGroup() as group:
                if how.is_killed:
                    group.create_task(hub.die_half_way())
                figures = await _measure(site, words, how, log)
        except* WrongResultError as errors:
            wrong = errors
        if wrong is not None:
            raise WrongResultError("; ".join(map(str, wrong.exceptions)))
        await hub.kill()
    return {**figures, "kills": hub.kills, "peak_rss_mb": round(hub.peak_rss_mb, 1)}


async def _peer(site: RegionSite, how: Options) -> dict[str, Any]:
    """The stores at nginx."""
    async with _origin(site, "proxy", how) as log:
        directory = site.directory / "nginx"
        async with caching_nginx(directory, site.identity(PROXY), site.ports["proxy"], site.address("origin")):
            return await _measure(site, (BY_PROXY, site.address("proxy"), REGION.uri), how, log)


async def _measure(site: RegionSite, words: tuple[str, ...], how: Options, log: Path) -> dict[str, Any]:
    """Let all stores ask at once, and count."""
    image = site.image
    async with AsyncExitStack() as stack:
        shares = [site.stores[number :: how.processes] for number in range(how.processes)]
        processes = [await stack.enter_async_context(_stores(site, words, share)) for share in shares]
        for process in processes:
            await _hear(process)
        began_at = time.time()
        for process in processes:
            assert process.stdin is not None  # noqa: S101  # they were started with pipes
            process.stdin.write(b"go\n")
            await process.stdin.drain()
        told = [await _hear(process) for process in processes]
    stores = [store for one in told for store in one["stores"]]
    for store in stores:
        if store["sha256"] != image.sha256:
            raise WrongResultError(f"a store digested {store['sha256']} instead of {image.sha256}")
    if len(stores) != len(site.stores):
        raise WrongResultError(f"{len(stores)} of {len(site.stores)} stores answered")
    return {**_figures(stores, image.size_bytes, began_at), **await _origins(site, log, began_at)}


def _figures(stores: Sequence[dict[str, Any]], size_bytes: int, began_at: float) -> dict[str, Any]:
    received = sum(store["bytes"] for store in stores)
    return {
        "store_bytes": received,
        "refetched_bytes": received - len(stores) * size_bytes,
        "wall_s": round(max(store["ended_at"] for store in stores) - began_at, 3),
        "first_byte_s": round(min(store["first_at"] for store in stores) - began_at, 3),
        "last_first_byte_s": round(max(store["first_at"] for store in stores) - began_at, 3),
        **{name: sum(store[name] for store in stores) for name in ("sheds", "breaks", "gave_up")},
    }


async def _origins(site: RegionSite, log: Path, began_at: float) -> dict[str, Any]:
    """What the origin says it sent of the image; a response is logged when it has ended."""
    async with asyncio.timeout(STEP_TIMEOUT_S):
        while not any(_is_last(site, entry) for entry in _entries(site, log)):  # noqa: ASYNC110  # another's log
            await asyncio.sleep(_POLL_S)
    entries = _entries(site, log)
    sent = sum(entry["bytes"] for entry in entries)
    ended_at = max(datetime.fromisoformat(entry["ended"]).timestamp() for entry in entries if _is_last(site, entry))
    return {
        "origin_bytes": sent,
        "origin_requests": len(entries),
        "ratio_origin": round(sent / site.image.size_bytes, 4),
        "fetch_s": round(ended_at - began_at, 3),
    }


def _is_last(site: RegionSite, entry: dict[str, Any]) -> bool:
    """Whether a response ended with the image; nginx closes before the origin has noticed that it is through."""
    return bool(entry["range_start"] + entry["bytes"] == site.image.size_bytes)


def _holds_half(partials: Path, image: Digest) -> bool:
    return any(_size(path) >= image.size_bytes // 2 for path in partials.glob(f"{image.sha256}*"))


def _size(path: Path) -> int:
    """Of a file that may be renamed this moment."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _entries(site: RegionSite, log: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["path"].endswith(site.image.sha256)]


# -- processes ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _origin(site: RegionSite, name: str, how: Options) -> AsyncIterator[Path]:
    """The origin, and its log."""
    log = site.directory / f"origin-{name}.log"
    process = await _start(
        "lab.origin",
        *("--dir", str(site.files), "--listen", site.address("origin"), "--identity", str(site.identity(ORIGIN))),
        *("--log", str(log), "--rate-bytes-per-s", str(how.origin_bytes_per_s)),
    )
    try:
        await _until_listening(site.ports["origin"], process)
        yield log
    finally:
        await _end(process)


@asynccontextmanager
async def _stores(
    site: RegionSite, words: tuple[str, ...], share: Sequence[NodeId]
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Some stores in a process, which ends with the block."""
    identities = [str(site.identity(store)) for store in share]
    command = (*STORES, *words, site.image.sha256, str(site.image.size_bytes), *identities)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=_LINE_BYTES)
    try:
        yield process
    finally:
        await _end(process)


async def _hear(process: asyncio.subprocess.Process) -> dict[str, Any]:
    """One line of a process; raises WrongResultError when it ended instead."""
    assert process.stdout is not None  # noqa: S101  # it was started with pipes
    async with asyncio.timeout(STEP_TIMEOUT_S):
        line = await process.stdout.readline()
    if not line:
        raise WrongResultError(f"a process of stores ended with status {await process.wait()}")
    told: dict[str, Any] = json.loads(line)
    return told


async def _start(module: str, *arguments: str) -> asyncio.subprocess.Process:
    """A program of ours; what it says goes to stderr, standard output is for the figures."""
    return await asyncio.create_subprocess_exec(sys.executable, "-m", module, *arguments, stdout=_STDERR)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


async def _until_listening(port: int, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(STEP_TIMEOUT_S):
        while not await listens(port):
            if process.returncode is not None:
                raise WrongResultError(f"a process ended with status {process.returncode} instead of serving")
            await asyncio.sleep(_POLL_S)


def _peak_rss_mb(pid: int) -> float:
    """The most memory it ever held, MB (proc(5), VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1000
    return 0.0
