"""What this hub itself has to tell: audit events, each told once by its subject, durable before it counts as told."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from wavemesh.codec.statements import encode
from wavemesh.session.frames import Report
from wavemesh.trust.statements import EventReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from superhub.store import RegionStore
    from wavemesh.runtime.clock import Clock
    from wavemesh.runtime.sqlite import Transaction
    from wavemesh.session.sqlite import SqliteReportLog

_MAX_DETAIL_CHARACTERS = 1000


class Events:
    """Appends events of one node to its report log."""

    def __init__(
        self, node: str, store: RegionStore, log: SqliteReportLog, clock: Clock, appended: Callable[[], None]
    ) -> None:
        """``appended`` is called when an event is on disk and may go up."""
        self._node = node
        self._store = store
        self._log = log
        self._clock = clock
        self.appended = appended

    async def tell_once(self, kind: str, subject: str, detail: str, *, gate: str = "", about: str = "") -> None:
        """Tell of ``kind`` and ``gate`` for ``subject`` and ``about`` (which store, where that matters) once, ever."""
        async with self._store.database.transaction() as tx:
            await self.append_once(tx, kind, subject, detail, gate=gate, about=about)
            tx.on_commit(self.appended)

    async def append_once(
        self, tx: Transaction, kind: str, subject: str, detail: str, *, gate: str = "", about: str = ""
    ) -> None:
        """The same in a transaction of the caller, who then says that something was appended."""
        # The id follows from the matter, so that even a hub that lost its disk does not make control count it twice.
        matter = f"{self._node}\0{kind}\0{gate}\0{subject}\0{about}"
        event_id = hashlib.sha256(matter.encode()).hexdigest()[:32]
        if await self._store.is_first(tx, "event", event_id):
            event = EventReport(
                event_id=event_id,
                node=self._node,
                kind=kind,
                gate=gate,
                wave_id="",
                subject=subject,
                detail=detail[:_MAX_DETAIL_CHARACTERS],
                at=self._clock.now(),
            )
            await self._log.append(tx, Report("event", encode(event)))
