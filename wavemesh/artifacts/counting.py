"""What a blob store has done since its process began, in numbers that only grow."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Reads, and what came and went.

    ``hits``: reads of children that found the blob whole; ``misses``: those that had to wait for it or were refused.
    ``served_bytes`` went to children, ``fetched_bytes`` were written from the parent or the origin. ``evicted``: sound
    blobs that gave way to others; ``swept``: partial ones that nobody wanted any more; ``quarantined``: blobs whose
    bytes were found wrong; ``healed``: those of them that were fetched again. ``scrubbed_bytes`` were read again from
    the disk by the scrub, ``scrub_rounds`` of which came to their end.
    """

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
