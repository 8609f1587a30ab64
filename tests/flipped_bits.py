"""One flipped bit in a cached blob of a lab's hub, and what a device is then served of it."""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from typing import TYPE_CHECKING

from lab import processes
from lab.topology import device_id, store_id
from wavemesh.artifacts.transfer import ArtifactClient
from wavemesh.errors import WavemeshError
from wavemesh.identity.credentials import NodeCredentials
from wavemesh.runtime.grpc import make_bulk_channel

if TYPE_CHECKING:
    from pathlib import Path

    from lab.topology import Lab
    from wavemesh.trust.statements import Digest


def blob_path(hub: Path, digest: Digest) -> Path:
    """Where a hub has a blob."""
    cache = hub / "state" / "cache" / "blobs" / digest.sha256[:2]
    return cache / f"{digest.sha256}-{digest.size_bytes}"


def flip(path: Path, position: int = 1000) -> None:
    """Turn one bit over, in the middle of the file's first step."""
    with path.open("r+b") as file:
        file.seek(position)
        [byte] = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 0x04]))


def read_as(lab: Lab, store: str, device: str, digest: Digest) -> tuple[bytes, WavemeshError | None]:
    """All that a device is served of a blob by its store's hub, and what ended it before the end."""
    return asyncio.run(_read_as(lab, store, device, digest))


async def _read_as(lab: Lab, store: str, device: str, digest: Digest) -> tuple[bytes, WavemeshError | None]:
    credentials = NodeCredentials.load(lab.device_dir(device) / "identity")
    assert credentials.node_id == device_id(store, device)
    client = ArtifactClient(lambda: make_bulk_channel(credentials, lab.address(store), store_id(store)))
    received = bytearray()
    try:
        async with aclosing(client.read(digest)) as pieces:
            async for piece in pieces:
                received += piece
    except WavemeshError as error:
        return bytes(received), error
    return bytes(received), None


def restart_scrubbing(lab: Lab, name: str, hub: Path) -> None:
    """Kill a hub and start it with a scrub that goes round every second."""
    config = hub / "config.toml"
    text = re.sub(r"^scrub_.*\n", "", config.read_text(), flags=re.MULTILINE)
    processes.kill(lab, [name])
    config.write_text(f"scrub_interval_s = 1.0\nscrub_bytes_per_s = 100000000\n{text}")
    processes.start(lab, [name])
