"""kill -9 of a store hub in the middle of deliveries: nothing is read twice, the plan goes on (S5, M3, H1)."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from contextlib import aclosing, asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from tests.delivery_kit import OfferingHub, first_wave, images, next_wave
from tests.session_kit import Fleet
from tests.storehub_kit import STORE, Control, device_node, eventually, lay_out, wan
from wavemesh.artifacts.transfer import ArtifactClient
from wavemesh.errors import WavemeshError
from wavemesh.runtime.grpc import make_bulk_channel

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
    from pathlib import Path

    from wavemesh.identity.nodes import NodeId
    from wavemesh.trust.statements import Digest

STEP_BYTES = 8 * 1024
LOST_BYTES = 96 * 1024
"""What one kill may cost: the window that was on the way, 64 KiB where a link is thin, and a message or two."""


class ThinLink(OfferingHub):
    """A super hub whose payloads come at some 400 KB/s; counts what it sent of them, step by step."""

    def __init__(self, control: Control, directory: Path) -> None:
        super().__init__(control, directory)
        self.payloads: dict[str, int] = {}

    async def open(self, peer: NodeId, digest: Digest, offset: int, length_bytes: int) -> AsyncGenerator[bytes, None]:
        pieces = await super().open(peer, digest, offset, length_bytes)
        return self._slow(digest, pieces) if digest.sha256 in self.payloads else pieces

    async def _slow(self, digest: Digest, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async with aclosing(pieces):
            async for piece in pieces:
                for start in range(0, len(piece), STEP_BYTES):
                    await asyncio.sleep(0.02)  # plays: a thin link
                    step = piece[start : start + STEP_BYTES]
                    yield step
                    self.payloads[digest.sha256] += len(step)


@asynccontextmanager
async def process(directory: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A real store hub, killed the hard way at the end."""
    hub = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "storehub", "--dir", str(directory), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield hub
    finally:
        if hub.returncode is None:
            hub.send_signal(signal.SIGKILL)
        await hub.wait()


async def read(control: Control, port: int, digest: Digest) -> bytes:
    """As a device: until the hub has it."""
    credentials = control.fleet.credentials(device_node("pos-12"))
    client = ArtifactClient(lambda: make_bulk_channel(credentials, f"127.0.0.1:{port}", STORE))
    async with asyncio.timeout(40):
        while True:
            try:
                async with aclosing(client.read(digest)) as pieces:
                    return b"".join([bytes(piece) async for piece in pieces])
            except WavemeshError:
                await asyncio.sleep(0.1)  # plays: a device that comes back later


@pytest.mark.parametrize("method", ["chunks", "delta"])
async def test_a_delivery_goes_on_over_kills_at_any_moment(method: str, tmp_path: Path) -> None:
    rng = Random(21)
    control = Control(Fleet.create(tmp_path / "fleet"))
    old_image, new_image = images(21)
    old, new = control.add_release("old", old_image), control.add_release("new", new_image)
    super_hub = ThinLink(control, tmp_path / "made")
    if method == "chunks":
        pack, index = super_hub.chunks(new, old, read_bytes=300_000)
        planned = index.size_bytes + sum(one.length for one in super_hub.lacking(index, old))
        super_hub.payloads = {pack.sha256: 0, index.sha256: 0}
    else:
        delta = super_hub.delta(old, new)
        planned = delta.size_bytes
        super_hub.payloads = {delta.sha256: 0}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with wan(super_hub) as parent:
        directory = lay_out(tmp_path / "hub", control, parent, port=port)
        async with process(directory):
            super_hub.want(*first_wave(control, "old"))
            assert await read(control, port, old) == old_image
        super_hub.want(*next_wave(control, "new"))

        def sent() -> int:
            return sum(super_hub.payloads.values())

        thresholds = [100_000, 200_000, 290_000] if method == "chunks" else [1]
        for threshold in thresholds:
            async with process(directory):
                await eventually(reached(sent, threshold), within_s=30)
                await asyncio.sleep(rng.uniform(0, 0.2))  # plays: the moment of the kill, drawn by the seed
        asked = len(super_hub.asked)
        async with process(directory):
            assert await read(control, port, new) == new_image
        assert super_hub.sent[new.sha256] == 0
        assert len(super_hub.asked) == asked
        assert planned <= sent() <= planned + LOST_BYTES * len(thresholds)


def reached(sent: Callable[[], int], threshold: int) -> Callable[[], Any]:
    return lambda: sent() >= threshold
