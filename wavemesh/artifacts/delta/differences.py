"""Byte-wise sums and differences, modulo 256, of byte strings of one length.

Whole pieces at a time as large integers: the low seven bits of all bytes are added at once, where no carry can reach
a neighbour, and the top bits are put right afterwards (Lamport, "Multiple byte processing with full-word instructions",
1975). Hundreds of megabytes a second without a library.
"""

from __future__ import annotations

PIECE_BYTES = 1 << 16

_LOW = int.from_bytes(b"\x7f" * PIECE_BYTES, "little")
_TOP = int.from_bytes(b"\x80" * PIECE_BYTES, "little")


def add(one: bytes | bytearray | memoryview, other: bytes | bytearray | memoryview) -> bytes:
    """The sum of each pair of bytes."""
    parts: list[bytes] = []
    for start in range(0, len(one), PIECE_BYTES):
        piece = one[start : start + PIECE_BYTES]
        a = int.from_bytes(piece, "little")
        b = int.from_bytes(other[start : start + PIECE_BYTES], "little")
        # A shorter last piece has zeros above it in both, and so in the sum.
        parts.append((((a & _LOW) + (b & _LOW)) ^ ((a ^ b) & _TOP)).to_bytes(len(piece), "little"))
    return b"".join(parts)


def subtract(one: bytes | bytearray | memoryview, other: bytes | bytearray | memoryview) -> bytes:
    """What ``add`` puts on ``other`` to get ``one``."""
    parts: list[bytes] = []
    for start in range(0, len(one), PIECE_BYTES):
        piece = one[start : start + PIECE_BYTES]
        a = int.from_bytes(piece, "little")
        b = int.from_bytes(other[start : start + PIECE_BYTES], "little")
        mask = (1 << 8 * len(piece)) - 1
        low, top = _LOW & mask, _TOP & mask
        parts.append((((a | top) - (b & low)) ^ (((a ^ b) & top) ^ top)).to_bytes(len(piece), "little"))
    return b"".join(parts)
