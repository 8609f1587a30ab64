"""Content-defined chunks of files, packs of them, and how a blob is rebuilt from a pack and what else is held.

Cutting is FastCDC (Xia and others, "The Design of Fast Content-Defined Chunking for Data Deduplication Based Storage
Systems", IEEE TPDS 31(9), 2020; by pyfastcdc, gear table of the paper's authors) with the parameters below. They are
part of the format of ``chunkindex.py``: both sides must cut alike, or they find nothing in common.

Rules. Files are read and written a chunk at a time. A rebuilt file is hashed while it is written, each chunk of it and
the whole; it never grows past its target's size, and one that is wrong does not stay. A frame of a pack is unpacked
only where it says that it is as long as its chunk: so nothing that a peer sends takes more memory than one chunk.

Everything here blocks: call it in threads, or in a process of its own.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Literal

import zstandard
from pyfastcdc import FastCDC

from wavemesh.artifacts.chunkindex import (
    ID_BYTES,
    MAX_CHUNK_BYTES,
    MAX_CHUNKS,
    BadIndexError,
    ChunkId,
    ChunkIndex,
    IndexedChunk,
    Range,
    encode_index,
    index_of,
    missing,
    missing_bytes,
    parse_index,
    unpack_frame,
)
from wavemesh.errors import LocalError, PeerError
from wavemesh.runtime.durable import Disk, disk_errors
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = [
    "BadIndexError",
    "BadPackError",
    "Chunk",
    "ChunkId",
    "ChunkIndex",
    "IndexedChunk",
    "Range",
    "TooManyChunksError",
    "chunk_file",
    "make_pack",
    "missing",
    "missing_bytes",
    "parse_index",
    "rebuild_from_pack",
]

MIN_CHUNK_BYTES = 16 * 1024
AVERAGE_CHUNK_BYTES = 64 * 1024
NORMALIZED_CHUNKING: Literal[2] = 2
PACK_LEVEL = 19


class BadPackError(PeerError):
    """Part of a pack is not what its index says, or lacks what the bases lack too."""

    reason = "BAD_CHUNK_PACK"


class TooManyChunksError(LocalError):
    """A target is too large for an index; it goes by other deliveries."""

    reason = "TOO_MANY_CHUNKS"


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk of a file: where it begins, how long it is, and what it is recognised by."""

    id: ChunkId
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a chunk lies in a base."""

    base: int
    offset: int


def chunk_id(data: bytes | memoryview) -> ChunkId:
    """What a chunk with these bytes is recognised by."""
    return hashlib.sha256(data).digest()[:ID_BYTES]


def chunk_file(path: Path) -> list[Chunk]:
    """The chunks of a file, in order; raises DiskFaultError."""
    with _opened(path) as file:
        return [Chunk(chunk_id(data), offset, len(data)) for offset, data in _cut(file, path)]


def make_pack(target: Path, pack: Path, index: Path, *, level: int = PACK_LEVEL, disk: Disk | None = None) -> None:
    """Write the pack of a file and its index, both new files, both on disk when it returns.

    Raises TooManyChunksError, DiskFaultError, and then both may lie there, unfinished.
    """
    disk = disk or Disk()
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=False)
    whole = hashlib.sha256()
    cuts: list[tuple[ChunkId, int]] = []
    packed: dict[ChunkId, int] = {}
    with _opened(target) as file, _created(pack, disk) as out:
        for _, data in _cut(file, target):
            identity = chunk_id(data)
            whole.update(data)
            cuts.append((identity, len(data)))
            if len(cuts) > MAX_CHUNKS:
                msg = f"{target} has more than {MAX_CHUNKS} chunks"
                raise TooManyChunksError(msg)
            if identity not in packed:
                frame = compressor.compress(data)
                disk.write(out, frame, pack)
                packed[identity] = len(frame)
        disk.fsync(out, pack)
    digest = Digest(whole.hexdigest(), sum(length for _, length in cuts))
    disk.write_new(index, encode_index(index_of(digest, cuts, list(packed.values()))))


def rebuild_from_pack(
    index: ChunkIndex,
    pack_part: Path,
    ranges: Sequence[Range],
    bases: Sequence[Path],
    *,
    out: Path,
    target: Digest,
    disk: Disk | None = None,
) -> None:
    """Write the target to ``out``, a new file, from parts of its pack and from the chunks of ``bases``.

    ``pack_part`` has the bytes of ``ranges`` (ascending) one after the other. What a base has is not looked for in the
    pack. Raises BadIndexError (it is another target's), BadPackError, DiskFaultError; then ``out`` is not there.
    """
    disk = disk or Disk()
    if index.target != target:
        msg = f"the index is of blob {index.target.sha256}, not of {target.sha256}; ask for the offers again"
        raise BadIndexError(msg)
    held = _places(index, bases)
    with ExitStack() as stack:
        files = [stack.enter_context(_opened(base)) for base in bases]
        part = stack.enter_context(_opened(pack_part))
        reader = _Chunks(files, part, held, _positions(index, ranges), target)
        descriptor = stack.enter_context(_created(out, disk))
        whole = hashlib.sha256()
        try:
            for number in index.sequence:
                data = reader.chunk(index.chunks[number], number)
                whole.update(data)
                disk.write(descriptor, data, out)
            if whole.hexdigest() != target.sha256:
                raise _bad(target, f"the rebuilt blob has SHA-256 {whole.hexdigest()}")
            disk.fsync(descriptor, out)
        except BaseException:
            disk.unlink(out)
            raise


class _Chunks:
    """Gives out chunks, each verified."""

    def __init__(
        self,
        bases: Sequence[BinaryIO],
        part: BinaryIO,
        held: dict[ChunkId, _Place],
        positions: dict[int, int],
        target: Digest,
    ) -> None:
        """``positions`` has where in ``part`` the frame of a chunk begins, by the chunk's number."""
        self._bases, self._part = bases, part
        self._held, self._positions = held, positions
        self._target = target

    def chunk(self, chunk: IndexedChunk, number: int) -> bytes:
        """The bytes of one chunk; raises BadPackError, OSError."""
        place = self._held.get(chunk.id)
        if place is None:
            return self._unpacked(chunk, number)
        data = os.pread(self._bases[place.base].fileno(), chunk.length, place.offset)
        if chunk_id(data) != chunk.id:
            raise _bad(self._target, f"base {place.base} changed at byte {place.offset} while it was read")
        return data

    def _unpacked(self, chunk: IndexedChunk, number: int) -> bytes:
        position = self._positions.get(number)
        if position is None:
            raise _bad(self._target, f"chunk {number} is in no base, and not in what was read of the pack")
        frame = os.pread(self._part.fileno(), chunk.packed.length, position)
        where = f"the frame of chunk {number}, byte {chunk.packed.offset} of the pack"
        try:
            data = unpack_frame(frame, chunk.length)
        except zstandard.ZstdError as error:
            raise _bad(self._target, f"{where}: {error}") from error
        if len(data) != chunk.length or chunk_id(data) != chunk.id:
            raise _bad(self._target, f"{where}, holds another chunk")
        return data


def _places(index: ChunkIndex, bases: Sequence[Path]) -> dict[ChunkId, _Place]:
    """Where the target's chunks lie in the bases, the first place of each."""
    wanted = {chunk.id: chunk.length for chunk in index.chunks}
    held: dict[ChunkId, _Place] = {}
    for number, base in enumerate(bases):
        for chunk in chunk_file(base):
            if wanted.get(chunk.id) == chunk.length:
                held.setdefault(chunk.id, _Place(number, chunk.offset))
    return held


def _positions(index: ChunkIndex, ranges: Sequence[Range]) -> dict[int, int]:
    """Where in the bytes of ``ranges``, one after the other, the frame of each chunk begins that lies in them whole."""
    positions: dict[int, int] = {}
    rest, at = list(reversed(ranges)), 0
    for number, chunk in enumerate(index.chunks):
        while rest and rest[-1].offset + rest[-1].length <= chunk.packed.offset:
            at += rest.pop().length
        if not rest:
            break
        into = chunk.packed.offset - rest[-1].offset
        if into >= 0 and into + chunk.packed.length <= rest[-1].length:
            positions[number] = at + into
    return positions


def _cut(file: BinaryIO, path: Path) -> Iterator[tuple[int, memoryview]]:
    """The chunks of an open file, offset and bytes, which are good until the next one."""
    cutter = FastCDC(
        AVERAGE_CHUNK_BYTES,
        min_size=MIN_CHUNK_BYTES,
        max_size=MAX_CHUNK_BYTES,
        normalized_chunking=NORMALIZED_CHUNKING,
        seed=0,
    )
    with disk_errors(path):
        for chunk in cutter.cut_stream(file):
            yield chunk.offset, chunk.data


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with disk_errors(path), path.open("rb", buffering=0) as file:
        yield file


@contextmanager
def _created(path: Path, disk: Disk) -> Iterator[int]:
    disk.unlink(path)
    descriptor = disk.create(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _bad(target: Digest, what: str) -> BadPackError:
    msg = f"blob {target.sha256} cannot be rebuilt from chunks: {what}; bring it by another delivery"
    return BadPackError(msg, sha256=target.sha256)
