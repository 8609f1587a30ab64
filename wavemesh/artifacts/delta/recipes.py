"""Encoders whose output can be made again, bit for bit, from its content.

A *recipe* is an encoder with its parameters. ``recipe_of`` tries which one wrote a stream; ``recompress`` follows one.
``expand`` undoes a stream, whoever wrote it. The encoders:

* deflate by zlib, at a level and memory level, window 32 KiB: zip, zlib streams, squashfs, most programs.
* deflate by GNU gzip, which chooses otherwise than zlib: Debian's changelogs and manuals. Done by the program itself.
* LZ4 HC by liblz4, one block: the payload of kernels that boot fast.
* zstd, at a level: frames as the library writes them in one call.
* xz: one block, an x86 filter or none, as ``scripts/xz_wrap.sh`` and mksquashfs write it. Costly to write again.

What an encoder of another version writes may differ. The maker sees that of its own; whoever rebuilds sees it by the
checksum over what was re-compressed, and takes another way.
"""

from __future__ import annotations

import enum
import lzma
import shutil
import subprocess
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import lz4.block
import zstandard

from wavemesh.artifacts.delta.errors import BadDeltaError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_CONTENT_BYTES = 64 * 1024 * 1024
MAX_ALL_CONTENT_BYTES = 512 * 1024 * 1024
_XZ_MEMORY_BYTES = 256 * 1024 * 1024
_XZ_MAGIC_BYTES = 12
_XZ_X86, _XZ_LZMA2 = 0x04, 0x21
_PROBE_BYTES = 128 * 1024
_PROBED_OUTPUT_BYTES = 4 * 1024
_GZIP_S = 120
_GZIP_HEADER_BYTES, _GZIP_TRAILER_BYTES = 10, 8
_ZLIB_LEVELS = (9, 6, 8, 7, 5, 4, 3, 2, 1)
_ZSTD_LEVELS = (19, 15, 3, 22, 9, 18, 12, 6, 1)
_LZ4_LEVELS = (9, 12, 10, 11, 8, 7, 6, 5, 4, 3)
_XZ_PRESETS = (6, 9, 6 | lzma.PRESET_EXTREME, 9 | lzma.PRESET_EXTREME)


class Coding(enum.IntEnum):
    """How a stream is compressed; the values are on the wire."""

    DEFLATE = 1
    LZ4 = 2
    ZSTD = 3
    XZ = 4


class Encoder(enum.IntEnum):
    """Who compressed it; the values are on the wire."""

    ZLIB = 1
    GZIP = 2
    LZ4 = 3
    ZSTD = 4
    XZ = 5


NOMINAL_BYTES_PER_S = {
    Encoder.ZLIB: 12e6,
    Encoder.GZIP: 8e6,
    Encoder.LZ4: 45e6,
    Encoder.ZSTD: 3e6,
    Encoder.XZ: 3e6,
}
"""Content one core re-compresses in a second at the level that is usual there. Constants, so that makers agree."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """An encoder with its level, and what else it needs: for zlib its memory level, for zstd and xz its flags."""

    encoder: Encoder
    level: int
    flags: int = 0
    window: int = 0

    def seconds(self, content_bytes: int) -> float:
        """What re-compressing costs, nominally, on one core."""
        return content_bytes / NOMINAL_BYTES_PER_S[self.encoder]


CODING_OF = {
    Encoder.ZLIB: Coding.DEFLATE,
    Encoder.GZIP: Coding.DEFLATE,
    Encoder.LZ4: Coding.LZ4,
    Encoder.ZSTD: Coding.ZSTD,
    Encoder.XZ: Coding.XZ,
}


def expand(coding: Coding, body: bytes | memoryview, length: int) -> bytes:
    """The content of a stream, which must be of this length and use the whole body; raises BadDeltaError."""
    try:
        content = _expand(coding, body, length)
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, lz4.block.LZ4BlockError, EOFError) as error:
        raise BadDeltaError(f"a stream of its base cannot be expanded: {error}") from error
    if content is None or len(content) != length:
        raise BadDeltaError(f"a stream of its base does not expand to {length} bytes")
    return content


def _expand(coding: Coding, body: bytes | memoryview, length: int) -> bytes | None:
    """None unless exactly the body was used; one byte more than ``length`` tells that there is more."""
    if coding is Coding.DEFLATE:
        inflater = zlib.decompressobj(-15)
        content = inflater.decompress(body, length + 1)
        return content if inflater.eof and not inflater.unused_data else None
    if coding is Coding.LZ4:
        return bytes(lz4.block.decompress(body, uncompressed_size=length))
    if coding is Coding.XZ:
        unpacker = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)
        content = unpacker.decompress(body, length + 1)
        return content if unpacker.eof and not unpacker.unused_data else None
    reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(body)
    return reader.read(length + 1)


def recompress(recipe: Recipe, content: bytes | memoryview) -> bytes:
    """What the recipe's encoder writes; raises BadDeltaError where it cannot be followed here."""
    encoder, level = recipe.encoder, recipe.level
    try:
        if encoder is Encoder.ZLIB:
            deflater = zlib.compressobj(level, zlib.DEFLATED, -15, recipe.flags)
            return deflater.compress(content) + deflater.flush()
        if encoder is Encoder.GZIP:
            return _gzip(level, content)
        if encoder is Encoder.LZ4:
            return bytes(lz4.block.compress(content, mode="high_compression", compression=level, store_size=False))
        if encoder is Encoder.ZSTD:
            checksum, says_size = bool(recipe.flags & 1), bool(recipe.flags & 2)
            return zstandard.ZstdCompressor(
                level=level, write_checksum=checksum, write_content_size=says_size
            ).compress(bytes(content))
        return lzma.compress(content, lzma.FORMAT_XZ, recipe.flags & 0x0F, filters=_xz_filters(recipe))
    except (ValueError, zlib.error, lzma.LZMAError, zstandard.ZstdError, lz4.block.LZ4BlockError) as error:
        raise BadDeltaError(f"a stream cannot be re-compressed by {recipe}: {error}") from error


