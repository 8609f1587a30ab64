"""A blob on its way in: the one who writes it, and how those who read meanwhile follow.

Any number of readers may follow the one writer of a blob; what ends the writer ends them too. The bytes are where
``partial.py`` keeps them until they are verified.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from wavemesh.artifacts.digests import in_thread
from wavemesh.errors import LocalError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from wavemesh.artifacts.partial import PartialFile
    from wavemesh.errors import WavemeshError
    from wavemesh.trust.statements import Digest


class FetchStoppedError(LocalError):
    """The writer that a reader followed went away before the blob was complete."""

    reason = "FETCH_STOPPED"


class Arrival:
    """How far the one writer of a blob is, for those who follow it."""

    def __init__(self, path: Path) -> None:
        """Nothing has arrived; ``path`` is the partial file."""
        self.path = path
        self.offset = 0
        self.outcome: WavemeshError | None = None
        self.is_over = False
        self._changed = asyncio.Event()

    def tell(self, offset: int) -> None:
        """More bytes are readable."""
        self.offset = offset
        self._wake()

    def end(self, outcome: WavemeshError | None) -> None:
        """The writer is gone; None means that the blob is complete and verified."""
        self.is_over, self.outcome = True, outcome
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait(self) -> None:
        """Wait for the next call of tell or end."""
        await self._changed.wait()

    async def open(self) -> int | None:
        """A descriptor to read the partial file by; None if the blob is complete. Raises what ended the writer."""
        while not self.is_over:
            with suppress(FileNotFoundError):
                return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            await self.wait()  # its writer is about to create it, or to tell that it is finished
        if self.outcome is not None:
            raise self.outcome
        return None


class BlobWriter:
    """The one writer of a blob; made by ``BlobStore.writer``."""

    def __init__(self, file: PartialFile, arrival: Arrival, target: Path, count: Callable[[int], None]) -> None:
        """Only BlobStore makes these; ``count`` is told of the bytes that were written."""
        self._file = file
        self._arrival = arrival
        self._target = target
        self._count = count

    @property
    def is_finished(self) -> bool:
        """Whether the blob is verified and visible."""
        return self._file.is_finished

    @property
    def is_wrong(self) -> bool:
        """Whether the bytes that arrived turned out not to be the blob: then it is a suspect as soon as this ends."""
        return self._file.mismatch is not None

    @property
    def digest(self) -> Digest:
        """What is being written."""
        return self._file.digest

    @property
    def offset(self) -> int:
        """Bytes present: where the sender must go on."""
        return self._file.offset

    async def write(self, data: bytes | memoryview) -> None:
        """Append, at most a few steps at a time; raises BlobMismatchError (too long), DiskFaultError, DiskFullError."""
        await in_thread(self._file.append, data)
        self._count(len(data))
        self._arrival.tell(self._file.offset)

    async def finish(self) -> None:
        """Verify and make visible; raises BlobMismatchError, and then the blob is a suspect. Twice is once."""
        if not self.is_finished:
            await in_thread(self._file.finish, self._target)
