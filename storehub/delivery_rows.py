"""A delivery as it is kept: one JSON document, read back by its own words only."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from storehub.deliveries import Delivery, DeliveryState
from storehub.schema import from_stamp, to_stamp
from wavemesh.artifacts.plan import Alternative, Failure, Method, Piece, TransferPlan
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from datetime import datetime

ALTERNATIVES_KEPT = 16


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
