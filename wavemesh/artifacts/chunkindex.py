"""The index of a pack of chunks: which chunks make a blob, and where in the pack each lies. Pure.

A *pack* is a blob: each distinct chunk of the target as one zstd frame, one after the other in order of first use. Its
*index* is another blob, small, and read first: whoever holds some of the chunks already then reads only the ranges of
the pack that it lacks.

Format of an index, version 1: the eight bytes ``WMCHIX01``, then one zstd frame, its content's size in its header,
with this inside, integers little-endian, columns because columns compress:

    32 B  SHA-256 of the target        8 B  size of the target
     4 B  D, the number of distinct chunks        4 B  N, the number of chunks in the target
    D * 16 B  the chunks' ids: the first half of the SHA-256 of each
    D *  4 B  the chunks' lengths                 D * 4 B  the lengths of their frames in the pack
    N *  4 B  the target in order: 0 for the chunk that is new here, else 1 + the number of one seen before

Half a SHA-256 recognises chunks, also those that somebody made up to look like others (2^128 tries for each); that the
target is right is believed by its whole digest alone. There is one way to write an index's content: chunks are
numbered by first use, none is there twice, none is unused, and nothing follows. How a target is cut is part of the
format too (``chunks.py``), but a reader need not cut to follow an index. zstandard loads with the first index: who
only passes ranges on, a device for one, does not have it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from wavemesh.errors import PeerError
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

MAGIC = b"WMCHIX01"
ID_BYTES = 16
MAX_CHUNK_BYTES = 256 * 1024
MAX_TARGET_BYTES = 1 << 40
MAX_CHUNKS = 1 << 18
"""In one target: 20 GiB of it as it is cut on the average."""
MAX_FRAME_BYTES = MAX_CHUNK_BYTES + 1024
"""zstd adds at most 1/256 and some bytes to what it cannot compress; ours are stored then."""
INDEX_LEVEL = 19

_HEAD = struct.Struct("<32sQII")
_COUNT_BYTES = 4
MAX_CONTENT_BYTES = _HEAD.size + MAX_CHUNKS * (ID_BYTES + 3 * _COUNT_BYTES)
MAX_INDEX_BYTES = MAX_CONTENT_BYTES + MAX_CONTENT_BYTES // 256 + 1024
"""Of an index as a blob: more is refused before it is read."""

ChunkId = bytes


class BadIndexError(PeerError):
    """An index is malformed, out of its bounds, or not of this target."""

    reason = "BAD_CHUNK_INDEX"


@dataclass(frozen=True, slots=True)
class Range:
    """A run of bytes of a pack."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class IndexedChunk:
    """One distinct chunk: its id and length, and where in the pack its frame lies."""

    id: ChunkId
    length: int
    packed: Range


@dataclass(frozen=True, slots=True)
class ChunkIndex:
    """What a target consists of: ``sequence`` has, in order, the numbers of its ``chunks``."""

    target: Digest
    chunks: tuple[IndexedChunk, ...]
    sequence: tuple[int, ...]

    @property
    def pack_bytes(self) -> int:
        """How long the pack is."""
        return self.chunks[-1].packed.offset + self.chunks[-1].packed.length if self.chunks else 0

    @property
    def ids(self) -> frozenset[ChunkId]:
        """All distinct chunks."""
        return frozenset(chunk.id for chunk in self.chunks)


def missing(index: ChunkIndex, have: Collection[ChunkId]) -> tuple[Range, ...]:
    """The ranges of the pack with the chunks that are not in ``have`` (a set), ascending, those that touch made one."""
    ranges: list[Range] = []
    for chunk in index.chunks:
        if chunk.id in have:
            continue
        if ranges and ranges[-1].offset + ranges[-1].length == chunk.packed.offset:
            ranges[-1] = Range(ranges[-1].offset, ranges[-1].length + chunk.packed.length)
        else:
            ranges.append(chunk.packed)
    return tuple(ranges)


def missing_bytes(index: ChunkIndex, have: Collection[ChunkId]) -> int:
    """How many bytes of the pack those are."""
    return sum(chunk.packed.length for chunk in index.chunks if chunk.id not in have)


def index_of(target: Digest, cuts: Iterable[tuple[ChunkId, int]], packed: Sequence[int]) -> ChunkIndex:
    """The index of a target that consists of these ``cuts``, ids and lengths in order.

    ``packed`` has the length of each distinct chunk's frame, in order of first use.
    """
    numbers: dict[ChunkId, int] = {}
    lengths: list[int] = []
    sequence: list[int] = []
    for identity, length in cuts:
        number = numbers.setdefault(identity, len(numbers))
        if number == len(lengths):
            lengths.append(length)
        sequence.append(number)
    return _laid_out(target, list(numbers), lengths, packed, sequence)


def _laid_out(
    target: Digest, ids: Sequence[ChunkId], lengths: Sequence[int], packed: Sequence[int], sequence: Sequence[int]
) -> ChunkIndex:
    offsets = accumulate(packed, initial=0)
    chunks = (
        IndexedChunk(identity, length, Range(offset, size))
        for identity, length, offset, size in zip(ids, lengths, offsets, packed, strict=False)
    )
    return ChunkIndex(target, tuple(chunks), tuple(sequence))


