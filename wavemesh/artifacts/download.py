"""Getting a blob to its end: reads resumed at the byte where the last one broke.

Rules: what is held is never asked for again; between attempts the client waits with full jitter, from nothing up to a
ceiling that doubles until ``back_off_max_s`` and starts again whenever bytes arrived; a peer's retry-after is heeded.
A gate, an unknown blob and a refused identity are answers, not accidents: they end the download at once. ``attempts``
bounds the attempts in a row that brought nothing. The sink verifies at the end.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from wavemesh.errors import BusyError, ConflictError, ForbiddenError, GateError, LinkDownError, NotFoundError, PeerError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
    from random import Random

    from wavemesh.artifacts.chunkindex import Range
    from wavemesh.trust.statements import Digest


class BlobReader(Protocol):
    """Whence a blob comes: ArtifactClient, or a super hub's origin."""

    def read(self, digest: Digest, offset: int) -> AsyncGenerator[memoryview, None]:
        """The bytes from ``offset`` to the end; raises PeerErrors."""
        ...


class RangeReader(Protocol):
    """Whence parts of a blob come: ArtifactClient, YieldingReader."""

    def read(self, digest: Digest, offset: int, length_bytes: int) -> AsyncGenerator[memoryview, None]:
        """``length_bytes`` bytes from ``offset`` on; raises PeerErrors."""
        ...


class RangeSink(Protocol):
    """Where parts of a blob go, one after the other."""

    @property
    def offset(self) -> int:
        """Bytes held: where the next read starts."""
        ...

    async def write(self, data: bytes | memoryview) -> None:
        """Append."""
        ...


class BlobSink(RangeSink, Protocol):
    """Where a blob goes: a BlobWriter, or the inactive slot of a device."""

    @property
    def digest(self) -> Digest:
        """What is written."""
        ...

    async def finish(self) -> None:
        """Verify; raises LocalError when the bytes are not what the digest says."""
        ...


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and how slowly a download tries again."""

    attempts: int = 20
    back_off_min_s: float = 0.2
    back_off_max_s: float = 30.0


async def download(
    reader: BlobReader,
    sink: BlobSink,
    *,
    rng: Random,
    patience: Patience | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Fetch what the sink lacks and verify it; ``progress`` is told the sink's offset after each piece.

    Raises GateError, NotFoundError, ForbiddenError or ConflictError at once, the last PeerError when patience is at an
    end, and whatever the sink raises.
    """

    async def read() -> None:
        async with aclosing(reader.read(sink.digest, sink.offset)) as pieces:
            await _pour(pieces, sink, progress)

    await _persevere(read, sink, sink.digest.size_bytes, rng, patience or Patience())
    await sink.finish()


async def download_ranges(
    reader: RangeReader,
    digest: Digest,
    ranges: Sequence[Range],
    sink: RangeSink,
    *,
    rng: Random,
    patience: Patience | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Fetch what the sink lacks of these ranges of a blob, one after the other; as ``download``, and unverified.

    Whoever puts the parts together verifies them: a part of a blob has no digest.
    """

    async def read() -> None:
        for offset, length_bytes in rest_of(ranges, sink.offset):
            end = sink.offset + length_bytes
            async with aclosing(reader.read(digest, offset, length_bytes)) as pieces:
                await _pour(pieces, sink, progress)
            if sink.offset != end:  # else the next range would be taken for the rest of this one
                msg = f"{length_bytes} bytes of blob {digest.sha256} from {offset} on ended at {sink.offset} of {end}"
                raise LinkDownError(msg)

    await _persevere(read, sink, sum(one.length for one in ranges), rng, patience or Patience())


def rest_of(ranges: Sequence[Range], held: int) -> Iterator[tuple[int, int]]:
    """Offset and length of what is left of the ranges when the first ``held`` bytes of them all are there."""
    for one in ranges:
        skipped = min(held, one.length)
        held -= skipped
        if skipped < one.length:
            yield one.offset + skipped, one.length - skipped


async def _pour(pieces: AsyncIterator[memoryview], sink: RangeSink, progress: Callable[[int], None] | None) -> None:
    async for piece in pieces:
        await sink.write(piece)
        if progress is not None:
            progress(sink.offset)


async def _persevere(
    read: Callable[[], Awaitable[None]], sink: RangeSink, size_bytes: int, rng: Random, patience: Patience
) -> None:
    """Read again, from where the sink is, until it has so many bytes; raises as ``download``."""
    fruitless = 0
    while sink.offset < size_bytes:
        start = sink.offset
        try:
            await read()
            _check_end(sink, size_bytes)
        except (GateError, NotFoundError, ForbiddenError, ConflictError):
            raise
        except PeerError as error:
            fruitless = 0 if sink.offset > start else fruitless + 1
            if fruitless >= patience.attempts:
                raise
            await asyncio.sleep(_pause_s(error, fruitless, patience, rng))


def _check_end(sink: RangeSink, size_bytes: int) -> None:
    if sink.offset < size_bytes:
        msg = f"the bytes ended at {sink.offset} of {size_bytes}"
        raise LinkDownError(msg)


def _pause_s(error: PeerError, fruitless: int, patience: Patience, rng: Random) -> float:
    """Full jitter below a doubling ceiling; after a retry-after, that time and the jitter on top."""
    ceiling_s = min(patience.back_off_max_s, patience.back_off_min_s * 2.0 ** min(fruitless, 32))
    jitter_s = rng.uniform(0.0, ceiling_s)
    return jitter_s + (min(error.retry_after_s, patience.back_off_max_s) if isinstance(error, BusyError) else 0.0)
