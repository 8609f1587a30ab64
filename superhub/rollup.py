"""Merges what stores say of outcomes, and decides what is news (S3).

The key is (wave, device), the order is that of wavemesh/outcomes.py. An outcome goes up if it took the place of what
was known; of several for one device in one batch only the last word does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from wavemesh.outcomes import Rank
    from wavemesh.trust.statements import DeviceOutcome, Envelope

Key: TypeAlias = tuple[str, str]


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
