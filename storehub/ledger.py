"""Merges outcomes into the ledger of a wave and sums it.

One entry a target device: the outcome with the highest (attempt, sequence); at equal numbers the device's own word
beats an inference, and the payload's digest breaks a tie that no honest signer makes. Merging is
idempotent, commutative and associative, so replays and reorderings change nothing and counts are derived, never kept.
Target devices without an entry are pending.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wavemesh.trust.statements import OutcomeKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from wavemesh.trust.statements import DeviceOutcome, Envelope

_BAD = frozenset({OutcomeKind.ROLLED_BACK, OutcomeKind.FAILED, OutcomeKind.SILENT})
_NOT_FAILURES = frozenset({OutcomeKind.PENDING, OutcomeKind.UPDATED})


@dataclass(frozen=True, slots=True)
class Entry:
    """An outcome as signed, its content, the signer's SPIFFE id, and when this hub received it."""

    outcome: DeviceOutcome
    envelope: Envelope
    signed_by: str
    by_device: bool
    received_at: datetime


@dataclass(frozen=True, slots=True)
class Summary:
    """Sums of one wave: devices by kind (every kind present), failures by gate, and the rollback ratio."""

    counts: Mapping[OutcomeKind, int]
    gates: Mapping[str, int]
    rollback_ratio: float


def supersedes(new: Entry, old: Entry | None) -> bool:
    """Whether the new entry takes the place of the old one; False for the same entry again."""
    return old is None or _rank(new) > _rank(old)


def summarise(devices: Iterable[str], entries: Mapping[str, Entry]) -> Summary:
    """Sum the entries of the target devices (paths); entries of other devices do not count."""
    targets = set(devices)
    latest = [entries[device].outcome for device in targets if device in entries]
    counts = Counter(dict.fromkeys(OutcomeKind, 0))
    counts.update(outcome.kind for outcome in latest)
    counts[OutcomeKind.PENDING] += len(targets) - len(latest)
    gates = Counter(outcome.gate for outcome in latest if outcome.gate and outcome.kind not in _NOT_FAILURES)
    bad = sum(counts[kind] for kind in _BAD)
    decided = bad + counts[OutcomeKind.UPDATED]
    return Summary(dict(counts), dict(gates), bad / decided if decided else 0.0)


def _rank(entry: Entry) -> tuple[int, int, bool, str]:
    digest = hashlib.sha256(entry.envelope.payload).hexdigest()
    return entry.outcome.attempt, entry.outcome.sequence, entry.by_device, digest
