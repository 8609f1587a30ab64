"""What of a new byte string is in an old one, nearly: HDiffPatch's matcher, for its covers alone.

The Python package has no call for the covers, but its uncompressed diff begins with them. The form, HDIFF13, is that of
``serialize_compressed_diff`` in HDiffPatch's ``diff.cpp``: a text up to a zero byte; eleven numbers, of which the third
is the number of covers and the fourth the length of their section, which comes first after the numbers; for each cover
the distance in the old string from the end of the last one (its top bit the sign), the bytes of the new one between the
two, its length. Numbers are in groups of seven bits, the highest first.
"""

from __future__ import annotations

from dataclasses import dataclass

import hdiffpatch

_MAGIC = b"HDIFF13&"
_NUMBERS = 11


@dataclass(frozen=True, slots=True)
class Cover:
    """``length`` bytes of the new string from ``new`` are, but for some bytes, those of the old one from ``old``."""

    new: int
    old: int
    length: int


def covers_of(old: bytes, new: bytes) -> list[Cover]:
    """Covers in the order of the new string, without overlap there; needs about ten bytes of memory per byte."""
    if not old or not new:
        return []
    diff = hdiffpatch.diff(old, new, "none", validate=False, big_cache_match=True)
    reader = _Numbers(diff, diff.index(b"\0", len(_MAGIC)) + 1)
    if not diff.startswith(_MAGIC):
        raise RuntimeError(f"hdiffpatch writes another form: {diff[:16]!r}")
    numbers = [reader.next()[1] for _ in range(_NUMBERS)]
    if numbers[:2] != [len(new), len(old)]:
        raise RuntimeError(f"hdiffpatch says other lengths than it was given: {numbers[:2]}")
    section_end = reader.position + numbers[3]
    covers: list[Cover] = []
    old_end = new_end = 0
    for _ in range(numbers[2]):
        sign, distance = reader.next(tag_bits=1)
        _, gap = reader.next()
        _, length = reader.next()
        cover = Cover(new_end + gap, old_end - distance if sign else old_end + distance, length)
        old_end, new_end = cover.old + length, cover.new + length
        if not (0 <= cover.old <= len(old) - length and new_end <= len(new)):
            raise RuntimeError(f"hdiffpatch says a cover outside of the two strings: {cover}")
        covers.append(cover)
    if reader.position != section_end:
        raise RuntimeError(f"hdiffpatch's covers end at {reader.position}, not at {section_end}")
    return covers


class _Numbers:
    """Reads HDiffPatch's numbers one after the other."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self.position = position

    def next(self, tag_bits: int = 0) -> tuple[int, int]:
        """The tag in the highest bits of the first byte, and the number."""
        byte = self._data[self.position]
        self.position += 1
        tag = byte >> (8 - tag_bits)
        more = 1 << (7 - tag_bits)
        value = byte & (more - 1)
        goes_on = bool(byte & more)
        while goes_on:
            byte = self._data[self.position]
            self.position += 1
            value = value << 7 | byte & 0x7F
            goes_on = bool(byte & 0x80)
        return tag, value
