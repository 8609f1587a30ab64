"""kill -9 of a hub in its prefetch: ``python -m tests.prefetch_kills [--tier T] [--moments N] [--json FILE]``.

A real hub process fetches one image through a proxy that lets through so many bytes a second and counts them. At each
of N random moments, spread over the image by the seed, the hub is killed with SIGKILL and started again. Meanwhile a
child reads from the hub all the time and compares every byte. At the end

    asked again     bytes that the file had at a kill and that were asked for again at the source, by its log. 0: the
                    page cache outlives the process, so the hub goes on at the very byte its file ends with
    wire            what the proxy let through beyond the image. At most ``TAIL_BYTES`` a kill: bytes that were under
                    way or in the hub's memory and not in its file yet; handshakes and frames are in it
    wrong           bytes that the hub served and that are not the image's. 0
    result          the blob under its name has its digest, and a child gets all of it

Exits 1 when one of these is not so, 2 for bad input.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import socket
import sys
import tempfile
from collections import Counter
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Protocol, TypeAlias

from tests.conftest import FLEET, make_trust_keys
from tests.session_kit import Fleet
from tests.storehub_kit import STORE, Control, SuperHub, device_node, lay_out, wan
from tests.superhub_kit import Region, store_id
from wavemesh.artifacts.digests import digest_of_file
from wavemesh.artifacts.transfer import ArtifactClient
from wavemesh.errors import WavemeshError
from wavemesh.identity.ca import FleetCa
from wavemesh.runtime.grpc import make_bulk_channel, run
from wavemesh.trust.statements import WaveState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from wavemesh.identity.nodes import NodeId
    from wavemesh.trust.statements import Digest

MIB = 1024 * 1024
RATE_BYTES_PER_S = 24_000_000
CHUNK_BYTES = 32 * 1024
TAIL_BYTES = 2 * MIB
BYTES_A_MOMENT = 5 * MIB // 4
PATIENCE_S = 60.0
POLL_S = 0.002
MAX_MOMENTS = 500
TIERS = ("storehub", "superhub")


class KillError(Exception):
    """The hub did not get on."""


class Proxy:
    """Passes TCP on, downwards no faster than it may, and counts."""

    def __init__(self) -> None:
        self.down_bytes = 0
        self.target = ("", 0)
        self.port = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.close()
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, up_writer))
                group.create_task(self._pass(up_reader, writer, self._down))
        except* (OSError, EOFError):
            pass
        finally:
            for one in (writer, up_writer):
                one.close()

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        count: Callable[[int], float] = lambda _: 0.0,
    ) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if writer.transport.is_closing():
                break
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(count(len(data)))  # plays: a link of that rate
        raise EOFError

    def _down(self, count: int) -> float:
        self.down_bytes += count
        return count / RATE_BYTES_PER_S


@dataclass(slots=True)
class Reader:
    """A child that reads on and on, and how many wrong bytes it was given."""

    client: ArtifactClient
    digest: Digest
    content: bytes
    read_bytes: int = 0
    wrong_bytes: int = 0
    is_whole: bool = False

    async def run(self) -> None:
        """From where the last read broke; from the start again once it was whole."""
        offset = 0
        while True:
            try:
                async with aclosing(self.client.read(self.digest, offset)) as pieces:
                    async for piece in pieces:
                        wanted = self.content[offset : offset + len(piece)]
                        self.wrong_bytes += sum(a != b for a, b in zip(bytes(piece), wanted, strict=True)) * (
                            bytes(piece) != wanted
                        )
                        offset += len(piece)
                        self.read_bytes += len(piece)
            except (WavemeshError, TimeoutError):
                await asyncio.sleep(0.05)  # plays: a child's back-off
            if offset == len(self.content):
                self.is_whole, offset = True, 0


class Place(Protocol):
    """One tier's surroundings."""

    directory: Path
    digest: Digest
    content: bytes
    proxy: Proxy
    reader: Reader

    def asked_again(self, cut_at: Sequence[int]) -> int:
        """Bytes that the hub's file had and that were asked for again at the source; ``cut_at`` are the kills."""
        ...


def held_bytes(directory: Path, digest: Digest) -> int:
    """Bytes of the image that the files of that hub have."""
    cache, name = directory / "state" / "cache", f"{digest.sha256}-{digest.size_bytes}"
    for path in (cache / "partial" / name, cache / "blobs" / digest.sha256[:2] / name):
        with suppress(FileNotFoundError):
            return path.stat().st_size
    return 0


class WatchingSuperHub(SuperHub):
    """Looks at the asking hub's files whenever it asks."""

    def __init__(self, control: Control, directory: Path, digest: Digest) -> None:
        super().__init__(control)
        self.asked_again_bytes = 0
        self._directory = directory
        self._digest = digest

    async def open(self, peer: NodeId, digest: Digest, offset: int, length_bytes: int) -> AsyncGenerator[bytes, None]:
        """See SuperHub."""
        if digest == self._digest:
            self.asked_again_bytes += max(0, held_bytes(self._directory, digest) - offset)
        return await super().open(peer, digest, offset, length_bytes)


