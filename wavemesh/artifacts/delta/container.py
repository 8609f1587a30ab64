"""The form of a delta: its head, its layout, its streams. Pure; strict: whatever is not as written here is refused.

A delta describes a *virtual target* by a *virtual base*. The virtual base is the bases one after the other, then the
contents of compressed streams found in them (the *expansions*). The virtual target is the contents of compressed
streams found in the target, which are re-compressed by a recipe each, then all bytes of the target between them.

    magic "WMDELTA", version 1
    target    SHA-256, size
    bases     count, then SHA-256 and size of each
    streams   for each of STREAMS: packing (1 byte; for LZMA2 one more, lc + 9 * (lp + 5 * pb)), length, packed length
    CRC-32 of all of the above, big end first
    the packed streams, in this order, up to the end of the file

Numbers are LEB128 in their shortest form, below 2**62. The streams:

    layout    count of expansions; for each: base, distance from the end of the last one in the same base, length,
              coding, length of its content. Count of recipes; for each: distance from the end of the last one in the
              target, length, length of its content, encoder, level, flags, window. CRC-32 of all re-compressed bytes,
              one after the other. Count of covers.
    distances for each cover: the distance in the virtual base from the end of the last one, 2 * d or -2 * d - 1
    gaps      for each cover: bytes of the virtual target between the last one and it; these are literals
    lengths   for each cover: its length
    marks     lengths of runs of blocks of BLOCK_BYTES of the virtual target, in turn unchanged and changed
    changes   for each changed block: what is added to its bytes, modulo 256, when covers and literals are in place
    literals  the bytes outside of covers
"""

from __future__ import annotations

import lzma
import zlib
from dataclasses import dataclass

from wavemesh.artifacts.delta.errors import BadDeltaError
from wavemesh.artifacts.delta.packing import Form, Packed, Packing
from wavemesh.artifacts.delta.recipes import (
    CODING_OF,
    MAX_ALL_CONTENT_BYTES,
    MAX_CONTENT_BYTES,
    Coding,
    Encoder,
    Recipe,
)
from wavemesh.artifacts.digests import MAX_BLOB_BYTES
from wavemesh.trust.statements import Digest

MAGIC = b"WMDELTA"
VERSION = 1
STREAMS = ("layout", "distances", "gaps", "lengths", "marks", "changes", "literals")
BLOCK_BYTES = 64
MAX_BASES = 64
MAX_STREAMS = 1 << 16
MAX_LAYOUT_BYTES = 4 * 1024 * 1024
_SHA256_BYTES = 32
_CRC_BYTES = 4
_NUMBER_BYTES_MOST = 9
_XZ_CHECKS = (0, 1, 4, 10)
_XZ_WINDOW = range(4096, 64 * 1024 * 1024 + 1)


@dataclass(frozen=True, slots=True)
class Expansion:
    """A compressed stream of a base whose content is part of the virtual base."""

    base: int
    offset: int
    length: int
    coding: Coding
    content_bytes: int


@dataclass(frozen=True, slots=True)
class Recompressed:
    """A compressed stream of the target, written again from its content."""

    offset: int
    length: int
    content_bytes: int
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class Head:
    """What is for which bases; the packed streams by name."""

    target: Digest
    bases: tuple[Digest, ...]
    streams: dict[str, Packed]


@dataclass(frozen=True, slots=True)
class Layout:
    """What is expanded and re-compressed, and how many covers there are."""

    expansions: tuple[Expansion, ...]
    recompressed: tuple[Recompressed, ...]
    recompressed_crc: int
    covers: int

    def virtual_bytes(self, target: Digest) -> int:
        """Size of the virtual target."""
        return target.size_bytes + sum(stream.content_bytes - stream.length for stream in self.recompressed)


