"""Whether the hub's clock may be believed.

Time is trusted when it is not behind the highest time this hub has ever known (its *floor*, durable) and the clock is
either hardware-backed, by configuration, or was confirmed by control-signed time in this boot. Times that control
signed raise the floor, so a clock set back is noticed even when it was the hub's own that lied before.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from storehub.schema import from_stamp, to_stamp
from wavemesh.errors import GateError
from wavemesh.trust.freshness import ClockSource, check_time_trusted, confirms, raise_floor

if TYPE_CHECKING:
    from datetime import datetime

    from storehub.store import HubStore
    from wavemesh.runtime.sqlite import Transaction

FLOOR_FACT = "clock_floor"
FLOOR_STEP = timedelta(minutes=1)


class ClockGuard:
    """The floor and where the clock's trust comes from."""

    def __init__(self, store: HubStore, source: ClockSource) -> None:
        """Read the floor."""
        self._store = store
        self._source = source
        self._floor = from_stamp(int(store.fact(FLOOR_FACT) or "0"))

    @property
    def floor(self) -> datetime:
        """A time that has passed for certain."""
        return self._floor

    def distrust(self, now: datetime) -> str:
        """Why time is not trusted; empty when it is."""
        try:
            check_time_trusted(now, self._floor, self._source)
        except GateError as error:
            return str(error)
        return ""

    async def confirm(self, tx: Transaction, signed_at: datetime, now: datetime) -> None:
        """Control signed a time: it raises the floor, and confirms the clock if both agree."""
        if self._source is ClockSource.UNCONFIRMED and confirms(now, signed_at):
            self._source = ClockSource.CONFIRMED
        await self._raise(tx, raise_floor(self._floor, signed_at))

    def is_due(self, now: datetime) -> bool:
        """Whether ``tick`` has something to remember: at most once a FLOOR_STEP."""
        return now >= self._floor + FLOOR_STEP and not self.distrust(now)

    async def tick(self, tx: Transaction, now: datetime) -> None:
        """Remember the time."""
        if self.is_due(now):
            await self._raise(tx, now)

    async def _raise(self, tx: Transaction, at: datetime) -> None:
        if at > self._floor:
            self._floor = at
            await self._store.put_fact(tx, FLOOR_FACT, str(to_stamp(at)))
