"""Make a delta: find streams, choose which to re-compress, match, write down the differences.

What re-compressing costs whoever rebuilds is bounded beforehand: streams are taken in the order of bytes in the image
per nominal second, until RECOMPRESS_S_PER_GIB is spent. A stream that a base has bit for bit is
left alone: it is matched as it is, for nothing.
"""

from __future__ import annotations

import hashlib
import zlib
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from wavemesh.artifacts.delta import packing
from wavemesh.artifacts.delta.container import (
    BLOCK_BYTES,
    MAX_STREAMS,
    STREAMS,
    Expansion,
    Head,
    Layout,
    Recompressed,
    encode,
    encode_layout,
    number,
)
from wavemesh.artifacts.delta.differences import subtract
from wavemesh.artifacts.delta.matching import Cover, covers_of
from wavemesh.artifacts.delta.packing import Form, pack
from wavemesh.artifacts.delta.recipes import NOMINAL_BYTES_PER_S, Coding, Encoder, Recipe, recipe_of
from wavemesh.artifacts.delta.scanning import Found, scan
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RECOMPRESS_S_PER_GIB = 11.2
"""Nominal core-seconds that a rebuild may spend on encoders, for a target of a GiB: 1.75 for 160 MiB, on two cores."""
RECOMPRESS_S_LEAST = 1.75
"""What a smaller target may spend as well: a second is short whatever it is for."""
_PACKING_THREADS = 2
_FAILURES_MOST = 16
_WINDOW_BYTES = 1 << 20

_FORMS: Mapping[str, Sequence[Form]] = {
    "layout": (packing.TEXT,),
    "distances": (packing.BYTES, packing.TEXT),
    "gaps": (packing.BYTES, packing.TEXT),
    "lengths": (packing.BYTES, packing.TEXT),
    "marks": (packing.BYTES, packing.TEXT),
    "changes": (packing.WORDS, packing.TEXT),
    "literals": (packing.TEXT, packing.PLAIN, packing.BYTES),
}
_FASTEST = {
    Coding.DEFLATE: Encoder.ZLIB,
    Coding.LZ4: Encoder.LZ4,
    Coding.ZSTD: Encoder.ZSTD,
    Coding.XZ: Encoder.XZ,
}


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A stream of the target that is re-compressed."""

    found: Found
    recipe: Recipe


def delta_of(bases: Sequence[bytes], target: bytes) -> bytes:
    """The delta, not yet tried."""
    found = [scan(base) for base in bases]
    chosen = _choose(target, scan(target), _bodies(bases, found))
    expanded = _expandable(bases, found, target) if chosen else []
    new = b"".join((*(one.found.content for one in chosen), *_between(target, chosen)))
    old = b"".join((*bases, *(stream.content for _, stream in expanded)))
    covers = covers_of(old, new)
    covers, expanded, old = _without_unused(covers, expanded, old, sum(len(base) for base in bases))
    checksum = 0
    for one in chosen:
        checksum = zlib.crc32(target[one.found.offset : one.found.end], checksum)
    layout = Layout(
        tuple(
            Expansion(base, stream.offset, stream.length, stream.coding, len(stream.content))
            for base, stream in expanded
        ),
        tuple(Recompressed(one.found.offset, one.found.length, len(one.found.content), one.recipe) for one in chosen),
        checksum,
        len(covers),
    )
    raw = {"layout": encode_layout(layout), **_cover_streams(covers), **_byte_streams(covers, old, new)}
    with ThreadPoolExecutor(_PACKING_THREADS) as threads:
        streams = {name: pack(raw[name], _FORMS[name], threads) for name in STREAMS}
    return encode(Head(_digest(target), tuple(_digest(base) for base in bases), streams))


def _digest(content: bytes) -> Digest:
    return Digest(hashlib.sha256(content).hexdigest(), len(content))


def _bodies(images: Sequence[bytes], found: Sequence[Sequence[Found]]) -> set[bytes]:
    """The compressed bytes of streams, hashed."""
    return {
        hashlib.sha256(image[stream.offset : stream.end]).digest()
        for image, streams in zip(images, found, strict=True)
        for stream in streams
    }


def _choose(target: bytes, found: Sequence[Found], known: set[bytes]) -> list[_Chosen]:
    """Which streams of the target to re-compress, in their order."""
    left_s = max(RECOMPRESS_S_LEAST, len(target) / 2**30 * RECOMPRESS_S_PER_GIB)
    fresh = [
        stream
        for stream in found
        if hashlib.sha256(memoryview(target)[stream.offset : stream.end]).digest() not in known
    ]
    fresh.sort(key=_worth, reverse=True)
    likely: dict[tuple[Coding, bool], Recipe] = {}
    failures: dict[tuple[Coding, bool], int] = {}
    chosen: list[_Chosen] = []
    for stream in fresh:
        family = (stream.coding, stream.is_gzip)
        if failures.get(family, 0) >= _FAILURES_MOST or len(chosen) >= MAX_STREAMS:
            continue
        body = target[stream.offset : stream.end]
        recipe = recipe_of(
            stream.coding, stream.content, body, likely.get(family), most_s=left_s, is_gzip=stream.is_gzip
        )
        if recipe is None:
            failures[family] = failures.get(family, 0) + 1
            continue
        failures[family] = 0
        likely[family] = recipe
        left_s -= recipe.seconds(len(stream.content))
        chosen.append(_Chosen(stream, recipe))
    return sorted(chosen, key=lambda one: one.found.offset)


def _worth(stream: Found) -> float:
    """Bytes in the image for a nominal second."""
    encoder = Encoder.GZIP if stream.is_gzip else _FASTEST[stream.coding]
    return stream.length * NOMINAL_BYTES_PER_S[encoder] / len(stream.content)


def _expandable(bases: Sequence[bytes], found: Sequence[Sequence[Found]], target: bytes) -> list[tuple[int, Found]]:
    """Streams of the bases that the target does not have as they are: the counterparts of those that changed."""
    expanded: list[tuple[int, Found]] = []
    for place, (base, streams) in enumerate(zip(bases, found, strict=True)):
        expanded += [(place, stream) for stream in streams if target.find(base[stream.offset : stream.end]) < 0]
    return expanded[:MAX_STREAMS]


def _between(target: bytes, chosen: Sequence[_Chosen]) -> list[bytes]:
    """The target's bytes outside of the streams."""
    ends = [0, *(one.found.end for one in chosen)]
    starts = [*(one.found.offset for one in chosen), len(target)]
    return [target[end:start] for end, start in zip(ends, starts, strict=True)]