@dataclass(slots=True)
class StorePlace:
    """A store hub, below a super hub that this process plays."""

    directory: Path
    digest: Digest
    content: bytes
    proxy: Proxy
    reader: Reader
    super_hub: WatchingSuperHub

    def asked_again(self, cut_at: Sequence[int]) -> int:
        """See Place; looked up at each request, for a hub may ask again by itself, when a stream of it breaks."""
        del cut_at
        return self.super_hub.asked_again_bytes


@dataclass(slots=True)
class RegionPlace:
    """A super hub, below a control that this process plays and an origin in a process of its own."""

    directory: Path
    digest: Digest
    content: bytes
    proxy: Proxy
    reader: Reader
    region: Region

    def asked_again(self, cut_at: Sequence[int]) -> int:
        """See Place; the origin logs a request when it ends."""
        entries = [one for one in self.region.access_log() if one["path"].endswith(self.digest.sha256)]
        asked = [one["range_start"] for one in entries if one["status"] in {200, 206}]
        return asked_again(cut_at, asked, self.digest.size_bytes)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@asynccontextmanager
async def store_place(top: Path, size_bytes: int, proxy: Proxy) -> AsyncIterator[StorePlace]:
    """A wave is planned for the store, so that its hub fetches the image."""
    control = Control(Fleet.create(top / "fleet"))
    content = Random(size_bytes).randbytes(size_bytes)
    digest = control.add_release("big", content)
    super_hub = WatchingSuperHub(control, top / "hub", digest)
    async with wan(super_hub) as parent:
        proxy.target = ("127.0.0.1", int(parent.rpartition(":")[2]))
        port = _free_port()
        directory = lay_out(top / "hub", control, f"127.0.0.1:{proxy.port}", port=port)
        super_hub.want(
            control.tuf(),
            control.holds(),
            control.policy_resource(),
            control.order("pos-12", release="big", state=WaveState.PLANNED),
        )
        credentials = control.fleet.credentials(device_node("pos-12"))
        client = ArtifactClient(lambda: make_bulk_channel(credentials, f"127.0.0.1:{port}", STORE))
        yield StorePlace(directory, digest, content, proxy, Reader(client, digest, content), super_hub)


@asynccontextmanager
async def region_place(top: Path, size_bytes: int, proxy: Proxy) -> AsyncIterator[RegionPlace]:
    """A store of the region wants the image all the time."""
    (top / "origin-files").mkdir()
    region = Region(top, FleetCa.create(FLEET, datetime.now(UTC) - timedelta(days=1)), make_trust_keys())
    content = Random(size_bytes).randbytes(size_bytes)
    release = region.publish("big", content)
    store = store_id("store-208")
    region.order(store, release)
    port = _free_port()
    async with region.running_origin(), region.running_control():
        proxy.target = ("127.0.0.1", region.origin_port)
        region.origin_port = proxy.port
        region.write_hub(port)
        digest = release.main.digest
        reader = Reader(region.client(store, port), digest, content)
        yield RegionPlace(region.hub_dir, digest, content, proxy, reader, region)


Opened: TypeAlias = "AbstractAsyncContextManager[Place]"
PLACES: dict[str, Callable[[Path, int, Proxy], Opened]] = {"storehub": store_place, "superhub": region_place}


@dataclass(slots=True)
class Run:
    """What came of one tier."""

    tier: str
    size_bytes: int
    kills_at: list[int] = field(default_factory=list)
    asked_again_bytes: int = 0
    wire_bytes: int = 0
    served_bytes: int = 0
    wrong_bytes: int = 0
    violations: list[str] = field(default_factory=list)

    @property
    def beyond_bytes(self) -> int:
        """What the proxy let through beyond the image."""
        return self.wire_bytes - self.size_bytes


