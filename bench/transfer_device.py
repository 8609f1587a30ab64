"""One device of ``bench transfer``: ours, the peer's (curl and openssl) or the floor's, in a process of its own.

``python -m bench.transfer_device KIND IDENTITY_DIR ADDRESS DIR SHA256 SIZE``. For each line on standard input it
fetches the blob into ``DIR/slots/B.img``, verifies it, flushes it, and says how long that took, which digest it found
and how much CPU it and its children used and memory they had.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import TYPE_CHECKING, Protocol

from bench.transfer_server import FLOOR_METHOD
from device.bootenv import SlotName
from device.config import Staging
from device.imaging import Imaging
from device.slots.simulated import SimulatedBootControl, SimulatedSlots
from wavemesh.artifacts.transfer import ArtifactClient
from wavemesh.identity.credentials import NodeCredentials
from wavemesh.identity.files import CA_FILE, CERTIFICATE_FILE, KEY_FILE
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.durable import Disk
from wavemesh.runtime.grpc import LAN_BULK, make_bulk_channel, run
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from collections.abc import Iterator

    import grpc

FRAMES_IN_FLIGHT = 8


class Fetcher(Protocol):
    """One way to fetch, verify and flush."""

    async def fetch(self) -> str:
        """Do it once; returns the SHA-256 that was found."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Who fetches what, whence and whither."""

    identity: Path
    address: str
    directory: Path
    digest: Digest

    @property
    def slot(self) -> Path:
        """The file that is written."""
        return self.directory / "slots" / "B.img"

    @property
    def hub(self) -> NodeId:
        """The store hub of this device."""
        node_id = NodeCredentials.load(self.identity).node_id
        return NodeId(node_id.fleet, node_id.path.rsplit("/", 2)[0])


class Ours:
    """The agent's own staging of an image: streamed, flushed in steps with marks, read back from the medium."""

    def __init__(self, place: Place) -> None:
        """Put the agent's parts together as device/app.py and device/staging.py do."""
        credentials, disk = NodeCredentials.load(place.identity), Disk()
        slots = place.slot.parent
        control = SimulatedBootControl(slots, disk)
        self._digest = place.digest
        self._imaging = Imaging(
            ArtifactClient(partial(make_bulk_channel, credentials, place.address, place.hub, LAN_BULK)),
            SimulatedSlots(slots, disk, control, place.digest.size_bytes),
            SlotName.B,
            Staging().fsync_step_bytes,
            staged=self._staged,
            alert=_complain,
        )

    async def fetch(self) -> str:
        """See Fetcher; ``put`` returns only when the slot read back as it should."""
        await self._imaging.put(self._digest)
        return self._digest.sha256

    async def _staged(self, offset: int) -> None:
        """Progress, which nobody watches here."""


class Peer:
    """What a good engineer would do without us: curl to the file, openssl over it, fsync."""

    def __init__(self, place: Place) -> None:
        """Find the programs."""
        name, port = place.hub.dns_name, place.address.rsplit(":", 1)[1]
        pem = {option: str(place.identity / file) for option, file in _CURL_PEM.items()}
        curl = [_program("curl"), "--silent", "--show-error", "--fail", "--connect-to", f"::{place.address}"]
        for option, path in pem.items():
            curl += [option, path]
        self._curl = [*curl, "--output", str(place.slot), f"https://{name}:{port}/blob"]
        self._openssl = [_program("openssl"), "dgst", "-sha256", "-r", str(place.slot)]
        self._slot = place.slot

    async def fetch(self) -> str:
        """See Fetcher."""
        return await asyncio.to_thread(self._run)

    def _run(self) -> str:
        subprocess.run(self._curl, check=True)
        found = subprocess.run(self._openssl, check=True, capture_output=True, text=True).stdout
        with self._slot.open("r+b") as file:
            os.fsync(file.fileno())
        return found.split(" ", 1)[0]


class Floor:
    """The least that grpcio can do: frames as they come, hashed and written by a thread meanwhile, one fsync."""

    def __init__(self, place: Place) -> None:
        """Load the identity."""
        self._place = place
        self._credentials, self._hub = NodeCredentials.load(place.identity), place.hub

    async def fetch(self) -> str:
        """See Fetcher."""
        frames: Queue[bytes] = Queue(FRAMES_IN_FLIGHT)
        found: list[str] = []
        thread = Thread(target=lambda: found.append(_write_and_hash(frames, self._place.slot)))
        thread.start()
        try:
            async with make_bulk_channel(self._credentials, self._place.address, self._hub) as channel:
                start: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(FLOOR_METHOD)
                call: grpc.aio.UnaryStreamCall[bytes, bytes] = start(b"")
                while isinstance(message := await call.read(), bytes):
                    frames.put(message)
        finally:
            frames.put(b"")
            thread.join()
        return found[0]


def _write_and_hash(frames: Queue[bytes], path: Path) -> str:
    hasher = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        while frame := frames.get():
            file.write(frame)
            hasher.update(frame)
        os.fsync(file.fileno())
    return hasher.hexdigest()


def _complain(text: str) -> None:
    print(text, file=sys.stderr)


_CURL_PEM = {"--cert": CERTIFICATE_FILE, "--key": KEY_FILE, "--cacert": CA_FILE}
_KINDS: dict[str, type[Ours | Peer | Floor]] = {"ours": Ours, "peer": Peer, "floor": Floor}


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        msg = f"{name} is not installed"
        raise FileNotFoundError(msg)
    return found


@contextmanager
def _measured(answer: dict[str, float | str]) -> Iterator[None]:
    before, started = _cpu_s(), time.monotonic()
    yield
    answer |= {"wall_s": time.monotonic() - started, "cpu_s": _cpu_s() - before, "peak_mib": _peak_mib()}


def _cpu_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _peak_mib() -> float:
    """The most that this process, or a child of it that has ended, ever had resident, MiB.

    Of itself by proc(5): what getrusage(2) says begins with what the process had that started it.
    """
    status = Path("/proc/self/status").read_text()
    own_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    return max(own_kib, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024


async def serve(kind: str, place: Place) -> None:
    """Fetch once for each line."""
    fetcher: Fetcher = _KINDS[kind](place)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print(json.dumps({"ready": kind}), flush=True)
    while await reader.readline():
        answer: dict[str, float | str] = {}
        with _measured(answer):
            answer["sha256"] = await fetcher.fetch()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    identity, address, directory, sha256, size = sys.argv[2:]
    run(serve(sys.argv[1], Place(Path(identity), address, Path(directory), Digest(sha256, int(size)))))
