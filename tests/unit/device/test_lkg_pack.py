"""The packed last known good: what it holds is proven, what it replaces goes last, and a full disk is noticed (D6)."""

from __future__ import annotations

import hashlib
import os
from random import Random
from typing import TYPE_CHECKING

import pytest

from device.lkg import CHUNK_BYTES, HEADER_BYTES, Packed, PackedLkg, PackError
from device.platform import SlotLabel
from tests.stopping_disk import PowerCutError, StoppingDisk
from wavemesh.runtime.durable import Disk, DiskFullError
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = Random(3).randbytes(CHUNK_BYTES + 1234) + bytes(2 * CHUNK_BYTES)  # content, not a secret
OTHER = Random(4).randbytes(CHUNK_BYTES)  # content, not a secret


def lay(path: Path, image: bytes, version: str = "1.0.0") -> tuple[Path, Packed]:
    """A slot's file with more behind the image, as on a partition, and what is to be packed of it."""
    slot = path / f"slot-{version}"
    slot.write_bytes(image + b"rest of the partition")
    digest = Digest(hashlib.sha256(image).hexdigest(), len(image))
    return slot, Packed(SlotLabel(f"release-{version}", version, digest), 7)


async def content(lkg: PackedLkg) -> bytes:
    return b"".join([piece async for piece in lkg.content()])


async def test_what_is_packed_comes_out_again(tmp_path: Path) -> None:
    lkg, (slot, packed) = PackedLkg(tmp_path / "lkg.pack", Disk()), lay(tmp_path, IMAGE)
    assert lkg.held() is None
    assert not await lkg.is_whole()
    await lkg.pack(slot, packed, 0)
    again = PackedLkg(tmp_path / "lkg.pack", Disk())
    assert again.held() == packed
    assert await again.is_whole()
    assert await content(again) == IMAGE
    assert (tmp_path / "lkg.pack").stat().st_size < 2 * CHUNK_BYTES, "it was not compressed"
    assert not (tmp_path / "lkg.partial").exists()


async def test_a_newer_one_takes_the_place_of_the_older(tmp_path: Path) -> None:
    lkg = PackedLkg(tmp_path / "lkg.pack", Disk())
    await lkg.pack(*lay(tmp_path, IMAGE), 0)
    slot, packed = lay(tmp_path, OTHER, "2.0.0")
    await lkg.pack(slot, packed, 0)
    assert (lkg.held(), await content(lkg)) == (packed, OTHER)


@pytest.mark.parametrize("damage", ["flipped", "short"])
async def test_a_rotten_slot_is_not_packed(tmp_path: Path, damage: str) -> None:
    """What the slot's label does not vouch for never takes the place of a good pack."""
    lkg, (slot, packed) = PackedLkg(tmp_path / "lkg.pack", Disk()), lay(tmp_path, IMAGE)
    await lkg.pack(slot, packed, 0)
    rotten, label = lay(tmp_path, OTHER, "2.0.0")
    rotten.write_bytes(b"\xa5" + OTHER[1:] if damage == "flipped" else OTHER[:-1])
    with pytest.raises(PackError, match="its label says"):
        await lkg.pack(rotten, label, 0)
    assert (lkg.held(), await content(lkg)) == (packed, IMAGE)
    assert not (tmp_path / "lkg.partial").exists()


@pytest.mark.parametrize("place", [10, HEADER_BYTES + 3, HEADER_BYTES + 40_000])
async def test_a_rotten_pack_is_noticed(tmp_path: Path, place: int) -> None:
    lkg = PackedLkg(tmp_path / "lkg.pack", Disk())
    await lkg.pack(*lay(tmp_path, IMAGE), 0)
    with (tmp_path / "lkg.pack").open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 4]))
    assert not await lkg.is_whole()


async def test_a_reserve_stays_free(tmp_path: Path) -> None:
    """The policy's minFreeDisk holds for the pack as well, or the update that it is for would be refused."""
    lkg, (slot, packed) = PackedLkg(tmp_path / "lkg.pack", Disk()), lay(tmp_path, IMAGE)
    statistics = os.statvfs(tmp_path)
    with pytest.raises(DiskFullError, match="bytes free"):
        await lkg.pack(slot, packed, statistics.f_bavail * statistics.f_frsize)
    assert os.listdir(tmp_path) == [slot.name]  # noqa: PTH208  # not blocking enough to matter


class SmallDisk(Disk):
    """Room for so many bytes of pack files, of what is renamed as well."""

    def __init__(self, directory: Path, room_bytes: int) -> None:
        self.directory, self.room_bytes = directory, room_bytes

    def write(self, descriptor: int, data: bytes | bytearray | memoryview, path: Path) -> None:
        used = sum(file.stat().st_size for file in self.directory.glob("lkg.*"))
        if used + len(data) > self.room_bytes:
            raise DiskFullError(f"{path}: No space left on device")
        super().write(descriptor, data, path)


async def test_where_both_do_not_fit_the_older_one_gives_way(tmp_path: Path) -> None:
    """Meanwhile what is being packed still lies in its slot, so nothing is lost."""
    first, second = lay(tmp_path, OTHER), lay(tmp_path, OTHER[::-1], "2.0.0")
    lkg = PackedLkg(tmp_path / "lkg.pack", SmallDisk(tmp_path, len(OTHER) * 3 // 2))
    await lkg.pack(*first, 0)
    await lkg.pack(*second, 0)
    assert (lkg.held(), await content(lkg)) == (second[1], OTHER[::-1])


async def test_a_cut_between_any_two_steps_leaves_a_whole_pack(tmp_path: Path) -> None:
    """D9: the old one or the new one; a packing that was cut short starts over."""
    first, second = lay(tmp_path, OTHER), lay(tmp_path, IMAGE, "2.0.0")
    steps, done = 0, False
    while not done:
        await PackedLkg(tmp_path / "lkg.pack", Disk()).pack(*first, 0)
        try:
            await PackedLkg(tmp_path / "lkg.pack", StoppingDisk(steps)).pack(*second, 0)
        except PowerCutError:
            pass
        else:
            done = True
        found = PackedLkg(tmp_path / "lkg.pack", Disk())
        assert await found.is_whole()
        assert found.held() in {first[1], second[1]}
        steps += 1
    assert steps > 8
    assert found.held() == second[1]
