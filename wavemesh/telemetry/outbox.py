"""The outbox of telemetry: durable, bounded, each batch once however often it is sent.

Rules. What a node measures is stored in the transaction of what it measured, so a span exists if and only if its work
does. What a child sends is judged (``otlp.check``), stored with the child's cursor in one transaction, and only then
answered; a resend after a lost answer is known by (source, incarnation, number). A program takes a new incarnation at
each start, so one restored from a backup never gives an old number to new spans.

Bounds: bytes, rows and age. Sent batches stay while there is room, because operators ask for traces; when there is none
the oldest sent ones go first, then the oldest unsent, which are counted as dropped and told to every tier above.

The same statements run on a hub's SQLite and on control's database; ``Sql`` is all that they need.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from wavemesh.errors import BusyError, LocalError, NotFoundError, PeerError
from wavemesh.identity.nodes import NodeId, is_within
from wavemesh.telemetry import otlp
from wavemesh.telemetry.batches import (
    MAX_NUMBER,
    Pending,
    TelemetryBatch,
    TelemetryUpload,
    TelemetryUploadAnswer,
    one_upload,
)
from wavemesh.telemetry.loglines import about
from wavemesh.telemetry.units import stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from wavemesh.runtime.clock import Clock
    from wavemesh.telemetry.config import TelemetryConfig
    from wavemesh.telemetry.otlp import ShownSpan
    from wavemesh.telemetry.spans import Span

_LOG = logging.getLogger(__name__)

TRIM_INTERVAL_S = 60.0
MAX_CURSORS = 200_000
MAX_UPLOADS_WAITING = 64
BUSY_RETRY_S = 2.0
SPANS_ENCODED_INLINE = 200
"""About 10 ms of the event loop; more are encoded in a thread."""
MAX_LOGGED_CHARACTERS = 300
_KEPT_SHARE = 0.9
"""Of each bound after a trim, so that a full outbox is not trimmed at every batch."""

TABLES = """
CREATE TABLE telemetry (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    source TEXT NOT NULL,
    incarnation TEXT NOT NULL,
    source_number INTEGER NOT NULL,
    trace_id TEXT NOT NULL,
    body BLOB NOT NULL,
    size INTEGER NOT NULL,
    stored_at INTEGER NOT NULL,
    sent INTEGER NOT NULL
) STRICT;
CREATE INDEX telemetry_by_trace ON telemetry (trace_id);
CREATE INDEX telemetry_unsent ON telemetry (number) WHERE sent = 0;
CREATE TABLE telemetry_cursors (
    source TEXT NOT NULL,
    incarnation TEXT NOT NULL,
    through INTEGER NOT NULL,
    moved_at INTEGER NOT NULL,
    PRIMARY KEY (source, incarnation)
) STRICT;
CREATE TABLE telemetry_drops (
    node TEXT PRIMARY KEY,
    dropped INTEGER NOT NULL
) STRICT;
"""
"""For a hub's SQLite file; control has the same by its own migrations."""

_INSERT = """
INSERT INTO telemetry (source, incarnation, source_number, trace_id, body, size, stored_at, sent)
VALUES (:source, :incarnation, :source_number, :trace_id, :body, :size, :stored_at, 0)"""
_CURSOR = "SELECT through FROM telemetry_cursors WHERE source = :source AND incarnation = :incarnation"
_ADVANCE = """
INSERT INTO telemetry_cursors (source, incarnation, through, moved_at)
VALUES (:source, :incarnation, :through, :now)
ON CONFLICT (source, incarnation) DO UPDATE SET through = excluded.through, moved_at = excluded.moved_at"""
_UNSENT = """
SELECT number, source, incarnation, source_number, body FROM telemetry WHERE sent = 0 ORDER BY number LIMIT :most"""
_SENT = "UPDATE telemetry SET sent = 1 WHERE sent = 0 AND number <= :through"
_TOTALS = "SELECT COUNT(*) AS batches, COALESCE(SUM(size), 0) AS bytes FROM telemetry"
_BY_TRACE = "SELECT body FROM telemetry WHERE trace_id = :trace_id ORDER BY number LIMIT :most"
# Newest first, unsent before sent; what lies past the bounds is surplus.
_SURPLUS = """
SELECT number FROM (
    SELECT number, stored_at,
        SUM(size) OVER (ORDER BY sent, number DESC) AS bytes,
        ROW_NUMBER() OVER (ORDER BY sent, number DESC) AS place
    FROM telemetry
) AS ranked WHERE bytes > :bytes OR place > :batches OR stored_at < :oldest"""
_COUNT_SURPLUS = f"SELECT COUNT(*) AS dropped FROM telemetry WHERE sent = 0 AND number IN ({_SURPLUS})"  # noqa: S608
_DELETE_SURPLUS = f"DELETE FROM telemetry WHERE number IN ({_SURPLUS})"  # noqa: S608  # no word of it from outside
_TRIM_CURSORS = """
DELETE FROM telemetry_cursors WHERE moved_at < :oldest OR (source, incarnation) IN (
    SELECT source, incarnation FROM (
        SELECT source, incarnation, ROW_NUMBER() OVER (ORDER BY moved_at DESC, source, incarnation) AS place
        FROM telemetry_cursors
    ) AS ranked WHERE place > :most)"""
