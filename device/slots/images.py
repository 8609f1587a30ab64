"""Two slots that hold images: labels, marks, and an image on its way into one. Files, partitions and loop devices.

Layout. A back-end says where a slot's bytes are. ``A.json`` and ``B.json`` in a directory of the data partition label
what was verified there, ``B.mark`` tells how far a write to B is durable.

Rules. Only the slot that the boot environment does not call active is opened for writing, checked on every ``begin``.
Writes pass a cache: whatever lies past the last mark may be lost or garbled at a power cut (a supervisor that plays
the board does just that), so a mark is written only after the data before it was flushed and read back from the medium.
A mark carries the digest of what was read back; a resume reads it again and starts over where it differs. The label
goes before the first byte is written. Writing, flushing and settling (read back, mark) have a thread each: three steps
may be under way.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from device.bootenv import SlotName
from device.offload import Worker
from device.platform import SlotLabel
from device.slots.medium import MediumReader, reading_medium
from device.values import from_plain, to_plain
from wavemesh.errors import LocalError
from wavemesh.runtime.durable import disk_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from device.platform import BootControl
    from wavemesh.runtime.durable import Disk
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


class ImageSlots(ABC):
    """Both slots of one device; a back-end says where they are and how one is opened."""

    def __init__(self, directory: Path, disk: Disk, boot_control: BootControl) -> None:
        """``directory`` holds labels and marks."""
        self._directory = directory
        self._disk = disk
        self._boot_control = boot_control
        # Asked for with every status; nobody else writes them while we run.
        self._labels: dict[SlotName, SlotLabel | None] = {}

    @abstractmethod
    def present(self) -> bool:
        """Whether there really are two."""

    @abstractmethod
    def capacity_bytes(self, slot: SlotName) -> int:
        """How large an image it can hold, 0 when it is absent."""

    @abstractmethod
    def path(self, slot: SlotName) -> Path:
        """The file or device with the slot's bytes."""

    @abstractmethod
    def _open(self, slot: SlotName, image: Digest) -> int:
        """A descriptor for writing this image from its start; raises SlotError, DiskFaultError."""

    @abstractmethod
    def _lay_image(self, image: Path) -> None:
        """Put the image on slot A and make a slot B; raises SlotError."""

    def lay(self, image: Path, label: SlotLabel) -> None:
        """What a factory does; raises SlotError, DiskFaultError."""
        self._disk.make_dir(self._directory)
        with disk_errors(image):
            self._lay_image(image)
        self._write_label(SlotName.A, label)

    def label(self, slot: SlotName) -> SlotLabel | None:
        """What is on the slot, None when unknown."""
        if slot not in self._labels:
            self._labels[slot] = self._read_label(slot)
        return self._labels[slot]

    def version(self, slot: SlotName) -> str:
        """Version on the slot's label as it is on the disk now, empty without a label."""
        label = self._read_label(slot)
        return "" if label is None else label.version

    def unflushed(self, slot: SlotName) -> range:
        """The bytes of an unfinished image that a power cut may take: all after the last durable mark."""
        mark = read_json(self._mark_path(slot), Mark)
        return range(0) if mark is None else range(mark.offset, mark.size_bytes)

    async def begin(self, slot: SlotName, image: Digest) -> ImageWriter:
        """Open the slot for this image at the last durable mark; raises SlotError, DiskFaultError."""
        self.check_other(slot)
        capacity_bytes = self.capacity_bytes(slot)
        if image.size_bytes > capacity_bytes:
            msg = f"slot {slot.value} ({self.path(slot)}) cannot hold {image.size_bytes} bytes"
            msg += f" (capacity {capacity_bytes})" if capacity_bytes else ": it is absent"
            raise SlotError(msg, slot=slot.value)
        self._check_unused(slot)
        self._forget(slot)
        writer = ImageWriter(self.path(slot), self._mark_path(slot), self._disk, image, lambda: self._open(slot, image))
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
        self._write_label(slot, label)
        self._disk.remove(self._mark_path(slot))

    def check_other(self, slot: SlotName) -> None:
        """Raise SlotError for the active slot."""
        if self._boot_control.read().active.slot is slot:
            msg = f"slot {slot.value} is the active one; only the other may be written"
            raise SlotError(msg, slot=slot.value)

    def _forget(self, slot: SlotName) -> None:
        """Nothing boots the slot any more and nothing says what is on it; before its first byte is written."""
        self._boot_control.invalidate(slot)
        self._labels.pop(slot, None)
        self._disk.remove(self._label_path(slot))

    @abstractmethod
    def _check_unused(self, slot: SlotName) -> None:
        """Raise SlotError when something else uses the slot."""

    def _write_label(self, slot: SlotName, label: SlotLabel) -> None:
        self._labels.pop(slot, None)
        self._disk.write_atomic(self._label_path(slot), json.dumps(to_plain(label)).encode(), 0o644)

    def _read_label(self, slot: SlotName) -> SlotLabel | None:
        return read_json(self._label_path(slot), SlotLabel)

    def _label_path(self, slot: SlotName) -> Path:
        return label_path(self._directory, slot)

    def _mark_path(self, slot: SlotName) -> Path:
        return self._directory / f"{slot.value}.mark"


class ImageWriter:
    """An image on its way into a slot."""

    def __init__(self, path: Path, mark_path: Path, disk: Disk, image: Digest, open_slot: Callable[[], int]) -> None:
        """Call ``open`` next; ``open_slot`` gives a descriptor for writing."""
        self._open_slot = open_slot
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
        self._descriptor = self._open_slot()
        with disk_errors(self._path):
            os.lseek(self._descriptor, self._offset, os.SEEK_SET)
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


def label_path(directory: Path, slot: SlotName) -> Path:
    """The file that says what was verified on a slot; ``directory`` is that of labels and marks."""
    return directory / f"{slot.value}.json"


def read_json(path: Path, kind: type[T]) -> T | None:
    """A small value file, None when it is absent or not what ``kind`` says: then it vouches for nothing."""
    try:
        with path.open("rb") as file:
            return from_plain(kind, json.loads(file.read(_MAX_LABEL_BYTES)))
    except (OSError, ValueError, KeyError, TypeError):
        return None
