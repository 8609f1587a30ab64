"""A link is cut twice in a wave, and comes back: how soon all is as if nothing had been, and what it cost.

The first cut comes when half of the image bytes have crossed the link, the second when a quarter of the devices have
their outcome; each lasts ``--outage`` seconds. ``lan`` is between devices and their store hubs, ``wan`` between store
hubs and the super hub; a cut resets all connections and each new one, and control misses every device before it ends.
*Converged* means that control has heard every device again and has every outcome that any device had reached when the
link came back; the slower of both cuts counts. A device that is rebooting for its trial when the link comes back is
waited for. ``all_at_once_s`` is when control heard all of them in one moment; as a wave goes on rebooting devices, that
says more about the wave.

A calm fleet of the same size runs the same wave first. ``redownloaded_bytes`` is what crossed the link downwards beyond
it, less what bringing the sessions back costs, which is measured on the calm fleet by a cut after its wave. All bytes
are counted at the proxy. ``floor_s`` is the same link with as many bare TLS connections that try every 0.1 s.
``floor_bytes`` is what passes it and never arrives when it is cut while as many bare TCP connections carry all they
can to readers that do nothing with it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ssl
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bench.fleet import add_size, check, directory_of, size_of
from bench.handshake import tls
from bench.report import Result, Target, WrongResultError, write
from bench.rollout import Fleet, Progress, ledger, plan, register, start_wave, wait_closed
from bench.site import make_site
from bench.truth import FINAL
from lab.evidence import EvidenceError, records
from lab.wan import Link, LinkConfig, Mode
from wavemesh.errors import WavemeshError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.site import Site, Size
    from bench.truth import Verdict

CONVERGED_WITHIN_S = 5.0
CONVERGED_TIMEOUT_S = 180.0
NOTICED_TIMEOUT_S = 30.0
HOPS = ("control", "wan", "lan")
_LOOK_S = 0.1
_BYTES_LOOK_S = 0.01
_FLOOR_BYTES = 128 * 1024
_ENDED = frozenset({"state:COMMITTED", "state:ROLLED_BACK"})


@dataclass(frozen=True, slots=True)
class Outcome:
    """One fleet's run: bytes down the link in the wave, and what its outages were like."""

    down_bytes: int
    at_cut: tuple[int, ...]
    converged_s: tuple[float, ...]
    all_at_once_s: tuple[float, ...]
    reconnect_bytes: int
    verdict: Verdict


def main(arguments: list[str]) -> int:
    """Measure and print; 1 when an outcome is lost, counted twice or wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench resume", description=__doc__)
    add_size(parser, stores=6, devices=300)
    parser.add_argument("--outage", type=float, default=60.0, help="seconds a cut lasts (default 60)")
    parser.add_argument("--link", choices=("lan", "wan"), default="lan", help="which link is cut (default lan)")
    parser.set_defaults(image_kib=4096)
    options = parser.parse_args(arguments)
    # Here --devices says how many in all.
    options.devices = max(1, options.devices // options.stores)
    size = size_of(options)
    try:
        with directory_of(options.dir) as directory:
            result = _measure(directory, size, options)
    except (WrongResultError, EvidenceError, WavemeshError) as error:
        sys.stderr.write(f"bench resume: wrong result: {error}\n")
        return 1
    write(result, options.json)
    return 0


def _measure(directory: Path, size: Size, options: argparse.Namespace) -> Result:
    progress = Progress(sys.stderr)
    calm = _run(directory / "calm", size, options, progress, cuts=())
    half = size.image_kib * 1024 * (size.total if options.link == "lan" else size.stores) // 2
    cut = _run(directory / "cut", size, options, progress, cuts=(Bytes(half), Outcomes(max(1, size.total // 4))))
    site = make_site(directory / "floor", replace(size, image_kib=64, bad=0))
    floor_s = asyncio.run(_floor(site))
    floor_bytes = asyncio.run(_floor_bytes(size.total))
    progress.done()
    extra = cut.down_bytes - calm.down_bytes
    redownloaded = max(0, extra - len(cut.converged_s) * calm.reconnect_bytes)
    converged_s = max(cut.converged_s)
    keys: dict[str, object] = {
        "link": options.link,
        "devices": size.total,
        "stores": size.stores,
        "outage_s": options.outage,
        "outages": len(cut.converged_s),
        "converged_s": round(converged_s, 2),
        "converged_s_each": [round(each, 2) for each in cut.converged_s],
        "all_at_once_s_each": [round(each, 2) for each in cut.all_at_once_s],
        "floor_s": round(floor_s, 2),
        "redownloaded_bytes": redownloaded,
        "floor_bytes": floor_bytes,
        "calm_bytes": calm.down_bytes,
        "extra_bytes": extra,
        "reconnect_bytes": calm.reconnect_bytes,
        "bytes_at_cut": list(cut.at_cut),
        "lost": len(cut.verdict.unaccounted),
        "duplicated": len(cut.verdict.duplicated),
        "updated": cut.verdict.updated,
        "rolled_back": cut.verdict.rolled_back,
        "bricked": len(cut.verdict.bricked),
        "image_kib": size.image_kib,
    }
    targets = (
        Target("converged, s", converged_s, f"<= {CONVERGED_WITHIN_S:g}", converged_s <= CONVERGED_WITHIN_S),
        Target("downloaded again, bytes", redownloaded, "0", redownloaded == 0),
    )
    return Result(keys, targets)


@dataclass(frozen=True, slots=True)
class Bytes:
    """Cut when that many bytes have crossed the link in the wave."""

    count: int


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Cut when control has that many outcomes."""

    count: int


