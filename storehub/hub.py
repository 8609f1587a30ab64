"""What all parts of a store hub share: identity, disk, beliefs, and the bell that says that something changed."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from storehub.standing import Surroundings, WaveStanding, standing_of
from storehub.unsettled import SETTLED_FACT, Unsettled
from wavemesh.codec.statements import encode
from wavemesh.session.frames import Report
from wavemesh.trust.statements import EventReport, OutcomeReport

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from storehub.belief import Belief
    from storehub.clockguard import ClockGuard
    from storehub.config import Config
    from storehub.store import HubStore
    from storehub.tracing import Tracing
    from wavemesh.identity.credentials import Credentials
    from wavemesh.runtime.clock import Clock
    from wavemesh.runtime.sqlite import Transaction
    from wavemesh.session.sqlite import SqliteCursors, SqliteReportLog, SqliteResources
    from wavemesh.trust.statements import Digest, Envelope, WaveOrder

EVENT_DETAIL_MAX = 2000


class Bell:
    """Tells any number of listeners that something changed; a ring between two waits is never missed."""

    def __init__(self) -> None:
        """Start silent."""
        self.rings = 0
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Wake all who wait."""
        self.rings += 1
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, seen: int, timeout_s: float | None = None) -> int:
        """Wait until there were more rings than ``seen``, or the time is over; returns how many there were."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.rings <= seen:
                    await self._event.wait()
        except TimeoutError:
            pass
        return self.rings


@dataclass(slots=True)
class Presence:
    """A device with an open session: since when, its incarnation, and whether it has said its state in it."""

    since: datetime
    incarnation: str
    is_heard: bool = False


@dataclass(slots=True)
class Hub:
    """The parts. ``present`` has the devices with an open session, by path, ``left_at`` when each ended its last.

    ``changed`` tells the sessions that the desired state of one device (None: of all) may have changed, and
    ``wake_upstream`` that reports were appended; the composition root sets both. ``resources_changed`` counts the
    updates from the super hub; ``recalled`` has the devices whose unused lease is held back; ``is_cached`` says whether
    a blob is whole in the cache.
    """

    credentials: Credentials
    config: Config
    clock: Clock
    store: HubStore
    log: SqliteReportLog
    resources: SqliteResources
    cursors: SqliteCursors
    belief: Belief
    clock_guard: ClockGuard
    tracing: Tracing
    present: dict[str, Presence] = field(default_factory=dict)
    left_at: dict[str, datetime] = field(default_factory=dict)
    bell: Bell = field(default_factory=Bell)
    changed: Callable[[str | None], None] = lambda _: None
    wake_upstream: Callable[[], None] = lambda: None
    resources_changed: int = 0
    recalled: frozenset[str] = frozenset()
    is_cached: Callable[[Digest], bool] = lambda _: False
    unsettled: Unsettled = field(default_factory=Unsettled)

    @property
    def has_settled(self) -> bool:
        """Whether this hub, on this disk, ever held all that its super hub wanted."""
        return bool(self.store.fact(SETTLED_FACT))

    @property
    def path(self) -> str:
        """This hub's node path."""
        return self.credentials.node_id.path

    @property
    def uri(self) -> str:
        """This hub's SPIFFE id."""
        return self.credentials.node_id.uri

    def device_path(self, name: str) -> str:
        """Path of a device of this store."""
        return f"{self.path}/device/{name}"

    def standing(self, order: WaveOrder) -> WaveStanding:
        """Where a wave stands at this hub now."""
        now = self.clock.now()
        around = Surroundings(
            now=now,
            zone=self.config.zone,
            trusted=self.belief.trusted,
            policy=self.belief.policies.get(order.policy_digest),
            holds=self.belief.holds,
            pauses=tuple(self.store.pauses.values()),
            clock_gate=self.clock_guard.distrust(now),
        )
        return standing_of(order, around)

    async def report_outcomes(self, tx: Transaction, *outcomes: Envelope) -> None:
        """Append outcomes, as signed, to the log that goes up."""
        await self.report(tx, Report("outcome", encode(OutcomeReport(outcomes))))

    async def report(self, tx: Transaction, report: Report) -> int:
        """Append to the log that goes up, and wake the session once that is durable; returns the report's number."""
        number = await self.log.append(tx, report)
        tx.on_commit(self.wake_upstream)
        return number

    async def report_event(
        self, tx: Transaction, kind: str, *, gate: str = "", wave_id: str = "", subject: str = "", detail: str = ""
    ) -> None:
        """Append an event of this hub to the log that goes up."""
        event = EventReport(
            event_id=secrets.token_hex(16),
            node=self.path,
            kind=kind,
            gate=gate,
            wave_id=wave_id,
            subject=subject,
            detail=detail[:EVENT_DETAIL_MAX],
            at=self.clock.now(),
        )
        await self.report(tx, Report("event", encode(event)))
