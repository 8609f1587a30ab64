"""Store hub to device over mTLS: fetch an image, verify SHA-256, write the slot, flush. One device, then ten at once.

Ours is the product's own code on both sides: the hub's BlobStore and ArtifactServer, the device's staging into a
simulated slot, read back from the medium at the end. The peer is nginx with the same certificates, curl to a file,
``openssl dgst``, fsync. The floor is a bare grpcio stream whose frames are hashed and written meanwhile, and one fsync.
Servers and devices are processes of their own and stay up; in each round the three kinds take turns, each round in
another order. The time of a kind is from the word "go" to the last device's answer; ratios are medians of the rounds'
ratios. CPU counts all processes of the kind, servers included. Every byte of every slot is compared with the image
afterwards. Memory is the most that the server, and that any one device, ever had
resident, programs they start included; ``--size-mib 4096 --rounds 1 --devices 1 --sparse`` (20 GiB of disk) shows that
it does not grow with the image.
"""

from __future__ import annotations

import argparse
import asyncio
import enum
import json
import os
import statistics
import sys
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from bench.report import Result, Target, WrongResultError, write
from bench.transfer_peer import nginx
from device.bootenv import Boot, BootEnvironment, SlotName
from device.slots.simulated import SimulatedBootControl
from wavemesh.artifacts.digests import STEP_BYTES, digest_of_file, in_thread
from wavemesh.identity.ca import FleetCa, write_node
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.durable import Disk
from wavemesh.runtime.grpc import run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from wavemesh.trust.statements import Digest

FLEET = "bench.example"
STORE = NodeId(FLEET, "region/midwest/store/store-208")
KINDS = ("ours", "peer", "floor")
TEN = 10
STEP_TIMEOUT_S = 300.0
RATIO_PEER_BOUND = 1.0
RATIO_FLOOR_BOUND = 0.9
PEAK_BOUND_MIB = 256
"""Of one process, whatever the size of the image."""
MB = 1_000_000
DEVICE = (sys.executable, "-m", "bench.transfer_device")
SERVER = (sys.executable, "-m", "bench.transfer_server")


class Content(enum.Enum):
    """What the image consists of."""

    RANDOM = enum.auto()
    ZEROS = enum.auto()


@dataclass(frozen=True, slots=True)
class Site:
    """What all kinds share."""

    directory: Path
    image: Path
    digest: Digest

    def identity(self, node: NodeId) -> Path:
        """The directory of a node's key and certificates."""
        return self.directory / "identities" / node.name

    def device(self, kind: str, number: int) -> Path:
        """The directory of one device."""
        return self.directory / "devices" / f"{kind}-{number}"


@dataclass(frozen=True, slots=True)
class Run:
    """One kind in one round."""

    mb_s: float
    cpu_s_per_gb: float
    server_peak_mib: float
    client_peak_mib: float


