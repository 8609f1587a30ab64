"""Deltas (S5, H4): every target comes back bit for bit, or there is an error and no file; payloads are a peer's."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import random
import shutil
import subprocess
import zlib
from typing import TYPE_CHECKING

import lz4.block
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wavemesh.artifacts.delta.codec import BadDeltaError, make, rebuild, rebuild_s
from wavemesh.artifacts.delta.container import STREAMS, encode, parse
from wavemesh.artifacts.delta.making import delta_of
from wavemesh.artifacts.delta.packing import STORED, Packed, Unpacking
from wavemesh.artifacts.delta.rebuilding import layout_of, rebuild_into
from wavemesh.artifacts.delta.recipes import Encoder
from wavemesh.artifacts.digests import digest_of
from wavemesh.runtime.durable import DiskFaultError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from wavemesh.artifacts.delta.container import Layout

WORDS = [f"word{n:04d} " for n in range(2_000)]


def text(seed: int, words: int = 20_000) -> bytes:
    """Bytes that compress to a fifth or so."""
    return "".join(random.Random(seed).choices(WORDS, k=words)).encode()


def edited(content: bytes) -> bytes:
    """Half of it kept, some bytes changed, some put in."""
    changed = bytearray(content)
    for place in range(1_000, len(changed), 20_000):
        changed[place] ^= 0x55
    return bytes(changed[:5_000]) + b"a new sentence, put in here. " * 3 + bytes(changed[5_000:])


def through(tmp_path: Path, bases: list[bytes], target: bytes) -> bytes:
    """Make the delta, rebuild, compare; returns the delta."""
    paths = []
    for place, base in enumerate(bases):
        paths.append(tmp_path / f"base-{place}")
        paths[-1].write_bytes(base)
    (tmp_path / "target").write_bytes(target)
    make(paths, tmp_path / "target", tmp_path / "delta")
    rebuild(paths, tmp_path / "delta", tmp_path / "again", digest_of(target))
    assert (tmp_path / "again").read_bytes() == target
    return (tmp_path / "delta").read_bytes()


def recipes_of(delta: bytes) -> Layout:
    return layout_of(parse(delta))


@given(
    st.lists(st.binary(max_size=600), max_size=3),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 600), st.integers(0, 300)), max_size=6),
    st.binary(max_size=200),
)
@settings(max_examples=60, deadline=None)
def test_any_target_comes_back_from_any_bases(
    bases: list[bytes], pieces: list[tuple[int, int, int]], fresh: bytes
) -> None:
    """Targets glued together from pieces of the bases and new bytes; no base, empty bases and empty targets too."""
    parts = [bases[which][start : start + length] for which, start, length in pieces if which < len(bases)]
    target = fresh.join(parts) + fresh
    out = bytearray()
    rebuild_into(
        [memoryview(base) for base in bases], memoryview(delta_of(bases, target)), digest_of(target), out.extend
    )
    assert out == target


def test_bytes_that_are_moved_and_changed_cost_little(tmp_path: Path) -> None:
    seeded = random.Random(1)
    base = seeded.randbytes(300_000)
    moved = bytearray(base[150_000:] + base[:150_000])
    for place in range(0, len(moved), 3_000):
        moved[place] = (moved[place] + 7) % 256
    assert len(through(tmp_path, [base], bytes(moved))) < 1_500


def test_several_bases_give_each_its_part(tmp_path: Path) -> None:
    seeded = random.Random(2)
    one, other = seeded.randbytes(100_000), seeded.randbytes(100_000)
    delta = through(tmp_path, [one, b"", other], other[:60_000] + one[20_000:])
    assert len(delta) < 600
    assert [base.size_bytes for base in parse(delta).bases] == [100_000, 0, 100_000]


def _gnu_gzip(content: bytes) -> bytes:
    program = shutil.which("gzip")
    assert program is not None
    return subprocess.run([program, "-9n"], input=content, capture_output=True, check=True).stdout


def _zip_member(content: bytes) -> bytes:
    body = zlib.compressobj(6, zlib.DEFLATED, -15)
    packed = body.compress(content) + body.flush()
    header = b"PK\3\4\x14\0\0\0\x08\0\0\0\0\0" + zlib.crc32(content).to_bytes(4, "little")
    return header + len(packed).to_bytes(4, "little") + len(content).to_bytes(4, "little") + b"\1\0\0\0n" + packed


def _lz4_kernel(content: bytes) -> bytes:
    body = lz4.block.compress(content, mode="high_compression", compression=9, store_size=False)
    return b"\x02\x21\x4c\x18" + len(body).to_bytes(4, "little") + bytes(body)


def _xz_wrap(content: bytes) -> bytes:
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 25}]
    return lzma.compress(content, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters)


@pytest.mark.parametrize(
    ("wrap", "encoder"),
    [
        (_gnu_gzip, Encoder.GZIP),
        (lambda content: gzip.compress(content, 6, mtime=0), Encoder.ZLIB),
        (lambda content: zlib.compress(content, 9), Encoder.ZLIB),
        (_zip_member, Encoder.ZLIB),
        (_lz4_kernel, Encoder.LZ4),
        (lambda content: zstandard.ZstdCompressor(level=19, write_checksum=True).compress(content), Encoder.ZSTD),
        (lambda content: lzma.compress(content, preset=6), Encoder.XZ),
        (_xz_wrap, Encoder.XZ),
    ],
    ids=["gnu-gzip", "gzip-by-zlib", "zlib", "zip", "lz4-kernel", "zstd", "xz", "xz-x86"],
)
def test_compressed_streams_are_seen_through(tmp_path: Path, wrap: Callable[[bytes], bytes], encoder: Encoder) -> None:
    """What is in a stream is compared, and the stream comes back bit for bit; a few edits cost a few hundred bytes."""
    around = random.Random(3).randbytes(3_000)
    old, new = text(4), edited(text(4))
    delta = through(tmp_path, [around + wrap(old) + b"\0" * 100], around + wrap(new) + b"\0" * 90)
    assert [one.recipe.encoder for one in recipes_of(delta).recompressed] == [encoder]
    assert len(delta) < 900
    assert len(wrap(new)) > 8 * len(delta)


def test_a_stream_that_a_base_has_bit_for_bit_is_left_alone(tmp_path: Path) -> None:
    same = zlib.compress(text(5), 9)
    delta = through(tmp_path, [b"before" + same], b"other words before" + same)
    assert recipes_of(delta).recompressed == ()
    assert recipes_of(delta).expansions == ()


def test_streams_of_a_base_that_nothing_is_copied_from_are_left_out(tmp_path: Path) -> None:
    """What comes after them in the virtual base moves up; the target still comes back, and the other stream counts."""
    noise = random.Random(12).randbytes(30_000)
    unused = zlib.compress(noise.hex().encode(), 9)
    old, new = text(13, 5_000), edited(text(13, 5_000))
    delta = through(tmp_path, [unused + zlib.compress(old, 9)], zlib.compress(new, 9))
    (expansion,) = recipes_of(delta).expansions
    assert (expansion.offset, expansion.content_bytes) == (len(unused) + 2, len(old))
    assert len(delta) < 700


def test_a_stream_nobody_known_wrote_is_left_alone(tmp_path: Path) -> None:
    """Two deflate encoders in one stream: a valid stream that no single call writes."""
    one, other = zlib.compressobj(1, zlib.DEFLATED, -15), zlib.compressobj(9, zlib.DEFLATED, -15)
    content = text(6)
    half = one.compress(content[:50_000]) + one.flush(zlib.Z_FULL_FLUSH)
    mixed = half + other.compress(content[50_000:]) + other.flush()
    stream = b"\x78\x9c" + mixed + zlib.adler32(content).to_bytes(4, "big")
    assert zlib.decompress(stream) == content
    assert recipes_of(through(tmp_path, [text(7)], stream)).recompressed == ()


def test_streams_that_would_cost_too_much_are_left_alone(tmp_path: Path) -> None:
    """Six megabytes of xz take two seconds, more than an image this small is given."""
    content = text(8, 200) * 3_400
    assert recipes_of(through(tmp_path, [content], lzma.compress(content))).recompressed == ()


@pytest.fixture(scope="module")
def streams() -> tuple[bytes, bytes, bytes]:
    """A base, a target and the delta between them, with something in every stream."""
    seeded = random.Random(9)
    around = seeded.randbytes(2_000)
    old, new = text(10, 2_000), edited(text(10, 2_000))
    base = around + zlib.compress(old, 9) + around[::-1]
    target = bytearray(around[500:] + seeded.randbytes(40) + zlib.compress(new, 9) + around[::-1])
    target[300] ^= 1
    delta = delta_of([base], bytes(target))
    assert all(packed.length for packed in parse(delta).streams.values())
    return base, bytes(target), delta


def attempt(base: bytes, target: bytes, delta: bytes) -> bool:
    """Whether it rebuilds; it is the right file then, and never more bytes than the target's."""
    out = bytearray()
    try:
        rebuild_into([memoryview(base)], memoryview(delta), digest_of(target), out.extend)
    except BadDeltaError:
        assert len(out) <= len(target)
        return False
    assert out == target
    return True