def number(value: int) -> bytes:
    """LEB128."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


class Reading:
    """Reads fields from bytes; raises BadDeltaError."""

    def __init__(self, data: bytes | memoryview, name: str) -> None:
        """The name says in errors where we are."""
        self._data = data
        self._name = name
        self.position = 0

    def take(self, length: int) -> bytes:
        """So many bytes."""
        if self.position + length > len(self._data):
            raise BadDeltaError(f"its {self._name} ends after {len(self._data)} bytes, too early")
        taken = bytes(self._data[self.position : self.position + length])
        self.position += length
        return taken

    def number(self, most: int, least: int = 0) -> int:
        """A number within bounds."""
        value = 0
        for place in range(_NUMBER_BYTES_MOST):
            (byte,) = self.take(1)
            value |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                if byte == 0 and place:
                    raise BadDeltaError(f"its {self._name} has a number that is not in its shortest form")
                break
        else:
            raise BadDeltaError(f"its {self._name} has a number that is too long")
        if not least <= value <= most:
            raise BadDeltaError(f"its {self._name} says {value} at byte {self.position}, not within {least} to {most}")
        return value

    def finish(self) -> None:
        """See that nothing is left."""
        if self.position != len(self._data):
            raise BadDeltaError(f"its {self._name} has {len(self._data) - self.position} bytes too many")


def encode(head: Head) -> bytes:
    """The whole delta."""
    parts = [MAGIC, bytes((VERSION,)), bytes.fromhex(head.target.sha256), number(head.target.size_bytes)]
    parts.append(number(len(head.bases)))
    for base in head.bases:
        parts += [bytes.fromhex(base.sha256), number(base.size_bytes)]
    for name in STREAMS:
        packed = head.streams[name]
        parts.append(bytes((packed.form.packing,)))
        if packed.form.packing is Packing.LZMA2:
            parts.append(bytes((packed.form.lc + 9 * (packed.form.lp + 5 * packed.form.pb),)))
        parts += [number(packed.length), number(len(packed.data))]
    written = b"".join(parts)
    checksum = zlib.crc32(written).to_bytes(_CRC_BYTES, "big")
    return b"".join((written, checksum, *(head.streams[name].data for name in STREAMS)))


def parse(delta: bytes | memoryview) -> Head:
    """Its head, with the streams still packed; raises BadDeltaError."""
    reading = Reading(delta, "head")
    if reading.take(len(MAGIC)) != MAGIC:
        raise BadDeltaError("it does not begin like a delta")
    (version,) = reading.take(1)
    if version != VERSION:
        raise BadDeltaError(f"it is of version {version}, this program knows version {VERSION}")
    target = Digest(reading.take(_SHA256_BYTES).hex(), reading.number(MAX_BLOB_BYTES))
    count = reading.number(MAX_BASES)
    bases = tuple(Digest(reading.take(_SHA256_BYTES).hex(), reading.number(MAX_BLOB_BYTES)) for _ in range(count))
    table: list[tuple[str, Form, int, int]] = []
    for name in STREAMS:
        form = _form(reading)
        table.append((name, form, reading.number(MAX_BLOB_BYTES), reading.number(MAX_BLOB_BYTES)))
    checksum = zlib.crc32(memoryview(delta)[: reading.position]).to_bytes(_CRC_BYTES, "big")
    if reading.take(_CRC_BYTES) != checksum:
        raise BadDeltaError("its head is damaged: the checksum does not agree")
    streams: dict[str, Packed] = {}
    at = reading.position
    for name, form, length, packed_bytes in table:
        if at + packed_bytes > len(delta):
            raise BadDeltaError(f"it ends after {len(delta)} bytes, in its stream {name}")
        streams[name] = Packed(form, length, memoryview(delta)[at : at + packed_bytes])
        at += packed_bytes
    if at != len(delta):
        raise BadDeltaError(f"it has {len(delta) - at} bytes too many")
    return Head(target, bases, streams)


def _form(reading: Reading) -> Form:
    (packing,) = reading.take(1)
    if packing == Packing.STORED:
        return Form(Packing.STORED)
    if packing != Packing.LZMA2:
        raise BadDeltaError(f"a stream of it is packed in an unknown way: {packing}")
    (bits,) = reading.take(1)
    rest, lc = divmod(bits, 9)
    pb, lp = divmod(rest, 5)
    if lc + lp > 4 or pb > 4:
        raise BadDeltaError(f"a stream of it has literal and position bits that LZMA2 does not know: {bits}")
    return Form(Packing.LZMA2, lc, lp, pb)


def encode_layout(layout: Layout) -> bytes:
    """The layout's stream."""
    values: list[int] = [len(layout.expansions)]
    base = end = 0
    for expansion in layout.expansions:
        if expansion.base != base:
            base, end = expansion.base, 0
        values += (base, expansion.offset - end, expansion.length, expansion.coding, expansion.content_bytes)
        end = expansion.offset + expansion.length
    values.append(len(layout.recompressed))
    end = 0
    for stream in layout.recompressed:
        recipe = stream.recipe
        values += (stream.offset - end, stream.length, stream.content_bytes)
        values += (recipe.encoder, recipe.level, recipe.flags, recipe.window)
        end = stream.offset + stream.length
    values += (layout.recompressed_crc, layout.covers)
    return b"".join(number(value) for value in values)


