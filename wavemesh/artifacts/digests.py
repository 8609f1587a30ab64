"""Digests as names: what a well-formed one is, how it is written as a file name, and hashing that never holds the loop.

Rules: SHA-256 in lower-case hex, 64 characters; the size is part of the identity, so one hash with two sizes is two
names and the wrong one names nothing; a blob is at most ``MAX_BLOB_BYTES``. File work runs in threads, a step of at
most ``STEP_BYTES`` at a time, so that cancellation and memory stay bounded.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from wavemesh.errors import PeerError
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAX_BLOB_BYTES = 1 << 40
STEP_BYTES = 1024 * 1024

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"([0-9a-f]{64})-(0|[1-9][0-9]{0,12})")

_P = ParamSpec("_P")
_R = TypeVar("_R")


class BadDigestError(PeerError):
    """A digest is not 64 lower-case hex characters with a size from 0 to MAX_BLOB_BYTES."""

    reason = "BAD_DIGEST"


class OutOfRangeError(PeerError):
    """An offset lies beyond the end of a blob, or more is wanted than it has from there."""

    reason = "OUT_OF_RANGE"


def check_digest(digest: Digest) -> Digest:
    """Return the digest if it is well formed; raises BadDigestError. Call it on whatever comes from outside."""
    if not _SHA256.fullmatch(digest.sha256):
        msg = f"digest {digest.sha256[:80]!r} is not a SHA-256 in lower-case hex (64 characters)"
        raise BadDigestError(msg)
    if not 0 <= digest.size_bytes <= MAX_BLOB_BYTES:
        msg = f"size {digest.size_bytes} of blob {digest.sha256} is not within 0 to {MAX_BLOB_BYTES} bytes"
        raise BadDigestError(msg)
    return digest


def end_of(digest: Digest, offset: int, length_bytes: int = 0) -> int:
    """Where a read from ``offset`` ends: after ``length_bytes``, or with 0 at the end; raises as below.

    BadDigestError; OutOfRangeError if the blob has no such offset or not so many bytes from there.
    """
    check_digest(digest)
    if not 0 <= offset <= digest.size_bytes:
        msg = f"offset {offset} is beyond the {digest.size_bytes} bytes of blob {digest.sha256}"
        raise OutOfRangeError(msg)
    if not 0 <= length_bytes <= digest.size_bytes - offset:
        msg = f"blob {digest.sha256} of {digest.size_bytes} bytes has not {length_bytes} bytes from offset {offset} on"
        raise OutOfRangeError(msg)
    return offset + length_bytes if length_bytes else digest.size_bytes


def blob_name(digest: Digest) -> str:
    """The file name of a blob: ``SHA256-SIZE``."""
    return f"{digest.sha256}-{digest.size_bytes}"


def parse_blob_name(name: str) -> Digest | None:
    """The digest that a file name says, or None if it is not the name of a blob."""
    match = _NAME.fullmatch(name)
    return None if match is None else Digest(match[1], int(match[2]))


def digest_of(content: bytes) -> Digest:
    """The digest of bytes in memory; for small ones only, it runs where it is called."""
    return Digest(hashlib.sha256(content).hexdigest(), len(content))


async def digest_of_file(path: Path) -> Digest:
    """The digest of a file, hashed in a thread step by step; raises OSError."""
    hasher = hashlib.sha256()
    size_bytes = 0
    with await in_thread(path.open, "rb") as file:
        while piece := await in_thread(file.read, STEP_BYTES):
            await in_thread(hasher.update, piece)
            size_bytes += len(piece)
    return Digest(hasher.hexdigest(), size_bytes)


async def in_thread(function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """Run one step in a thread; a cancellation is raised only after the step ended.

    ``asyncio.to_thread`` would leave the step running behind the back of a cancelled caller, which then closes or
    truncates the very file that the step still writes.
    """
    step = asyncio.get_running_loop().run_in_executor(None, partial(function, *args, **kwargs))
    cancelled: asyncio.CancelledError | None = None
    while not step.done():
        try:
            await asyncio.wait([step])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        step.exception()  # seen, so that asyncio does not complain; the cancellation is what the caller gets
        raise cancelled
    return step.result()
