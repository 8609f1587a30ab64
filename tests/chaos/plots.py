"""What each wave is about, besides the faults that strike it: drawn from a seed alone. Pure.

A *plot* is a release that is good or bad in its own way, or something that operators do meanwhile. Plots are dealt from
a deck that has each once: first the two that a short run has to show, a bad release and operators at work, then the
others in an order drawn by the seed.
"""

from __future__ import annotations

import enum
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence


class Plot(enum.Enum):
    """The ways a wave may go."""

    GOOD = "good"
    NO_SCANNER = "no-scanner"
    UNBOOTABLE = "unbootable"
    NO_NETWORK = "no-network"
    OPERATED = "operated"
    HALTED = "halted"
    HALTED_AT_HUB = "halted-at-hub"
    HELD = "held"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Terms:
    """What the wave's policy says; ``halt_least`` outcomes are needed to halt by ratio, ``permit_batch`` 0 is all."""

    halt_least: int
    permit_batch: int = 0
    trial_minutes: float = 0.75


# A ratio that halts would end a good wave, rightly, that a storm of watchdog resets hit: there the account is tested.
NEVER_HALT = 10_000
_SOON = 3
BAD = frozenset({Plot.NO_SCANNER, Plot.UNBOOTABLE, Plot.NO_NETWORK})
#: Ended by somebody's word; devices without an outcome stay so.
STOPPED = frozenset({Plot.HALTED, Plot.HALTED_AT_HUB, Plot.REVOKED})
_FIRST = (Plot.NO_SCANNER, Plot.OPERATED)
#: Waves that every run has.
LEAST_PLOTS = len(_FIRST)
_TERMS = {
    # What is outstanding at a stop has to be less than everything, or nothing beyond it could be exposed; and the wave
    # must not be over before somebody's word came.
    Plot.OPERATED: Terms(NEVER_HALT, permit_batch=1),
    Plot.HELD: Terms(NEVER_HALT, permit_batch=1),
    Plot.HALTED: Terms(NEVER_HALT, permit_batch=1),
    Plot.HALTED_AT_HUB: Terms(NEVER_HALT, permit_batch=2),
    Plot.REVOKED: Terms(NEVER_HALT, permit_batch=1),
    Plot.NO_SCANNER: Terms(_SOON),
    Plot.UNBOOTABLE: Terms(_SOON),
    Plot.NO_NETWORK: Terms(_SOON, trial_minutes=0.3),
}


def terms(plot: Plot) -> Terms:
    """The policy of a wave of that plot."""
    return _TERMS.get(plot, Terms(NEVER_HALT))


def deal(seeded: random.Random, only: Sequence[Plot] = ()) -> Iterator[Plot]:
    """Plots without end: of ``only`` these, if there are any, in that order and over again."""
    if only:
        yield from itertools.cycle(only)
    first = True
    while True:
        rest = [plot for plot in Plot if not (first and plot in _FIRST)]
        seeded.shuffle(rest)
        yield from (*_FIRST, *rest) if first else rest
        first = False
