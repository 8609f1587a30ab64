"""The ledger's two rules that every tier must apply alike: which outcome of a device counts, and what counts sum to.

Outcomes of one device in one wave are totally ordered by ``Rank``: the highest (attempt, sequence) wins; at equal
numbers a device's own word beats its hub's inference; the digest of the payload breaks a tie that no honest signer
makes. Merging is thereby idempotent, commutative and associative, so that replays, reconnects, restarts and two paths
for one outcome change nothing. Counts are derived from the merge, never counted up (semantics, "Populations").
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wavemesh.trust.statements import OutcomeKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from wavemesh.trust.statements import DeviceOutcome, Envelope


@dataclass(frozen=True, slots=True, order=True)
class Rank:
    """By what one outcome of a device beats another; the greater one wins."""

    attempt: int
    sequence: int
    by_device: bool
    payload_sha256: str


def rank_of(outcome: DeviceOutcome, envelope: Envelope, *, by_device: bool) -> Rank:
    """The rank of a verified outcome; ``by_device`` when the device itself signed it."""
    payload_sha256 = hashlib.sha256(envelope.payload).hexdigest()
    return Rank(outcome.attempt, outcome.sequence, by_device, payload_sha256)


def ledger_digest(targets: Iterable[str], ranks: Mapping[str, Rank]) -> str:
    """SHA-256, in hex, over which outcome counts for each of the target devices (paths): equal where ledgers agree."""
    held = sorted((device, ranks[device]) for device in set(targets) if device in ranks)
    lines = (f"{device} {r.attempt} {r.sequence} {r.by_device} {r.payload_sha256}\n" for device, r in held)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Counts:
    """Outcomes of a population; they sum to it."""

    pending: int = 0
    refused: int = 0
    updated: int = 0
    rolled_back: int = 0
    failed: int = 0
    silent: int = 0
    unknown: int = 0
    inconclusive: int = 0

    @property
    def bad(self) -> int:
        """The numerator of the rollback ratio."""
        return self.rolled_back + self.failed + self.silent

    @property
    def evidence(self) -> int:
        """The denominator of the rollback ratio."""
        return self.updated + self.bad

    @property
    def rollback_ratio(self) -> float:
        """(rolled_back + failed + silent) / (updated + rolled_back + failed + silent); 0 without any."""
        return self.bad / self.evidence if self.evidence else 0.0


def tally(targets: Iterable[str], kinds: Mapping[str, OutcomeKind]) -> Counts:
    """Outcomes of the target devices (paths); one that nobody spoke of is pending, others do not count."""
    counted = Counter(kinds.get(device, OutcomeKind.PENDING) for device in set(targets))
    return Counts(**{kind.name.lower(): counted[kind] for kind in OutcomeKind})


def tally_gates(targets: Iterable[str], gates: Mapping[str, str]) -> dict[str, int]:
    """Failures of the target devices by gate, by name of gate (H7); an empty gate is no failure."""
    counted = Counter(gates[device] for device in set(targets) if gates.get(device))
    return dict(sorted(counted.items()))
