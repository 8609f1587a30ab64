"""The virtual target, a window at a time, from the virtual base and the streams of a delta.

Memory is bounded by the window, not by the target. Raises BadDeltaError.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

from wavemesh.artifacts.delta.container import BLOCK_BYTES
from wavemesh.artifacts.delta.differences import add
from wavemesh.artifacts.delta.errors import BadDeltaError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from wavemesh.artifacts.delta.packing import Unpacking

WINDOW_BYTES = 4 * 1024 * 1024
_STEP_BYTES = 1 << 16
_NUMBER_BITS_MOST = 62


class Source:
    """The virtual base: several buffers one after the other."""

    def __init__(self, parts: Sequence[memoryview]) -> None:
        """Empty parts are fine."""
        self._parts = [part for part in parts if len(part)]
        self._starts = [0, *accumulate(len(part) for part in self._parts)]

    @property
    def size_bytes(self) -> int:
        """Of all parts."""
        return self._starts[-1]

    def append_to(self, out: bytearray, position: int, length: int) -> None:
        """Put ``length`` bytes from ``position`` at the end of ``out``."""
        if position < 0 or position + length > self.size_bytes:
            raise BadDeltaError(f"it copies bytes {position} to {position + length} of a base of {self.size_bytes}")
        place = bisect_right(self._starts, position) - 1
        while length:
            start = position - self._starts[place]
            piece = self._parts[place][start : start + length]
            out += piece
            position += len(piece)
            length -= len(piece)
            place += 1


def numbers(stream: Unpacking) -> Iterator[int]:
    """The LEB128 numbers of a stream, to its end."""
    value = shift = 0
    while stream.left:
        for byte in stream.read(min(_STEP_BYTES, stream.left)):
            if byte < 0x80:
                yield value | byte << shift
                value = shift = 0
            else:
                value |= (byte & 0x7F) << shift
                shift += 7
                if shift > _NUMBER_BITS_MOST:
                    raise BadDeltaError("it has a number that is too long")
    if shift:
        raise BadDeltaError("it ends within a number")


class Assembly:
    """Puts the virtual target together, from its start to its end, once."""

    def __init__(self, source: Source, streams: Mapping[str, Unpacking], size_bytes: int, covers: int) -> None:
        """``size_bytes`` is the virtual target's."""
        self._source = source
        self._size_bytes = size_bytes
        self._streams = streams
        self._covers = covers
        self._distances = numbers(streams["distances"])
        self._gaps = numbers(streams["gaps"])
        self._lengths = numbers(streams["lengths"])
        self._marks = numbers(streams["marks"])
        self._literals_left = self._cover_left = self._cover_at = self._done = 0
        self._run_left = 0
        self._run_is_changed = True  # the first run is of unchanged blocks, and alone may be empty
        self._is_first_run = True

    def windows(self) -> Iterator[bytearray]:
        """The pieces in their order."""
        while self._done < self._size_bytes:
            size = min(WINDOW_BYTES, self._size_bytes - self._done)
            window = bytearray()
            while len(window) < size:
                self._extend(window, size)
            self._change(window)
            self._done += size
            yield window

    def finish(self) -> None:
        """See that the streams have no more than was used."""
        if self._covers or self._literals_left or self._cover_left or (self._run_left and self._run_is_changed):
            raise BadDeltaError("it goes on after the target's end")
        for name in ("distances", "gaps", "lengths", "marks", "changes", "literals"):
            self._streams[name].finish()

    def _next(self, numbers_of: Iterator[int], what: str) -> int:
        value = next(numbers_of, None)
        if value is None:
            raise BadDeltaError(f"it has too few {what}")
        return value

    def _extend(self, window: bytearray, size: int) -> None:
        """One more piece: of literals, or of a cover."""
        if not self._literals_left and not self._cover_left:
            position = self._done + len(window)
            if self._covers:
                self._covers -= 1
                self._literals_left = self._next(self._gaps, "gaps")
                self._cover_left = self._next(self._lengths, "lengths")
                distance = self._next(self._distances, "distances")
                self._cover_at += -(distance >> 1) - 1 if distance & 1 else distance >> 1
                if not self._cover_left or position + self._literals_left + self._cover_left > self._size_bytes:
                    raise BadDeltaError(f"a cover at byte {position} is empty or longer than the target")
            else:
                self._literals_left = self._size_bytes - position
        if self._literals_left:
            length = min(self._literals_left, size - len(window))
            window += self._streams["literals"].read(length)
            self._literals_left -= length
        length = min(self._cover_left, size - len(window))
        if length:
            self._source.append_to(window, self._cover_at, length)
            self._cover_at += length
            self._cover_left -= length

    def _change(self, window: bytearray) -> None:
        """Add to the changed blocks of a window what is to be added."""
        places: list[slice] = []
        block, blocks = 0, -(-len(window) // BLOCK_BYTES)
        while block < blocks:
            if not self._run_left:
                self._run_is_changed = not self._run_is_changed
                run = next(self._marks, None)
                if run is None:  # unchanged to the end
                    self._run_is_changed, run = False, self._size_bytes
                if not run and not self._is_first_run:
                    raise BadDeltaError("it has an empty run of blocks")
                self._is_first_run = False
                self._run_left = run
            length = min(self._run_left, blocks - block)
            if self._run_is_changed and length:
                places.append(slice(block * BLOCK_BYTES, min((block + length) * BLOCK_BYTES, len(window))))
            block += length
            self._run_left -= length
        if not places:
            return
        view = memoryview(window)
        before = b"".join([view[place] for place in places])
        after = memoryview(add(before, self._streams["changes"].read(len(before))))
        at = 0
        for place in places:
            length = place.stop - place.start
            view[place] = after[at : at + length]
            at += length
