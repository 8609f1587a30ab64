"""The scrub: reads every blob again from the medium, slowly and for ever, to find rot before a device needs the blob.

Rules: never faster than ``bytes_per_s``, the default of which reads 32 GiB in a day; one step at a time, with a pause
behind each, so that the disk is idle for others nearly always. Where it stands is kept in ``DIR/scrub``, at most every
``SAVE_EVERY_S`` and at a round's end, so that a restart goes on there. What it finds wrong is a suspect of the store
(blobstore.py); telling and healing is its keeper's. Between two rounds it rests for ``rest_s``.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wavemesh.artifacts.digests import blob_name, in_thread, parse_blob_name
from wavemesh.artifacts.partial import BlobMismatchError
from wavemesh.artifacts.rounds import Round, pause_s, round_of
from wavemesh.errors import LocalError, NotFoundError

if TYPE_CHECKING:
    from datetime import datetime

    from wavemesh.artifacts.blobstore import BlobStore
    from wavemesh.runtime.clock import Clock

_LOG = logging.getLogger(__name__)
BYTES_PER_S = 400_000
"""By default: 32 GiB in 23.9 hours."""
SAVE_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class ScrubProgress:
    """How far the round is: of ``total_bytes`` complete now, ``done_bytes`` were read; when the last round ended."""

    done_bytes: int
    total_bytes: int
    began_at: datetime
    last_ended_at: datetime | None


class Scrub:
    """The scrub of one store."""

    def __init__(self, blobs: BlobStore, clock: Clock, bytes_per_s: int, rest_s: float) -> None:
        """Read at most ``bytes_per_s``; rest ``rest_s`` seconds between two rounds."""
        self.blobs = blobs
        self._clock = clock
        self._bytes_per_s = bytes_per_s
        self._rest_s = rest_s
        self._round = Round(clock.now())
        self._saved_s = clock.monotonic()
        self._note = blobs.directory / "scrub"

    @property
    def progress(self) -> ScrubProgress:
        """How far it is."""
        sizes = [(blob_name(digest), digest.size_bytes) for digest in self.blobs.complete]
        total = sum(size for _, size in sizes)
        return ScrubProgress(self._round.done_bytes(sizes), total, self._round.began_at, self._round.ended_at)

    async def run(self) -> None:
        """Scrub for as long as the hub runs."""
        self._round = round_of(await in_thread(self._kept), self._clock.now())
        while True:
            name = self._round.next_of(map(blob_name, self.blobs.complete))
            if name is None:
                await asyncio.sleep(self._rest_s)
                await self._end_round()
                continue
            await self._read(name)
            self._round = self._round.read(name)
            if self._clock.monotonic() - self._saved_s >= SAVE_EVERY_S:
                await self._save()

    def _kept(self) -> str:
        """What was kept; empty if nothing, or nothing that can be read: then a round begins."""
        self.blobs.disk.discard_temporary(self._note)
        try:
            return self._note.read_text("ascii")
        except (OSError, UnicodeDecodeError):
            return ""

    async def _read(self, name: str) -> None:
        """One blob to its end; what is wrong with it is told by the store to its keeper."""
        digest = parse_blob_name(name)
        if digest is None:
            return
        counters = self.blobs.counters
        try:
            async with aclosing(self.blobs.scrub_steps(digest)) as steps:
                async for count in steps:
                    counters.scrubbed_bytes += count
                    await asyncio.sleep(pause_s(count, self._bytes_per_s))
        except BlobMismatchError as error:
            _LOG.error("scrub: %s", error)  # the error says all there is to say
        except (NotFoundError, LocalError) as error:
            _LOG.warning("scrub: %s", error)

    async def _end_round(self) -> None:
        now = self._clock.now()
        if self._round.after:
            self.blobs.counters.scrub_rounds += 1
            self._round = Round(now, "", now)
            await self._save()

    async def _save(self) -> None:
        """Keep where it stands; a full disk costs only that a restart reads some again."""
        self._saved_s = self._clock.monotonic()
        try:
            await in_thread(self.blobs.disk.write_atomic, self._note, self._round.to_text().encode())
        except LocalError as error:
            _LOG.warning("scrub: where it stands is not kept: %s", error)