_DROPS = "SELECT node, dropped FROM telemetry_drops"
_PUT_DROPS = """
INSERT INTO telemetry_drops (node, dropped) VALUES (:node, :dropped)
ON CONFLICT (node) DO UPDATE SET dropped = excluded.dropped"""
_MAX_TRACE_BATCHES = 2000


class Row(Protocol):
    """A row, by column."""

    def __getitem__(self, name: str, /) -> Any:
        """The value of a column."""
        ...


class Sql(Protocol):
    """An open transaction."""

    async def execute(self, sql: str, parameters: Mapping[str, object], /) -> int:
        """Run a statement; how many rows it changed."""
        ...

    async def execute_many(self, sql: str, rows: Sequence[Mapping[str, object]], /) -> None:
        """Run a statement once a row."""
        ...

    async def fetch_all(self, sql: str, parameters: Mapping[str, object] = ..., /) -> Sequence[Row]:
        """All rows of a query."""
        ...

    def on_commit(self, hook: Callable[[], None], /) -> None:
        """Call back once it is durable."""
        ...


class Tables(Protocol):
    """Where the tables are."""

    def transaction(self) -> AbstractAsyncContextManager[Sql]:
        """A transaction of its own."""
        ...

    async def fetch_all(self, sql: str, parameters: Mapping[str, object] = ..., /) -> Sequence[Row]:
        """All rows of a query over what is durable."""
        ...


@dataclass(frozen=True, slots=True)
class _Judged:
    """A child's batch that may be stored."""

    batch: TelemetryBatch
    trace_id: bytes


