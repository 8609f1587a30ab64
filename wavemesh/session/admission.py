"""Which children may open a session now, and when each of the others is to come back. Pure.

Theory. Opening costs the parent a TLS handshake and a look at everything the child should hold; a region that comes
back from the dark asks for thousands at once. They are admitted at a rate, by the generic cell rate algorithm (ITU-T
I.371): a token bucket that keeps one time instead of a count, and from which follows when the next token is free. So
whoever is turned away is told a time of his own, a *place*: they come back spread over as long as the rate implies, not
together.

Rules.
1. ``burst`` openings at once, then ``rate`` a second.
2. A place is kept until ``GRACE_S`` after its time, and whoever comes in it is admitted. Who comes before is told the
   same time again; who comes after it begins anew.
3. A *pressing* child, of whom there are never many, is admitted at once; those after it wait the longer.
4. Nobody is sent away for longer than ``MAX_WAIT_S``: further back there are no places, only the advice to come again.
   So there are at most ``rate`` times that and the grace.
"""

from __future__ import annotations

import math

MAX_WAIT_S = 300.0
GRACE_S = 60.0
SOON_S = 0.001
"""As good as now: clocks and floating-point sums differ by less."""


class Admission:
    """One parent's door. Times are monotonic seconds."""

    __slots__ = ("_due", "_interval_s", "_places", "_tolerance_s")

    def __init__(self, rate: float, burst: int) -> None:
        """``rate`` openings a second, infinity for no bound; ``burst`` at once, at least one."""
        self._interval_s = 1 / rate
        self._tolerance_s = (burst - 1) * self._interval_s
        self._due = -math.inf
        self._places: dict[str, float] = {}

    def ask(self, child: str, now: float, *, pressing: bool = False) -> float:
        """0 when the child may open its session now, else the seconds after which it is to come back."""
        self._forget(now)
        place = self._places.get(child)
        if place is not None:
            if place > now + SOON_S and not pressing:
                return place - now
            del self._places[child]
            return 0.0
        due = max(self._due, now)
        wait_s = due - self._tolerance_s - now
        if wait_s > MAX_WAIT_S and not pressing:
            return MAX_WAIT_S
        self._due = due + self._interval_s
        if wait_s <= SOON_S or pressing:
            return 0.0
        self._places[child] = now + wait_s
        return wait_s

    def spread(self, count: int) -> list[float]:
        """Seconds to add to one wish, so that so many come back no faster than they are admitted."""
        return [number * self._interval_s for number in range(count)]

    @property
    def places(self) -> int:
        """How many children have a place."""
        return len(self._places)

    def _forget(self, now: float) -> None:
        """Places whose time has passed; they stand in the order of their times."""
        while self._places:
            child, place = next(iter(self._places.items()))
            if place + GRACE_S >= now:
                return
            del self._places[child]
