"""What a hub says of its cache beside what it holds: a value of its status, free of generated code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """Counts since the process began (``since``), and what is so now; see CacheStatistics in report.proto."""

    since: datetime | None = None
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
    incidents: int = 0
    quarantine_files: int = 0
    quarantine_bytes: int = 0
    partials: int = 0
    partial_bytes: int = 0
    scrubbed_bytes: int = 0
    scrub_rounds: int = 0
    scrub_done_bytes: int = 0
    scrub_total_bytes: int = 0
    scrub_began_at: datetime | None = None
    scrub_ended_at: datetime | None = None
