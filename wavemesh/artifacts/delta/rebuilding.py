"""Rebuild a target from bases and a delta: expand, assemble, re-compress, hash, hand on in pieces.

A few threads re-compress while the assembling goes on; one more hashes and hands on what is ready, a piece behind. What
comes out is hashed on its way, and only that hash is believed.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from wavemesh.artifacts.delta.assembling import Assembly, Source
from wavemesh.artifacts.delta.container import MAX_LAYOUT_BYTES, STREAMS, Head, Layout, parse, parse_layout
from wavemesh.artifacts.delta.errors import BadDeltaError
from wavemesh.artifacts.delta.packing import Unpacking
from wavemesh.artifacts.delta.recipes import expand, recompress
from wavemesh.runtime.durable import disk_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from wavemesh.trust.statements import Digest

RECOMPRESSING_THREADS = 4
"""More than cores of a small hub: one of the encoders is a program of its own, and the longest may come last."""


def map_file(path: Path) -> memoryview:
    """The bytes of a file, mapped until nothing refers to them; raises DiskFaultError."""
    with disk_errors(path), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END) if file.seekable() else 0
        return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b"")


class _Output:
    """Hashes pieces and hands them on, in a thread, one piece behind whoever makes them."""

    def __init__(self, sink: Callable[[bytes | bytearray | memoryview], None]) -> None:
        self._sink = sink
        self._hasher = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def put(self, piece: bytes | bytearray | memoryview) -> None:
        if self._last is not None:
            self._last.result()
        self._last = self._thread.submit(self._handle, piece)

    def _handle(self, piece: bytes | bytearray | memoryview) -> None:
        self._hasher.update(piece)
        self._sink(piece)

    def finish(self) -> str:
        """SHA-256 of all pieces, in hex."""
        if self._last is not None:
            self._last.result()
        return self._hasher.hexdigest()

    def close(self) -> None:
        self._thread.shutdown()


class _Feed:
    """Takes windows apart into pieces of the lengths asked for."""

    def __init__(self, windows: Iterator[bytearray]) -> None:
        self._windows = windows
        self._window = memoryview(b"")

    def pieces(self, length: int) -> Iterator[memoryview]:
        """So many bytes, in pieces of at most a window."""
        while length:
            if not self._window:
                window = next(self._windows, None)
                if window is None:
                    raise BadDeltaError("it ends before the target does")
                self._window = memoryview(window)
            piece = self._window[:length]
            self._window = self._window[len(piece) :]
            length -= len(piece)
            yield piece

    def take(self, length: int) -> bytes:
        """So many bytes at once."""
        return b"".join(self.pieces(length))


def rebuild_into(
    bases: Sequence[memoryview],
    delta: memoryview,
    target: Digest,
    sink: Callable[[bytes | bytearray | memoryview], None],
) -> None:
    """Hand the target's bytes to ``sink`` in order; they are the target's only if it returns. Raises BadDeltaError."""
    head = parse(delta)
    _check(head, bases, target)
    found = _rebuild(head, layout_of(head), bases, sink)
    if found != target.sha256:
        raise BadDeltaError(_what_is_wrong(head, bases, found))


def layout_of(head: Head) -> Layout:
    """Its layout, unpacked; raises BadDeltaError."""
    packed = head.streams["layout"]
    if packed.length > MAX_LAYOUT_BYTES:
        raise BadDeltaError(f"its layout has {packed.length} bytes, more than {MAX_LAYOUT_BYTES}")
    unpacking = Unpacking(packed, "layout")
    layout = parse_layout(unpacking.read(packed.length), head)
    unpacking.finish()
    return layout


def _check(head: Head, bases: Sequence[memoryview], target: Digest) -> None:
    if head.target != target:
        raise BadDeltaError(f"it is for {head.target.sha256} of {head.target.size_bytes} bytes, not {target.sha256}")
    sizes = [base.size_bytes for base in head.bases]
    if sizes != [len(base) for base in bases]:
        raise BadDeltaError(f"it wants bases of {sizes} bytes, it was given {[len(base) for base in bases]}")


def _what_is_wrong(head: Head, bases: Sequence[memoryview], found: str) -> str:
    for place, (wanted, base) in enumerate(zip(head.bases, bases, strict=True)):
        sha256 = hashlib.sha256(base).hexdigest()
        if sha256 != wanted.sha256:
            return f"base {place} is {sha256}, it is made for {wanted.sha256}"
    return f"it rebuilds {found}, not {head.target.sha256}"


def _rebuild(
    head: Head, layout: Layout, bases: Sequence[memoryview], sink: Callable[[bytes | bytearray | memoryview], None]
) -> str:
    """Returns the SHA-256 of what was handed on: never more than the target's size, by how the layout was checked."""
    expanded = [
        memoryview(expand(one.coding, bases[one.base][one.offset : one.offset + one.length], one.content_bytes))
        for one in layout.expansions
    ]
    streams = {name: Unpacking(head.streams[name], name) for name in STREAMS if name != "layout"}
    assembly = Assembly(Source([*bases, *expanded]), streams, layout.virtual_bytes(head.target), layout.covers)
    feed = _Feed(assembly.windows())
    output = _Output(sink)
    threads = ThreadPoolExecutor(RECOMPRESSING_THREADS)
    try:
        bodies = [threads.submit(recompress, one.recipe, feed.take(one.content_bytes)) for one in layout.recompressed]
        checksum = end = 0
        for one, body in zip(layout.recompressed, bodies, strict=True):
            for piece in feed.pieces(one.offset - end):
                output.put(piece)
            written = body.result()
            if len(written) != one.length:
                raise BadDeltaError(_other_encoder(f"{one.recipe} writes {len(written)} bytes, not {one.length}"))
            checksum = zlib.crc32(written, checksum)
            output.put(written)
            end = one.offset + one.length
        if checksum != layout.recompressed_crc:
            raise BadDeltaError(_other_encoder("the bytes differ"))
        for piece in feed.pieces(head.target.size_bytes - end):
            output.put(piece)
        assembly.finish()
        return output.finish()
    finally:
        threads.shutdown(cancel_futures=True)
        output.close()


def _other_encoder(found: str) -> str:
    return f"what is re-compressed here is not what its maker had: {found}; the base is another, or the encoder"
