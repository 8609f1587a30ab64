"""The ledger of a wave at this hub: one entry a target device, the outcome that ranks highest (wavemesh/outcomes.py).

Target devices without an entry are pending.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wavemesh.outcomes import Counts, Rank, rank_of, tally, tally_gates

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from wavemesh.trust.statements import DeviceOutcome, Envelope


@dataclass(frozen=True, slots=True)
class Entry:
    """An outcome as signed, its content, the signer's SPIFFE id, and when this hub received it."""

    outcome: DeviceOutcome
    envelope: Envelope
    signed_by: str
    by_device: bool
    received_at: datetime

    @property
    def rank(self) -> Rank:
        """Its place in the order of outcomes of one device."""
        return rank_of(self.outcome, self.envelope, by_device=self.by_device)


@dataclass(frozen=True, slots=True)
class Summary:
    """Sums of one wave: devices by outcome, failures by gate."""

    counts: Counts
    gates: Mapping[str, int]


def supersedes(new: Entry, old: Entry | None) -> bool:
    """Whether the new entry takes the place of the old one; False for the same entry again."""
    return old is None or new.rank > old.rank


def summarise(devices: Iterable[str], entries: Mapping[str, Entry]) -> Summary:
    """Sum the entries of the target devices (paths); entries of other devices do not count."""
    targets = set(devices)
    kinds = {device: entry.outcome.kind for device, entry in entries.items()}
    gates = {device: entry.outcome.gate for device, entry in entries.items()}
    return Summary(tally(targets, kinds), tally_gates(targets, gates))
