"""Sketch an image for ``likeness``: cut it, hash it, compress each distinct chunk lightly. Blocks, a second or two.

Raises DiskFaultError.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import zstandard
from pyfastcdc import FastCDC

from wavemesh.artifacts.delta.recipes import Coding
from wavemesh.artifacts.delta.scanning import scan
from wavemesh.artifacts.likeness import FINE_SAMPLED, Sketch, Weight
from wavemesh.runtime.durable import disk_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COARSE_BYTES = 64 * 1024
FINE_BYTES = 512
NAME_BYTES = 8
_LEVEL = 3
_LIKE_BEST = 0.8
"""zstd -19 over an image takes this much of what zstd -3 takes of its chunks, about."""
_CHEAP = {Coding.DEFLATE, Coding.LZ4}


def sketch_file(path: Path) -> Sketch:
    """The sketch of a file."""
    with disk_errors(path):
        image = path.read_bytes()
    coarse: dict[bytes, Weight] = {}
    fine: dict[bytes, Weight] = {}
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    for chunk in _cut(image, COARSE_BYTES):
        name = _name(chunk)
        if name not in coarse:
            coarse[name] = Weight(len(chunk), len(compressor.compress(chunk)) * _LIKE_BEST)
    for place, chunk in enumerate(_neighbourhoods(image)):
        ratio = min(1.0, len(compressor.compress(chunk)) * _LIKE_BEST / len(chunk))
        for piece in _cut(chunk, FINE_BYTES):
            name = _name(piece)
            if not int.from_bytes(name, "big") % FINE_SAMPLED and name not in fine:
                fine[name] = Weight(len(piece), len(piece) * ratio, place)
    return Sketch(len(image), coarse, fine)


def _name(chunk: memoryview) -> bytes:
    return hashlib.blake2b(chunk, digest_size=NAME_BYTES).digest()


def _cut(data: bytes | memoryview, average: int) -> Iterator[memoryview]:
    for chunk in FastCDC(average, normalized_chunking=2).cut_buf(data):
        yield memoryview(chunk.data)


def _neighbourhoods(image: bytes) -> Iterator[memoryview]:
    """Distinct coarse chunks of the image as a delta sees it: cheap streams by their content."""
    seen: set[bytes] = set()
    view, end = memoryview(image), 0
    for stream in scan(image):
        if stream.coding in _CHEAP:
            for part in (view[end : stream.offset], memoryview(stream.content)):
                yield from _fresh(part, seen)
            end = stream.end
    yield from _fresh(view[end:], seen)


def _fresh(data: memoryview, seen: set[bytes]) -> Iterator[memoryview]:
    for chunk in _cut(data, COARSE_BYTES):
        name = _name(chunk)
        if name not in seen:
            seen.add(name)
            yield chunk
