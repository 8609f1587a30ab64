"""What a blob store has done since its process began, in numbers that only grow."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from wavemesh.trust.cachestats import CacheStatistics

if TYPE_CHECKING:
    from datetime import datetime

    from wavemesh.artifacts.blobstore import BlobStore
    from wavemesh.artifacts.scrubbing import ScrubProgress


@dataclass(slots=True)
class Counters:
    """Reads, and what came and went.

    ``hits``: reads of children that found the blob whole; ``misses``: those that had to wait for it or were refused.
    ``served_bytes`` went to children, ``fetched_bytes`` were written from the parent or the origin. ``evicted``: sound
    blobs that gave way to others; ``swept``: partial ones that nobody wanted any more; ``quarantined``: blobs whose
    bytes were found wrong; ``healed``: those of them that were fetched again. ``scrubbed_bytes`` were read again from
    the disk by the scrub, ``scrub_rounds`` of which came to their end. ``since``: when that began.
    """

    since: datetime
    hits: int = 0
    misses: int = 0
    served_bytes: int = 0
    fetched_bytes: int = 0
    evicted: int = 0
    evicted_bytes: int = 0
    swept: int = 0
    swept_bytes: int = 0
    quarantined: int = 0
    healed: int = 0
    scrubbed_bytes: int = 0
    scrub_rounds: int = 0

    def fetched(self, count: int) -> None:
        """So many bytes were written."""
        self.fetched_bytes += count

    def opened(self, *, is_held: bool) -> None:
        """A child asks for a blob."""
        if is_held:
            self.hits += 1
        else:
            self.misses += 1


def statistics_of(blobs: BlobStore, scrub: ScrubProgress, incidents: int) -> CacheStatistics:
    """What a store has done and how it stands, with so many incidents open."""
    partial = [entry for entry in blobs.entries() if not entry.is_complete]
    return CacheStatistics(
        **asdict(blobs.counters),
        incidents=incidents,
        quarantine_files=len(blobs.quarantine.files),
        quarantine_bytes=blobs.quarantine.used_bytes,
        partials=len(partial),
        partial_bytes=sum(entry.present_bytes for entry in partial),
        scrub_done_bytes=scrub.done_bytes,
        scrub_total_bytes=scrub.total_bytes,
        scrub_began_at=scrub.began_at,
        scrub_ended_at=scrub.last_ended_at,
    )
