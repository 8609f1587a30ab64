"""The parts of the delta codec by themselves: sums of bytes, covers, packed streams, the strict parser, scanning."""

from __future__ import annotations

import gzip
import lzma
import random
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from wavemesh.artifacts.delta import packing
from wavemesh.artifacts.delta.assembling import Assembly, Source
from wavemesh.artifacts.delta.container import (
    BLOCK_BYTES,
    STREAMS,
    Expansion,
    Head,
    Layout,
    Recompressed,
    encode,
    encode_layout,
    number,
    parse,
    parse_layout,
)
from wavemesh.artifacts.delta.differences import PIECE_BYTES, add, subtract
from wavemesh.artifacts.delta.errors import BadDeltaError
from wavemesh.artifacts.delta.matching import covers_of
from wavemesh.artifacts.delta.packing import STORED, Packed, Unpacking, pack
from wavemesh.artifacts.delta.recipes import Coding, Encoder, Recipe, expand, recompress
from wavemesh.artifacts.delta.scanning import scan
from wavemesh.trust.statements import Digest

EMPTY = Packed(STORED, 0, b"")
TARGET = Digest("ab" * 32, 1_000)
BASES = (Digest("cd" * 32, 5_000), Digest("ef" * 32, 300))


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_a_difference_is_what_must_be_added(one: bytes, other: bytes) -> None:
    length = min(len(one), len(other))
    one, other = one[:length], other[:length]
    difference = subtract(one, other)
    assert difference == bytes((a - b) % 256 for a, b in zip(one, other, strict=True))
    assert add(other, difference) == one


def test_differences_over_several_pieces() -> None:
    seeded = random.Random(1)
    one, other = (seeded.randbytes(2 * PIECE_BYTES + 77) for _ in range(2))
    assert add(other, subtract(one, other)) == one


@given(st.binary(max_size=400), st.binary(max_size=400))
@settings(max_examples=60, deadline=None)
def test_covers_are_in_order_and_inside(old: bytes, extra: bytes) -> None:
    new = extra[:100] + old[50:] + extra + old[:200]
    end = 0
    for cover in covers_of(old, new):
        assert cover.new >= end
        assert 0 <= cover.old <= len(old) - cover.length
        end = cover.new + cover.length
    assert end <= len(new)


def test_large_matches_are_found() -> None:
    seeded = random.Random(2)
    old = seeded.randbytes(100_000)
    covers = covers_of(old, old[40_000:] + old[:40_000])
    assert [(cover.old, cover.length) for cover in covers] == [(40_000, 60_000), (0, 40_000)]


@pytest.mark.parametrize("content", [b"", b"short", b"word " * 10_000, random.Random(3).randbytes(5_000)])
def test_a_packed_stream_comes_back_in_any_steps(content: bytes) -> None:
    with ThreadPoolExecutor(1) as threads:
        packed = pack(content, (packing.TEXT, packing.WORDS, packing.BYTES, packing.PLAIN), threads)
    assert len(packed.data) <= len(content)
    stream = Unpacking(packed, "test")
    seeded, parts = random.Random(4), []
    while stream.left:
        parts.append(stream.read(min(seeded.randrange(1, 9_000), stream.left)))
    stream.finish()
    assert b"".join(parts) == content
    with pytest.raises(BadDeltaError, match="too early"):
        stream.read(1)