def _gzip(level: int, content: bytes | memoryview) -> bytes:
    program = shutil.which("gzip")
    if program is None:
        raise BadDeltaError("a stream needs the program gzip to be re-compressed, which is not installed here")
    try:
        done = subprocess.run(
            [program, f"-{level}", "-n", "-c"], input=content, capture_output=True, check=True, timeout=_GZIP_S
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BadDeltaError(f"a stream cannot be re-compressed: {error}") from error
    return done.stdout[_GZIP_HEADER_BYTES:-_GZIP_TRAILER_BYTES]


def _xz_filters(recipe: Recipe) -> list[dict[str, int]]:
    packer = {"id": lzma.FILTER_LZMA2, "preset": recipe.level, "dict_size": recipe.window}
    return [{"id": lzma.FILTER_X86}, packer] if recipe.flags & 0x10 else [packer]


def recipe_of(
    coding: Coding, content: bytes, body: bytes, likely: Recipe | None, *, most_s: float, is_gzip: bool
) -> Recipe | None:
    """Who wrote this stream, the likely one tried first; None where nobody did, or doing it again takes too long."""
    for recipe in _candidates(coding, body, likely, is_gzip=is_gzip):
        if recipe.seconds(len(content)) > most_s or not _may_be(recipe, content, body):
            continue
        if recompress(recipe, content) == body:
            return recipe
    return None


def _may_be(recipe: Recipe, content: bytes, body: bytes) -> bool:
    """Whether the first kilobytes agree: where content has more behind it, the first of several blocks does too."""
    if recipe.encoder is not Encoder.ZLIB or len(content) < 4 * _PROBE_BYTES:
        return True
    begun = recompress(recipe, memoryview(content)[:_PROBE_BYTES])
    return begun[:_PROBED_OUTPUT_BYTES] == body[:_PROBED_OUTPUT_BYTES]


def _candidates(coding: Coding, body: bytes, likely: Recipe | None, *, is_gzip: bool) -> Iterator[Recipe]:
    if likely is not None and CODING_OF[likely.encoder] is coding and coding is not Coding.XZ:
        yield likely
    if coding is Coding.DEFLATE:
        if is_gzip and shutil.which("gzip") is not None:
            yield Recipe(Encoder.GZIP, 9)
            yield Recipe(Encoder.GZIP, 6)
        for memory_level in (8, 9):
            for level in _ZLIB_LEVELS:
                yield Recipe(Encoder.ZLIB, level, memory_level)
    elif coding is Coding.LZ4:
        yield from (Recipe(Encoder.LZ4, level) for level in _LZ4_LEVELS)
    elif coding is Coding.ZSTD:
        parameters = zstandard.get_frame_parameters(body)
        says_size = parameters.content_size != zstandard.CONTENTSIZE_UNKNOWN
        flags = int(parameters.has_checksum) | int(says_size) << 1
        yield from (Recipe(Encoder.ZSTD, level, flags) for level in _ZSTD_LEVELS)
    else:
        yield from _xz_candidates(body)


def _xz_candidates(body: bytes) -> Iterator[Recipe]:
    """By the stream's own header: its check, its filters and its dictionary (the .xz file format, 2.1.1 and 3.1)."""
    flags = body[7] & 0x0F
    at = _XZ_MAGIC_BYTES + 2
    if body[_XZ_MAGIC_BYTES + 1] & ~1:
        return  # sizes in the block's header, or three filters: written by threads, or by somebody unusual
    if body[_XZ_MAGIC_BYTES + 1] & 1:
        if body[at : at + 2] != bytes((_XZ_X86, 0)):
            return
        flags |= 0x10
        at += 2
    if body[at : at + 2] != bytes((_XZ_LZMA2, 1)) or body[at + 2] > 36:
        return
    bits = body[at + 2]
    yield from (Recipe(Encoder.XZ, preset, flags, (2 | bits & 1) << (bits // 2 + 11)) for preset in _XZ_PRESETS)
