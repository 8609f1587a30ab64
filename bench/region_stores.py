"""Some of the store hubs of ``bench region``, many to a process, each with its own identity and mTLS connection.

``python -m bench.region_stores hub|proxy ADDRESS PARENT_URI SHA256 SIZE IDENTITY_DIR...``. Says it is ready; at a line
on standard input every store asks for the blob at once, by the product's own client with the store hub's patience, or
of the caching proxy by HTTPS; digests what comes and keeps nothing; then all say what they got and when.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import resource
import sys
import time
from contextlib import aclosing
from functools import partial
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Any

import aiohttp

from storehub.cache import FETCH_ATTEMPTS
from storehub.config import Config
from superhub.origin import Origin
from wavemesh.artifacts.download import Patience, download
from wavemesh.artifacts.transfer import ArtifactClient
from wavemesh.errors import BusyError, LinkDownError
from wavemesh.identity.contexts import client_context
from wavemesh.identity.credentials import NodeCredentials
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.grpc import make_bulk_channel, run
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from wavemesh.artifacts.download import BlobReader

HUB, PROXY = "hub", "proxy"


class Taken:
    """A BlobSink that digests and keeps nothing; times are seconds since 1970."""

    def __init__(self, digest: Digest) -> None:
        """Begin."""
        self.digest = digest
        self.offset = 0
        self.first_at = 0.0
        self._sha256 = hashlib.sha256()

    async def write(self, data: bytes | memoryview) -> None:
        """See BlobSink."""
        if not self.offset:
            self.first_at = time.time()
        self._sha256.update(data)
        self.offset += len(data)

    async def finish(self) -> None:
        """The parent compares what is told."""

    @property
    def sha256(self) -> str:
        """What was found."""
        return self._sha256.hexdigest()


class Counted:
    """A BlobReader that counts what it was turned away and what came."""

    def __init__(self, reader: BlobReader) -> None:
        """A reader on another."""
        self._reader = reader
        self.sheds = 0
        self.breaks = 0
        self.received_bytes = 0

    async def read(self, digest: Digest, offset: int) -> AsyncGenerator[memoryview, None]:
        """See BlobReader."""
        try:
            async with aclosing(self._reader.read(digest, offset)) as pieces:
                async for piece in pieces:
                    self.received_bytes += len(piece)
                    yield piece
        except BusyError:
            self.sheds += 1
            raise
        except LinkDownError:
            self.breaks += 1
            raise


async def _take(reader: BlobReader, digest: Digest) -> dict[str, Any]:
    """One store's whole fetch."""
    config, sink, counted = Config(listen="", parent=""), Taken(digest), Counted(reader)
    patience = Patience(FETCH_ATTEMPTS, config.fetch_retry_min_s, config.fetch_retry_max_s)
    gave_up = 0
    while True:
        try:
            await download(counted, sink, rng=SystemRandom(), patience=patience)
            break
        except (BusyError, LinkDownError):  # a store hub's devices ask again, and it goes on at its byte
            gave_up += 1
    return {
        "gave_up": gave_up,
        "sha256": sink.sha256,
        "bytes": counted.received_bytes,
        "sheds": counted.sheds,
        "breaks": counted.breaks,
        "first_at": sink.first_at,
        "ended_at": time.time(),
    }


async def _from_hub(credentials: NodeCredentials, address: str, parent: NodeId, digest: Digest) -> dict[str, Any]:
    return await _take(ArtifactClient(partial(make_bulk_channel, credentials, address, parent)), digest)


async def _from_proxy(identity: Path, address: str, digest: Digest) -> dict[str, Any]:
    connector = aiohttp.TCPConnector(ssl=client_context(identity), limit=1)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=60.0, sock_read=600.0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
        return await _take(Origin(f"https://{address}", session, lambda: None), digest)


async def main(arguments: list[str]) -> None:
    """Serve the parent's one word."""
    kind, address, parent, sha256, size, *directories = arguments
    digest, identities = Digest(sha256, int(size)), [Path(one) for one in directories]
    credentials = [NodeCredentials.load(identity) for identity in identities] if kind == HUB else []
    print(json.dumps({"ready": len(identities)}), flush=True)
    if not await asyncio.to_thread(sys.stdin.readline):
        return
    async with asyncio.TaskGroup() as group:
        if kind == HUB:
            hub = NodeId.parse(parent)
            stores = [group.create_task(_from_hub(one, address, hub, digest)) for one in credentials]
        else:
            stores = [group.create_task(_from_proxy(one, address, digest)) for one in identities]
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"stores": [one.result() for one in stores], "cpu_s": used.ru_utime + used.ru_stime}), flush=True)


if __name__ == "__main__":
    run(main(sys.argv[1:]))
