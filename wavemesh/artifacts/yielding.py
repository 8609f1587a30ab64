"""Bulk that gives way: reads from a parent over a thin link, with no more bytes on the way than ``inflight.py`` allows.

The window is HTTP/2's, which gRPC takes when a channel is made. Another window is therefore another channel, and the
read goes on there at its byte: a handshake and two round trips, a few times in the life of a hub.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from wavemesh.artifacts.inflight import InFlight
from wavemesh.artifacts.offers import ask_offers
from wavemesh.artifacts.transfer import ArtifactClient

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    import grpc

    from wavemesh.artifacts.plan import Method, Offer
    from wavemesh.runtime.clock import Clock
    from wavemesh.trust.statements import Digest

    OpenChannel = Callable[[tuple[tuple[str, Any], ...]], grpc.aio.Channel]


TRIPS = 4


class YieldingReader:
    """A BlobReader for the link that sessions use too."""

    def __init__(self, open_channel: OpenChannel, clock: Clock) -> None:
        """``open_channel`` makes a bulk channel with these options besides its own."""
        self._open_channel = open_channel
        self._clock = clock
        self._in_flight = InFlight()
        self._client: ArtifactClient | None = None
        self._is_measured = False
        self._reads = 0

    @property
    def window_bytes(self) -> int:
        """What each read lets be on the way now."""
        return self._in_flight.window_bytes

    async def read(self, digest: Digest, offset: int = 0, length_bytes: int = 0) -> AsyncGenerator[memoryview, None]:
        """The bytes of a blob from ``offset`` on, ``length_bytes`` or all; as ``ArtifactClient.read``."""
        end = offset + length_bytes if length_bytes else digest.size_bytes
        self._reads += 1
        try:
            while True:
                client = self._current()
                async with client.transfer(), aclosing(self._pieces(client, digest, offset, end)) as pieces:
                    async for piece in pieces:
                        offset += len(piece)
                        yield piece
                if client is self._client or offset >= end:
                    return
        finally:
            self._reads -= 1

    async def offer(
        self, target: Digest, bases: Sequence[Digest], methods: Sequence[Method]
    ) -> tuple[Offer, ...] | None:
        """By which deliveries the parent could bring a blob; None if it knows none. Raises as ``ask_offers``."""
        async with self._current().transfer() as channel:
            return await ask_offers(channel, target, bases, methods)

    async def _pieces(
        self, client: ArtifactClient, digest: Digest, offset: int, end: int
    ) -> AsyncGenerator[memoryview, None]:
        """Pieces of this client up to ``end``, until the window is another."""
        if not self._is_measured:
            await self._measure(client)
        self._in_flight.begin(self._clock.monotonic())
        async with aclosing(client.read(digest, offset, end - offset if end < digest.size_bytes else 0)) as pieces:
            async for piece in pieces:
                yield piece
                if self._in_flight.arrived(len(piece), self._reads, self._clock.monotonic()):
                    self._client = None
                if client is not self._client:
                    return

    async def _measure(self, client: ArtifactClient) -> None:
        """Ask for nothing, a few times: the first answer waits for the handshake, others for what goes up just then."""
        await client.find_missing(())
        for _ in range(TRIPS):
            began_s = self._clock.monotonic()
            await client.find_missing(())
            self._in_flight.trip(self._clock.monotonic() - began_s)
        self._is_measured = True

    def _current(self) -> ArtifactClient:
        """The client of the window in force."""
        if self._client is None:
            window = self._in_flight.window_bytes
            # Without the second gRPC widens the window by itself to whatever the queue on the link holds.
            options = (("grpc.http2.lookahead_bytes", window), ("grpc.http2.bdp_probe", 0))
            self._is_measured = False
            self._client = ArtifactClient(lambda: self._open_channel(options), window_bytes=window)
        return self._client
