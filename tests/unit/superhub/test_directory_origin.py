"""An origin that is a directory: whole and from an offset, and what is not there is said."""

from __future__ import annotations

from contextlib import aclosing
from random import Random
from typing import TYPE_CHECKING

import pytest

from superhub.config import OriginConfig
from superhub.origin import STEP_BYTES, DirectoryOrigin, origin_at
from wavemesh.artifacts.digests import digest_of
from wavemesh.errors import LinkDownError, NotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    from wavemesh.artifacts.download import BlobReader

CONTENT = Random(3).randbytes(2 * STEP_BYTES + 7)
DIGEST = digest_of(CONTENT)


async def read(origin: BlobReader, offset: int = 0) -> bytes:
    async with aclosing(origin.read(DIGEST, offset)) as pieces:
        return b"".join([bytes(piece) async for piece in pieces])


async def test_reads_from_any_offset(tmp_path: Path) -> None:
    """S4: the file system is an origin, and resumable."""
    directory = tmp_path / "a share"
    directory.mkdir()
    (directory / DIGEST.sha256).write_bytes(CONTENT)
    async with origin_at(f"file://{tmp_path}/a%20share", tmp_path, 1) as origin:
        assert await read(origin) == CONTENT
        assert await read(origin, STEP_BYTES + 1) == CONTENT[STEP_BYTES + 1 :]
        assert await read(origin, len(CONTENT)) == b""


async def test_an_unknown_blob_and_a_broken_share_differ(tmp_path: Path) -> None:
    """The one is an answer, the other is tried again."""
    with pytest.raises(NotFoundError, match="release publish --origin"):
        await read(DirectoryOrigin(tmp_path))
    (tmp_path / DIGEST.sha256).mkdir()
    with pytest.raises(LinkDownError, match="directory"):
        await read(DirectoryOrigin(tmp_path))


@pytest.mark.parametrize("url", ["http://origin.example", "file://relative", "ftp://origin.example", ""])
def test_other_origins_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="https://, file:/// or s3://"):
        OriginConfig(url)
