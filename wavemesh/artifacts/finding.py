"""What lies in the directories of a blob store when it is opened; what can be no blob is removed."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from wavemesh.artifacts.digests import blob_name, parse_blob_name
from wavemesh.artifacts.partial import BlobMismatchError
from wavemesh.runtime.durable import disk_errors

if TYPE_CHECKING:
    from pathlib import Path

    from wavemesh.runtime.durable import Disk
    from wavemesh.trust.statements import Digest


@dataclass(slots=True)
class Found:
    """Complete blobs and partial ones with their last use; blobs whose file cannot be theirs."""

    complete: dict[Digest, datetime] = field(default_factory=dict)
    partial: dict[Digest, datetime] = field(default_factory=dict)
    suspects: dict[Digest, BlobMismatchError] = field(default_factory=dict)


def place_of(blobs: Path, digest: Digest) -> Path:
    """Where a complete blob lies."""
    return blobs / digest.sha256[:2] / blob_name(digest)


def find_blobs(blobs: Path, partials: Path, disk: Disk) -> Found:
    """Read both directories; raises DiskFaultError."""
    found = Found()
    with disk_errors(blobs):
        for path in blobs.glob("??/*"):
            digest, status = parse_blob_name(path.name), path.stat()
            if digest is None or path != place_of(blobs, digest):
                disk.unlink(path)
            elif status.st_size != digest.size_bytes:
                found.suspects[digest] = BlobMismatchError(digest, f"the disk holds {status.st_size} bytes")
            else:
                found.complete[digest] = datetime.fromtimestamp(status.st_mtime, UTC)
        for path in partials.iterdir():
            digest = parse_blob_name(path.name.removesuffix(".mark"))
            if digest is None or digest in found.complete or digest in found.suspects:
                disk.unlink(path)
            elif not path.name.endswith(".mark"):
                found.partial[digest] = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            elif not path.with_name(blob_name(digest)).exists():
                disk.unlink(path)
    return found
