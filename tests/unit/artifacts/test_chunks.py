"""Packs of content-defined chunks: what is rebuilt is right or is not there (S5, H4)."""

from __future__ import annotations

import hashlib
import random
import tracemalloc
from typing import TYPE_CHECKING

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyfastcdc.py import FastCDC as ReferenceCutter

from wavemesh.artifacts import chunks
from wavemesh.artifacts.chunkindex import Range, encode_index, index_of
from wavemesh.artifacts.chunks import (
    BadIndexError,
    BadPackError,
    ChunkIndex,
    chunk_file,
    chunk_id,
    make_pack,
    missing,
    parse_index,
    rebuild_from_pack,
)
from wavemesh.artifacts.digests import digest_of
from wavemesh.runtime.durable import DiskFaultError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_LEVEL = 1
_QUICK = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def _image(seed: int, size: int = 700_000) -> bytes:
    """Half noise, half what compresses, with a long run of zeros in the middle."""
    rng = random.Random(seed)
    noise = rng.randbytes(size // 2)
    text = b" ".join(str(rng.randrange(10_000)).encode() for _ in range(size // 14))
    return noise + bytes(600_000) + text


def _edited(content: bytes, seed: int) -> bytes:
    """The same with a few places changed, one of them by inserting."""
    rng, edited = random.Random(seed), bytearray(content)
    for _ in range(3):
        at = rng.randrange(len(edited))
        edited[at : at + 10] = rng.randbytes(rng.choice((10, 23)))
    return bytes(edited)


class _Case:
    """A target packed, and bases beside it."""

    def __init__(self, directory: Path, content: bytes, bases: Sequence[bytes] = ()) -> None:
        self.directory, self.content, self.digest = directory, content, digest_of(content)
        self.target, self.pack, self.out = directory / "target", directory / "pack", directory / "out"
        self.target.write_bytes(content)
        make_pack(self.target, self.pack, directory / "index", level=_LEVEL)
        self.index = parse_index((directory / "index").read_bytes())
        self.bases = [directory / f"base-{number}" for number in range(len(bases))]
        for path, base in zip(self.bases, bases, strict=True):
            path.write_bytes(base)
        self.have = {chunk.id for path in self.bases for chunk in chunk_file(path)}
        self.ranges = missing(self.index, self.have)

    def part(self) -> Path:
        """What has to be read of the pack."""
        packed = self.pack.read_bytes()
        part = self.directory / "part"
        part.write_bytes(b"".join(packed[one.offset : one.offset + one.length] for one in self.ranges))
        return part

    def rebuild(self, index: ChunkIndex | None = None) -> None:
        rebuild_from_pack(
            index or self.index, self.directory / "part", self.ranges, self.bases, out=self.out, target=self.digest
        )


def test_the_cuts_and_the_index_are_a_format(tmp_path: Path) -> None:
    """Both sides must cut alike for ever; whoever changes these figures makes a new version of the format."""
    case = _Case(tmp_path, _image(1))
    cuts = [chunk.length for chunk in chunk_file(case.target)]
    assert cuts == [74185, 106069, 24113, 27575, 78084, 262144, 262144, 137858, 79351, 73932, 69081]
    assert hashlib.sha256(b"".join(chunk.id for chunk in case.index.chunks)).hexdigest()[:16] == "6f9815a10bc0c794"
    again = ReferenceCutter(64 << 10, min_size=16 << 10, max_size=256 << 10, normalized_chunking=2)
    assert [chunk.length for chunk in again.cut_buf(case.content)] == cuts


def test_a_repeated_chunk_is_packed_once(tmp_path: Path) -> None:
    case = _Case(tmp_path, bytes(3_000_000))
    assert len(case.index.chunks) <= 2
    assert len(case.index.sequence) == 12
    assert case.pack.stat().st_size < 1000


@pytest.mark.parametrize("content", [b"", b"x", bytes(100_000), _image(2)])
def test_rebuilds_from_the_pack_alone(tmp_path: Path, content: bytes) -> None:
    case = _Case(tmp_path, content)
    case.part()
    case.rebuild()
    assert case.out.read_bytes() == content
    assert case.index.pack_bytes == case.pack.stat().st_size


@_QUICK
@given(st.integers(0, 1 << 20), st.integers(0, 3))
def test_rebuilds_from_any_bases_and_reads_what_they_lack(tmp_path: Path, seed: int, count: int) -> None:
    content = _image(seed % 4)
    case = _Case(tmp_path, content, [_edited(content, seed + number) for number in range(count)])
    part = case.part()
    case.rebuild()
    assert case.out.read_bytes() == content
    assert part.stat().st_size == sum(one.length for one in case.ranges)
    if count:
        assert part.stat().st_size < case.pack.stat().st_size


@_QUICK
@given(st.data())
def test_a_damaged_part_gives_the_target_or_an_error_and_no_file(tmp_path: Path, data: st.DataObject) -> None:
    content = _image(5, 200_000)
    case = _Case(tmp_path, content, [_edited(content, 3)])
    part = case.part()
    damaged = bytearray(part.read_bytes())
    match data.draw(st.sampled_from(["flip", "cut", "grow"])):
        case "flip":
            damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
        case "cut":
            del damaged[data.draw(st.integers(0, len(damaged) - 1)) :]
        case _:
            damaged += b"more than was asked for"
    part.write_bytes(damaged)
    case.out.unlink(missing_ok=True)
    try:
        case.rebuild()
    except BadPackError:
        assert not case.out.exists()
    else:
        assert case.out.read_bytes() == content


def test_a_base_that_is_gone_or_another_is_an_error_and_no_file(tmp_path: Path) -> None:
    content = _image(6)
    case = _Case(tmp_path, content, [_edited(content, 1)])
    case.part()
    case.bases[0].write_bytes(_image(7))
    with pytest.raises(BadPackError, match="in no base"):
        case.rebuild()
    case.bases[0].unlink()
    with pytest.raises(DiskFaultError, match="base-0"):
        case.rebuild()
    assert not case.out.exists()


def test_a_base_that_changes_while_it_is_read_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = _image(6)
    case = _Case(tmp_path, content, [content])
    case.part()
    places = chunks._places

    def changed_after(index: ChunkIndex, bases: Sequence[Path]) -> dict[bytes, chunks._Place]:
        found = places(index, bases)
        case.bases[0].write_bytes(content[:50_000] + b"!" + content[50_001:])
        return found

    monkeypatch.setattr(chunks, "_places", changed_after)
    with pytest.raises(BadPackError, match="changed at byte 0"):
        case.rebuild()
    assert not case.out.exists()


def test_an_index_of_another_target_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    case = _Case(tmp_path, _image(8))
    case.part()
    other = index_of(digest_of(b"x"), [(chunk_id(b"x"), 1)], [10])
    with pytest.raises(BadIndexError, match="ask for the offers again"):
        case.rebuild(other)


def test_an_index_that_lies_about_its_target_makes_no_file(tmp_path: Path) -> None:
    """Chunks that are each right, in another order: only the whole digest tells."""
    case = _Case(tmp_path, _image(9))
    case.part()
    sequence = (case.index.sequence[1], case.index.sequence[0], *case.index.sequence[2:])
    with pytest.raises(BadPackError, match="the rebuilt blob has SHA-256"):
        case.rebuild(ChunkIndex(case.digest, case.index.chunks, sequence))
    assert not case.out.exists()


@pytest.mark.parametrize("says_size", [True, False])
def test_a_frame_that_would_explode_takes_no_memory(tmp_path: Path, *, says_size: bool) -> None:
    content = b"a chunk"
    bomb = zstandard.ZstdCompressor(write_content_size=says_size).compress(bytes(200 * 1024 * 1024))
    index = index_of(digest_of(content), [(chunk_id(content), len(content))], [len(bomb)])
    assert parse_index(encode_index(index)) == index
    (tmp_path / "part").write_bytes(bomb)
    tracemalloc.start()
    with pytest.raises(BadPackError, match="at most 7"):
        rebuild_from_pack(
            index, tmp_path / "part", missing(index, ()), (), out=tmp_path / "out", target=digest_of(content)
        )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 1024 * 1024


def test_a_frame_of_another_chunk_is_refused(tmp_path: Path) -> None:
    content = b"a chunk"
    frame = zstandard.ZstdCompressor().compress(b"A CHUNK")
    index = index_of(digest_of(content), [(chunk_id(content), len(content))], [len(frame)])
    (tmp_path / "part").write_bytes(frame)
    with pytest.raises(BadPackError, match="holds another chunk"):
        rebuild_from_pack(
            index, tmp_path / "part", missing(index, ()), (), out=tmp_path / "out", target=digest_of(content)
        )


def test_too_many_chunks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "MAX_CHUNKS", 3)
    (tmp_path / "target").write_bytes(_image(1))
    with pytest.raises(chunks.TooManyChunksError, match="more than 3 chunks"):
        make_pack(tmp_path / "target", tmp_path / "pack", tmp_path / "index", level=_LEVEL)


def test_ranges_that_hold_more_than_was_asked_for_are_used_all_the_same(tmp_path: Path) -> None:
    case = _Case(tmp_path, _image(3))
    packed = case.pack.read_bytes()
    case.ranges = (Range(0, len(packed)),)
    (tmp_path / "part").write_bytes(packed)
    case.rebuild()
    assert case.out.read_bytes() == case.content
