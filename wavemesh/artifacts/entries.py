"""What a blob store says of a blob: its entry, and why one cannot be had or cannot come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wavemesh.errors import LocalError

if TYPE_CHECKING:
    from datetime import datetime

    from wavemesh.trust.statements import Digest


class QuotaExceededError(LocalError):
    """A blob does not fit into the quota or onto the disk; known before its first byte is written."""

    reason = "QUOTA_EXCEEDED"


@dataclass(frozen=True, slots=True)
class BlobEntry:
    """One blob of the store; ``present_bytes`` is less than its size while it is partial."""

    digest: Digest
    present_bytes: int
    last_used_at: datetime

    @property
    def is_complete(self) -> bool:
        """Whether the blob is there, verified."""
        return self.present_bytes == self.digest.size_bytes