class Outbox:
    """The telemetry of one node and of those below it."""

    def __init__(self, node: NodeId, tables: Tables, clock: Clock, config: TelemetryConfig) -> None:
        """Nothing is read before ``load``."""
        self._node = node
        self._tables = tables
        self._clock = clock
        self._config = config
        self._incarnation = secrets.token_hex(16)
        self._number = 0
        self._batches = 0
        self._bytes = 0
        self._uploads_waiting = 0
        self._dropped: dict[str, int] = {}
        self._has_news = asyncio.Event()
        self._has_news.set()

    @property
    def is_on(self) -> bool:
        """Whether this node keeps telemetry at all."""
        return self._config.enabled

    @property
    def fleet(self) -> str:
        """The fleet whose traces these are."""
        return self._node.fleet

    @property
    def dropped(self) -> int:
        """Batches dropped here and, as far as they have said, below."""
        return sum(self._dropped.values())

    async def load(self) -> None:
        """Count what a former run left."""
        if self.is_on:
            self._dropped = {row["node"]: row["dropped"] for row in await self._tables.fetch_all(_DROPS)}
            await self._count()

    # -- in -----------------------------------------------------------------------------------------------------------

    async def record(self, tx: Sql, spans: Sequence[Span]) -> None:
        """Keep spans of this node's own work, in the transaction of that work."""
        if not spans or not self.is_on:
            return
        by_trace: dict[bytes, list[Span]] = defaultdict(list)
        for span in spans:
            by_trace[span.trace.trace_id].append(span)
        if len(spans) > SPANS_ENCODED_INLINE:
            bodies = await asyncio.to_thread(self._encode, by_trace)
        else:
            bodies = self._encode(by_trace)
        own, batches = self._node.path, list[_Judged]()
        for trace_id, body in bodies:
            self._number += 1
            batches.append(_Judged(TelemetryBatch(own, self._incarnation, self._number, body), trace_id))
        await self._store(tx, batches)
        tx.on_commit(lambda: _say(spans))

    def _encode(self, by_trace: Mapping[bytes, Sequence[Span]]) -> list[tuple[bytes, bytes]]:
        most = otlp.MAX_SPANS_PER_BATCH
        return [
            (trace_id, otlp.encode(self._node, spans[start : start + most]))
            for trace_id, spans in by_trace.items()
            for start in range(0, len(spans), most)
        ]

    async def take(self, child: NodeId, upload: TelemetryUpload) -> TelemetryUploadAnswer:
        """Store what a child sends; what it may not say is refused, the rest kept. Raises NotFoundError, BusyError."""
        if not self.is_on:
            msg = f"telemetry is off at {self._node.path}"
            raise NotFoundError(msg)
        if self._uploads_waiting >= MAX_UPLOADS_WAITING:
            msg = f"{self._uploads_waiting} uploads of telemetry wait already"
            raise BusyError(msg, BUSY_RETRY_S)
        self._uploads_waiting += 1
        try:
            judged, reasons = self._judge(child, upload.batches)
            async with self._tables.transaction() as tx:
                fresh = [one for one in judged if await self._is_new(tx, one.batch)]
                await self._store(tx, fresh)
                await self._note_drops(tx, child.path, upload.dropped)
        finally:
            self._uploads_waiting -= 1
        if reasons:
            _LOG.warning("%d telemetry batches of %s refused: %s", len(reasons), child.path, reasons[0])
        first = reasons[0].encode()[:500].decode(errors="ignore") if reasons else ""
        return TelemetryUploadAnswer(len(upload.batches), len(reasons), first)

    def _judge(self, child: NodeId, batches: Sequence[TelemetryBatch]) -> tuple[list[_Judged], list[str]]:
        judged, reasons = list[_Judged](), list[str]()
        for batch in batches:
            try:
                if not is_within(batch.source, child.path) or not 1 <= batch.number <= MAX_NUMBER:
                    msg = f"{child.path} sends number {batch.number} of {batch.source[:200]!r}"
                    raise otlp.BadTelemetryError(msg)
                judged.append(_Judged(batch, otlp.check(batch.otlp_traces, child.fleet, batch.source)))
            except PeerError as error:
                reasons.append(str(error))
        return judged, reasons

    async def _is_new(self, tx: Sql, batch: TelemetryBatch) -> bool:
        """Whether a batch was never stored; from now on it was."""
        names = {"source": batch.source, "incarnation": batch.incarnation}
        rows = await tx.fetch_all(_CURSOR, names)
        if rows and batch.number <= rows[0]["through"]:
            return False
        await tx.execute(_ADVANCE, {**names, "through": batch.number, "now": stamp(self._clock.now())})
        return True

    async def _store(self, tx: Sql, batches: Sequence[_Judged]) -> None:
        if not batches:
            return
        now = stamp(self._clock.now())
        rows = [
            {
                "source": one.batch.source,
                "incarnation": one.batch.incarnation,
                "source_number": one.batch.number,
                "trace_id": one.trace_id.hex(),
                "body": one.batch.otlp_traces,
                "size": len(one.batch.otlp_traces),
                "stored_at": now,
            }
            for one in batches
        ]
        await tx.execute_many(_INSERT, rows)
        self._batches += len(rows)  # too high if the transaction fails, which the next trim puts right
        self._bytes += sum(len(one.batch.otlp_traces) for one in batches)
        if self._batches > self._config.max_batches or self._bytes > self._config.max_bytes:
            await self._trim(tx)
        tx.on_commit(self._has_news.set)

    # -- out ----------------------------------------------------------------------------------------------------------

    async def wait(self) -> None:
        """Return when there may be something to send."""
        await self._has_news.wait()

    async def pending(self, most: int) -> Pending | None:
        """The oldest unsent batches, as many as fit into one upload; None when everything is sent."""
        self._has_news.clear()
        rows = await self._tables.fetch_all(_UNSENT, {"most": most})
        if not rows:
            return None
        self._has_news.set()
        batches = one_upload(
            tuple(
                TelemetryBatch(row["source"], row["incarnation"], row["source_number"], bytes(row["body"]))
                for row in rows
            )
        )
        return Pending(batches, tuple(row["number"] for row in rows)[: len(batches)], self.dropped)

    async def sent(self, through: int) -> None:
        """Batches up to the outbox's number ``through`` are where they should be."""
        async with self._tables.transaction() as tx:
            await tx.execute(_SENT, {"through": through})

    async def trace(self, trace_id: bytes) -> list[ShownSpan]:
        """All spans of a trace that are held here, by begin; each once."""
        rows = await self._tables.fetch_all(_BY_TRACE, {"trace_id": trace_id.hex(), "most": _MAX_TRACE_BATCHES})
        spans = {span.span_id: span for row in rows for span in otlp.show(bytes(row["body"]), trace_id)}
        return sorted(spans.values(), key=lambda span: (span.began_at, span.ended_at, span.span_id))

    # -- bounds -------------------------------------------------------------------------------------------------------

    async def keep_bounded(self) -> None:
        """Forget what is too old, for as long as the node runs."""
        while self.is_on:
            try:
                async with self._tables.transaction() as tx:
                    await self._trim(tx)
            except LocalError as error:
                _LOG.error("old telemetry stays for now: %s", error)  # the error says all there is to say
            await asyncio.sleep(TRIM_INTERVAL_S)

    async def _trim(self, tx: Sql) -> None:
        now, config = self._clock.now(), self._config
        surplus = {
            "bytes": int(config.max_bytes * _KEPT_SHARE),
            "batches": int(config.max_batches * _KEPT_SHARE),
            "oldest": stamp(now - timedelta(seconds=config.keep_s)),
        }
        [count] = await tx.fetch_all(_COUNT_SURPLUS, surplus)
        await tx.execute(_DELETE_SURPLUS, surplus)
        # A child keeps as long as we do: twice that is past any resend.
        oldest = stamp(now - timedelta(seconds=2 * config.keep_s))
        await tx.execute(_TRIM_CURSORS, {"oldest": oldest, "most": MAX_CURSORS})
        if count["dropped"]:
            own = self._node.path
            _LOG.warning(
                "%d telemetry batches dropped: nobody took them in time, or the outbox is full", count["dropped"]
            )
            await self._note_drops(tx, own, self._dropped.get(own, 0) + count["dropped"])
        [totals] = await tx.fetch_all(_TOTALS)
        self._batches, self._bytes = totals["batches"], totals["bytes"]

    async def _note_drops(self, tx: Sql, node: str, dropped: int) -> None:
        if dropped <= self._dropped.get(node, 0):
            return
        await tx.execute(_PUT_DROPS, {"node": node, "dropped": dropped})
        if node != self._node.path:
            _LOG.warning("%s and below dropped %d telemetry batches so far", node, dropped)
        tx.on_commit(lambda: self._dropped.__setitem__(node, dropped))

    async def _count(self) -> None:
        [totals] = await self._tables.fetch_all(_TOTALS)
        self._batches, self._bytes = totals["batches"], totals["bytes"]


def _say(spans: Sequence[Span]) -> None:
    """Own work in the log, a line a unit; a unit that was the same for many devices is one line."""
    alike: dict[tuple[str, str], list[Span]] = defaultdict(list)
    for span in spans:
        alike[span.trace.wave_id, span.name].append(span)
    for (wave_id, name), same in alike.items():
        trace, is_one = same[0].trace, len(same) == 1
        # What went wrong may be a device's own words: one line of them, and not all.
        more = " ".join(same[0].error.split())[:MAX_LOGGED_CHARACTERS] if is_one else f"for {len(same)} devices"
        with about(trace.fleet, wave_id, trace.device if is_one else ""):
            _LOG.info("%s %s", name, more or "done")
