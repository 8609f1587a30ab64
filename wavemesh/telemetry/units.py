"""Units of work that several tiers have in common, as spans. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from wavemesh.telemetry.spans import Span, Trace
from wavemesh.trust.statements import OutcomeKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from wavemesh.identity.nodes import NodeId
    from wavemesh.trust.statements import DeviceOutcome, Digest, WaveOrder

_FINE = frozenset({OutcomeKind.PENDING, OutcomeKind.UPDATED})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class BlobMoved:
    """One transfer of a blob: since when, how much of it, and what ended it too early."""

    digest: Digest
    began_at: datetime
    sent_bytes: int
    gate: str = ""
    error: str = ""
    method: str = ""
    """How it travelled: ``full``, ``full-zstd``, ``chunks``, ``delta``; empty where there is one way only."""


def stamp(at: datetime) -> int:
    """A time as microseconds since 1970: part of an id, and how the outbox stores it."""
    return (at - _EPOCH) // timedelta(microseconds=1)


def error_of(kind: OutcomeKind, gate: str, evidence: str) -> str:
    """What a span that ended in that outcome says went wrong; empty for a good end."""
    return "" if kind in _FINE else f"{kind.name.lower()}: {gate}: {evidence}"


def traces_of(fleet: str, order: WaveOrder) -> Iterator[Trace]:
    """The traces of an order's devices."""
    return (Trace(fleet, order.wave_id, f"{order.store}/device/{name}") for name in order.devices)


def outcome_merged(name: str, node: NodeId, outcome: DeviceOutcome, signer: str, now: datetime) -> Span:
    """A tier made an outcome durable and passes it on: linked to the work that ended in it, hours ago or just now.

    ``signer`` is the path of the node that signed it; ``wavemesh.late_ms`` is how long the word was on its way.
    """
    trace = Trace(node.fleet, outcome.wave_id, outcome.device)
    return Span(
        trace=trace,
        span_id=trace.unit(name, node.path, signer, outcome.attempt, outcome.sequence),
        parent_id=trace.root(),
        name=name,
        began_at=now,
        ended_at=now,
        gate=outcome.gate,
        error=error_of(outcome.kind, outcome.gate, outcome.evidence),
        attributes={
            "wavemesh.attempt": outcome.attempt,
            "wavemesh.outcome": outcome.kind.name.lower(),
            "wavemesh.late_ms": max(0, (stamp(now) - stamp(outcome.at)) // 1000),
        },
        links=(trace.outcome(signer, outcome.attempt, outcome.sequence),),
    )


def _moved_attributes(moved: BlobMoved) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {"wavemesh.sha256": moved.digest.sha256, "wavemesh.bytes": moved.sent_bytes}
    return {**attributes, "wavemesh.method": moved.method} if moved.method else attributes


def blob_moved(name: str, node: NodeId, orders: Iterable[WaveOrder], moved: BlobMoved, now: datetime) -> list[Span]:
    """A transfer is over, well or not: one span in the trace of each device whose order waits for the blob."""
    return [
        Span(
            trace=trace,
            span_id=trace.unit(name, node.path, moved.digest.sha256, stamp(moved.began_at)),
            parent_id=trace.root(),
            name=name,
            began_at=moved.began_at,
            ended_at=now,
            gate=moved.gate,
            error=moved.error,
            attributes=_moved_attributes(moved),
        )
        for order in orders
        for trace in traces_of(node.fleet, order)
    ]