def _without_unused(
    covers: list[Cover], expanded: list[tuple[int, Found]], old: bytes, bases_bytes: int
) -> tuple[list[Cover], list[tuple[int, Found]], bytes]:
    """Leave out the expansions that no cover copies from: nobody need make them again."""
    starts = [bases_bytes]
    for _, stream in expanded:
        starts.append(starts[-1] + len(stream.content))
    used: set[int] = set()
    for cover in covers:
        first = bisect_right(starts, cover.old) - 1
        last = bisect_right(starts, cover.old + cover.length - 1) - 1
        used.update(range(first, last + 1))
    dropped: list[int] = [0]
    for place, (start, end) in enumerate(pairwise(starts)):
        dropped.append(dropped[-1] + (0 if place in used else end - start))
    moved = [
        Cover(cover.new, cover.old - dropped[max(bisect_right(starts, cover.old) - 1, 0)], cover.length)
        for cover in covers
    ]
    kept = [expanded[place] for place in range(len(expanded)) if place in used]
    return moved, kept, old[:bases_bytes] + b"".join(stream.content for _, stream in kept)


def _cover_streams(covers: Sequence[Cover]) -> dict[str, bytes]:
    distances, gaps, lengths = bytearray(), bytearray(), bytearray()
    old_end = new_end = 0
    for cover in covers:
        distance = cover.old - old_end
        distances += number(2 * distance if distance >= 0 else -2 * distance - 1)
        gaps += number(cover.new - new_end)
        lengths += number(cover.length)
        old_end, new_end = cover.old + cover.length, cover.new + cover.length
    return {"distances": bytes(distances), "gaps": bytes(gaps), "lengths": bytes(lengths)}


def _byte_streams(covers: Sequence[Cover], old: bytes, new: bytes) -> dict[str, bytes]:
    """Literals; and the differences over covers by blocks, those without any left out."""
    literals: list[bytes] = []
    end = 0
    changed: dict[int, bytearray] = {}
    for cover in covers:
        literals.append(new[end : cover.new])
        end = cover.new + cover.length
        for start in range(0, cover.length, _WINDOW_BYTES):
            stop = min(start + _WINDOW_BYTES, cover.length)
            is_now, was = new[cover.new + start : cover.new + stop], old[cover.old + start : cover.old + stop]
            if is_now != was:
                _note_changes(changed, cover.new + start, subtract(is_now, was))
    literals.append(new[end:])
    marks, changes = bytearray(), bytearray()
    run_start = run_end = after = 0
    for block in sorted(changed):
        if block != run_end:
            if run_end > run_start:
                marks += number(run_start - after) + number(run_end - run_start)
                after = run_end
            run_start = block
        run_end = block + 1
        changes += changed[block][: len(new) - block * BLOCK_BYTES]
    if run_end > run_start:
        marks += number(run_start - after) + number(run_end - run_start)
    return {"marks": bytes(marks), "changes": bytes(changes), "literals": b"".join(literals)}


def _note_changes(changed: dict[int, bytearray], position: int, difference: bytes) -> None:
    """Put the differences of one stretch into the blocks they are in."""
    end = position + len(difference)
    for start in range(position // BLOCK_BYTES * BLOCK_BYTES, end, BLOCK_BYTES):
        low, high = max(start, position), min(start + BLOCK_BYTES, end)
        piece = difference[low - position : high - position]
        if any(piece):
            block = changed.setdefault(start // BLOCK_BYTES, bytearray(BLOCK_BYTES))
            block[low - start : high - start] = piece
