"""How many bytes may move now, and when the next may: a token bucket. Pure.

Theory. A bucket holds at most ``burst_bytes`` tokens and gains ``bytes_per_s`` of them a second (RFC 2697 calls them
CBS and CIR); a byte that moves costs one. So over any span of T seconds at most ``burst_bytes + bytes_per_s * T`` bytes
move by ``granted``, and what was not used in an idle hour is not caught up on later.

Rules.
1. Whoever knows before it moves bytes how many, asks ``granted``, which never overdraws, and takes them by ``spend``.
2. Whoever learns only afterwards, as a reader of pieces does, spends what came and waits ``delay_s`` before the next
   piece. The bucket is then overdrawn by one piece of each reader at most, which is made up for by the wait.
3. Several that share a bucket share its rate: each spends what it moved and waits until all debts are paid, so none is
   faster than another that takes pieces of its size.
4. A clock that goes back gains nothing; no clock makes the bucket hold more than its burst.
5. When the rate changes, what the bucket holds stays, up to the new burst: a new night is no new allowance.
"""

from __future__ import annotations

from dataclasses import dataclass

MIN_BURST_BYTES = 64 * 1024
MIN_BYTES_PER_S = 1.0
_GRAIN_BYTES = 1e-3
"""Less than this is a rounding error: whoever waited as long as it was told has the byte, and waits no second time."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many bytes a second, and so many at once after a pause."""

    bytes_per_s: float
    burst_bytes: int = MIN_BURST_BYTES

    def __post_init__(self) -> None:
        """Misuse unless both are positive: what may not move at all is a window that is shut, and no rate."""
        if not (self.bytes_per_s >= MIN_BYTES_PER_S and self.burst_bytes >= 1):
            msg = f"a rate is at least {MIN_BYTES_PER_S:g} byte a second with a burst of 1, not {self}"
            raise RuntimeError(msg)

    @classmethod
    def of(cls, bytes_per_s: float) -> Rate:
        """That rate with a burst of what it moves in a second, MIN_BURST_BYTES at least."""
        return cls(bytes_per_s, max(int(bytes_per_s), MIN_BURST_BYTES))


class TokenBucket:
    """What may move at a rate; None is no limit. Times are monotonic seconds."""

    __slots__ = ("_level_bytes", "_rate", "_since")

    def __init__(self, rate: Rate | None, now: float) -> None:
        """Begin with a full bucket."""
        self._rate = rate
        self._level_bytes: float = rate.burst_bytes if rate is not None else 0
        self._since = now

    @property
    def rate(self) -> Rate | None:
        """The rate in force."""
        return self._rate

    def change(self, rate: Rate | None, now: float) -> None:
        """Go on at another rate; one that begins to be limited begins with an empty bucket, and debts stay."""
        self._fill(now)
        self._rate = rate
        self._level_bytes = min(self._level_bytes, rate.burst_bytes) if rate is not None else min(self._level_bytes, 0)

    def granted(self, wanted_bytes: int, now: float) -> int:
        """How many of the bytes wanted may move now: all, some or none. They are not taken yet."""
        if self._rate is None:
            return wanted_bytes
        self._fill(now)
        return max(min(wanted_bytes, int(self._level_bytes + _GRAIN_BYTES)), 0)

    def spend(self, moved_bytes: int, now: float) -> None:
        """Bytes moved; more than were granted overdraw the bucket."""
        if self._rate is not None:
            self._fill(now)
            self._level_bytes -= moved_bytes

    def delay_s(self, now: float, wanted_bytes: int = 1) -> float:
        """Seconds until so many bytes may move, 0 if they may now; of more than the burst, until the burst may."""
        if self._rate is None:
            return 0.0
        self._fill(now)
        lacking = min(wanted_bytes, self._rate.burst_bytes) - self._level_bytes
        return lacking / self._rate.bytes_per_s if lacking > _GRAIN_BYTES else 0.0

    def _fill(self, now: float) -> None:
        if now <= self._since:
            self._since = now
            return
        if self._rate is not None:
            gained = (now - self._since) * self._rate.bytes_per_s
            self._level_bytes = min(self._level_bytes + gained, self._rate.burst_bytes)
        self._since = now
