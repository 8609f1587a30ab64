"""Merges what stores say of outcomes, and decides what is news (S3).

The key is (wave, device). The highest (attempt, sequence) wins; at equal numbers a device's own word beats its hub's
inference, and the digest of the payload breaks a tie that no honest signer makes. So merging is idempotent, commutative
and associative: replays, reconnects, restarts and two paths for one outcome change nothing. An outcome goes up if it
took the place of what was known; of several for one device in one batch only the last word does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from wavemesh.trust.statements import DeviceOutcome, Envelope

Key: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True, order=True)
class Rank:
    """By what one outcome beats another; the greater one wins."""

    attempt: int
    sequence: int
    by_device: bool
    payload_sha256: str


@dataclass(frozen=True, slots=True)
class Heard:
    """A verified outcome: its content, its rank, and the envelope that carries it on unchanged."""

    outcome: DeviceOutcome
    rank: Rank
    envelope: Envelope

    @property
    def key(self) -> Key:
        """(wave, device)."""
        return self.outcome.wave_id, self.outcome.device


def news(heard: Iterable[Heard], known: Mapping[Key, Rank]) -> list[Heard]:
    """Those that take the place of what is known, at most one a key, in the order of their keys' first mention."""
    latest: dict[Key, Heard] = {}
    for one in heard:
        before = latest[one.key].rank if one.key in latest else known.get(one.key)
        if before is None or one.rank > before:
            latest[one.key] = one
    return list(latest.values())