async def _until(condition: Callable[[], bool], what: str, process: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                if process.returncode is not None:
                    msg = f"the hub ended with {process.returncode} before {what}"
                    raise KillError(msg)
                await asyncio.sleep(POLL_S)  # plays: somebody who watches a process from outside
    except TimeoutError:
        msg = f"not within {PATIENCE_S:g} s: {what}"
        raise KillError(msg) from None


@asynccontextmanager
async def _hub(tier: str, directory: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    with (directory / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", tier, "--dir", str(directory), stderr=log)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.wait()


async def run_tier(tier: str, moments: int, seed: int, top: Path) -> Run:
    """One prefetch with that many kills."""
    size_bytes = 4 * MIB + moments * BYTES_A_MOMENT + 12_345
    rng = Random(f"{seed} {tier}")
    at = sorted(rng.randrange(1, size_bytes) for _ in range(moments))
    proxy, found = Proxy(), Run(tier, size_bytes)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(proxy.running())
        place: Place = await stack.enter_async_context(PLACES[tier](top, size_bytes, proxy))
        group = await stack.enter_async_context(asyncio.TaskGroup())
        reading = group.create_task(place.reader.run())
        try:
            cut_at: list[int] = []
            for moment in at:
                wanted = max(moment, cut_at[-1] if cut_at else 0)
                async with _hub(tier, place.directory) as process:
                    await _until(lambda: held_bytes(place.directory, place.digest) >= wanted, f"byte {wanted}", process)  # noqa: B023
                    await asyncio.sleep(rng.uniform(0, 0.04))  # plays: any moment
                cut_at.append(held_bytes(place.directory, place.digest))
            async with _hub(tier, place.directory) as process:
                await _until(lambda: held_whole(place), "the whole blob", process)
                place.reader.is_whole = False
                await _until(lambda: place.reader.is_whole, "a child that has it all", process)
            found.kills_at, found.asked_again_bytes = cut_at, place.asked_again(cut_at)
        except KillError as error:
            found.violations.append(str(error))
        finally:
            reading.cancel()
        await _judge(found, place)
    return found


def held_whole(place: Place) -> bool:
    """Whether the blob has its name."""
    digest = place.digest
    path = place.directory / "state" / "cache" / "blobs" / digest.sha256[:2] / f"{digest.sha256}-{digest.size_bytes}"
    return path.exists()


def asked_again(cut_at: Sequence[int], asked: Sequence[int], size_bytes: int) -> int:
    """Bytes that were held and asked for again, by the offsets asked for and what the file had at each kill.

    A life of the hub begins with a file of so many bytes, which is what it may ask for from on, once: 0 in the first,
    and then what the kill before left. Every other offset is asked for again, up to the next kill.
    """
    allowed = Counter([0, *cut_at])
    again = 0
    for offset in asked:
        if allowed[offset]:
            allowed[offset] -= 1
        else:
            again += min((at for at in cut_at if at > offset), default=size_bytes) - offset
    return again


async def _judge(found: Run, place: Place) -> None:
    found.wire_bytes, found.served_bytes = place.proxy.down_bytes, place.reader.read_bytes
    found.wrong_bytes = place.reader.wrong_bytes
    if found.wrong_bytes:
        found.violations.append(f"{found.wrong_bytes} wrong bytes were served")
    if found.asked_again_bytes:
        found.violations.append(f"{found.asked_again_bytes} bytes that were held were asked for again")
    if found.beyond_bytes > TAIL_BYTES * (len(found.kills_at) + 1):
        found.violations.append(f"{found.beyond_bytes} bytes crossed the link beyond the image")
    digest = place.digest
    name = f"{digest.sha256}-{digest.size_bytes}"
    path = place.directory / "state" / "cache" / "blobs" / digest.sha256[:2] / name
    if not path.exists() or await digest_of_file(path) != digest:
        found.violations.append("the blob is not held, or wrong")


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.prefetch_kills", description=__doc__.partition("\n")[0])
    parser.add_argument("--tier", choices=TIERS, help="only this tier")
    parser.add_argument("--moments", type=int, default=50, help="kills a tier")
    parser.add_argument("--seed", type=int, default=1, help="which moments")
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON; - is stdout")
    options = parser.parse_args(argv)
    if not 1 <= options.moments <= MAX_MOMENTS:
        parser.error(f"--moments: 1 to {MAX_MOMENTS}")
    table = sys.stderr if options.json == "-" else sys.stdout
    table.write(
        f"{'tier':10} {'kills':>5} {'image B':>10} {'asked again B':>13} {'beyond B/kill':>13} {'wrong B':>7}\n"
    )
    runs = []
    for tier in (options.tier,) if options.tier else TIERS:
        top = Path(tempfile.mkdtemp(prefix="wavemesh-prefetch-"))
        try:
            one = run(run_tier(tier, options.moments, options.seed, top))
        finally:
            shutil.rmtree(top)
        runs.append(one)
        table.write(
            f"{one.tier:10} {len(one.kills_at):5} {one.size_bytes:10} {one.asked_again_bytes:13} "
            f"{one.beyond_bytes // max(1, len(one.kills_at)):13} {one.wrong_bytes:7}  {'; '.join(one.violations)}\n"
        )
        table.flush()
    failures = sum(bool(one.violations) for one in runs)
    result = {
        "kills": sum(len(one.kills_at) for one in runs),
        "failures": failures,
        "tail_bytes": TAIL_BYTES,
        "runs": [{**asdict(one), "beyond_bytes": one.beyond_bytes} for one in runs],
    }
    if options.json == "-":
        sys.stdout.write(json.dumps(result) + "\n")
    elif options.json:
        Path(options.json).write_text(json.dumps(result) + "\n", encoding="utf-8")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