@given(st.data())
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_delta_never_makes_a_wrong_file(streams: tuple[bytes, bytes, bytes], data: st.DataObject) -> None:
    base, target, delta = streams
    damaged = bytearray(delta)
    place = data.draw(st.integers(0, len(delta) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "insert", "remove", "append"]))
    if how == "flip":
        damaged[place] ^= data.draw(st.integers(1, 255))
    elif how == "cut":
        del damaged[place:]
    elif how == "insert":
        damaged[place:place] = data.draw(st.binary(min_size=1, max_size=9))
    elif how == "remove":
        del damaged[place : place + data.draw(st.integers(1, 9))]
    else:
        damaged += data.draw(st.binary(min_size=1, max_size=9))
    assert not attempt(base, target, bytes(damaged)) or how in {"flip", "insert", "remove"}


@given(st.sampled_from(STREAMS), st.data())
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_delta_that_lies_behind_good_checksums_never_makes_a_wrong_file(
    streams: tuple[bytes, bytes, bytes], name: str, data: st.DataObject
) -> None:
    """A peer who means harm packs whatever he likes and puts the right checksum on the head."""
    base, target, delta = streams
    head = parse(delta)
    packed = head.streams[name]
    raw = bytearray(Unpacking(packed, name).read(packed.length))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
    if bytes(raw) == Unpacking(packed, name).read(packed.length):
        return
    lying = {**head.streams, name: Packed(STORED, len(raw), bytes(raw))}
    attempt(base, target, encode(type(head)(head.target, head.bases, lying)))


