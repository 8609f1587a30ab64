"""A simulated disk with two slots, and its boot environment: ordinary files that behave as a medium does.

Layout: ``slots/A.img`` and ``slots/B.img`` hold the images, ``slots/A.json`` and ``slots/B.json`` label what was
verified there, ``slots/B.mark`` tells how far a write to B is durable, ``slots/bootenv.json`` is the boot environment.

Rules. Only the slot that the boot environment does not call active is opened for writing, checked on every ``begin``.
Writes pass a cache: whatever lies past the last mark may be lost or garbled at a power cut (the supervisor does just
that), so a mark is written only after the data before it was flushed and read back from the medium. A mark carries the
digest of what was read back; a resume reads it again and starts over where it differs. The label goes before the first
byte is written. Writing, flushing and settling (read back, mark) have a thread each: three steps may be under way.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from device.bootenv import (
    MAX_BYTES,
    Boot,
    BootEnvironment,
    BootEnvironmentError,
    ResetReason,
    SlotName,
    decode,
    encode,
)
from device.offload import Worker
from device.platform import SlotLabel
from device.slots.medium import MediumReader, reading_medium
from device.values import from_plain, to_plain
from wavemesh.errors import LocalError
from wavemesh.runtime.durable import Disk, disk_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from wavemesh.trust.statements import Digest

T = TypeVar("T")

_MAX_LABEL_BYTES = 16 * 1024


class SlotError(LocalError):
    """A slot cannot be written: it is the running one, too small, or absent."""

    reason = "SLOT"


@dataclass(frozen=True, slots=True)
class Mark:
    """Everything of ``image`` before ``offset`` is on the medium, and hashes to ``prefix_sha256``."""

    sha256: str
    size_bytes: int
    offset: int
    prefix_sha256: str


class SimulatedBootControl:
    """The boot environment as one JSON file, replaced atomically."""

    redundant_bootloader = False

    def __init__(self, directory: Path, disk: Disk) -> None:
        """``directory`` is the slots directory."""
        self._path = directory / "bootenv.json"
        self._disk = disk

    def read(self) -> BootEnvironment:
        """The environment on the medium; raises BootEnvironmentError, DiskFaultError."""
        with disk_errors(self._path):
            if not self._path.exists():
                msg = f"{self._path} is absent; equip the device first: python -m device.factory --dir DIR"
                raise BootEnvironmentError(msg)
            with self._path.open("rb") as file:
                return decode(file.read(MAX_BYTES + 1), str(self._path))

    def write(self, environment: BootEnvironment) -> None:
        """Replace it as a whole; for the provisioning of a device."""
        self._disk.write_atomic(self._path, encode(environment), 0o644)

    def attempt(self) -> None:
        """The bootloader takes one try of the trial."""
        self._change(lambda environment: environment.attempt())

    def fall_back(self, reason: ResetReason) -> None:
        """The bootloader notes what ended the trial."""
        self._change(lambda environment: environment.fall_back(reason))

    def invalidate(self, slot: SlotName) -> None:
        """Nothing boots this slot any more."""
        self._change(lambda environment: environment.invalidate(slot))

    def arm(self, boot: Boot) -> None:
        """Try this once at the next boot."""
        self._change(lambda environment: environment.arm(boot))

    def keep_trying(self, tries: int) -> None:
        """The trial may boot again that often."""
        self._change(lambda environment: environment.keep_trying(tries))

    def disarm(self) -> None:
        """No trial any more."""
        self._change(lambda environment: environment.disarm())

    def commit(self) -> None:
        """The trial is the active boot now."""
        self._change(lambda environment: environment.commit())

    def revert(self) -> None:
        """The trial, which a rollback went back to, is the active boot now, and nothing is previous."""
        self._change(lambda environment: environment.revert())

    def _change(self, transition: Callable[[BootEnvironment], BootEnvironment]) -> None:
        before = self.read()
        after = transition(before)
        if after != before:
            self.write(BootEnvironment(after.active, after.previous, after.trial, before.sequence + 1))


class SimulatedSlots:
    """Two image files."""

    def __init__(self, directory: Path, disk: Disk, boot_control: SimulatedBootControl, capacity_bytes: int) -> None:
        """``directory`` is the slots directory; a slot holds images up to ``capacity_bytes``."""
        self._directory = directory
        self._disk = disk
        self._boot_control = boot_control
        self._capacity_bytes = capacity_bytes
        # Asked for with every status; nobody else writes them while we run.
        self._labels: dict[SlotName, SlotLabel | None] = {}

    def present(self) -> bool:
        """Whether both image files are there."""
        return all(self.path(slot).is_file() for slot in SlotName)

    def capacity_bytes(self, slot: SlotName) -> int:
        """The same for both."""
        return self._capacity_bytes if self.path(slot).exists() else 0

    def path(self, slot: SlotName) -> Path:
        """The image file."""
        return self._directory / f"{slot.value}.img"

    def label(self, slot: SlotName) -> SlotLabel | None:
        """What is on the slot, None when unknown."""
        if slot not in self._labels:
            self._labels[slot] = read_json(self._label_path(slot), SlotLabel)
        return self._labels[slot]

    async def begin(self, slot: SlotName, image: Digest) -> SimulatedWriter:
        """Open the slot for this image at the last durable mark; raises SlotError, DiskFaultError."""
        if self._boot_control.read().active.slot is slot:
            msg = f"slot {slot.value} is the active one; only the other may be written"
            raise SlotError(msg, slot=slot.value)
        if not self.path(slot).is_file() or image.size_bytes > self._capacity_bytes:
            msg = f"slot {slot.value} cannot hold {image.size_bytes} bytes (capacity {self._capacity_bytes}, or absent)"
            raise SlotError(msg, slot=slot.value)
        self._boot_control.invalidate(slot)
        self._labels.pop(slot, None)
        self._disk.remove(self._label_path(slot))
        writer = SimulatedWriter(self.path(slot), self._mark_path(slot), self._disk, image)
        await writer.open()
        return writer

    async def digest(self, slot: SlotName, size_bytes: int) -> str:
        """SHA-256 of the first bytes, read from the medium and not from the cache."""
        async with Worker() as worker:
            return await worker.run(_hash_medium, self.path(slot), size_bytes)

    async def discard(self, slot: SlotName) -> None:
        """Forget the mark."""
        self._disk.remove(self._mark_path(slot))

    async def seal(self, slot: SlotName, label: SlotLabel) -> None:
        """Label the slot, then forget the mark."""
        self._labels.pop(slot, None)
        self._disk.write_atomic(self._label_path(slot), json.dumps(to_plain(label)).encode(), 0o644)
        self._disk.remove(self._mark_path(slot))

    def _label_path(self, slot: SlotName) -> Path:
        return self._directory / f"{slot.value}.json"

    def _mark_path(self, slot: SlotName) -> Path:
        return self._directory / f"{slot.value}.mark"


class SimulatedWriter:
    """An image on its way into a slot file."""

    def __init__(self, path: Path, mark_path: Path, disk: Disk, image: Digest) -> None:
        """Call ``open`` next."""
        self._path = path
        self._mark_path = mark_path
        self._disk = disk
        self._image = image
        self._writing, self._flushing, self._settling = self._workers = Worker(), Worker(), Worker()
        self._hash = hashlib.sha256()
        self._offset = self._settled = 0
        self._descriptor = -1
        self._medium: MediumReader | None = None

    @property
    def offset(self) -> int:
        """Bytes of the image written so far."""
        return self._offset

    @property
    def read_back(self) -> str:
        """SHA-256 of what was synced, as it was read from the medium."""
        return self._hash.hexdigest()

    async def open(self) -> None:
        """Find the mark, hash what it vouches for, and open for writing after it."""
        for worker in self._workers:
            await worker.__aenter__()
        try:
            await self._settling.run(self._open)
        except BaseException:
            await self.close()
            raise

    async def write(self, *pieces: bytes | memoryview) -> None:
        """Append all; raises SlotError past the image's size, DiskFaultError."""
        end = self._offset + sum(map(len, pieces))
        if end > self._image.size_bytes:
            msg = f"{self._path}: more bytes came than the {self._image.size_bytes} of the image"
            raise SlotError(msg)
        await self._writing.run(self._write, pieces)
        self._offset = end

    async def sync(self) -> None:
        """Flush what is written by now, read it back, then move the mark; more may be written and synced meanwhile."""
        through = self._offset
        await self._flushing.run(self._disk.fsync, self._descriptor, self._path)
        await self._settling.run(self._settle, through)

    async def close(self) -> None:
        """End the threads and close the files."""
        for worker in self._workers:
            await worker.__aexit__(None, None, None)
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
        medium, self._medium = self._medium, None
        if medium is not None:
            medium.close()

    def _open(self) -> None:
        medium = self._medium = MediumReader(self._path)
        mark = read_json(self._mark_path, Mark)
        if mark is not None and (mark.sha256, mark.size_bytes) == (self._image.sha256, self._image.size_bytes):
            prefix = hashlib.sha256()
            medium.hash_into(prefix, 0, mark.offset)
            if prefix.hexdigest() == mark.prefix_sha256:
                self._hash, self._offset = prefix, mark.offset
        with disk_errors(self._path):
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
            os.lseek(self._descriptor, self._offset, os.SEEK_SET)
        # The file is the medium: exactly as long as the image, so that its digest is the slot's digest.
        self._disk.truncate(self._descriptor, self._image.size_bytes, self._path)
        self._settled = self._offset
        # Flushed before the first write: from here on the mark says what may be believed.
        self._disk.fsync(self._descriptor, self._path)
        self._settle(self._offset)

    def _write(self, pieces: Sequence[bytes | memoryview]) -> None:
        for piece in pieces:
            self._disk.write(self._descriptor, piece, self._path)

    def _settle(self, through: int) -> None:
        if self._medium is None:
            msg = f"{self._path} is synced before it is open"
            raise RuntimeError(msg)
        self._medium.hash_into(self._hash, self._settled, through)
        self._settled = through
        mark = Mark(self._image.sha256, self._image.size_bytes, through, self._hash.hexdigest())
        self._disk.write_atomic(self._mark_path, json.dumps(to_plain(mark)).encode(), 0o644)


def _hash_medium(path: Path, size_bytes: int) -> str:
    """SHA-256 of the first bytes of a file as the medium has them; a shorter file hashes shorter."""
    hasher = hashlib.sha256()
    with reading_medium(path) as medium:
        medium.hash_into(hasher, 0, size_bytes)
    return hasher.hexdigest()


def read_json(path: Path, kind: type[T]) -> T | None:
    """A small value file, None when it is absent or not what ``kind`` says: then it vouches for nothing."""
    try:
        with path.open("rb") as file:
            return from_plain(kind, json.loads(file.read(_MAX_LABEL_BYTES)))
    except (OSError, ValueError, KeyError, TypeError):
        return None
