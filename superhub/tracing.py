"""What this hub did, as spans: orders and permits passed on, blobs seeded, outcomes merged.

A resource is passed on from the moment it is durable here to its store's verdict; the moment is kept in memory, so for
one that was durable before the last start it is that start. Blobs are seeded to a store, and told in the trace of each
of its devices whose order needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wavemesh.codec.statements import decode
from wavemesh.telemetry.spans import Span, Trace
from wavemesh.telemetry.units import blob_moved, outcome_merged, traces_of
from wavemesh.trust.statements import Envelope, Permit, WaveOrder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from superhub.rollup import Heard
    from wavemesh.identity.nodes import NodeId
    from wavemesh.runtime.clock import Clock
    from wavemesh.runtime.sqlite import Database
    from wavemesh.session.frames import HeldResource, Rejection, Resource, ResourceKey
    from wavemesh.telemetry.outbox import Outbox, Sql
    from wavemesh.telemetry.units import BlobMoved

_TRACED = frozenset({"order", "permit"})


class Tracing:
    """Makes the spans of one super hub."""

    def __init__(self, node: NodeId, outbox: Outbox, database: Database, clock: Clock) -> None:
        """Spans go into ``outbox``, in transactions of ``database`` where the work has none of its own."""
        self._node = node
        self._database = database
        self._clock = clock
        self.outbox = outbox
        self._durable: dict[ResourceKey, Resource] = {}
        self._since: dict[ResourceKey, datetime] = {}
        self._restored: set[ResourceKey] = set()

    def held(self, resource: Resource) -> None:
        """A resource is durable here from now on."""
        if resource.key.type in _TRACED and self.outbox.is_on:
            self._durable[resource.key] = resource
            self._since[resource.key] = self._clock.now()
            self._restored.discard(resource.key)

    def restored(self, resource: Resource) -> None:
        """A resource was durable here before this start; whether its store has answered is not known."""
        self.held(resource)
        self._restored.add(resource.key)

    def forget(self, key: ResourceKey) -> None:
        """A resource is gone, or its store has answered: its span is told once."""
        self._durable.pop(key, None)
        self._since.pop(key, None)
        self._restored.discard(key)

    async def connected(self, child: NodeId, held: Sequence[HeldResource]) -> None:
        """A store is back and says what it holds: verdicts that the end of its last session swallowed are in there."""
        known = [self._durable[one.key] for one in held if one.key in self._durable]
        digests = {one.key: one.digest for one in held}
        swallowed = [one for one in known if one.digest == digests[one.key] and one.key not in self._restored]
        await self.relayed(child, swallowed, ())

    async def relayed(self, child: NodeId, accepted: Sequence[Resource], rejected: Sequence[Rejection]) -> None:
        """A store gave its verdict."""
        if not self.outbox.is_on:
            return
        refusals = {one.key: one for one in rejected}
        spans = [
            span
            for key in (*(resource.key for resource in accepted), *refusals)
            if key in self._durable
            for span in self._relay(child, self._durable[key], refusals.get(key))
        ]
        if spans:
            async with self._database.transaction() as tx:
                await self.outbox.record(tx, spans)
        for key in (*(resource.key for resource in accepted), *refusals):
            self.forget(key)

    def _relay(self, child: NodeId, resource: Resource, refusal: Rejection | None) -> Iterator[Span]:
        now = self._clock.now()
        for trace, parent_id, generation in self._about(resource):
            yield Span(
                trace=trace,
                span_id=trace.unit("superhub.relay", self._node.path, resource.key.type, child.path, generation),
                parent_id=parent_id,
                name=f"superhub.{resource.key.type}",
                began_at=self._since[resource.key],
                ended_at=now,
                gate=refusal.gate if refusal is not None else "",
                error=f"{refusal.gate}: {refusal.reason}" if refusal is not None else "",
                attributes={"wavemesh.generation": generation},
            )

    def _about(self, resource: Resource) -> Iterator[tuple[Trace, bytes, int]]:
        """The traces that a resource is about, the span there that it comes from, and its generation."""
        payload = decode(Envelope, resource.content).payload  # verified before it became durable
        if resource.key.type == "permit":
            permit = decode(Permit, payload)
            trace = Trace(self._node.fleet, permit.wave_id, permit.device)
            yield trace, trace.permit(permit.generation), permit.generation
            return
        order = decode(WaveOrder, payload)
        for trace in traces_of(self._node.fleet, order):
            yield trace, trace.root(), order.generation

    async def seeded(self, orders: Iterable[WaveOrder], moved: BlobMoved) -> None:
        """A blob went to the store of these orders, whole or not."""
        spans = blob_moved("superhub.seed", self._node, orders, moved, self._clock.now()) if self.outbox.is_on else []
        if spans:
            async with self._database.transaction() as tx:
                await self.outbox.record(tx, spans)

    async def merged(self, tx: Sql, heard: Iterable[Heard]) -> None:
        """Outcomes are durable and on their way up."""
        now = self._clock.now()
        spans = [
            outcome_merged("superhub.outcome", self._node, one.outcome, _signer(one), now)
            for one in heard
            if self.outbox.is_on
        ]
        await self.outbox.record(tx, spans)


def _signer(heard: Heard) -> str:
    """Path of who signed an outcome: the device, or its store's hub that inferred it."""
    device = heard.outcome.device
    return device if heard.rank.by_device else device.rsplit("/", 2)[0]