def test_a_wrong_base_is_told_from_a_bad_delta(streams: tuple[bytes, bytes, bytes], tmp_path: Path) -> None:
    base, target, delta = streams
    paths = {name: tmp_path / name for name in ("delta", "base", "out")}
    paths["delta"].write_bytes(delta)

    def refused(content: bytes, wanted: bytes) -> str:
        paths["base"].write_bytes(content)
        with pytest.raises(BadDeltaError) as caught:
            rebuild([paths["base"]], paths["delta"], paths["out"], digest_of(wanted))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "delta"]
        return str(caught.value)

    other = base[:1_000] + bytes([base[1_000] ^ 1]) + base[1_001:]
    assert f"base 0 is {hashlib.sha256(other).hexdigest()}" in refused(other, target)
    assert "wants bases of" in refused(base + b"x", target)
    assert "it is for" in refused(base, base)
    with pytest.raises(DiskFaultError, match="gone"):
        rebuild([tmp_path / "gone"], paths["delta"], paths["out"], digest_of(target))


def test_what_rebuilding_takes_is_known_beforehand(tmp_path: Path) -> None:
    """A planner weighs seconds against bytes: a stream to re-compress counts, by its encoder's nominal speed."""
    content = text(11)
    through(tmp_path, [content], edited(content))
    plain = rebuild_s(tmp_path / "delta")
    through(tmp_path, [zlib.compress(content)], zlib.compress(edited(content)))
    assert 0 < plain < 0.01
    assert 0.005 < rebuild_s(tmp_path / "delta") - plain < 0.02


def test_a_delta_is_the_same_whenever_it_is_made(streams: tuple[bytes, bytes, bytes]) -> None:
    base, target, delta = streams
    assert delta_of([base], target) == delta
    assert encode(parse(delta)) == delta
