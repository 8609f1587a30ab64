"""Which faults strike whom, in which order: drawn from a seed alone. Pure.

Faults are dealt from a shuffled deck that has each kind of fault, and each tier to be killed, at least once, so that a
short run meets all of them and a long run meets each equally often. Some faults strike together with the one before.
What the seed does not fix is where the wave is by then: that is for the machine to say.
"""

from __future__ import annotations

import enum
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator


class Kind(enum.Enum):
    """Ways to break something."""

    KILL = "kill"
    STOP = "stop"
    POWER = "power"
    FULL_DISK = "full-disk"
    CLOCK = "clock"
    CUT = "cut"
    HALF_OPEN = "half-open"
    THROTTLED = "throttled"
    LOSSY = "lossy"
    FLAPPING = "flapping"


LINK_KINDS = frozenset({Kind.CUT, Kind.HALF_OPEN, Kind.THROTTLED, Kind.LOSSY, Kind.FLAPPING})
# How many cards of a kind are in the deck.
_CARDS = {Kind.KILL: 9, Kind.CUT: 9}
# Seconds that a fault lasts. A stop is shorter or longer than what the lab's sessions wait for a heartbeat; nothing
# outlasts the 45 s of a trial, because that would be a rollback by right.
_LASTS_S = {
    Kind.KILL: (0.0, 2.5),
    Kind.STOP: (0.5, 8.0),
    Kind.POWER: (0.0, 3.0),
    Kind.FULL_DISK: (2.0, 6.0),
    Kind.CLOCK: (2.0, 6.0),
    Kind.CUT: (0.2, 4.0),
    Kind.HALF_OPEN: (2.0, 9.0),
    Kind.THROTTLED: (2.0, 6.0),
    Kind.LOSSY: (2.0, 6.0),
    Kind.FLAPPING: (2.0, 6.0),
}
_MEAN_GAP_S = 0.9
_MOST_GAP_S = 4.0
_TOGETHER = 0.15
# A clock that ran ahead raises floors, which its true time has to reach first: that must be over within the bound.
_AHEAD_S = (1, 10)
_BEHIND_S = (-7200, -5)


@dataclass(frozen=True, slots=True)
class Fleet:
    """Who can be struck, and the kinds of faults that can be had where it runs."""

    control: str
    superhub: str
    stores: tuple[str, ...]
    devices: tuple[str, ...]
    links: tuple[str, ...]
    kinds: frozenset[Kind] = frozenset(Kind)

    @property
    def tiers(self) -> tuple[tuple[str, ...], ...]:
        """The nodes of each tier."""
        return ((self.control,), (self.superhub,), self.stores, self.devices)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: when after the one before, what, whom, for how long; ``offset_s`` is how wrong a clock goes."""

    number: int
    gap_s: float
    kind: Kind
    target: str
    lasts_s: float
    offset_s: int = 0

    def __str__(self) -> str:
        """For people."""
        detail = f", {self.offset_s:+} s" if self.offset_s else ""
        return f"{self.kind.value:10} {self.target:15} for {self.lasts_s:.1f} s{detail}"


def draw(fleet: Fleet, seeded: random.Random) -> Iterator[Fault]:
    """Faults without end. The generator is used up to the fault taken, and by nothing else."""
    numbers = itertools.count(1)
    while True:
        deck = deck_of(fleet)
        seeded.shuffle(deck)
        killed = _killed(fleet, seeded)
        for kind in deck:
            together = seeded.random() < _TOGETHER
            gap_s = 0.0 if together else min(_MOST_GAP_S, seeded.expovariate(1 / _MEAN_GAP_S))
            target = killed.pop() if kind is Kind.KILL else _target(kind, fleet, seeded)
            lasts_s = round(seeded.uniform(*_LASTS_S[kind]), 1)
            offset_s = seeded.randint(*seeded.choice((_AHEAD_S, _BEHIND_S))) if kind is Kind.CLOCK else 0
            yield Fault(next(numbers), gap_s, kind, target, lasts_s, offset_s)


def deck_of(fleet: Fleet) -> list[Kind]:
    """The kinds of faults of one deck."""
    return [kind for kind in Kind if kind in fleet.kinds for _ in range(_CARDS.get(kind, 1))]


def _killed(fleet: Fleet, seeded: random.Random) -> list[str]:
    """Whom a deck's kills strike: every tier, the devices most often."""
    tiers = [fleet.control, fleet.superhub, *(seeded.choice(fleet.stores) for _ in range(2))]
    killed = [*tiers, *(seeded.choice(fleet.devices) for _ in range(_CARDS[Kind.KILL] - len(tiers)))]
    seeded.shuffle(killed)
    return killed


def _target(kind: Kind, fleet: Fleet, seeded: random.Random) -> str:
    """Each tier is as likely as another; but for power, which hubs lose by being killed."""
    if kind in LINK_KINDS:
        return seeded.choice(fleet.links)
    tier = fleet.devices if kind is Kind.POWER else seeded.choice(fleet.tiers)
    return seeded.choice(tier)
