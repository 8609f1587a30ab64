"""The server process of ``bench transfer``: a store hub's cache and ArtifactServer, or the bare grpcio stream.

``python -m bench.transfer_server ours|floor IDENTITY_DIR BLOB``. ``ours`` serves the file from a BlobStore next to it
through ``follow``, as storehub/cache.py does for a blob it holds. ``floor`` sends the same bytes in frames of the same
size and checks nothing. Says its port, then serves until standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from bench.floor import bare_server
from wavemesh.artifacts.blobstore import BlobStore
from wavemesh.artifacts.digests import digest_of_file
from wavemesh.artifacts.tags import READ_STEP_BYTES
from wavemesh.artifacts.transfer import ArtifactServer
from wavemesh.identity.credentials import NodeCredentials
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.grpc import make_server, run
from wavemesh.runtime.peers import Peers

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from wavemesh.identity.nodes import NodeId
    from wavemesh.trust.statements import Digest

FLOOR_METHOD = "/bench.Bulk/Read"
MAX_RPCS = 256


@dataclass(frozen=True, slots=True)
class HeldBlobs:
    """A BlobSource over a store that holds all it is asked for."""

    store: BlobStore

    async def find_missing(self, peer: NodeId, digests: Sequence[Digest]) -> Sequence[Digest]:
        """See BlobSource."""
        del peer
        return [digest for digest in digests if not self.store.has(digest)]

    async def open(self, peer: NodeId, digest: Digest, offset: int, length_bytes: int) -> AsyncGenerator[bytes, None]:
        """See BlobSource."""
        del peer
        return self.store.follow(digest, offset, length_bytes)


@dataclass(frozen=True, slots=True)
class BareStream:
    """The floor: the file's bytes, frame after frame."""

    path: Path

    async def read(self, _: bytes, context: Any) -> None:
        """Send the whole file."""
        with self.path.open("rb", buffering=0) as file:
            offset = 0
            while piece := os.pread(file.fileno(), READ_STEP_BYTES, offset):
                await context.write(piece)
                offset += len(piece)


async def serve(kind: str, identity: Path, blob: Path) -> None:
    """Serve until standard input ends."""
    credentials = NodeCredentials.load(identity)
    if kind == "ours":
        peers = Peers(credentials.authorities, SystemClock())
        server, port = make_server(credentials, address="127.0.0.1:0", maximum_concurrent_rpcs=MAX_RPCS, peers=peers)
        ArtifactServer(credentials.node_id, HeldBlobs(await _filled_store(blob)), peers).add_to(server)
    else:
        server, port = bare_server(credentials, MAX_RPCS)
        _, service, method = FLOOR_METHOD.split("/")
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_stream_rpc_method_handler(BareStream(blob).read)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    await server.start()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print(json.dumps({"port": port}), flush=True)
    await reader.read()
    await server.stop(None)


async def _filled_store(blob: Path) -> BlobStore:
    """A store next to the file, which holds it as a fetch would leave it."""
    digest = await digest_of_file(blob)
    store = await BlobStore.open(blob.parent / "cache", 2 * digest.size_bytes + 1, SystemClock())
    if not store.has(digest):
        async with store.writer(digest) as writer:
            with blob.open("rb") as file:
                while piece := file.read(READ_STEP_BYTES):
                    await writer.write(piece)
    return store


if __name__ == "__main__":
    run(serve(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
