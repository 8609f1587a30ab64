"""What this hub did, as spans: orders taken, blobs fetched, leases granted, swaps ended, outcomes merged and inferred.

Spans are recorded in the transaction of their work. A lease granted while the WAN is dark says so and links to the
permit it spends, which may be days old; with the WAN there it is part of that permit. Both ids follow from the signed
permit and lease, so the device finds its parent without being told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wavemesh.telemetry.spans import Span, Trace
from wavemesh.telemetry.units import BlobMoved, blob_moved, error_of, outcome_merged, traces_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from storehub.swaps import Slot
    from wavemesh.identity.nodes import NodeId
    from wavemesh.runtime.clock import Clock
    from wavemesh.telemetry.outbox import Outbox, Sql
    from wavemesh.trust.statements import DeviceOutcome, Digest, Permit, WaveOrder


class Tracing:
    """Makes the spans of one store hub."""

    def __init__(self, node: NodeId, outbox: Outbox, clock: Clock) -> None:
        """``is_dark`` says whether there is no session with the super hub now; the composition root sets it."""
        self._node = node
        self._clock = clock
        self.outbox = outbox
        self.is_dark: Callable[[], bool] = lambda: True

    async def ordered(self, tx: Sql, order: WaveOrder) -> None:
        """An order of a new generation is durable here."""
        now = self._clock.now()
        about: dict[str, str | int] = {
            "wavemesh.generation": order.generation,
            "wavemesh.state": order.state.name.lower(),
            "wavemesh.release": order.release,
        }
        spans = [
            Span(
                trace=trace,
                span_id=trace.unit("storehub.order", self._node.path, order.generation),
                parent_id=trace.root(),
                name="storehub.order",
                began_at=now,
                ended_at=now,
                attributes=about,
            )
            for trace in traces_of(self._node.fleet, order)
            if self.outbox.is_on
        ]
        await self.outbox.record(tx, spans)

    async def granted(self, tx: Sql, slot: Slot, lease_id: str, permit: Permit) -> None:
        """A lease is durable and about to be served."""
        trace, dark = Trace(self._node.fleet, slot.wave_id, slot.device), self.is_dark()
        spent = trace.permit(permit.generation)
        span = Span(
            trace=trace,
            span_id=trace.lease(lease_id),
            parent_id=trace.root() if dark else spent,
            name="storehub.lease",
            began_at=slot.granted_at,
            ended_at=slot.granted_at,
            attributes={"wavemesh.attempt": slot.attempt, "wavemesh.dark": "yes" if dark else "no"},
            links=(spent,) if dark else (),
        )
        await self.outbox.record(tx, [span])

    async def ended(self, tx: Sql, slot: Slot, lease_id: str, outcome: DeviceOutcome | None) -> None:
        """The slot of a lease is free: by the device's word, or because its maxima have passed."""
        now, trace = self._clock.now(), Trace(self._node.fleet, slot.wave_id, slot.device)
        about: dict[str, str | int] = {"wavemesh.attempt": slot.attempt}
        gate = error = ""
        if outcome is not None and outcome.attempt >= slot.attempt:
            gate, error = outcome.gate, error_of(outcome.kind, outcome.gate, outcome.evidence)
            about["wavemesh.outcome"] = outcome.kind.name.lower()
        elif now >= slot.until:
            error = "no word of the device within the maxima"
        span = Span(
            trace=trace,
            span_id=trace.unit("storehub.swap", lease_id),
            parent_id=trace.lease(lease_id),
            name="storehub.swap",
            began_at=slot.granted_at,
            ended_at=now,
            gate=gate,
            error=error,
            attributes=about,
        )
        await self.outbox.record(tx, [span])

    async def merged(self, tx: Sql, outcome: DeviceOutcome, signer: str) -> None:
        """A device's word is merged and on its way up."""
        span = outcome_merged("storehub.outcome", self._node, outcome, signer, self._clock.now())
        await self.outbox.record(tx, [span])

    async def inferred(self, tx: Sql, outcome: DeviceOutcome, heard_at: datetime) -> None:
        """This hub signed what it must infer of a device that it heard last at ``heard_at``."""
        trace = Trace(self._node.fleet, outcome.wave_id, outcome.device)
        span = Span(
            trace=trace,
            span_id=trace.outcome(self._node.path, outcome.attempt, outcome.sequence),
            parent_id=trace.root(),
            name="storehub.inferred",
            began_at=heard_at,
            ended_at=outcome.at,
            gate=outcome.gate,
            error=error_of(outcome.kind, outcome.gate, outcome.evidence),
            attributes={"wavemesh.attempt": outcome.attempt, "wavemesh.outcome": outcome.kind.name.lower()},
        )
        await self.outbox.record(tx, [span])

    async def fetched(self, tx: Sql, orders: Iterable[WaveOrder], digest: Digest, began_at: datetime) -> None:
        """A blob is whole in the cache."""
        if self.outbox.is_on:
            moved = BlobMoved(digest, began_at, digest.size_bytes)
            await self.outbox.record(tx, blob_moved("storehub.fetch", self._node, orders, moved, self._clock.now()))
