"""What control did, as spans: waves planned, permits issued, outcomes merged. And the outbox on control's database.

The span of the plan is the root of each device's trace; a permit's is what the store hub's lease belongs to; that of an
outcome links to the work that ended in it, which for a store that was dark may lie days back.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sqlalchemy import text

from wavemesh.telemetry.spans import Span, Trace
from wavemesh.telemetry.units import outcome_merged

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence

    from sqlalchemy import RowMapping

    from control.database import Database, Transaction
    from control.store import WaveView
    from wavemesh.identity.nodes import NodeId
    from wavemesh.runtime.clock import Clock
    from wavemesh.telemetry.outbox import Outbox
    from wavemesh.trust.statements import DeviceOutcome, Permit

_NOTHING: Mapping[str, object] = {}


class ControlSql:
    """A transaction of control's as the outbox wants it (``outbox.Sql``)."""

    def __init__(self, tx: Transaction) -> None:
        """Wrap an open transaction."""
        self._tx = tx

    async def execute(self, sql: str, parameters: Mapping[str, object], /) -> int:
        """Run a statement; how many rows it changed."""
        return await self._tx.run(text(sql).bindparams(**parameters))

    async def execute_many(self, sql: str, rows: Sequence[Mapping[str, object]], /) -> None:
        """Run a statement once a row."""
        await self._tx.run(text(sql), rows)

    async def fetch_all(self, sql: str, parameters: Mapping[str, object] = _NOTHING, /) -> Sequence[RowMapping]:
        """All rows of a query."""
        return await self._tx.all(text(sql).bindparams(**parameters))

    def on_commit(self, hook: Callable[[], None], /) -> None:
        """Call back once it is durable."""
        self._tx.after_commit(hook)


class ControlTables:
    """Control's database as the outbox wants it (``outbox.Tables``)."""

    def __init__(self, database: Database) -> None:
        """Wrap the open database."""
        self._database = database

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[ControlSql]:
        """A transaction of its own."""
        async with self._database.transaction() as tx:
            yield ControlSql(tx)

    async def fetch_all(self, sql: str, parameters: Mapping[str, object] = _NOTHING, /) -> Sequence[RowMapping]:
        """All rows of a query over what is durable."""
        async with self._database.reading() as tx:
            return await ControlSql(tx).fetch_all(sql, parameters)


class Tracing:
    """Makes the spans of control, in the transaction of their work."""

    def __init__(self, node: NodeId, outbox: Outbox, clock: Clock) -> None:
        """``node`` is this replica."""
        self._node = node
        self._clock = clock
        self.outbox = outbox

    async def planned(self, tx: Transaction, view: WaveView) -> None:
        """A wave is planned: the root of the trace of each of its devices."""
        row, now = view.row, self._clock.now()
        about: dict[str, str | int] = {"wavemesh.release": row.release, "wavemesh.cohort": row.cohort}
        traces = (Trace(self._node.fleet, row.wave_id, device) for device in view.devices if self.outbox.is_on)
        spans = [
            Span(
                trace=trace,
                span_id=trace.root(),
                parent_id=b"",
                name="control.plan",
                began_at=row.planned_at,
                ended_at=now,
                attributes=about,
            )
            for trace in traces
        ]
        await self.outbox.record(ControlSql(tx), spans)

    async def permitted(self, tx: Transaction, permits: Iterable[Permit]) -> None:
        """Permits are issued."""
        now = self._clock.now()
        traces = (
            (Trace(self._node.fleet, permit.wave_id, permit.device), permit) for permit in permits if self.outbox.is_on
        )
        spans = [
            Span(
                trace=trace,
                span_id=trace.permit(permit.generation),
                parent_id=trace.root(),
                name="control.permit",
                began_at=permit.issued_at,
                ended_at=now,
                attributes={"wavemesh.generation": permit.generation, "wavemesh.attempts": permit.attempts},
            )
            for trace, permit in traces
        ]
        await self.outbox.record(ControlSql(tx), spans)

    async def merged(self, tx: Transaction, outcome: DeviceOutcome, signer: NodeId) -> None:
        """An outcome is in the ledger."""
        if self.outbox.is_on:
            span = outcome_merged("control.outcome", self._node, outcome, signer.path, self._clock.now())
            await self.outbox.record(ControlSql(tx), [span])
