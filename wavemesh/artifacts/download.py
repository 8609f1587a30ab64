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
    from collections.abc import AsyncGenerator, Callable
    from random import Random

    from wavemesh.trust.statements import Digest


class BlobReader(Protocol):
    """Whence a blob comes: ArtifactClient, or a super hub's origin."""

    def read(self, digest: Digest, offset: int) -> AsyncGenerator[memoryview, None]:
        """The bytes from ``offset`` to the end; raises PeerErrors."""
        ...


class BlobSink(Protocol):
    """Where a blob goes: a BlobWriter, or the inactive slot of a device."""

    @property
    def digest(self) -> Digest:
        """What is written."""
        ...

    @property
    def offset(self) -> int:
        """Bytes held: where the next read starts."""
        ...

    async def write(self, data: bytes | memoryview) -> None:
        """Append."""
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
    patience = patience or Patience()
    fruitless = 0
    while sink.offset < sink.digest.size_bytes:
        start = sink.offset
        try:
            async with aclosing(reader.read(sink.digest, start)) as pieces:
                async for piece in pieces:
                    await sink.write(piece)
                    if progress is not None:
                        progress(sink.offset)
            _check_end(sink)
        except (GateError, NotFoundError, ForbiddenError, ConflictError):
            raise
        except PeerError as error:
            fruitless = 0 if sink.offset > start else fruitless + 1
            if fruitless >= patience.attempts:
                raise
            await asyncio.sleep(_pause_s(error, fruitless, patience, rng))
    await sink.finish()


def _check_end(sink: BlobSink) -> None:
    if sink.offset < sink.digest.size_bytes:
        msg = f"the bytes of blob {sink.digest.sha256} ended at {sink.offset} of {sink.digest.size_bytes}"
        raise LinkDownError(msg)


def _pause_s(error: PeerError, fruitless: int, patience: Patience, rng: Random) -> float:
    """Full jitter below a doubling ceiling; after a retry-after, that time and the jitter on top."""
    ceiling_s = min(patience.back_off_max_s, patience.back_off_min_s * 2.0 ** min(fruitless, 32))
    jitter_s = rng.uniform(0.0, ceiling_s)
    return jitter_s + (min(error.retry_after_s, patience.back_off_max_s) if isinstance(error, BusyError) else 0.0)
