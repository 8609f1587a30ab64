"""Slots on block devices: what must not be written is not, and is named (D1, D2, Q2)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from device.bootenv import SlotName
from device.platform import SlotLabel
from device.slots.images import SlotError
from device.slots.raw import RawSlots
from tests.conformance.subjects import NEW, GrubLoops, digest_of, loops_work, run, standing
from wavemesh.runtime.durable import Disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conformance.subjects import Subject

pytestmark = pytest.mark.skipif(not loops_work(), reason="only root has loop devices")
A, B = SlotName.A, SlotName.B


@pytest.fixture
def loops(tmp_path: Path) -> Iterator[Subject]:
    with standing(GrubLoops, tmp_path / "device") as subject:
        yield subject


async def test_a_mounted_slot_is_refused_before_anything_changes(loops: Subject, tmp_path: Path) -> None:
    system = loops.open()
    device, mounted = system.slots.path(B), tmp_path / "mounted"
    run("mke2fs", "-q", device)
    mounted.mkdir()
    run("mount", device, mounted)
    label = SlotLabel("firmware-v0", "0.1.0", digest_of(NEW))
    await system.slots.seal(B, label)
    before = await system.slots.digest(B, len(NEW))
    try:
        with pytest.raises(SlotError, match=rf"slot B \({device}\) is in use: mounted"):
            await system.slots.begin(B, digest_of(NEW))
        assert await system.slots.digest(B, len(NEW)) == before
        assert loops.open().slots.label(B) == label
    finally:
        run("umount", mounted)
    writer = await system.slots.begin(B, digest_of(NEW))
    await writer.close()


async def test_a_slot_that_is_read_only_is_named(loops: Subject) -> None:
    slots = loops.open().slots
    run("blockdev", "--setro", slots.path(B))
    with pytest.raises(SlotError, match=rf"slot B \({slots.path(B)}\) is read-only"):
        await slots.begin(B, digest_of(NEW))
    run("blockdev", "--setrw", slots.path(B))


async def test_a_slot_that_is_being_written_cannot_be_mounted(loops: Subject) -> None:
    slots = loops.open().slots
    writer = await slots.begin(B, digest_of(NEW))
    with pytest.raises(OSError, match="busy"):
        os.close(os.open(slots.path(B), os.O_RDONLY | os.O_EXCL))
    await writer.close()


def test_one_device_is_not_two_slots(loops: Subject, tmp_path: Path) -> None:
    """By another name, and by another node of the same device."""
    system = loops.open()
    device, twin, link = system.slots.path(A), tmp_path / "twin", tmp_path / "link"
    link.symlink_to(device)
    run("cp", "-a", device, twin)
    for other in (device, twin, link):
        with pytest.raises(SlotError, match=rf"A \({device}\) and B \({other}\) are the same device"):
            RawSlots({A: device, B: other}, tmp_path, Disk(), system.boot_control, 0)
