"""An image onto a slot: flushed and read back while it arrives, resumed at the mark, refused when it is wrong."""

from __future__ import annotations

import errno
import hashlib
import os
from random import Random
from typing import TYPE_CHECKING

import pytest

from device.bootenv import Boot, BootEnvironment, SlotName
from device.imaging import TRIES, Imaging
from device.slots.simulated import SimulatedBootControl, SimulatedSlots
from wavemesh.errors import GateError, LinkDownError
from wavemesh.runtime.durable import Disk, DiskFaultError
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

FRAME = 64 * 1024
STEP = 256 * 1024
IMAGE = Random(4).randbytes(4 * STEP + 1234)
DIGEST = Digest(hashlib.sha256(IMAGE).hexdigest(), len(IMAGE))


class Hub:
    """A BlobReader over bytes, whose link breaks at ``breaks_at``."""

    def __init__(self, content: bytes = IMAGE, breaks_at: int | None = None) -> None:
        self.content, self.breaks_at = content, breaks_at
        self.offsets: list[int] = []

    async def read(self, digest: Digest, offset: int) -> AsyncGenerator[memoryview, None]:
        self.offsets.append(offset)
        for start in range(offset, len(self.content), FRAME):
            if self.breaks_at is not None and start >= self.breaks_at:
                msg = "broken"
                raise LinkDownError(msg)
            yield memoryview(self.content)[start : start + FRAME]


class Rig:
    """A device's slots and what it says meanwhile."""

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        directory = path / "slots"
        directory.mkdir(exist_ok=True)
        for slot in SlotName:
            (directory / f"{slot.value}.img").touch()
        control = SimulatedBootControl(directory, Disk())
        control.write(BootEnvironment(Boot(SlotName.A, 1), None))
        self.slots = SimulatedSlots(directory, disk or Disk(), control, 2 * len(IMAGE))
        self.image = directory / "B.img"
        self.offsets: list[int] = []
        self.alerts: list[str] = []

    async def staged(self, offset: int) -> None:
        self.offsets.append(offset)

    async def put(self, hub: Hub) -> None:
        await Imaging(hub, self.slots, SlotName.B, STEP, self.staged, self.alerts.append).put(DIGEST)


class DecayingRig(Rig):
    """A medium that loses its first block whenever progress is announced."""

    async def staged(self, offset: int) -> None:
        await super().staged(offset)
        with self.image.open("r+b") as file:
            file.write(bytes(4096))
            os.fsync(file.fileno())


async def test_an_image_is_written_and_progress_is_told(tmp_path: Path) -> None:
    rig, hub = Rig(tmp_path), Hub()
    await rig.put(hub)
    assert rig.image.read_bytes() == IMAGE
    assert hub.offsets == [0]
    assert rig.offsets[0] == 0
    assert rig.offsets[-1] == len(IMAGE)
    assert rig.offsets == sorted(rig.offsets)
    assert max(b - a for a, b in zip(rig.offsets, rig.offsets[1:], strict=False)) <= STEP
    assert rig.alerts == []


async def test_after_a_broken_link_nothing_that_came_is_fetched_again(tmp_path: Path) -> None:
    rig, hub = Rig(tmp_path), Hub(breaks_at=3 * STEP + FRAME)
    with pytest.raises(LinkDownError):
        await rig.put(hub)
    hub.breaks_at = None
    await rig.put(hub)
    assert hub.offsets == [0, 3 * STEP + FRAME]
    assert rig.image.read_bytes() == IMAGE


async def test_wrong_bytes_are_fetched_again_and_then_refused(tmp_path: Path) -> None:
    rig, hub = Rig(tmp_path), Hub(IMAGE[:-1] + bytes([IMAGE[-1] ^ 1]))
    with pytest.raises(GateError) as refused:
        await rig.put(hub)
    assert refused.value.gate == "checksum"
    assert hub.offsets == [0] * TRIES
    assert len(rig.alerts) == TRIES


async def test_what_the_medium_does_not_keep_is_found_though_the_right_bytes_came(tmp_path: Path) -> None:
    rig = DecayingRig(tmp_path)
    with pytest.raises(GateError) as refused:
        await rig.put(Hub())
    assert refused.value.gate == "checksum"


@pytest.mark.parametrize("step", ["write", "fsync"])
async def test_a_disk_that_refuses_is_told_at_once(tmp_path: Path, step: str) -> None:
    class Full(Disk):
        """Refuses one kind of step on the slot, the fourth time."""

        times = 0

        def refuse(self, path: Path) -> None:
            self.times += path.suffix == ".img"
            if self.times == 4 and path.suffix == ".img":
                msg = f"{path}: {os.strerror(errno.EIO)}"
                raise DiskFaultError(msg)

        def write(self, descriptor: int, data: bytes | bytearray | memoryview, path: Path) -> None:
            if step == "write":
                self.refuse(path)
            super().write(descriptor, data, path)

        def fsync(self, descriptor: int, path: Path) -> None:
            if step == "fsync":
                self.refuse(path)
            super().fsync(descriptor, path)

    rig = Rig(tmp_path, Full())
    with pytest.raises(DiskFaultError):
        await rig.put(Hub())
    await Rig(tmp_path).put(Hub())
    assert rig.image.read_bytes() == IMAGE
