"""Desired state from control: verified, durable, then passed on.

Rules. Trust metadata is verified before the resources that came with it, because it has their keys; hold lists next.
Revocations are in force from the moment they are durable, and are never taken back: a removal is passed over.
What is durable here is served to the stores it concerns at once, under this hub's own versions; transfers are judged
anew. When control closes a wave, its outcomes are forgotten. Verifying runs in a thread: the permits of a large wave
are thousands of signatures. What is held in the place of an older word of control is shown to it (ADR 20).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from superhub.acceptance import CLOSED_TYPE, ENROLMENT_TYPE, REVOCATIONS_TYPE, TRUST_TYPE
from wavemesh.artifacts.digests import in_thread
from wavemesh.errors import GateError
from wavemesh.policy.gates import Gate
from wavemesh.session.frames import MAX_REASON_BYTES, Rejection

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from superhub.acceptance import Acceptance
    from superhub.shelf import Shelf
    from superhub.store import RegionStore
    from superhub.tracing import Tracing
    from wavemesh.runtime.clock import Clock
    from wavemesh.session.frames import HeldResource, Resource, ResourceKey
    from wavemesh.session.showing import Showing
    from wavemesh.session.sqlite import SqliteResources

_ORDER = {TRUST_TYPE: 0, "holds": 1, REVOCATIONS_TYPE: 1}
_MAX_REASON_CHARACTERS = MAX_REASON_BYTES // 4


class RegionSink:
    """The ResourceSink of one super hub."""

    def __init__(
        self,
        *,
        store: RegionStore,
        resources: SqliteResources,
        acceptance: Acceptance,
        shelf: Shelf,
        clock: Clock,
        tracing: Tracing,
        showing: Showing,
        changed: Callable[[], None],
        connected: Callable[[], None] = lambda: None,
    ) -> None:
        """``changed`` is called when desired state is durable here and on the shelf, ``connected`` with a session."""
        self._store = store
        self._resources = resources
        self._acceptance = acceptance
        self._shelf = shelf
        self._clock = clock
        self._tracing = tracing
        self._changed = changed
        self._connected = connected
        self._showing = showing

    async def restore(self) -> None:
        """Take up again what was durable when the process ended; what cannot be believed any more is asked for anew."""
        doubtful = await in_thread(self._acceptance.restore, self._resources.all().values())
        if doubtful:
            async with self._store.database.transaction() as tx:
                await self._resources.store(tx, (), doubtful)
        for resource in self._resources.all().values():
            if resource.key.type != ENROLMENT_TYPE:
                self._shelf.put(resource)
            self._tracing.restored(resource)
        self._acceptance.enforce()

    def held(self) -> Sequence[HeldResource]:
        """Everything durable here from control."""
        return self._resources.held()

    async def apply(self, changed: Sequence[Resource], removed: Sequence[ResourceKey]) -> Sequence[Rejection]:
        """Verify and store; what is not returned as rejected is durable when this returns."""
        ordered = sorted(changed, key=lambda resource: _ORDER.get(resource.key.type, len(_ORDER)))
        removed = [key for key in removed if key.type != REVOCATIONS_TYPE]
        accepted, rejected = await in_thread(self._judge, ordered, self._clock.now())
        async with self._store.database.transaction() as tx:
            # A last word that is taken back is shown as well: control knows its waves that are over, unless it forgot.
            replayed = [one.key for one in rejected if one.gate == Gate.REPLAY.value]
            for key in (*replayed, *(key for key in removed if key.type == CLOSED_TYPE)):
                await self._showing.show_held(tx, self._resources, key)
            await self._resources.store(tx, accepted, removed)
            for resource in accepted:
                if resource.key.type == "closed":
                    await self._store.close_wave(tx, resource.key.name)
            # With the commit, and not after it: a session that ends meanwhile cancels this call, and control will not
            # send again what is durable here.
            tx.on_commit(lambda: self._serve(accepted, removed))
        return rejected

    def _serve(self, accepted: Sequence[Resource], removed: Sequence[ResourceKey]) -> None:
        """Show the stores what is durable now."""
        for key in removed:
            self._acceptance.forget(key)
            self._shelf.remove(key)
            self._tracing.forget(key)
        for resource in accepted:
            served = self._resources.get(resource.key)
            if served is not None and resource.key.type != ENROLMENT_TYPE:
                self._shelf.put(served)
                self._tracing.held(served)
        if accepted or removed:
            self._changed()
        if any(resource.key.type == REVOCATIONS_TYPE for resource in accepted):
            self._acceptance.enforce()

    def _judge(self, resources: Sequence[Resource], now: datetime) -> tuple[list[Resource], list[Rejection]]:
        accepted: list[Resource] = []
        rejected: list[Rejection] = []
        for resource in resources:
            try:
                self._acceptance.accept(resource, now)
            except GateError as error:
                reason = str(error)[:_MAX_REASON_CHARACTERS]
                rejected.append(Rejection(resource.key, resource.digest, error.gate, reason))
            else:
                accepted.append(resource)
        return accepted, rejected

    async def connected(self) -> None:
        """A session with control is open: what is asked of it can be asked now."""
        self._showing.begin()
        self._connected()

    async def settled(self) -> None:
        """Everything control wants is here; nothing waits for that."""

    async def disconnected(self, reason: str) -> None:
        """The session with control ended; the region goes on."""
