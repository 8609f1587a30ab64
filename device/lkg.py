"""The packed last known good: one compressed image on the data partition, for a second rollback (D6).

``DIR/state/lkg.pack`` is a header of ``HEADER_BYTES`` (JSON: the slot's label, the config generation that belongs to
it, a checksum over both) and a zlib stream of the image. It is written beside the one before, flushed, read back and
compared with the label's digest, and renamed over it: at every instant there is the old pack, the new one, or none; and
none only if both did not fit, while what is being packed still lies in its slot. A packing that was interrupted starts
over. Work is done in steps of ``CHUNK_BYTES`` in a thread, so that little memory is used and a pause is near.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from device.offload import Worker
from device.platform import SlotLabel  # noqa: TC001  # device/values.py resolves the hints at run time
from device.values import from_plain, to_plain
from wavemesh.errors import LocalError
from wavemesh.runtime.durable import Disk, DiskFullError, disk_errors

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path

HEADER_BYTES = 4096
CHUNK_BYTES = 1024 * 1024
# The fastest: a till has better things to do, and an image is compressed by its builder where it pays.
LEVEL = 1


class PackError(LocalError):
    """What was to be packed, or what was packed, is not what its label says."""

    reason = "PACK"


@dataclass(frozen=True, slots=True)
class Packed:
    """What a pack holds: a slot's content and the config generation that belongs to it."""

    label: SlotLabel
    config_generation: int


class PackedLkg:
    """The pack of one device. One writer: the agent."""

    def __init__(self, path: Path, disk: Disk) -> None:
        """``path`` is the pack's; a file beside it is one on its way."""
        self._path = path
        self._partial = path.with_suffix(".partial")
        self._disk = disk

    def held(self) -> Packed | None:
        """What the pack holds by its header, None without one."""
        try:
            with self._path.open("rb") as file:
                outer = json.loads(file.read(HEADER_BYTES))
            packed = from_plain(Packed, outer["packed"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return packed if outer["sha256"] == _checksum(packed) else None

    async def is_whole(self) -> bool:
        """Whether the pack's content is what its header says; raises DiskFaultError."""
        packed = self.held()
        try:
            return packed is not None and await _sha256(self.content()) == packed.label.firmware.sha256
        except PackError:
            return False

    async def content(self, path: Path | None = None) -> AsyncGenerator[bytes, None]:
        """The image, in pieces of at most ``CHUNK_BYTES``; raises PackError, DiskFaultError."""
        unpacking = _Unpacking(path or self._path)
        try:
            async with Worker() as worker:
                while piece := await worker.run(unpacking.read):
                    yield piece
        finally:
            unpacking.close()

    async def pack(self, source: Path, packed: Packed, least_free_bytes: int) -> None:
        """Pack a slot's content; ``least_free_bytes`` of the partition stay free. The pack before gives way.

        Raises PackError when the source is not what its label says, DiskFullError, DiskFaultError.
        """
        try:
            await self._put(source, packed, least_free_bytes)
        except DiskFullError:
            if not self._path.exists():
                raise
            self._disk.remove(self._path)
            await self._put(source, packed, least_free_bytes)

    async def _put(self, source: Path, packed: Packed, least_free_bytes: int) -> None:
        packing = _Packing(self._partial, source, packed, least_free_bytes, self._disk)
        try:
            async with Worker() as worker:
                try:
                    await worker.run(packing.open)
                    while await worker.run(packing.step):
                        pass
                    await worker.run(packing.finish)
                finally:
                    packing.close()
            found = await _sha256(self.content(self._partial))
            if found != packed.label.firmware.sha256:
                msg = f"the pack of {source} reads back SHA-256 {found}, its label says {packed.label.firmware.sha256}"
                raise PackError(msg)
            self._disk.rename(self._partial, self._path)
            self._disk.fsync_dir(self._path.parent)
        finally:
            self._disk.unlink(self._partial)


class _Packing:
    """One pack on its way to the disk; every method blocks."""

    def __init__(self, path: Path, source: Path, packed: Packed, least_free_bytes: int, disk: Disk) -> None:
        self._path, self._source, self._packed, self._disk = path, source, packed, disk
        self._least_free_bytes = least_free_bytes
        self._rest = packed.label.firmware.size_bytes
        self._compressor = zlib.compressobj(LEVEL)
        self._in = self._out = -1

    def open(self) -> None:
        with disk_errors(self._source):
            self._in = os.open(self._source, os.O_RDONLY | os.O_CLOEXEC)
        self._disk.unlink(self._path)
        self._out = self._disk.create(self._path)
        self._write(_header(self._packed))

    def step(self) -> bool:
        """Pack one chunk; False when the source is packed or ends too early, which the digest will tell."""
        with disk_errors(self._source):
            chunk = os.read(self._in, min(CHUNK_BYTES, self._rest))
        self._rest -= len(chunk)
        self._write(self._compressor.compress(chunk))
        return bool(chunk) and self._rest > 0

    def finish(self) -> None:
        self._write(self._compressor.flush())
        self._disk.fsync(self._out, self._path)

    def close(self) -> None:
        for descriptor in (self._in, self._out):
            if descriptor >= 0:
                os.close(descriptor)

    def _write(self, data: bytes) -> None:
        statistics = os.statvfs(self._path.parent)
        if statistics.f_bavail * statistics.f_frsize - len(data) < self._least_free_bytes:
            msg = f"{self._path.parent}: the pack would leave less than {self._least_free_bytes} bytes free"
            raise DiskFullError(msg, path=str(self._path))
        self._disk.write(self._out, data, self._path)


class _Unpacking:
    """The content of one pack; every method blocks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with disk_errors(path):
            self._in = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            # What was flushed is read from the medium, not from the cache.
            os.posix_fadvise(self._in, 0, 0, os.POSIX_FADV_DONTNEED)
            os.lseek(self._in, HEADER_BYTES, os.SEEK_SET)
        self._decompressor = zlib.decompressobj()
        self._compressed = b""

    def read(self) -> bytes:
        """The next piece, empty at the end."""
        while not self._decompressor.eof:
            if not self._compressed:
                with disk_errors(self._path):
                    self._compressed = os.read(self._in, CHUNK_BYTES)
                if not self._compressed:
                    break
            try:
                piece = self._decompressor.decompress(self._compressed, CHUNK_BYTES)
            except zlib.error as error:
                msg = f"{self._path}: {error}"
                raise PackError(msg) from error
            self._compressed = self._decompressor.unconsumed_tail
            if piece:
                return piece
        return b""

    def close(self) -> None:
        os.close(self._in)


async def _sha256(pieces: AsyncIterator[bytes]) -> str:
    hasher = hashlib.sha256()
    async with Worker() as worker:
        async for piece in pieces:
            await worker.run(hasher.update, piece)
    return hasher.hexdigest()


def _header(packed: Packed) -> bytes:
    text = json.dumps({"sha256": _checksum(packed), "packed": to_plain(packed)}).encode()
    if len(text) > HEADER_BYTES:
        msg = f"the label of the last known good has {len(text)} bytes, at most {HEADER_BYTES} fit"
        raise PackError(msg)
    return text.ljust(HEADER_BYTES)


def _checksum(packed: Packed) -> str:
    return hashlib.sha256(json.dumps(to_plain(packed), sort_keys=True).encode()).hexdigest()