def encode_index(index: ChunkIndex) -> bytes:
    """The index as a blob."""
    import zstandard

    return MAGIC + zstandard.ZstdCompressor(level=INDEX_LEVEL).compress(_content(index))


def _content(index: ChunkIndex) -> bytes:
    seen, steps = 0, []
    for number in index.sequence:
        steps.append(0 if number == seen else number + 1)
        seen = max(seen, number + 1)
    count = len(index.chunks)
    columns = (
        [chunk.length for chunk in index.chunks],
        [chunk.packed.length for chunk in index.chunks],
        steps,
    )
    head = _HEAD.pack(bytes.fromhex(index.target.sha256), index.target.size_bytes, count, len(index.sequence))
    ids = b"".join(chunk.id for chunk in index.chunks)
    return head + ids + b"".join(struct.pack(f"<{len(column)}I", *column) for column in columns)


def parse_index(data: bytes) -> ChunkIndex:
    """Read an index that came from outside; raises BadIndexError, and takes memory by its bounds alone."""
    content = _unpacked(data)
    if len(content) < _HEAD.size:
        raise _bad(f"its content has {len(content)} bytes, fewer than its head")
    sha256, size_bytes, distinct, count = _HEAD.unpack_from(content)
    if not distinct <= count <= MAX_CHUNKS:
        raise _bad(f"{count} chunks, {distinct} of them distinct; at most {MAX_CHUNKS}")
    expected = _HEAD.size + distinct * (ID_BYTES + 2 * _COUNT_BYTES) + count * _COUNT_BYTES
    if len(content) != expected:
        raise _bad(f"its content has {len(content)} bytes, not {expected}")
    if size_bytes > MAX_TARGET_BYTES:
        raise _bad(f"its target has {size_bytes} bytes, more than {MAX_TARGET_BYTES}")
    start = _HEAD.size + distinct * ID_BYTES
    ids = [content[at : at + ID_BYTES] for at in range(_HEAD.size, start, ID_BYTES)]
    numbers = struct.unpack_from(f"<{2 * distinct + count}I", content, start)
    lengths, packed, steps = numbers[:distinct], numbers[distinct : 2 * distinct], numbers[2 * distinct :]
    _check_chunks(ids, lengths, packed)
    sequence = _sequence(steps, distinct)
    total = sum(lengths[number] for number in sequence)
    if total != size_bytes:
        raise _bad(f"its chunks make {total} bytes, its target has {size_bytes}")
    return _laid_out(Digest(sha256.hex(), size_bytes), ids, lengths, packed, sequence)


def _unpacked(data: bytes) -> bytes:
    if len(data) > MAX_INDEX_BYTES:
        raise _bad(f"{len(data)} bytes, more than {MAX_INDEX_BYTES}")
    if not data.startswith(MAGIC):
        raise _bad(f"it begins with {data[: len(MAGIC)]!r}, not with {MAGIC!r}")
    import zstandard

    try:
        return unpack_frame(data[len(MAGIC) :], MAX_CONTENT_BYTES)
    except zstandard.ZstdError as error:
        raise _bad(str(error)) from error


def unpack_frame(frame: bytes, most_bytes: int) -> bytes:
    """The content of exactly one zstd frame that says how long it is; raises ZstdError.

    The size it says is the memory taken, so it is looked at first.
    """
    import zstandard

    says = zstandard.frame_content_size(frame)
    if not 0 <= says <= most_bytes:
        msg = f"the frame's content has {says if says >= 0 else 'an unsaid number of'} bytes; at most {most_bytes}"
        raise zstandard.ZstdError(msg)
    content = zstandard.ZstdDecompressor().decompress(frame, max_output_size=most_bytes, allow_extra_data=False)
    if len(content) != says:
        msg = f"the frame's content has {len(content)} bytes, not {says}"
        raise zstandard.ZstdError(msg)
    return content


def _check_chunks(ids: Sequence[ChunkId], lengths: Sequence[int], packed: Sequence[int]) -> None:
    if len(set(ids)) != len(ids):
        raise _bad("a chunk is in it twice")
    if lengths and not 0 < min(lengths) <= max(lengths) <= MAX_CHUNK_BYTES:
        raise _bad(f"chunks of {min(lengths)} to {max(lengths)} bytes; 1 to {MAX_CHUNK_BYTES} are allowed")
    if packed and not 0 < min(packed) <= max(packed) <= MAX_FRAME_BYTES:
        raise _bad(f"frames of {min(packed)} to {max(packed)} bytes; 1 to {MAX_FRAME_BYTES} are allowed")


def _sequence(steps: Sequence[int], distinct: int) -> list[int]:
    seen = 0
    sequence: list[int] = []
    for step in steps:
        if step > seen:
            raise _bad(f"chunk {len(sequence)} is said to be number {step - 1}, which was not seen before it")
        sequence.append(seen if not step else step - 1)
        seen += not step
    if seen != distinct:
        raise _bad(f"{seen} of its {distinct} chunks are used")
    return sequence


def _bad(what: str) -> BadIndexError:
    msg = f"not an index of chunks: {what}; read it again, or bring the blob by another delivery"
    return BadIndexError(msg)
