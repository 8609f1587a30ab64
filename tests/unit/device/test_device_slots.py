"""The simulated disk: only the other slot, a write cache that may be lost, resume from the last mark (D1, D9)."""

from __future__ import annotations

import hashlib
import os
from random import Random
from typing import TYPE_CHECKING

import pytest

from device.backend import open_slots
from device.bootenv import Boot, BootEnvironment, BootEnvironmentError, SlotName
from device.config import unconfigured
from device.firmware import Firmware
from device.platform import SlotLabel
from device.slots.images import SlotError
from device.slots.simulated import SimulatedBootControl, SimulatedSlots
from wavemesh.runtime.durable import Disk
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from pathlib import Path

A, B = SlotName.A, SlotName.B
SIZE = 1024 * 1024
IMAGE = Random(1).randbytes(SIZE)  # content, not a secret
DIGEST = Digest(hashlib.sha256(IMAGE).hexdigest(), SIZE)


@pytest.fixture
def slots(tmp_path: Path) -> SimulatedSlots:
    return make(tmp_path)


def make(path: Path) -> SimulatedSlots:
    directory = path / "slots"
    directory.mkdir(exist_ok=True)
    for slot in SlotName:
        (directory / f"{slot.value}.img").touch()
    control = SimulatedBootControl(directory, Disk())
    if not (directory / "bootenv.json").exists():
        control.write(BootEnvironment(Boot(A, 1), Boot(B, 0)))
    return SimulatedSlots(directory, Disk(), control, 2 * SIZE)


async def test_the_running_slot_is_never_written(slots: SimulatedSlots) -> None:
    before = slots.path(A).stat()
    with pytest.raises(SlotError, match="active"):
        await slots.begin(A, DIGEST)
    assert slots.path(A).stat().st_mtime_ns == before.st_mtime_ns


async def test_a_slot_being_written_is_no_fallback(slots: SimulatedSlots, tmp_path: Path) -> None:
    await slots.seal(B, SlotLabel("old", "1.0.0", DIGEST))
    assert slots.label(B) == SlotLabel("old", "1.0.0", DIGEST)
    writer = await slots.begin(B, DIGEST)
    await writer.close()
    assert SimulatedBootControl(tmp_path / "slots", Disk()).read().previous is None
    assert slots.label(B) is None


async def test_an_image_is_written_and_read_back(slots: SimulatedSlots) -> None:
    slots.path(B).write_bytes(b"x" * SIZE * 2)
    writer = await slots.begin(B, DIGEST)
    for start in range(0, SIZE, 300_000):
        await writer.write(IMAGE[start : start + 300_000])
    await writer.sync()
    await writer.close()
    assert await slots.digest(B, SIZE) == DIGEST.sha256
    assert slots.path(B).read_bytes() == IMAGE
    assert slots.label(B) is None
    await slots.seal(B, SlotLabel("new", "2.0.0", DIGEST))
    assert slots.label(B) == SlotLabel("new", "2.0.0", DIGEST)


async def test_what_was_not_flushed_is_lost_and_written_again(slots: SimulatedSlots, tmp_path: Path) -> None:
    writer = await slots.begin(B, DIGEST)
    await writer.write(IMAGE[:400_000])
    await writer.sync()
    await writer.write(IMAGE[400_000:700_000])
    await writer.close()
    (tmp_path / "run").mkdir()
    Firmware(tmp_path, open_slots(tmp_path, unconfigured(tmp_path), Disk()), 400_000).lose_unflushed()
    torn = slots.path(B).read_bytes()
    assert torn[:400_000] == IMAGE[:400_000]
    assert torn[400_000:700_000] != IMAGE[400_000:700_000]
    again = await make(tmp_path).begin(B, DIGEST)
    assert again.offset == 400_000
    await again.write(IMAGE[400_000:])
    await again.sync()
    await again.close()
    assert await slots.digest(B, SIZE) == DIGEST.sha256


async def test_a_mark_that_lies_starts_over(slots: SimulatedSlots) -> None:
    writer = await slots.begin(B, DIGEST)
    await writer.write(IMAGE[:400_000])
    await writer.sync()
    await writer.close()
    with slots.path(B).open("r+b") as file:
        file.seek(100)
        file.write(os.urandom(8))
    again = await slots.begin(B, DIGEST)
    assert again.offset == 0
    await again.close()


async def test_another_image_starts_over(slots: SimulatedSlots) -> None:
    writer = await slots.begin(B, DIGEST)
    await writer.write(IMAGE[:400_000])
    await writer.sync()
    await writer.close()
    other = await slots.begin(B, Digest("0" * 64, SIZE))
    assert other.offset == 0
    await other.close()


async def test_bounds(slots: SimulatedSlots) -> None:
    with pytest.raises(SlotError, match="capacity"):
        await slots.begin(B, Digest("0" * 64, 3 * SIZE))
    writer = await slots.begin(B, Digest("0" * 64, 10))
    with pytest.raises(SlotError, match="more bytes"):
        await writer.write(b"x" * 11)
    await writer.close()
    slots.path(B).unlink()
    assert not slots.present()


def test_an_absent_environment_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bootenv.json").write_bytes(b"{}")
    with pytest.raises(BootEnvironmentError):
        SimulatedBootControl(tmp_path, Disk()).read()