def parse_layout(data: bytes, head: Head) -> Layout:
    """The layout; raises BadDeltaError."""
    reading = Reading(data, "layout")
    expansions: list[Expansion] = []
    base = end = content_bytes = 0
    for _ in range(reading.number(MAX_STREAMS)):
        place = reading.number(max(len(head.bases) - 1, 0), base)
        if place != base:
            base, end = place, 0
        size = head.bases[base].size_bytes if head.bases else 0
        offset = end + reading.number(size)
        length = reading.number(size, 1)
        coding = Coding(reading.number(max(Coding), min(Coding)))
        expansions.append(Expansion(base, offset, length, coding, reading.number(MAX_CONTENT_BYTES, 1)))
        end = offset + length
        content_bytes += expansions[-1].content_bytes
        if end > size or content_bytes > MAX_ALL_CONTENT_BYTES:
            raise BadDeltaError(f"its layout expands what is not there, or too much, at byte {offset} of base {base}")
    recompressed: list[Recompressed] = []
    end = content_bytes = 0
    for _ in range(reading.number(MAX_STREAMS)):
        offset = end + reading.number(head.target.size_bytes)
        length = reading.number(head.target.size_bytes, 1)
        recompressed.append(Recompressed(offset, length, reading.number(MAX_CONTENT_BYTES, 1), _recipe(reading)))
        end = offset + length
        content_bytes += recompressed[-1].content_bytes
        if end > head.target.size_bytes or content_bytes > MAX_ALL_CONTENT_BYTES:
            raise BadDeltaError(f"its layout re-compresses past the target's end, or too much, at byte {offset}")
    layout = Layout(tuple(expansions), tuple(recompressed), reading.number(0xFFFFFFFF), reading.number(MAX_BLOB_BYTES))
    reading.finish()
    return layout


def _recipe(reading: Reading) -> Recipe:
    recipe = Recipe(
        Encoder(reading.number(max(Encoder), min(Encoder))),
        reading.number(lzma.PRESET_EXTREME | 9),
        reading.number(0x1F),
        reading.number(_XZ_WINDOW.stop),
    )
    if not _is_known(recipe):
        raise BadDeltaError(f"its layout has a recipe that {CODING_OF[recipe.encoder].name} does not know: {recipe}")
    return recipe


def _is_known(recipe: Recipe) -> bool:
    if recipe.encoder is Encoder.XZ:
        is_preset = recipe.level & ~lzma.PRESET_EXTREME <= 9
        return is_preset and recipe.flags & 0x0F in _XZ_CHECKS and recipe.window in _XZ_WINDOW
    levels, flags = {
        Encoder.ZLIB: (range(1, 10), range(8, 10)),
        Encoder.GZIP: (range(1, 10), range(1)),
        Encoder.LZ4: (range(3, 13), range(1)),
        Encoder.ZSTD: (range(1, 23), range(4)),
    }[recipe.encoder]
    return recipe.level in levels and recipe.flags in flags and recipe.window == 0
