"""The index of a pack: one way to write it, and bounds that nothing from outside gets past (S5, Q2)."""

from __future__ import annotations

import hashlib
import itertools
import struct

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from wavemesh.artifacts.chunkindex import (
    MAGIC,
    MAX_CHUNKS,
    MAX_INDEX_BYTES,
    BadIndexError,
    ChunkIndex,
    Range,
    encode_index,
    index_of,
    missing,
    missing_bytes,
    parse_index,
)
from wavemesh.artifacts.digests import digest_of

_CHUNKS = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 900)), max_size=30)


def _identity(number: int) -> bytes:
    return hashlib.sha256(bytes([number])).digest()[:16]


def _index(parts: list[tuple[int, int]]) -> ChunkIndex:
    """An index of a made-up blob in which chunk k has k + 1 bytes."""
    content = b"".join(bytes([number]) * (number + 1) for number, _ in parts)
    packed: dict[int, int] = {}
    for number, frame in parts:
        packed.setdefault(number, frame)
    cuts = [(_identity(number), number + 1) for number, _ in parts]
    return index_of(digest_of(content), cuts, list(packed.values()))


def _sealed(content: bytes) -> bytes:
    return MAGIC + zstandard.ZstdCompressor().compress(content)


def _content(*, distinct: int, size: int, columns: list[int], ids: bytes | None = None) -> bytes:
    count = len(columns) - 2 * distinct
    head = struct.pack("<32sQII", bytes(32), size, distinct, count)
    names = b"".join(_identity(number) for number in range(distinct)) if ids is None else ids
    return head + names + struct.pack(f"<{len(columns)}I", *columns)


@given(_CHUNKS)
def test_is_read_as_it_was_written_and_written_as_it_was_read(parts: list[tuple[int, int]]) -> None:
    index = _index(parts)
    data = encode_index(index)
    assert parse_index(data) == index
    assert encode_index(parse_index(data)) == data


@given(_CHUNKS, st.sets(st.integers(0, 12)))
def test_missing_ranges_are_the_lacking_frames_and_no_more(parts: list[tuple[int, int]], held: set[int]) -> None:
    index, have = _index(parts), {_identity(number) for number in held}
    ranges = missing(index, have)
    covered = [byte for one in ranges for byte in range(one.offset, one.offset + one.length)]
    wanted = [
        byte
        for chunk in index.chunks
        if chunk.id not in have
        for byte in range(chunk.packed.offset, chunk.packed.offset + chunk.packed.length)
    ]
    assert covered == wanted
    assert missing_bytes(index, have) == len(wanted)
    assert all(one.offset + one.length < other.offset for one, other in itertools.pairwise(ranges))
    assert missing(index, index.ids) == ()
    assert missing(index, ()) == ((Range(0, index.pack_bytes),) if parts else ())


@given(st.binary(max_size=400))
def test_noise_is_refused(noise: bytes) -> None:
    for data in (noise, MAGIC + noise, _sealed(noise)):
        with pytest.raises(BadIndexError, match="not an index"):
            parse_index(data)


@given(_CHUNKS, st.data())
def test_damage_is_refused_or_says_another_index_in_the_only_way_there_is(
    parts: list[tuple[int, int]], data: st.DataObject
) -> None:
    content = bytearray(zstandard.ZstdDecompressor().decompress(encode_index(_index(parts))[len(MAGIC) :]))
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    try:
        parsed = parse_index(_sealed(bytes(content)))
    except BadIndexError:
        return
    again = zstandard.ZstdDecompressor().decompress(encode_index(parsed)[len(MAGIC) :])
    assert again == bytes(content)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (_content(distinct=1, size=5, columns=[5, 9, 0, 1]), "make 10 bytes, its target has 5"),
        (_content(distinct=1, size=0, columns=[0, 9, 0]), "chunks of 0 to 0 bytes"),
        (_content(distinct=1, size=300_000, columns=[300_000, 9, 0]), "262144 are allowed"),
        (_content(distinct=1, size=5, columns=[5, 0, 0]), "frames of 0 to 0 bytes"),
        (_content(distinct=1, size=5, columns=[5, 1 << 30, 0]), "frames of"),
        (_content(distinct=2, size=10, columns=[5, 5, 9, 9, 0, 1]), "1 of its 2 chunks are used"),
        (_content(distinct=2, size=10, columns=[5, 5, 9, 9, 2, 0]), "was not seen before"),
        (_content(distinct=1, size=10, columns=[5, 9, 0, 2]), "number 1, which was not seen"),
        (_content(distinct=2, size=10, columns=[5, 5, 9, 9, 0, 0], ids=bytes(32)), "twice"),
        (_content(distinct=1, size=5, columns=[5, 9, 0]) + b"x", "its content has"),
        (_content(distinct=0, size=1 << 41, columns=[]), "more than"),
        (struct.pack("<32sQII", bytes(32), 0, 2, 1) + bytes(48), "1 chunks, 2 of them distinct"),
        (struct.pack("<32sQII", bytes(32), 0, 0, MAX_CHUNKS + 1), f"at most {MAX_CHUNKS}"),
    ],
)
def test_each_bound_is_named(content: bytes, says: str) -> None:
    with pytest.raises(BadIndexError, match=says):
        parse_index(_sealed(content))


def test_a_frame_that_would_explode_is_refused_by_what_it_says() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(64 * 1024 * 1024))
    with pytest.raises(BadIndexError, match="at most"):
        parse_index(MAGIC + bomb)
    unsaid = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 * 1024 * 1024))
    with pytest.raises(BadIndexError, match="unsaid"):
        parse_index(MAGIC + unsaid)
    with pytest.raises(BadIndexError, match="more than"):
        parse_index(MAGIC + bytes(MAX_INDEX_BYTES))


def test_what_follows_the_frame_is_refused() -> None:
    with pytest.raises(BadIndexError):
        parse_index(encode_index(_index([(1, 5)])) + b"\0")
