"""Find compressed streams in an image: deflate in gzip, zip and zlib, LZ4 blocks of kernels, zstd frames, xz files.

What is found was expanded, and its checksum, where the container has one, agrees. Only contiguous streams are found:
mke2fs and mksquashfs lay files out that way. Streams inside of streams stay what they are.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import lz4.block
import zstandard

from wavemesh.artifacts.delta.recipes import MAX_ALL_CONTENT_BYTES, MAX_CONTENT_BYTES, Coding

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable, Iterator

LEAST_CONTENT_BYTES = 256
MAX_STREAMS = 1 << 16
_FEED_BYTES = 64 * 1024
_ZSTD_FEED_BYTES = 1024
_FIRST_OUTPUT_BYTES = 4096
_XZ_MEMORY_BYTES = 256 * 1024 * 1024
_LZ4_BLOCK_BYTES = 8 * 1024 * 1024
_LZ4_BLOCKS_MOST = 64
_NAME_BYTES_MOST = 4096


@dataclass(frozen=True, slots=True)
class Found:
    """A stream: where its body lies in the image, and its content."""

    offset: int
    length: int
    coding: Coding
    content: bytes
    is_gzip: bool = False

    @property
    def end(self) -> int:
        """The first byte after the body."""
        return self.offset + self.length


def scan(image: bytes | mmap.mmap) -> list[Found]:
    """All streams, in order and without overlap, up to the bounds above."""
    found: list[Found] = []
    end = content_bytes = 0
    for offset, look in sorted(_candidates(image), key=lambda candidate: candidate[0]):
        if offset < end:
            continue
        for stream in look(image, offset):
            content_bytes += len(stream.content)
            if content_bytes > MAX_ALL_CONTENT_BYTES or len(found) >= MAX_STREAMS:
                return found
            found.append(stream)
            end = stream.end
    return found


def _candidates(image: bytes | mmap.mmap) -> Iterator[tuple[int, Callable[[bytes | mmap.mmap, int], list[Found]]]]:
    looks: tuple[tuple[bytes, Callable[[bytes | mmap.mmap, int], list[Found]]], ...] = (
        (b"\x1f\x8b\x08", _gzip),
        (b"PK\x03\x04", _zip),
        (b"\x78\x01", _zlib),
        (b"\x78\x5e", _zlib),
        (b"\x78\x9c", _zlib),
        (b"\x78\xda", _zlib),
        (b"\x02\x21\x4c\x18", _lz4),
        (b"\x28\xb5\x2f\xfd", _zstd),
        (b"\xfd7zXZ\x00", _xz),
    )
    for magic, look in looks:
        at = image.find(magic)
        while at >= 0:
            yield at, look
            at = image.find(magic, at + 1)


def _inflate(image: bytes | mmap.mmap, offset: int) -> tuple[bytes, int] | None:
    """Content and length of the raw deflate stream at an offset."""
    inflater = zlib.decompressobj(-15)
    parts: list[bytes] = []
    total, at = 0, offset
    step = _FIRST_OUTPUT_BYTES
    try:
        while not inflater.eof:
            piece = inflater.unconsumed_tail
            if not piece:
                piece = image[at : at + step]
                if not piece:
                    return None
                at += len(piece)
            part = inflater.decompress(piece, _FEED_BYTES * 16)
            parts.append(part)
            total += len(part)
            if total > MAX_CONTENT_BYTES:
                return None
            step = _FEED_BYTES
    except zlib.error:
        return None
    if total < LEAST_CONTENT_BYTES:
        return None
    return b"".join(parts), at - len(inflater.unused_data) - offset


def _gzip(image: bytes | mmap.mmap, offset: int) -> list[Found]:
    """RFC 1952."""
    header = image[offset : offset + 10]
    if len(header) < 10 or header[3] & 0xE0:
        return []
    at = offset + 10
    if header[3] & 4:
        at += 2 + int.from_bytes(image[at : at + 2], "little")
    for bit in (8, 16):
        if header[3] & bit:
            stop = image.find(b"\0", at, at + _NAME_BYTES_MOST)
            if stop < 0:
                return []
            at = stop + 1
    if header[3] & 2:
        at += 2
    inflated = _inflate(image, at)
    if inflated is None:
        return []
    content, length = inflated
    trailer = struct.pack("<II", zlib.crc32(content), len(content) & 0xFFFFFFFF)
    if image[at + length : at + length + 8] != trailer:
        return []
    return [Found(at, length, Coding.DEFLATE, content, is_gzip=True)]


def _zlib(image: bytes | mmap.mmap, offset: int) -> list[Found]:
    """RFC 1950."""
    inflated = _inflate(image, offset + 2)
    if inflated is None:
        return []
    content, length = inflated
    end = offset + 2 + length
    if image[end : end + 4] != zlib.adler32(content).to_bytes(4, "big"):
        return []
    return [Found(offset + 2, length, Coding.DEFLATE, content)]


def _zip(image: bytes | mmap.mmap, offset: int) -> list[Found]:
    """A member of a zip file by its local header (APPNOTE 4.3.7)."""
    header = image[offset : offset + 30]
    if len(header) < 30:
        return []
    flags, method = struct.unpack_from("<HH", header, 6)
    checksum, packed_bytes = struct.unpack_from("<II", header, 14)
    name_bytes, extra_bytes = struct.unpack_from("<HH", header, 26)
    if method != 8 or flags & 1:
        return []
    at = offset + 30 + name_bytes + extra_bytes
    inflated = _inflate(image, at)
    if inflated is None:
        return []
    content, length = inflated
    if not flags & 8 and (zlib.crc32(content) != checksum or length != packed_bytes):
        return []
    return [Found(at, length, Coding.DEFLATE, content)]


def _lz4(image: bytes | mmap.mmap, offset: int) -> list[Found]:
    """The legacy frame of ``lz4 -l``, which kernels use: blocks of 8 MiB, each after its length."""
    found: list[Found] = []
    at = offset + 4
    for _ in range(_LZ4_BLOCKS_MOST):
        length = int.from_bytes(image[at : at + 4], "little")
        if not 0 < length <= _LZ4_BLOCK_BYTES * 2:
            break
        body = image[at + 4 : at + 4 + length]
        try:
            content = lz4.block.decompress(body, uncompressed_size=_LZ4_BLOCK_BYTES)
        except lz4.block.LZ4BlockError:
            break
        if len(body) < length or len(content) < LEAST_CONTENT_BYTES:
            break
        found.append(Found(at + 4, length, Coding.LZ4, content))
        at += 4 + length
        if len(content) < _LZ4_BLOCK_BYTES:
            break
    return found


def _zstd(image: bytes | mmap.mmap, offset: int) -> list[Found]:
    """RFC 8878; a kilobyte at a time, because a block of four bytes may stand for 128 KiB."""
    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
    parts: list[bytes] = []
    total, at = 0, offset
    try:
        while not unpacker.eof:
            piece = image[at : at + _ZSTD_FEED_BYTES]
            if not piece:
                return []
            at += len(piece)
            parts.append(unpacker.decompress(piece))
            total += len(parts[-1])
            if total > MAX_CONTENT_BYTES:
                return []
    except zstandard.ZstdError:
        return []
    if total < LEAST_CONTENT_BYTES:
        return []
    return [Found(offset, at - len(unpacker.unused_data) - offset, Coding.ZSTD, b"".join(parts))]


def _xz(image: bytes | mmap.mmap, offset: int) -> list[Found]:
    """One .xz stream."""
    unpacker = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)
    parts: list[bytes] = []
    total, at = 0, offset
    try:
        while not unpacker.eof:
            piece = b""
            if unpacker.needs_input:
                piece = image[at : at + _FEED_BYTES]
                if not piece:
                    return []
                at += len(piece)
            parts.append(unpacker.decompress(piece, _FEED_BYTES * 16))
            total += len(parts[-1])
            if total > MAX_CONTENT_BYTES:
                return []
    except lzma.LZMAError:
        return []
    if total < LEAST_CONTENT_BYTES:
        return []
    return [Found(offset, at - len(unpacker.unused_data) - offset, Coding.XZ, b"".join(parts))]
