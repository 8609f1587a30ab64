"""This hub's report log: the session's, which also tells when intents are safe with the parent; and its snapshot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storehub.intents import renumber
from storehub.upstream import snapshot_reports
from wavemesh.session.sqlite import OUTCOME_KIND, SNAPSHOT_KIND, SqliteReportLog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from storehub.store import HubStore
    from wavemesh.runtime.sqlite import Transaction
    from wavemesh.session.frames import Report
    from wavemesh.session.sqlite import Snapshot


class HubReportLog(SqliteReportLog):
    """A report log whose acknowledgements others wait for."""

    listener: Callable[[int], Awaitable[None]] | None = None

    async def acknowledge(self, through: int) -> None:
        """Forget reports up to ``through``, then tell the listener; it is told again after a restart."""
        await super().acknowledge(through)
        if self.listener is not None:
            await self.listener(through)


def snapshot_of(store: HubStore, path: str) -> Snapshot:
    """What a new incarnation starts its log with; reports that stay are renumbered where intents remember them."""

    async def snapshot(tx: Transaction, incarnation: str) -> Sequence[Report]:
        reports = snapshot_reports(store, path, incarnation)
        kept = await tx.fetch_all(
            "SELECT number FROM session_reports WHERE kind NOT IN (?, ?) ORDER BY number", (SNAPSHOT_KIND, OUTCOME_KIND)
        )
        numbers = {int(row["number"]): place for place, row in enumerate(kept, start=len(reports) + 1)}
        await renumber(tx, store, numbers)
        return reports

    return snapshot