def test_of_a_long_stream_samples_choose_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the whole is packed once, by what was best for them."""
    monkeypatch.setattr(packing, "_SAMPLED_FROM_BYTES", 1 << 16)
    monkeypatch.setattr(packing, "_SAMPLE_BYTES", 1 << 12)
    numbers = b"".join((number * number).to_bytes(4, "little") for number in range(1 << 15))
    with ThreadPoolExecutor(2) as threads:
        forms = (packing.TEXT, packing.WORDS)
        packed = pack(numbers, forms, threads)
        assert (
            packed.form == min((pack(numbers, (form,), threads) for form in forms), key=lambda one: len(one.data)).form
        )
        assert packed.form == packing.WORDS
    assert Unpacking(packed, "test").read(len(numbers)) == numbers


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (lambda packed: replace(packed, length=packed.length + 1), "before it says"),
        (lambda packed: replace(packed, length=packed.length - 1), "longer than it says"),
        (lambda packed: replace(packed, data=bytes(packed.data[:-1])), "has no end"),
        (lambda packed: replace(packed, data=bytes(packed.data) + b"x"), "after its end|has no end"),
        (lambda packed: replace(packed, data=b"\xff" * 40), "cannot be unpacked"),
    ],
    ids=["long", "short", "cut", "more", "noise"],
)
def test_a_packed_stream_says_what_it_is(how, says: str) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    with ThreadPoolExecutor(1) as threads:
        packed = how(pack(b"word " * 10_000, (packing.TEXT,), threads))
    stream = Unpacking(packed, "test")

    def read_all() -> None:
        stream.read(packed.length)
        stream.finish()

    with pytest.raises(BadDeltaError, match=says):
        read_all()


def test_memory_is_bounded_by_what_is_read() -> None:
    """A stream that says a terabyte and is a kilobyte is not unpacked beyond the bytes asked for."""
    with ThreadPoolExecutor(1) as threads:
        packed = pack(bytes(30_000_000), (packing.TEXT,), threads)
    assert len(packed.data) < 10_000
    stream = Unpacking(replace(packed, length=1 << 40), "test")
    assert stream.read(10) == bytes(10)


def layout() -> Layout:
    return Layout(
        (Expansion(0, 7, 20, Coding.LZ4, 300), Expansion(0, 27, 9, Coding.XZ, 5), Expansion(1, 0, 300, Coding.ZSTD, 9)),
        (
            Recompressed(0, 10, 40, Recipe(Encoder.ZLIB, 9, 8)),
            Recompressed(500, 500, 1, Recipe(Encoder.XZ, 6 | lzma.PRESET_EXTREME, 0x11, 1 << 23)),
        ),
        0xFFFFFFFF,
        12,
    )


def head() -> Head:
    return Head(TARGET, BASES, dict.fromkeys(STREAMS, EMPTY))


def test_the_head_and_the_layout_come_back() -> None:
    assert parse(encode(head())) == head()
    assert parse_layout(encode_layout(layout()), head()) == layout()
    assert layout().virtual_bytes(TARGET) == 1_000 - 510 + 41


@pytest.mark.parametrize(
    "wrong",
    [
        replace(layout(), expansions=(Expansion(0, 4_999, 2, Coding.LZ4, 300),)),
        replace(layout(), expansions=(Expansion(0, 0, 2, Coding.LZ4, 1 << 27),)),
        replace(layout(), expansions=tuple(Expansion(0, n, 1, Coding.LZ4, 1 << 26) for n in range(9))),
        replace(layout(), recompressed=(Recompressed(999, 2, 1, Recipe(Encoder.LZ4, 9)),)),
        replace(layout(), recompressed=(Recompressed(0, 2, 1, Recipe(Encoder.LZ4, 13)),)),
        replace(layout(), recompressed=(Recompressed(0, 2, 1, Recipe(Encoder.ZLIB, 9, 1)),)),
        replace(layout(), recompressed=(Recompressed(0, 2, 1, Recipe(Encoder.GZIP, 9, 1)),)),
        replace(layout(), recompressed=(Recompressed(0, 2, 1, Recipe(Encoder.ZSTD, 23)),)),
        replace(layout(), recompressed=(Recompressed(0, 2, 1, Recipe(Encoder.XZ, 6, 1, 1 << 30)),)),
        replace(layout(), recompressed=(Recompressed(0, 2, 1, Recipe(Encoder.XZ, 6, 2, 1 << 23)),)),
    ],
)
def test_a_layout_that_cannot_be_is_refused(wrong: Layout) -> None:
    """Outside of base or target, more content than is allowed, parameters that would ask an encoder for too much."""
    with pytest.raises(BadDeltaError, match="its layout"):
        parse_layout(encode_layout(wrong), head())


def test_numbers_are_in_their_shortest_form() -> None:
    good = encode_layout(Layout((), (), 0, 0))
    assert parse_layout(good, head()).covers == 0
    with pytest.raises(BadDeltaError, match="shortest"):
        parse_layout(good[:-1] + b"\x80\x00", head())
    with pytest.raises(BadDeltaError, match="too long"):
        parse_layout(good[:-1] + b"\xff" * 9 + b"\x01", head())
    with pytest.raises(BadDeltaError, match="too many"):
        parse_layout(good + b"\0", head())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: b"x" + data[1:], "does not begin"),
        (lambda data: data[:7] + b"\2" + data[8:], "version 2"),
        (lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:], "checksum"),
        (lambda data: data + b"x", "too many"),
        (lambda data: data[:-1], "too early"),
    ],
    ids=["magic", "version", "flip", "more", "cut"],
)
def test_a_head_that_is_damaged_is_refused(change, says: str) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    with pytest.raises(BadDeltaError, match=says):
        parse(change(encode(head())))


def assemble(size: int, covers: int, **streams: bytes) -> bytes:
    unpacking = {
        name: Unpacking(Packed(STORED, len(streams.get(name, b"")), streams.get(name, b"")), name) for name in STREAMS
    }
    assembly = Assembly(Source([memoryview(b"0123456789" * 20)]), unpacking, size, covers)
    out = b"".join(assembly.windows())
    assembly.finish()
    return out


def test_covers_literals_and_changes_are_put_together() -> None:
    """First two literals, then ten bytes from the fourth on, then one from before; the second block gets 1 added."""
    changes = b"\1" * 6
    found = assemble(
        BLOCK_BYTES + 6,
        2,
        distances=number(2 * 3) + number(2 * 13 - 1),
        gaps=number(2) + number(0),
        lengths=number(10) + number(BLOCK_BYTES - 6),
        literals=b"ab" + b"",
        marks=number(1) + number(1),
        changes=changes,
    )
    base = b"0123456789" * 20
    plain = b"ab" + base[3:13] + base[0 : BLOCK_BYTES - 6]
    assert found == plain[:BLOCK_BYTES] + bytes(byte + 1 for byte in plain[BLOCK_BYTES:])


@pytest.mark.parametrize(
    ("streams", "says"),
    [
        ({"distances": number(2 * 300), "gaps": number(0), "lengths": number(10)}, "copies bytes"),
        ({"distances": number(1), "gaps": number(0), "lengths": number(10)}, "copies bytes"),
        ({"distances": number(0), "gaps": number(0), "lengths": number(11)}, "longer than the target"),
        ({"distances": number(0), "gaps": number(0), "lengths": number(0)}, "is empty"),
        ({"distances": number(0), "gaps": number(0)}, "too few lengths"),
        ({"distances": number(0), "gaps": number(4), "lengths": number(6), "literals": b"abc"}, "too early"),
        ({"distances": number(0), "gaps": number(0), "lengths": number(10), "literals": b"a"}, "too many"),
        ({"distances": number(0), "gaps": number(0), "lengths": number(10), "marks": b"\0\0"}, "empty run"),
        ({"distances": number(0), "gaps": number(0), "lengths": number(10), "marks": b"\0\2"}, "too early|goes on"),
        ({"distances": b"\x80", "gaps": number(0), "lengths": number(10)}, "within a number"),
        ({"distances": b"\xff" * 12, "gaps": number(0), "lengths": number(10)}, "too long"),
    ],
)
def test_streams_that_cannot_be_are_refused(streams: dict[str, bytes], says: str) -> None:
    with pytest.raises(BadDeltaError, match=says):
        assemble(10, 1, **streams)


def test_scanning_finds_what_is_there_and_nothing_in_noise() -> None:
    seeded = random.Random(5)
    content = " ".join(str(seeded.random()) for _ in range(500)).encode()
    pieces = [
        gzip.compress(content, mtime=0),
        zlib.compress(content),
        zstandard.compress(content),
        lzma.compress(content),
    ]
    image = b"".join(seeded.randbytes(1_000) + piece for piece in pieces) + seeded.randbytes(300_000)
    found = scan(image)
    assert [stream.coding for stream in found] == [Coding.DEFLATE, Coding.DEFLATE, Coding.ZSTD, Coding.XZ]
    assert {stream.content for stream in found} == {content}
    for stream in found:
        assert expand(stream.coding, image[stream.offset : stream.end], len(content)) == content
        with pytest.raises(BadDeltaError, match="expand"):
            expand(stream.coding, image[stream.offset : stream.end], len(content) - 1)
        with pytest.raises(BadDeltaError, match="expand"):
            expand(stream.coding, image[stream.offset : stream.end - 9], len(content))


def test_streams_whose_checksum_does_not_agree_are_left_alone() -> None:
    content = b"some words, " * 100
    for stream in (gzip.compress(content, mtime=0), zlib.compress(content)):
        assert [found.content for found in scan(stream)] == [content]
        assert scan(stream[:-1] + bytes([stream[-1] ^ 1])) == []


def test_a_stream_that_grows_without_bound_is_left_alone() -> None:
    """Eighty megabytes of zeros in a few kilobytes: more content than a stream may have."""
    deflater = zlib.compressobj(9)
    bomb = b"".join(deflater.compress(bytes(1 << 20)) for _ in range(80)) + deflater.flush()
    assert scan(bomb + zstandard.ZstdCompressor().compress(bytes(80 << 20))) == []


def test_gzip_missing_here_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BadDeltaError, match="program gzip"):
        recompress(Recipe(Encoder.GZIP, 9), b"content")
