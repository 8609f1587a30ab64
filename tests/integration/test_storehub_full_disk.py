"""H1, Q2: a store hub on a real file system that runs full, the database with it: it says so and goes on by itself."""

from __future__ import annotations

import asyncio
import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.session_kit import Fleet
from tests.storehub_kit import Control, SuperHub, eventually, lay_out, running, wan
from wavemesh.trust.statements import Digest, WaveState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

    from wavemesh.identity.nodes import NodeId

MIB = 1024 * 1024
DISK_BYTES = 32 * MIB
PIECE_BYTES = 64 * 1024


class HeldBack(SuperHub):
    """Sends of a blob what it may, and waits."""

    def __init__(self, control: Control) -> None:
        super().__init__(control)
        self.may_send = asyncio.Event()
        self.sent: list[int] = []

    async def open(self, peer: NodeId, digest: Digest, offset: int, length_bytes: int) -> AsyncGenerator[bytes, None]:
        """See SuperHub; the second half of a big blob is held back."""
        pieces = await super().open(peer, digest, offset, length_bytes)

        async def slowly() -> AsyncGenerator[bytes, None]:
            at = offset
            async for piece in pieces:
                if at >= digest.size_bytes // 2 > PIECE_BYTES:
                    await self.may_send.wait()
                at += len(piece)
                self.sent.append(len(piece))
                yield piece

        return slowly()


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """A file system of its own, 32 MiB."""
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)], check=True)  # noqa: S607
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # noqa: S607


def fill(place: Path) -> Path:
    """Take all the room there is; returns the file that does."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(PIECE_BYTES)) == PIECE_BYTES:
                pass
            while file.write(bytes(512)):
                pass
        except OSError:
            pass
    assert os.statvfs(place).f_bavail == 0
    return filler


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system has to be mounted: run as root")
async def test_a_disk_that_runs_full_in_a_fetch_costs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    control = Control(Fleet.create(tmp_path / "fleet"))
    super_hub = HeldBack(control)
    state = tmp_path / "hub" / "state"
    with small_disk(state):
        async with wan(super_hub) as parent, running(lay_out(tmp_path / "hub", control, parent)) as app:
            super_hub.want(
                control.tuf(),
                control.holds(),
                control.policy_resource(),
                control.order("pos-12", state=WaveState.PLANNED),
            )
            half = control.firmware.size_bytes // 2
            await eventually(lambda: app.cache.blobs.partial_size(control.firmware) >= half)
            filler = fill(state)
            super_hub.may_send.set()
            await eventually(lambda: app.cache.troubles.get(control.firmware) is not None)
            # The database is full as well: nothing new is accepted, what is held is served and shown.
            super_hub.want(control.order("pos-12", generation=2))
            await eventually(lambda: "No space left" in caplog.text or "disk is full" in caplog.text)
            assert app.hub.store.waves["142"].order.generation == 1
            held = app.cache.blobs.partial_size(control.firmware)
            assert held >= half
            filler.unlink()
            await eventually(lambda: app.cache.blobs.has(control.firmware), within_s=30)
            await eventually(lambda: app.hub.store.waves["142"].order.generation == 2, within_s=30)
            asked = [offset for sha256, offset in super_hub.reads if sha256 == control.firmware.sha256]
            assert asked[-1] >= held
            content = b"".join([piece async for piece in app.cache.blobs.read(control.firmware)])
            assert content == control.blobs[control.firmware.sha256]
            assert not [path for path in state.rglob("*") if path.name.endswith((".tmp", ".mark"))]