class _Observed:
    """A fleet whose link is cut and restored."""

    def __init__(self, fleet: Fleet, link: str) -> None:
        self.fleet = fleet
        self.links = [name for name in fleet.site.links if name.startswith(f"{link}/")]

    def down_bytes(self) -> int:
        """Bytes towards the devices so far."""
        return sum(
            int(one["down_bytes"]) for one in self.fleet.tell_wan("status")["links"] if one["name"] in self.links
        )

    def set(self, verb: str) -> None:
        """Cut or restore all links of the hop."""
        for name in self.links:
            self.fleet.tell_wan(f"{verb} {name}")

    def outage(self, lasts_s: float) -> tuple[float, float]:
        """Cut, wait, restore once control misses all devices; seconds until converged, and until all at once."""
        self.set("cut")
        time.sleep(lasts_s)  # the outage itself
        total = len(self.fleet.site.devices)
        self.fleet.wait(
            lambda: self.fleet.connected() == 0,
            NOTICED_TIMEOUT_S,
            "control to miss the devices behind the link that was cut",
            poll_s=_LOOK_S,
        )
        ended = _ended(self.fleet.site)
        self.set("restore")
        began_s = time.monotonic()
        heard: set[str] = set()

        def is_converged() -> bool:
            heard.update(self.fleet.heard())
            return len(heard) == total and ended <= _known(self.fleet.site)

        what = "control to hear all devices and to have their outcomes"
        self.fleet.wait(is_converged, CONVERGED_TIMEOUT_S, what, poll_s=_LOOK_S)
        converged_s = time.monotonic() - began_s
        self.fleet.wait(lambda: self.fleet.connected() == total, CONVERGED_TIMEOUT_S, what, poll_s=_LOOK_S)
        return converged_s, time.monotonic() - began_s


def _run(
    directory: Path, size: Size, options: argparse.Namespace, progress: Progress, cuts: tuple[Bytes | Outcomes, ...]
) -> Outcome:
    progress.show(f"making {size.total} devices")
    site = make_site(directory, size, HOPS)
    with Fleet(site, progress) as fleet:
        observed = _Observed(fleet, options.link)
        register(fleet)
        fleet.start_devices()
        plan(fleet, size)
        before = observed.down_bytes()
        start_wave(fleet)
        at_cut, outages = [], []
        for cut in cuts:
            poll_s = _BYTES_LOOK_S if isinstance(cut, Bytes) else _LOOK_S
            fleet.wait(_reached(cut, observed, before), options.timeout, f"{cut}", poll_s=poll_s)
            at_cut.append(observed.down_bytes() - before)
            progress.show(f"the {options.link} is cut for {options.outage:g} s")
            outages.append(observed.outage(options.outage))
        wait_closed(fleet, progress, options.timeout, lambda: None)
        closed = observed.down_bytes()
        if not cuts:
            observed.outage(min(options.outage, 2.0))
        reconnect_bytes = observed.down_bytes() - closed
    converged_s, all_at_once_s = zip(*outages, strict=True) if outages else ((), ())
    verdict = check(site.directory)
    return Outcome(closed - before, tuple(at_cut), converged_s, all_at_once_s, reconnect_bytes, verdict)


