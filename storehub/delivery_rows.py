"""Deliveries as they are kept: one row and JSON document each, mirrored in memory; the mirror follows on commit."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from storehub.deliveries import Delivery
from storehub.schema import from_stamp, to_stamp
from wavemesh.artifacts.digests import blob_name
from wavemesh.artifacts.plan import Alternative, Failure, Method, Piece, TransferPlan
from wavemesh.trust.delivered import DeliveryState
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from wavemesh.runtime.sqlite import Database, Transaction

ALTERNATIVES_KEPT = 16
MAX_ENDED = 500


class DeliveryRows:
    """The table of deliveries. Of those at their end the last MAX_ENDED stay."""

    def __init__(self, rows: Mapping[Digest, Delivery]) -> None:
        """Use ``load``."""
        self._rows = dict(rows)

    @classmethod
    async def load(cls, database: Database) -> DeliveryRows:
        """Read the table; raises LocalError."""
        found = [from_text(row["content"]) for row in await database.fetch_all("SELECT content FROM deliveries")]
        return cls({delivery.target: delivery for delivery in found})

    @property
    def all(self) -> Mapping[Digest, Delivery]:
        """Deliveries under way and ended, by target."""
        return self._rows

    async def put(self, tx: Transaction, delivery: Delivery) -> None:
        """Keep how a delivery is now."""
        target = delivery.target
        content = to_text(delivery)
        await tx.execute("INSERT OR REPLACE INTO deliveries VALUES (?, ?)", (blob_name(target), content))
        tx.on_commit(lambda: self._rows.__setitem__(target, delivery))
        ended = sorted((one.began_at, one.target.sha256) for one in self._rows.values() if not one.is_open)
        for _, sha256 in ended[: max(0, len(ended) + 1 - MAX_ENDED)]:
            for old in [digest for digest in self._rows if digest.sha256 == sha256 and digest != target]:
                await self.drop(tx, old)

    async def drop(self, tx: Transaction, target: Digest) -> None:
        """Forget a delivery."""
        await tx.execute("DELETE FROM deliveries WHERE target = ?", (blob_name(target),))
        tx.on_commit(partial(_drop, self._rows, target))


def _drop(rows: dict[Digest, Delivery], target: Digest) -> None:
    rows.pop(target, None)


def to_text(delivery: Delivery) -> str:
    """The delivery as JSON; of the alternatives to its plan the first ALTERNATIVES_KEPT."""
    return json.dumps(
        {
            "target": _pair(delivery.target),
            "wave_id": delivery.wave_id,
            "began_at": to_stamp(delivery.began_at),
            "state": delivery.state.name,
            "plan": None if delivery.plan is None else _plan(delivery.plan),
            "forecast_bytes": delivery.forecast_bytes,
            "settled_bytes": delivery.settled_bytes,
            "held_bytes": delivery.held_bytes,
            "moved_bytes": delivery.moved_bytes,
            "said": delivery.said,
            "waits_since": _stamp(delivery.waits_since),
            "wait_until": _stamp(delivery.wait_until),
            "failures": [[f.method.value, _pairs(f.bases), _pair(f.payload), f.reason] for f in delivery.failures],
        },
        separators=(",", ":"),
    )


def from_text(text: str) -> Delivery:
    """The delivery that ``to_text`` wrote."""
    row = json.loads(text)
    return Delivery(
        target=_needed(row["target"]),
        wave_id=row["wave_id"],
        began_at=from_stamp(row["began_at"]),
        state=DeliveryState[row["state"]],
        plan=None if row["plan"] is None else _read_plan(row["plan"]),
        forecast_bytes=row["forecast_bytes"],
        settled_bytes=row["settled_bytes"],
        held_bytes=row["held_bytes"],
        moved_bytes=row["moved_bytes"],
        said=row["said"],
        waits_since=_time(row["waits_since"]),
        wait_until=_time(row["wait_until"]),
        failures=tuple(
            Failure(Method(method), tuple(map(_needed, bases)), _digest(payload), reason)
            for method, bases, payload, reason in row["failures"]
        ),
    )


def _plan(plan: TransferPlan) -> dict[str, Any]:
    return {
        "target": _pair(plan.target),
        "method": plan.method.value,
        "bases": _pairs(plan.bases),
        "payload": _pair(plan.payload),
        "index": _pair(plan.index),
        "pieces": [[_pair(piece.digest), piece.offset, piece.length] for piece in plan.pieces],
        "read_bytes": plan.read_bytes,
        "seconds": plan.seconds,
        "ready_in_s": plan.ready_in_s,
        "rebuild_s": plan.rebuild_s,
        "cost": plan.cost,
        "why": plan.why,
        "alternatives": [
            [one.method.value, one.read_bytes, one.seconds, one.cost, one.reason]
            for one in plan.alternatives[:ALTERNATIVES_KEPT]
        ],
    }


def _read_plan(row: dict[str, Any]) -> TransferPlan:
    return TransferPlan(
        target=_needed(row["target"]),
        method=Method(row["method"]),
        bases=tuple(map(_needed, row["bases"])),
        payload=_digest(row["payload"]),
        index=_digest(row["index"]),
        pieces=tuple(Piece(_needed(digest), offset, length) for digest, offset, length in row["pieces"]),
        read_bytes=row["read_bytes"],
        seconds=row["seconds"],
        ready_in_s=row["ready_in_s"],
        rebuild_s=row["rebuild_s"],
        cost=row["cost"],
        why=row["why"],
        alternatives=tuple(
            Alternative(Method(method), read_bytes, seconds, cost, reason)
            for method, read_bytes, seconds, cost, reason in row["alternatives"]
        ),
    )


def _pair(digest: Digest | None) -> list[object] | None:
    return None if digest is None else [digest.sha256, digest.size_bytes]


def _pairs(digests: tuple[Digest, ...]) -> list[object]:
    return [_pair(digest) for digest in digests]


def _digest(pair: list[Any] | None) -> Digest | None:
    return None if pair is None else _needed(pair)


def _needed(pair: list[Any]) -> Digest:
    return Digest(pair[0], pair[1])


def _stamp(at: datetime | None) -> int | None:
    return None if at is None else to_stamp(at)


def _time(stamp: int | None) -> datetime | None:
    return None if stamp is None else from_stamp(stamp)
