"""Intents as rows: one a known intent, never deleted, so that an id stands for one intent for ever."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, or_, select

from control import schema
from wavemesh.codec.statements import encode
from wavemesh.trust.statements import IntentKind

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import ColumnElement, RowMapping

    from control.database import Transaction
    from wavemesh.identity.nodes import NodeId
    from wavemesh.trust.statements import Envelope, OperatorIntent


class Disposition(enum.Enum):
    """What became of an intent; values as in operator.proto."""

    APPLIED = 1
    QUEUED = 2
    REFUSED = 3
    CANCELLED = 4


@dataclass(frozen=True, slots=True)
class IntentRow:
    """An intent and its fate; ``operator`` is a SPIFFE id, ``waiting_for`` are paths."""

    intent_id: str
    kind: IntentKind
    wave_id: str
    device: str
    operator: str
    reason: str
    disposition: Disposition
    waiting_for: tuple[str, ...]
    detail: str
    received_at: datetime
    payload_sha256: str
    envelope: bytes
    settled_at: datetime | None = None


MAX_PAUSES_TAKEN = 64
"""Of the intents to pause a wave that its orders name."""


async def pauses_taken(tx: Transaction, wave_id: str) -> tuple[str, ...]:
    """The latest intents to pause that wave which were acted on, oldest first."""
    table = schema.intents
    fates = [Disposition.APPLIED.name, Disposition.QUEUED.name]
    query = select(table.c.intent_id).where(
        table.c.wave_id == wave_id, table.c.kind == IntentKind.PAUSE_WAVE.name, table.c.disposition.in_(fates)
    )
    rows = await tx.all(query.order_by(table.c.number.desc()).limit(MAX_PAUSES_TAKEN))
    return tuple(row["intent_id"] for row in reversed(rows))


@dataclass(frozen=True, slots=True)
class IntentFilter:
    """What a list of intents is narrowed to; the default of each field is everything.

    ``operator`` is a name or SPIFFE id, ``device`` a name or path.
    """

    wave_id: str = ""
    disposition: Disposition | None = None
    kind: IntentKind | None = None
    operator: str = ""
    device: str = ""
    since: datetime | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """The same for a query."""
        table = schema.intents
        found: list[ColumnElement[bool]] = []
        if self.wave_id:
            found.append(table.c.wave_id == self.wave_id)
        if self.disposition is not None:
            found.append(table.c.disposition == self.disposition.name)
        if self.kind is not None:
            found.append(table.c.kind == self.kind.name)
        if self.operator:
            found.append(schema.is_named(table.c.operator, self.operator))
        if self.device:
            name = self.device.rsplit("/", 1)[-1]
            # An intent may name its device by name alone.
            found.append(or_(schema.is_named(table.c.device, self.device), table.c.device == name))
        if self.since is not None:
            found.append(table.c.received_at >= self.since)
        return found


def new_row(envelope: Envelope, intent: OperatorIntent, operator: NodeId, now: datetime) -> IntentRow:
    """An intent as it comes in: queued, and nothing known of whom it waits for."""
    return IntentRow(
        intent_id=intent.intent_id,
        kind=intent.kind,
        wave_id=intent.wave_id,
        device=intent.device,
        operator=operator.uri,
        reason=intent.reason,
        disposition=Disposition.QUEUED,
        waiting_for=(),
        detail="",
        received_at=now,
        payload_sha256=hashlib.sha256(envelope.payload).hexdigest(),
        envelope=encode(envelope),
    )


async def get(tx: Transaction, intent_id: str) -> IntentRow | None:
    """One intent, or None."""
    found = await tx.first(select(schema.intents).where(schema.intents.c.intent_id == intent_id))
    return None if found is None else from_row(found)


async def page(tx: Transaction, before: int | None, limit: int, wanted: IntentFilter) -> list[tuple[int, IntentRow]]:
    """(number, intent), newest first, below a number if given."""
    table = schema.intents
    query = select(table).where(*wanted.conditions()).order_by(table.c.number.desc()).limit(limit)
    if before is not None:
        query = query.where(table.c.number < before)
    return [(row["number"], from_row(row)) for row in await tx.all(query)]


async def next_number(tx: Transaction) -> int:
    """The number of the next intent."""
    return int(await tx.scalar(select(func.max(schema.intents.c.number))) or 0) + 1


def values(row: IntentRow) -> dict[str, object]:
    """The columns of an intent, but for its number."""
    columns = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    return columns | {
        "kind": row.kind.name,
        "disposition": row.disposition.name,
        "waiting_for": list(row.waiting_for),
    }


def from_row(found: RowMapping) -> IntentRow:
    """An intent as kept."""
    columns = dict(found)
    del columns["number"]
    columns["kind"] = IntentKind[columns["kind"]]
    columns["disposition"] = Disposition[columns["disposition"]]
    columns["waiting_for"] = tuple(columns["waiting_for"])
    return IntentRow(**columns)
