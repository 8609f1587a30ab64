"""Which of the three kinds of origin a super hub reads from, opened by its configuration."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from superhub.origin import origin_at
from superhub.presigned import PresignedOrigin
from superhub.urls import UrlBook
from wavemesh.artifacts.objectstore import Place

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path

    from superhub.config import OriginConfig
    from superhub.urls import Ask
    from wavemesh.artifacts.download import BlobReader
    from wavemesh.runtime.clock import Clock
    from wavemesh.runtime.sqlite import Database
    from wavemesh.trust.statements import Digest


@dataclass(frozen=True, slots=True)
class OpenOrigin:
    """An origin to read from; ``urls`` where it is an object store."""

    reader: BlobReader
    reload: Callable[[], None]
    """The node's certificate was renewed; raises TlsFilesError."""
    urls: UrlBook | None = None

    def use(self, ask: Ask, wanted: Callable[[], Iterable[Digest]]) -> None:
        """Whom to ask for URLs, and for what."""
        if self.urls is not None:
            self.urls.use(ask, wanted)

    def wake(self) -> None:
        """What is wanted may be something else now, or control can be reached again."""
        if self.urls is not None:
            self.urls.wake()

    async def run(self) -> None:
        """Keep what reading takes, until cancelled; where that is nothing, this returns."""
        if self.urls is not None:
            await self.urls.run()


@asynccontextmanager
async def open_origin(
    config: OriginConfig, identity: Path, parallel: int, *, database: Database, clock: Clock
) -> AsyncIterator[OpenOrigin]:
    """The origin that is configured; raises TlsFilesError, IdentitySwitchError."""
    if config.is_bucket:
        urls = UrlBook(Place.parse(config.url), config.endpoint, database, clock)
        await urls.load()
        async with PresignedOrigin.connect(urls, config.ca_file, parallel) as bucket:
            yield OpenOrigin(bucket, bucket.reload, urls)
    else:
        async with origin_at(config.url, identity, parallel) as origin:
            yield OpenOrigin(origin, origin.reload)
