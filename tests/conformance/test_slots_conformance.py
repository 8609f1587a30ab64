"""What slots must do, whatever holds them: write only the other one, resume, believe the medium (D1, D3, D9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from device.bootenv import Boot, SlotName
from device.platform import SlotLabel
from device.slots.images import SlotError
from tests.conformance.subjects import CAPACITY_BYTES, EVERY, NEW, OLD, digest_of

if TYPE_CHECKING:
    from device.platform import Slots
    from tests.conformance.subjects import Subject

pytestmark = pytest.mark.parametrize("subject", EVERY, indirect=True)
A, B = SlotName.A, SlotName.B
IMAGE = digest_of(NEW)
LABEL = SlotLabel("firmware-v2", "2.0.0", IMAGE)
HALF = len(NEW) // 2


async def write(slots: Slots, content: bytes, *, flushed: int) -> None:
    """Write that much of the new image, of which so many bytes are synced."""
    writer = await slots.begin(B, IMAGE)
    try:
        await writer.write(content[:flushed])
        await writer.sync()
        await writer.write(content[flushed:])
    finally:
        await writer.close()


async def test_a_device_leaves_the_factory_with_one_good_slot(subject: Subject) -> None:
    system = subject.open()
    assert system.slots.present()
    assert system.slots.label(A) == SlotLabel("firmware-v1", "1.0.0", digest_of(OLD))
    assert system.slots.label(B) is None
    assert await system.slots.digest(A, len(OLD)) == digest_of(OLD).sha256
    assert system.boot_control.read().active == Boot(A, 1)
    assert system.media.version(A) == "1.0.0"


async def test_an_image_is_written_read_back_and_labelled(subject: Subject) -> None:
    slots = subject.open().slots
    writer = await slots.begin(B, IMAGE)
    await writer.write(NEW[:HALF])
    await writer.sync()
    await writer.write(NEW[HALF:])
    await writer.sync()
    assert (writer.offset, writer.read_back) == (len(NEW), IMAGE.sha256)
    await writer.close()
    assert await slots.digest(B, len(NEW)) == IMAGE.sha256
    assert slots.label(B) is None
    await slots.seal(B, LABEL)
    again = subject.open()
    assert (again.slots.label(B), again.media.version(B)) == (LABEL, "2.0.0")
    assert await again.slots.digest(A, len(OLD)) == digest_of(OLD).sha256


async def test_what_was_flushed_survives_a_power_cut_and_the_rest_is_written_again(subject: Subject) -> None:
    await write(subject.open().slots, NEW[: HALF + 100_000], flushed=HALF)
    assert subject.open().media.unflushed(B) == range(HALF, len(NEW))
    subject.lose_unflushed()
    slots = subject.open().slots
    writer = await slots.begin(B, IMAGE)
    assert writer.offset == HALF
    await writer.write(NEW[HALF:])
    await writer.sync()
    assert writer.read_back == IMAGE.sha256
    await writer.close()


async def test_a_mark_that_the_medium_does_not_bear_out_starts_over(subject: Subject) -> None:
    slots = subject.open().slots
    await write(slots, NEW, flushed=HALF)
    with slots.path(B).open("r+b") as file:
        file.seek(100)
        file.write(b"\0" * 512)
    writer = await subject.open().slots.begin(B, IMAGE)
    assert writer.offset == 0
    await writer.close()


async def test_another_image_and_a_discarded_one_start_over(subject: Subject) -> None:
    slots = subject.open().slots
    await write(slots, NEW, flushed=HALF)
    other = await slots.begin(B, digest_of(OLD))
    assert other.offset == 0
    await other.close()
    await write(slots, NEW, flushed=HALF)
    await slots.discard(B)
    writer = await slots.begin(B, IMAGE)
    assert writer.offset == 0
    await writer.close()


async def test_wrong_bytes_read_back_wrong(subject: Subject) -> None:
    slots = subject.open().slots
    writer = await slots.begin(B, IMAGE)
    await writer.write(OLD)
    await writer.sync()
    assert writer.read_back == digest_of(OLD).sha256
    await writer.close()


async def test_a_slot_is_no_fallback_and_has_no_label_before_its_first_byte_changes(subject: Subject) -> None:
    """Semantics: the other slot is never trusted unverified."""
    system = subject.open()
    await write(system.slots, NEW, flushed=len(NEW))
    await system.slots.seal(B, LABEL)
    system.boot_control.arm(Boot(B, 2))
    system.boot_control.commit()
    system.boot_control.arm(Boot(A, 1))
    system.boot_control.revert()
    system.boot_control.arm(Boot(B, 2))
    writer = await system.slots.begin(B, IMAGE)
    environment = subject.open().boot_control.read()
    assert (environment.active, environment.previous, environment.trial) == (Boot(A, 1), None, None)
    assert subject.open().slots.label(B) is None
    await writer.close()


async def test_the_active_slot_is_never_written(subject: Subject) -> None:
    subject.trust(B)
    system = subject.open()
    with pytest.raises(SlotError, match="active"):
        await system.slots.begin(A, IMAGE)
    system.boot_control.arm(Boot(B, 2))
    system.boot_control.commit()
    with pytest.raises(SlotError, match="active"):
        await system.slots.begin(B, IMAGE)
    assert await system.slots.digest(A, len(OLD)) == digest_of(OLD).sha256


async def test_what_a_slot_cannot_hold_is_refused_before_anything_changes(subject: Subject) -> None:
    system = subject.open()
    assert system.slots.capacity_bytes(B) == CAPACITY_BYTES
    before = system.boot_control.read()
    with pytest.raises(SlotError, match=f"cannot hold {CAPACITY_BYTES + 1} bytes .capacity {CAPACITY_BYTES}"):
        await system.slots.begin(B, digest_of(b"x" * (CAPACITY_BYTES + 1)))
    assert system.boot_control.read() == before
    writer = await system.slots.begin(B, digest_of(b"x" * 10))
    with pytest.raises(SlotError, match="more bytes"):
        await writer.write(b"x" * 11)
    await writer.close()


async def test_an_absent_slot_is_named(subject: Subject) -> None:
    """D2: refurbished hardware may lack the second one."""
    path = subject.open().slots.path(B)
    if path.is_block_device():
        (subject.directory / "config.toml").write_text(
            (subject.directory / "config.toml").read_text().replace(str(path), "/dev/wavemesh-absent")
        )
    else:
        path.unlink()
    slots = subject.open().slots
    assert not slots.present()
    assert slots.capacity_bytes(B) == 0
    with pytest.raises(SlotError, match=r"slot B .*absent"):
        await slots.begin(B, IMAGE)
