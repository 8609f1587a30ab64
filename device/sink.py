"""The device's end of desired state: verifies with ``Verifier``, keeps durable what is believed, and tells the agent.

Metadata comes first within an update, whatever its order, because everything else is verified against it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from device.belief import (
    MAX_HELD_BYTES,
    MAX_HELD_RESOURCES,
    MAX_UNPROVEN,
    Grant,
    NamedPolicy,
    Statement,
    Unproven,
    Verifier,
    signed_times,
)
from device.orders import Belief
from wavemesh.errors import GateError
from wavemesh.policy.gates import Gate
from wavemesh.session.frames import HeldResource, Rejection, Resource, ResourceKey
from wavemesh.trust.freshness import ClockSource, confirms, raise_floor
from wavemesh.trust.metadata import TrustedMetadata
from wavemesh.trust.statements import HoldList, OperatorIntent, RevocationList, WaveClosed, WaveOrder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from device.logs import DeviceLog
    from device.store import DeviceStore
    from wavemesh.runtime.clock import Clock

_ORDER = {"tuf": 0, "revocations": 1, "holds": 2, "policy": 2}
# A hub that takes trust metadata or revocations away could bring older ones after the next start.
_KEPT = frozenset({"tuf", "revocations"})
MAX_REASON_CHARACTERS = 900
MAX_ALERTS_PER_UPDATE = 20
# Verifying takes half a millisecond, and nothing may block the loop: a hub may send thousands at once.
VERIFIED_AT_A_TIME = 32


@dataclass(frozen=True, slots=True)
class _Told:
    """What is believed, as the agent asks for it: found once after each change, asked for at every step."""

    belief: Belief
    orders: tuple[WaveOrder, ...]
    intents: tuple[OperatorIntent, ...]
    closed: tuple[WaveClosed, ...]
    holds: tuple[HoldList, ...]


class DeviceSink:
    """Implements ``wavemesh.session.seams.ResourceSink``."""

    def __init__(
        self,
        *,
        store: DeviceStore,
        verifier: Verifier,
        clock: Clock,
        log: DeviceLog,
        source: ClockSource,
        changed: Callable[[], None],
    ) -> None:
        """``source`` says why the clock may be believed at start; ``changed`` is called after every change."""
        self._store = store
        self._verifier = verifier
        self._clock = clock
        self._log = log
        self._source = source
        self._changed = changed
        self._believed: dict[ResourceKey, Statement] = {}
        self._told: _Told | None = None
        self._sizes: dict[ResourceKey, int] = {}
        self._heard = store.document.clock_floor
        self._recall()

    # --- what the agent asks -----------------------------------------------------------------------------------------

    @property
    def belief(self) -> Belief:
        """Metadata, policies and holds, as orders are judged by them."""
        return self._tell().belief

    @property
    def trusted(self) -> TrustedMetadata | None:
        """The trust metadata."""
        return self._verifier.trusted

    @property
    def clock_source(self) -> ClockSource:
        """Why the clock may be believed now."""
        return self._source

    def orders(self) -> tuple[WaveOrder, ...]:
        """All orders, the newest first."""
        return self._tell().orders

    def grant(self, wave_id: str) -> Grant | None:
        """The lease and permit for a wave."""
        found = self._believed.get(ResourceKey("lease", wave_id))
        return found if isinstance(found, Grant) else None

    def intents(self) -> tuple[OperatorIntent, ...]:
        """Operators' intents, the oldest first."""
        return self._tell().intents

    def closed(self) -> tuple[WaveClosed, ...]:
        """Waves that control closed."""
        return self._tell().closed

    def _tell(self) -> _Told:
        trusted = self._verifier.trusted
        if self._told is None or self._told.belief.trusted is not trusted:
            believed = self._believed.values()
            policies = {one.digest: one.policy for one in believed if isinstance(one, NamedPolicy)}
            orders = [one for one in believed if isinstance(one, WaveOrder)]
            intents = [one for one in believed if isinstance(one, OperatorIntent)]
            holds = tuple(one for one in believed if isinstance(one, HoldList))
            self._told = _Told(
                Belief(trusted, policies, holds[0] if holds else None),
                tuple(sorted(orders, key=lambda order: (order.issued_at, order.wave_id), reverse=True)),
                tuple(sorted(intents, key=lambda intent: (intent.issued_at, intent.intent_id))),
                tuple(one for one in believed if isinstance(one, WaveClosed)),
                holds,
            )
        return self._told

    @property
    def clock_floor(self) -> datetime:
        """A time that has passed for certain."""
        return self._floor()

    def hear_time(self, signed_at: datetime) -> None:
        """Control signed this time just now: the clock floor rises, and the clock is confirmed if it agrees."""
        self._hear(signed_at)

    # --- ResourceSink ------------------------------------------------------------------------------------------------

    def held(self) -> Sequence[HeldResource]:
        """What is durable and readable."""
        return [one for one in self._store.document.held if one.key in self._believed]

    async def apply(self, changed: Sequence[Resource], removed: Sequence[ResourceKey]) -> Sequence[Rejection]:
        """Verify and store; what is refused is returned with its gate and kept for control's audit."""
        rejected: list[Rejection] = []
        accepted: list[tuple[HeldResource, bytes]] = []
        for index, resource in enumerate(sorted(changed, key=lambda one: _ORDER.get(one.key.type, 3)), start=1):
            if index % VERIFIED_AT_A_TIME == 0:
                await asyncio.sleep(0)
            try:
                self._accept(resource)
            except GateError as error:
                reason = str(error)[:MAX_REASON_CHARACTERS]
                rejected.append(Rejection(resource.key, resource.digest, error.gate, reason))
                if len(rejected) <= MAX_ALERTS_PER_UPDATE:
                    self._store.tell_refusal(f"{resource.key.type}/{resource.key.name}", error.gate, reason)
                continue
            accepted.append((HeldResource(resource.key, resource.version, resource.digest), resource.content))
        if len(rejected) > MAX_ALERTS_PER_UPDATE:
            self._log.alert(f"refused {len(rejected) - MAX_ALERTS_PER_UPDATE} more of the same update")
        removed = [key for key in removed if key.type not in _KEPT]
        for key in removed:
            self._disbelieve(key)
            self._sizes.pop(key, None)
        floor = self._floor()
        epoch = max([self._store.document.hold_epoch, *(one.epoch for one in self._tell().holds)])
        generations = {order.wave_id: order.generation for order in self.orders()}
        self._store.store_resources(accepted, removed, generations, clock_floor=floor, hold_epoch=epoch)
        if any(held.key.type == "revocations" for held, _ in accepted):
            self._judge_again(self._clock.now())
        self._changed()
        return rejected

    async def connected(self) -> None:
        """A session is open."""
        self._log.note("connected to the store hub")
        self._store.note_link(is_connected=True)
        if Unproven() in self._believed.values() and self._verifier.trusted is not None:
            # Perhaps it was only the clock that was wrong when it was looked at first.
            self._judge_again(self._clock.now())
        self._changed()

    async def settled(self) -> None:
        """What the hub wants is held."""
        self._changed()

    async def disconnected(self, reason: str) -> None:
        """The session ended."""
        self._store.note_link(is_connected=False)
        self._log.note(f"disconnected from the store hub: {reason}")

    # --- verification ------------------------------------------------------------------------------------------------

    def _accept(self, resource: Resource) -> None:
        is_unproven = self._verifier.trusted is None and resource.key.type != "tuf"
        most = MAX_UNPROVEN if is_unproven else MAX_HELD_RESOURCES
        if resource.key not in self._believed and len(self._believed) >= most:
            msg = f"this device holds {len(self._believed)} resources already, at most {most}"
            raise GateError(Gate.BYTE_BUDGET.value, msg)
        size_bytes = sum(self._sizes.values()) - self._sizes.get(resource.key, 0) + len(resource.content)
        if size_bytes > MAX_HELD_BYTES:
            msg = f"this device would hold {size_bytes} bytes of resources, at most {MAX_HELD_BYTES}"
            raise GateError(Gate.BYTE_BUDGET.value, msg)
        key, now = resource.key, self._clock.now()
        statement = self._verifier.verify(key, resource.content, now, self._believed.get(key))
        self._check_floors(statement)
        self._believe(key, statement)
        self._sizes[key] = len(resource.content)
        for moment in signed_times(statement):
            self._hear(moment)
        if isinstance(statement, TrustedMetadata):
            self._judge_again(now)

    def _check_floors(self, statement: Statement) -> None:
        """What was seen once binds, even after the resource itself was removed."""
        document = self._store.document
        if isinstance(statement, HoldList) and statement.epoch < document.hold_epoch:
            msg = f"hold list of epoch {statement.epoch}, {document.hold_epoch} was seen before"
            raise GateError(Gate.REPLAY.value, msg)
        if isinstance(statement, WaveOrder):
            record = document.waves.get(statement.wave_id)
            if record is not None and statement.generation < record.generation:
                msg = f"order generation {statement.generation}, {record.generation} was seen before"
                raise GateError(Gate.REPLAY.value, msg)

    def _judge_again(self, now: datetime) -> None:
        """New metadata or revocations: what they no longer vouch for is not believed any more."""
        for held in sorted(self._store.document.held, key=lambda one: _ORDER.get(one.key.type, 3)):
            if held.key.type == "tuf" or isinstance(self._believed.get(held.key), OperatorIntent):
                continue
            content = self._store.content(held)
            if content is None:
                self._disbelieve(held.key)
                continue
            try:
                self._believe(held.key, self._verifier.verify(held.key, content, now, None))
            except GateError as error:
                self._believe(held.key, Unproven())
                self._log.alert(f"no longer believed: {held.key.type}/{held.key.name}: {error}")

    def _recall(self) -> None:
        """After a start: believe again what is durable."""
        contents = {held.key: self._store.content(held) for held in self._store.document.held}
        self._sizes = {key: len(content) for key, content in contents.items() if content is not None}
        metadata = contents.pop(ResourceKey("tuf", "metadata"), None)
        try:
            if metadata is not None:
                self._believe(ResourceKey("tuf", "metadata"), self._verifier.recall(metadata))
            # Revocations first: what a revoked hub signed is not believed again.
            for key, content in sorted(contents.items(), key=lambda one: _ORDER.get(one[0].type, 3)):
                if content is not None:
                    self._believe(key, self._recall_one(key, content))
        except GateError as error:
            self._log.alert(f"stored trust metadata is not believed any more: {error}")

    def _recall_one(self, key: ResourceKey, content: bytes) -> Statement:
        try:
            return self._verifier.verify(key, content, self._clock.now(), None)
        except GateError as error:
            self._log.alert(f"not believed after the start: {key.type}/{key.name}: {error}")
            return Unproven()

    def _believe(self, key: ResourceKey, statement: Statement) -> None:
        """From now on; what was taken back counts at once, as nobody is served here whose stream it would end."""
        self._believed[key] = statement
        self._told = None
        if isinstance(statement, RevocationList):
            self._verifier.enforce(statement)

    def _disbelieve(self, key: ResourceKey) -> None:
        self._believed.pop(key, None)
        self._told = None

    # --- time --------------------------------------------------------------------------------------------------------

    def _hear(self, signed_at: datetime) -> None:
        self._heard = raise_floor(self._heard, signed_at)
        if confirms(self._clock.now(), signed_at) and self._source is ClockSource.UNCONFIRMED:
            self._source = ClockSource.CONFIRMED

    def _floor(self) -> datetime:
        return max(self._store.document.clock_floor, self._heard)