def _reached(cut: Bytes | Outcomes, observed: _Observed, before: int) -> Callable[[], bool]:
    if isinstance(cut, Bytes):
        return lambda: observed.down_bytes() - before >= cut.count
    return lambda: len(_known(observed.fleet.site)) >= cut.count


def _ended(site: Site) -> set[str]:
    """Devices that are through, by their boards' records."""
    return {
        name
        for name in site.devices
        if any(record.step in _ENDED for record in records(site.device_dir(name), "steps"))
    }


def _known(site: Site) -> set[str]:
    """Devices of which control has the final word."""
    return {outcome.device.rpartition("/")[2] for outcome in ledger(site) if outcome.kind in FINAL}


# --- the floor -------------------------------------------------------------------------------------------------------


async def _floor(site: Site) -> float:
    """Seconds until as many bare TLS connections have echoed again once their link is back."""
    store = next(iter(site.stores))
    server = await asyncio.start_server(_echo, "127.0.0.1", 0, ssl=tls(site.store_dir(store), ssl.Purpose.CLIENT_AUTH))
    port = server.sockets[0].getsockname()[1]
    count = len(site.devices)
    async with (
        server,
        Link(LinkConfig("floor", "127.0.0.1:0", f"127.0.0.1:{port}")) as link,
        asyncio.TaskGroup() as group,
    ):
        clients = [_Client(tls(site.device_dir(name), ssl.Purpose.SERVER_AUTH), link.address) for name in site.devices]
        tasks = [group.create_task(client.run(site.store_id(store).dns_name)) for client in clients]
        await _until(lambda: sum(client.is_echoed for client in clients) == count)
        link.set_mode(Mode.CUT)
        await _until(lambda: not any(client.is_echoed for client in clients))
        link.set_mode(Mode.PASS)
        began_s = time.monotonic()
        await _until(lambda: sum(client.is_echoed for client in clients) == count)
        took_s = time.monotonic() - began_s
        for task in tasks:
            task.cancel()
    return took_s


class _Client:
    """Connects, echoes, waits for the end, connects again."""

    def __init__(self, context: ssl.SSLContext, address: str) -> None:
        self._context = context
        self._host, _, self._port = address.rpartition(":")
        self.is_echoed = False

    async def run(self, server_name: str) -> None:
        """Until cancelled."""
        while True:
            try:
                reader, writer = await asyncio.open_connection(
                    self._host, int(self._port), ssl=self._context, server_hostname=server_name
                )
                writer.write(b"x")
                self.is_echoed = await reader.readexactly(1) == b"x"
                await reader.read()
            except (OSError, asyncio.IncompleteReadError):
                pass  # the link is down, as it should be
            self.is_echoed = False
            await asyncio.sleep(_LOOK_S)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1024):
            writer.write(data)
            await writer.drain()
    except OSError:
        return
    finally:
        writer.close()


async def _floor_bytes(count: int) -> int:
    """Bytes that passed the link and were lost when it was cut under so many bare TCP connections."""
    began = asyncio.Event()

    async def pour(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(b"x")
            await began.wait()
            while True:
                writer.write(bytes(64 * 1024))
                await writer.drain()

    server = await asyncio.start_server(pour, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with (
        server,
        Link(LinkConfig("floor", "127.0.0.1:0", f"127.0.0.1:{port}")) as link,
        asyncio.TaskGroup() as group,
    ):
        readings = []
        for _ in range(count):
            reader, writer = await asyncio.open_connection(*link.address.split(":"))
            # One after the other: more at once than the backlog holds would be reset or forgotten.
            await reader.readexactly(1)
            readings.append(group.create_task(_receive(reader, writer)))
        began.set()
        await _until(lambda: link.down_bytes >= count * _FLOOR_BYTES)
        link.set_mode(Mode.CUT)
        received = await asyncio.gather(*readings)
    return link.down_bytes - count - sum(received)


async def _receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    """How many bytes arrive until the connection is reset."""
    count = 0
    with contextlib.suppress(OSError):
        while data := await reader.read(64 * 1024):
            count += len(data)
    writer.close()
    return count


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(CONVERGED_TIMEOUT_S):
        while not holds():  # noqa: ASYNC110  # what is waited for is the state of many connections
            await asyncio.sleep(0.005)