@dataclass(slots=True)
class Device:
    """A device process."""

    process: asyncio.subprocess.Process
    directory: Path

    async def hear(self) -> dict[str, Any]:
        """Its next line."""
        if self.process.stdout is None or not (line := await self.process.stdout.readline()):
            raise WrongResultError(f"the device in {self.directory} ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def go(self) -> None:
        """Let it fetch."""
        if self.process.stdin is not None:
            self.process.stdin.write(b"go\n")


@dataclass(frozen=True, slots=True)
class Party:
    """A kind: its server and its devices."""

    kind: str
    server_pid: int
    devices: Sequence[Device]

    async def fetch(self, site: Site, count: int) -> Run:
        """Let ``count`` devices fetch at once; raises WrongResultError."""
        devices = self.devices[:count]
        for device in devices:
            _clear_slot(device.directory)
        before_s = _cpu_s(self.server_pid)
        started = asyncio.get_running_loop().time()
        for device in devices:
            device.go()
        async with asyncio.timeout(STEP_TIMEOUT_S):
            answers = [await device.hear() for device in devices]
        wall_s = asyncio.get_running_loop().time() - started
        cpu_s = _cpu_s(self.server_pid) - before_s + sum(answer["cpu_s"] for answer in answers)
        for device, answer in zip(devices, answers, strict=True):
            if answer["sha256"] != site.digest.sha256:
                raise WrongResultError(f"{self.kind}: a device found SHA-256 {answer['sha256']}")
            await in_thread(_compare, site.image, device.directory / "slots" / "B.img")
        moved = count * site.digest.size_bytes
        client_peak_mib = max(answer["peak_mib"] for answer in answers)
        return Run(moved / MB / wall_s, cpu_s / (moved / 1e9), _peak_mib(self.server_pid), client_peak_mib)


def main(arguments: list[str]) -> int:
    """Measure and print; 1 when a byte is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m bench transfer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size-mib", type=int, default=256, help="size of the image (default 256)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each kind (default 5)")
    parser.add_argument("--devices", type=int, default=TEN, help="devices of the second part (default 10)")
    parser.add_argument("--sparse", action="store_true", help="an image of zeros, for a size that is slow to make up")
    parser.add_argument("--dir", type=Path, help="where files go; it decides which disk is measured (default: TMPDIR)")
    parser.add_argument("--json", metavar="FILE", help="write one JSON object there; - is standard output")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="wavemesh-bench-", dir=options.dir) as directory:
            content = Content.ZEROS if options.sparse else Content.RANDOM
            result = run(_measure(Path(directory), options.size_mib, content, options.rounds, options.devices))
    except (WrongResultError, FileNotFoundError) as error:
        sys.stderr.write(f"bench transfer: {error}\n")
        return 1
    write(result, options.json)
    return 0


async def _measure(directory: Path, size_mib: int, content: Content, rounds: int, many: int) -> Result:
    site = Site(directory, directory / "image", await _make_image(directory / "image", size_mib, content))
    nodes = [NodeId(FLEET, f"{STORE.path}/device/pos-{number}") for number in range(many)]
    _enrol(site, nodes)
    parts: dict[str, dict[str, Any]] = {}
    async with AsyncExitStack() as stack:
        parties = [await stack.enter_async_context(_party(kind, site, nodes)) for kind in KINDS]
        for name, count in (("one", 1), ("ten", many)):
            runs: dict[str, list[Run]] = {kind: [] for kind in KINDS}
            for number in range(rounds):
                for offset in range(len(parties)):
                    party = parties[(number + offset) % len(parties)]
                    runs[party.kind].append(await party.fetch(site, count))
            parts[name] = {"devices": count, **_figures(runs)}
    keys = {"size_mib": size_mib, "rounds": rounds, **_worse(parts["one"], parts["ten"]), **parts}
    return Result(keys, tuple(_targets(parts)))


def _figures(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Medians, the rounds' ratios, and the raw figures beside them."""
    ours = runs["ours"]
    found: dict[str, Any] = {
        f"{kind}_mb_s": round(statistics.median(one.mb_s for one in of), 1) for kind, of in runs.items()
    }
    for other in ("peer", "floor"):
        ratios = [a.mb_s / b.mb_s for a, b in zip(ours, runs[other], strict=True)]
        found[f"ratio_{other}"] = round(statistics.median(ratios), 3)
    for kind, of in runs.items():
        prefix = "" if kind == "ours" else f"{kind}_"
        found[f"{prefix}cpu_s_per_gb"] = round(statistics.median(one.cpu_s_per_gb for one in of), 2)
        found[f"{prefix}server_peak_mib"] = round(max(one.server_peak_mib for one in of), 1)
        found[f"{prefix}client_peak_mib"] = round(max(one.client_peak_mib for one in of), 1)
    found["raw"] = {
        kind: {"mb_s": [round(one.mb_s, 1) for one in of], "cpu_s_per_gb": [round(one.cpu_s_per_gb, 2) for one in of]}
        for kind, of in runs.items()
    }
    return found


def _worse(one: dict[str, Any], ten: dict[str, Any]) -> dict[str, float]:
    """Of each figure the worse one: less speed, a smaller ratio, more CPU, more memory."""
    names = [name for name, value in one.items() if isinstance(value, float)]
    return {name: (max if "cpu" in name or "peak" in name else min)(one[name], ten[name]) for name in names}


def _targets(parts: dict[str, dict[str, Any]]) -> list[Target]:
    targets = []
    for name, figures in parts.items():
        for other, bound in (("peer", RATIO_PEER_BOUND), ("floor", RATIO_FLOOR_BOUND)):
            ratio = figures[f"ratio_{other}"]
            targets.append(Target(f"{name}: ours / {other}", ratio, f">= {bound}", ratio >= bound))
        for side in ("server", "client"):
            peak = figures[f"{side}_peak_mib"]
            targets.append(Target(f"{name}: {side}'s peak MiB", peak, f"<= {PEAK_BOUND_MIB}", peak <= PEAK_BOUND_MIB))
        cpu, peer_cpu = figures["cpu_s_per_gb"], figures["peer_cpu_s_per_gb"]
        targets.append(Target(f"{name}: CPU s/GB", cpu, f"<= the peer's {peer_cpu}", cpu <= peer_cpu))
    return targets


# -- what they share ---------------------------------------------------------------------------------------------------


async def _make_image(path: Path, size_mib: int, content: Content) -> Digest:
    """An image of random bytes: nothing between could make it smaller. Or of zeros, which take no room here."""
    if content is Content.ZEROS:
        with path.open("wb") as file:
            file.truncate(size_mib * STEP_BYTES)
        return await digest_of_file(path)
    rng = Random(208)  # noqa: S311  # content, not a secret
    with path.open("wb") as file:
        for _ in range(size_mib):
            file.write(rng.randbytes(STEP_BYTES))
    return await digest_of_file(path)


def _enrol(site: Site, nodes: Sequence[NodeId]) -> None:
    now = datetime.now(UTC)
    ca = FleetCa.create(FLEET, now - timedelta(hours=1))
    for node in (STORE, *nodes):
        write_node(
            site.identity(node), ca, node, not_before=now - timedelta(hours=1), not_after=now + timedelta(days=1)
        )


def _clear_slot(directory: Path) -> None:
    """Slot B as if nothing had ever been written to it."""
    slots = directory / "slots"
    slots.mkdir(parents=True, exist_ok=True)
    for slot in SlotName:
        (slots / f"{slot.value}.img").unlink(missing_ok=True)
        (slots / f"{slot.value}.img").touch()
        (slots / f"{slot.value}.mark").unlink(missing_ok=True)
    SimulatedBootControl(slots, Disk()).write(BootEnvironment(Boot(SlotName.A, 0), None))


def _compare(image: Path, slot: Path) -> None:
    """Compare byte by byte; raises WrongResultError."""
    offset = 0
    with image.open("rb") as a, slot.open("rb") as b:
        while True:
            wanted, found = a.read(STEP_BYTES), b.read(STEP_BYTES)
            if wanted != found:
                raise WrongResultError(f"{slot} differs from the image in the MiB at byte {offset}")
            if not wanted:
                return
            offset += len(wanted)


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process and its living children."""
    ticks = 0
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    for each in (str(pid), *children):
        # proc(5): after the name in brackets, fields 14 and 15 of the line are utime and stime.
        fields = Path(f"/proc/{each}/stat").read_text(encoding="utf-8").rsplit(") ", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _peak_mib(pid: int) -> float:
    """The most that a process, or one of its living children, ever had resident, MiB."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    peaks = []
    for each in (str(pid), *children):
        lines = Path(f"/proc/{each}/status").read_text(encoding="utf-8").splitlines()
        peaks += [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")]
    return max(peaks)


# -- processes ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _party(kind: str, site: Site, nodes: Sequence[NodeId]) -> AsyncIterator[Party]:
    """A kind's server and devices, ready."""
    async with AsyncExitStack() as stack:
        if kind == "peer":
            server, port = await stack.enter_async_context(
                nginx(site.directory / "nginx", site.identity(STORE), site.image)
            )
        else:
            server = await stack.enter_async_context(
                _process(*SERVER, kind, str(site.identity(STORE)), str(site.image))
            )
            port = (await Device(server, site.directory).hear())["port"]
        devices = []
        for number, node in enumerate(nodes):
            directory = site.device(kind, number)
            _clear_slot(directory)
            words = (kind, site.identity(node), f"127.0.0.1:{port}", directory, site.digest.sha256)
            process = await stack.enter_async_context(_process(*DEVICE, *map(str, words), str(site.digest.size_bytes)))
            devices.append(Device(process, directory))
        async with asyncio.timeout(STEP_TIMEOUT_S):
            for device in devices:
                await device.hear()
        yield Party(kind, server.pid, devices)


@asynccontextmanager
async def _process(*command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A child with pipes, which ends with the block."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
