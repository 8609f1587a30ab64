"""One fetch per blob, however many ask for it (S1).

Rules: the first who asks starts the fetch, the others join it and read while it goes on; it does not end because they
leave, so nothing is fetched again for the next one. At most ``parallel`` fetches run, the others wait in order. A fetch
that failed is forgotten with its error told to all who waited; the next who asks starts anew where it stopped. A fetch
can be stopped, and its followers learn that it was.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from wavemesh.errors import WavemeshError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from wavemesh.artifacts.blobstore import BlobStore, BlobWriter
    from wavemesh.trust.statements import Digest


class Fetch(Protocol):
    """Brings a blob to its end, retries included; raises WavemeshError when it gives up."""

    async def __call__(self, writer: BlobWriter) -> None:
        """Write everything from ``writer.offset`` on."""
        ...


class _Flight:
    """A fetch that is going on."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.error: WavemeshError | None = None
        self.task: asyncio.Task[None] | None = None


class Fetches:
    """The fetches of one store."""

    def __init__(
        self,
        store: BlobStore,
        fetch: Fetch,
        group: asyncio.TaskGroup,
        parallel: int = 4,
        prepare: Callable[[Digest], Awaitable[None]] | None = None,
    ) -> None:
        """Fetches run as tasks of ``group``. ``prepare`` comes before the writer, in the same turn; as ``fetch``."""
        self._prepare = prepare
        self._store = store
        self._fetch = fetch
        self._group = group
        self._parallel = asyncio.Semaphore(parallel)
        self._flights: dict[Digest, _Flight] = {}

    def begin(self, digest: Digest) -> None:
        """Start fetching a blob unless it is held or on its way. Does not wait."""
        if not self._store.has(digest) and digest not in self._flights:
            flight = self._flights[digest] = _Flight()
            flight.task = self._group.create_task(self._run(digest, flight), name=f"fetch {digest.sha256[:12]}")
            # Once more after the task: one that is cancelled before its first step never gets to its ``finally``.
            flight.task.add_done_callback(lambda _: self._end(digest, flight))

    async def ensure(self, digest: Digest) -> None:
        """Have the blob held, verified; raises the error of the fetch, or LocalError if there is no room."""
        self.begin(digest)
        flight = self._flights.get(digest)
        if flight is not None:
            await flight.ended.wait()
            if flight.error is not None:
                raise flight.error

    async def open(self, digest: Digest, offset: int, length_bytes: int = 0) -> AsyncGenerator[bytes, None]:
        """The blob's bytes from ``offset`` on, while they are still being fetched; raises as ``ensure``.

        ``length_bytes`` of them, or with 0 all to the end.
        """
        self.begin(digest)
        flight = self._flights.get(digest)
        if flight is not None:
            await flight.started.wait()
            if flight.error is not None:
                raise flight.error
        return self._store.follow(digest, offset, length_bytes)

    @property
    def active(self) -> list[Digest]:
        """What is being fetched or waits for its turn."""
        return list(self._flights)

    def stop(self, digest: Digest, error: WavemeshError) -> None:
        """End the fetch of a blob, if there is one; those who wait for it get ``error``. What arrived stays."""
        flight = self._flights.get(digest)
        if flight is not None and flight.task is not None:
            flight.error = error
            flight.task.cancel()

    def stop_all(self, error: WavemeshError) -> None:
        """End all fetches; what arrived stays."""
        for digest in self.active:
            self.stop(digest, error)

    async def _run(self, digest: Digest, flight: _Flight) -> None:
        try:
            async with self._parallel:
                if self._prepare is not None:
                    await self._prepare(digest)
                async with self._store.writer(digest) as writer:
                    flight.started.set()
                    await self._fetch(writer)
        except WavemeshError as error:
            flight.error = error
        finally:
            self._end(digest, flight)

    def _end(self, digest: Digest, flight: _Flight) -> None:
        if self._flights.get(digest) is flight:
            del self._flights[digest]
        flight.started.set()
        flight.ended.set()
