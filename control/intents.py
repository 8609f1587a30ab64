"""What operators want, done once (M5): applies intents, hands on those meant for stores and devices, tells what became.

Rules:
- The intent's id is the key: the same id asking the same, whenever it was signed, is the same intent; asking something
  else it is a conflict.
- START, PAUSE, RESUME and HALT act on the wave here. ROLLBACK_DEVICE, APPROVE_ROLLBACK, REHEARSE_DEVICE, PREFETCH
  and OVERRIDE_HOLD_AGE become urgent ``intent`` resources for their stores or device, in the operator's own envelope,
  which they verify themselves.
- An intent is APPLIED when it reached all it is for, as far as is known here (control/fleet.py), and QUEUED with
  ``waiting_for`` before. What is QUEUED stays published, so it happens when the tier returns; past its lifetime it is
  REFUSED as expired.
- An intent that still waits can be taken back: it is CANCELLED and withdrawn. What control acted on cannot.
- What was given to a hub comes as a report and is applied as if given here, in the name of the operator who signed it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import select, update

from control import intent_rows, schema
from control.desired import Item
from control.intent_rows import Disposition, IntentRow, new_row
from control.rollout import name_of, region_of, store_of
from control.waves import Applied, order_key
from wavemesh.codec.statements import decode
from wavemesh.errors import ConflictError, NotFoundError, PeerError
from wavemesh.identity.nodes import is_within
from wavemesh.policy.reader import parse_policy
from wavemesh.policy.windows import Window
from wavemesh.queueing import place_in_queue, refuse_applied, why_done
from wavemesh.session.frames import ResourceKey
from wavemesh.trust.statements import Envelope, IntentKind, OperatorIntent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from control.changes import Changes
    from control.config import Config
    from control.database import Database, Transaction
    from control.desired import DesiredState
    from control.fleet import Fleet
    from control.releases import Releases
    from control.waves import Waves
    from wavemesh.identity.nodes import NodeId
    from wavemesh.runtime.clock import Clock

MAX_DETAIL = 1000
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_NEEDS_REASON = frozenset(
    {IntentKind.PAUSE_WAVE, IntentKind.HALT_WAVE, IntentKind.ROLLBACK_DEVICE, IntentKind.APPROVE_ROLLBACK}
)
_WAVE_KINDS = frozenset(
    {
        IntentKind.START_WAVE,
        IntentKind.PAUSE_WAVE,
        IntentKind.RESUME_WAVE,
        IntentKind.HALT_WAVE,
    }
)


class BadIntentError(PeerError):
    """An intent lacks what its kind needs."""

    reason = "BAD_INTENT"


@dataclass(frozen=True, slots=True)
class TakenBack:
    """Who took an intent back at which store's hub, and why."""

    by: NodeId
    via: str
    reason: str


class Intents:
    """Intents known here."""

    def __init__(
        self,
        *,
        database: Database,
        desired: DesiredState,
        waves: Waves,
        releases: Releases,
        fleet: Fleet,
        changes: Changes,
        clock: Clock,
        config: Config,
    ) -> None:
        """Nothing is read before ``load``."""
        self._database = database
        self._desired = desired
        self._waves = waves
        self._releases = releases
        self._fleet = fleet
        self._changes = changes
        self._clock = clock
        self._config = config
        self._queued: dict[str, IntentRow] = {}

    async def load(self) -> None:
        """Read the intents that still wait."""
        query = select(schema.intents).where(schema.intents.c.disposition == Disposition.QUEUED.name)
        async with self._database.reading() as tx:
            self._queued = {row["intent_id"]: intent_rows.from_row(row) for row in await tx.all(query)}

    async def submit(
        self, tx: Transaction, envelope: Envelope, intent: OperatorIntent, operator: NodeId, via: str = ""
    ) -> tuple[IntentRow, bool]:
        """Apply a verified intent; its fate, and whether it was so before.

        ``via`` is the store whose hub took it, or empty. Raises BadIntentError, NotFoundError, ConflictError.
        """
        known = await self._known(tx, envelope, intent)
        if known is not None:
            return known, True
        _check(intent)
        row = new_row(envelope, intent, operator, self._clock.now())
        if intent.kind in _WAVE_KINDS:
            applied = await self._act(tx, intent, operator)
            waiting = tuple((await self._waves.require(tx, intent.wave_id)).targets)
        else:
            self._check_prefetch(intent)
            waiting = self._receivers(intent, via)
            done = why_done(intent, self._fleet.devices.get(waiting[0])) if intent.kind.is_for_device else ""
            if done:
                applied = Applied(done, duplicate=True)
                waiting = ()
            else:
                await self._publish(tx, row, waiting)
                applied = Applied(f"handed on to {', '.join(map(name_of, waiting[:20]))}")
            await self._waves.audit(
                tx, operator.uri, f"intent.{intent.kind.name.lower()}", intent.device or intent.wave_id, intent.reason
            )
        row = dataclasses.replace(row, waiting_for=waiting, detail=applied.detail)
        await self._keep(tx, row)
        return row, applied.duplicate

    async def refuse(
        self, tx: Transaction, envelope: Envelope, intent: OperatorIntent, operator: NodeId, error: PeerError
    ) -> None:
        """Keep a refused intent that nobody is there to be told of: it came through a hub."""
        if not _ID.fullmatch(intent.intent_id) or await intent_rows.get(tx, intent.intent_id) is not None:
            return
        now = self._clock.now()
        row = new_row(envelope, intent, operator, now)
        refused = dataclasses.replace(
            row, disposition=Disposition.REFUSED, detail=str(error)[:MAX_DETAIL], settled_at=now
        )
        await self._keep(tx, refused)

    async def cancel(self, tx: Transaction, intent_id: str, reason: str, operator: NodeId) -> tuple[IntentRow, bool]:
        """Take an intent back; its fate, and whether it was so before.

        Raises NotFoundError, IntentAppliedError, ConflictError for one that was refused.
        """
        row = await intent_rows.get(tx, intent_id)
        if row is None:
            msg = f"no intent {intent_id[:80]!r} is known here; `edgectl intent list` shows them"
            raise NotFoundError(msg, intent=intent_id[:80])
        if row.disposition is Disposition.CANCELLED:
            return row, True
        if row.disposition is Disposition.REFUSED:
            msg = f"intent {intent_id} was refused: {row.detail}; there is nothing to cancel"
            raise ConflictError(msg, intent=intent_id)
        if row.disposition is Disposition.APPLIED or row.kind in _WAVE_KINDS:
            raise refuse_applied(intent_id, row.kind, row.wave_id, "control has acted on it")
        for region in sorted({region_of(path) for path in (*row.waiting_for, *self._fleet.stores)}):
            await self._desired.withdraw(tx, region, [ResourceKey("intent", intent_id)])
        detail = f"cancelled by {operator.name} while it waited for {', '.join(map(name_of, row.waiting_for[:20]))}"
        cancelled = self._cancelled(row, detail, reason)
        await self._update(tx, cancelled)
        await self._waves.audit(tx, operator.uri, "intent.cancel", intent_id, reason)
        return cancelled, False

    async def cancel_reported(
        self, tx: Transaction, taken: TakenBack, envelope: Envelope, intent: OperatorIntent, operator: NodeId
    ) -> None:
        """An intent that was taken back at a hub: it never happens here, or its cancellation is audited as too late."""
        if await self._known(tx, envelope, intent) is None:
            row = new_row(envelope, intent, operator, self._clock.now())
            await self._keep(tx, self._cancelled(row, f"cancelled by {taken.by.name} at {taken.via}", taken.reason))
            await self._waves.audit(tx, taken.by.uri, "intent.cancel", intent.intent_id, taken.reason)
            return
        try:
            await self.cancel(tx, intent.intent_id, taken.reason, taken.by)
        except ConflictError as error:
            await self._waves.audit(
                tx, taken.by.uri, "intent.cancel-refused", intent.intent_id, str(error)[:MAX_DETAIL]
            )

    def _cancelled(self, row: IntentRow, detail: str, reason: str) -> IntentRow:
        said = f"{detail}: {reason}" if reason else detail
        return dataclasses.replace(
            row,
            disposition=Disposition.CANCELLED,
            waiting_for=(),
            detail=said[:MAX_DETAIL],
            settled_at=self._clock.now(),
        )

    def queue_place(self, row: IntentRow) -> int:
        """Its place among what waits here for the first node it waits for, from 1; 0 when it waits for nobody."""
        return place_in_queue(row, self._queued.values())

    def waiting_at(self, store_path: str) -> int:
        """How many intents wait for a store's hub or one of its devices."""
        return sum(any(is_within(path, store_path) for path in row.waiting_for) for row in self._queued.values())

    async def progress(self) -> None:
        """See what reached whom since, and keep it."""
        moved: list[IntentRow] = []
        for row in self._queued.values():
            waiting = tuple(path for path in row.waiting_for if self._waits(row, path))
            if waiting != row.waiting_for or not waiting:
                moved.append(self._moved(row, waiting))
        if moved:
            async with self._database.transaction() as tx:
                for row in moved:
                    await self._update(tx, row)

    async def expire(self, tx: Transaction) -> None:
        """Refuse what waited too long; withdraw what reached everybody long ago."""
        now = self._clock.now()
        for row in tuple(self._queued.values()):
            if now - row.received_at > timedelta(seconds=self._config.intent_lifetime_s):
                detail = f"expired before it reached {', '.join(row.waiting_for)}"[:MAX_DETAIL]
                refused = dataclasses.replace(row, disposition=Disposition.REFUSED, detail=detail, settled_at=now)
                await self._update(tx, refused)
        published = [(scope, key) for scope, key in self._desired.published() if key.type == "intent"]
        if not published:
            return
        table = schema.intents
        before = now - timedelta(seconds=self._config.intent_keep_s)
        rows = await tx.all(select(table.c.intent_id).where(table.c.settled_at < before))
        old = {row["intent_id"] for row in rows}
        for scope, key in published:
            if key.name in old:
                await self._desired.withdraw(tx, scope, [key])

    def current(self, row: IntentRow) -> IntentRow:
        """The row as it is now, if it still waits; else as given."""
        return self._queued.get(row.intent_id, row)

    def waits_for_connected(self, row: IntentRow) -> bool:
        """Whether the intent is on its way to somebody who is connected."""
        waiting = self._queued.get(row.intent_id)
        return waiting is not None and any(self._fleet.is_connected(path) for path in waiting.waiting_for)

    def find_device(self, name: str, via: str = "") -> str:
        """Path of a device given by name or path; ``via`` is the store looked into first.

        Raises NotFoundError, and ConflictError for a name that several stores use.
        """
        if self._fleet.knows_device(name):
            return name
        if via and self._fleet.knows_device(f"{via}/device/{name}"):
            return f"{via}/device/{name}"
        paths = sorted(path for path in self._fleet.device_paths if name_of(path) == name)
        if not paths:
            msg = f"no device {name!r} is registered"
            raise NotFoundError(msg, device=name)
        if len(paths) > 1:
            msg = f"{len(paths)} stores have a device {name!r}; give its path: {', '.join(paths[:20])}"
            raise ConflictError(msg, device=name, paths=", ".join(paths[:20]))
        return paths[0]

    async def _known(self, tx: Transaction, envelope: Envelope, intent: OperatorIntent) -> IntentRow | None:
        known = await intent_rows.get(tx, intent.intent_id)
        if known is None or known.payload_sha256 == hashlib.sha256(envelope.payload).hexdigest():
            return known
        before = decode(OperatorIntent, decode(Envelope, known.envelope).payload)
        if not before.asks_the_same(intent):
            msg = f"intent id {intent.intent_id!r} was used for another intent; give each intent an id of its own"
            raise ConflictError(msg, intent=intent.intent_id)
        return known

    async def _act(self, tx: Transaction, intent: OperatorIntent, operator: NodeId) -> Applied:
        origin = f"operator:{operator.name}"
        match intent.kind:
            case IntentKind.START_WAVE:
                return await self._waves.start(tx, intent.wave_id, intent.cohort, operator.uri)
            case IntentKind.PAUSE_WAVE:
                return await self._waves.pause(tx, intent.wave_id, origin, intent.reason, operator.uri)
            case IntentKind.RESUME_WAVE:
                return await self._waves.resume(tx, intent.wave_id, origin, intent.reason, operator.uri)
            case _:
                return await self._waves.halt(tx, intent.wave_id, intent.reason, operator.uri)

    def _check_prefetch(self, intent: OperatorIntent) -> None:
        """What hubs would refuse each for itself is refused here, once."""
        if intent.kind is not IntentKind.PREFETCH:
            return
        self._releases.find(parse_policy(intent.policy_yaml, "policy.yaml").artifacts)
        if intent.window:
            Window.parse(intent.window)

    def _receivers(self, intent: OperatorIntent, via: str) -> tuple[str, ...]:
        if intent.kind.is_for_device:
            return (self.find_device(intent.device, via),)
        if not intent.stores:
            return (via,) if via else tuple(sorted(self._fleet.stores))
        return tuple(sorted({self._find_store(name, via) for name in intent.stores}))

    def _find_store(self, name: str, via: str) -> str:
        paths = [path for path in self._fleet.stores if name in {path, name_of(path)}]
        if via in paths:
            return via
        if len(paths) == 1:
            return paths[0]
        msg = f"store {name!r} is " + (f"several: {', '.join(sorted(paths))}" if paths else "not registered")
        raise NotFoundError(msg, store=name)

    async def _publish(self, tx: Transaction, row: IntentRow, receivers: Sequence[str]) -> None:
        by_region: dict[str, list[str]] = defaultdict(list)
        for path in receivers:
            by_region[region_of(path)].append(path)
        key = ResourceKey("intent", row.intent_id)
        items = [Item(region, key, row.envelope, tuple(paths), urgent=True) for region, paths in by_region.items()]
        await self._desired.publish(tx, *items)

    def _waits(self, row: IntentRow, path: str) -> bool:
        store_path = path if self._fleet.knows_store(path) else store_of(path)
        key = order_key(row.wave_id, store_path) if row.kind in _WAVE_KINDS else ResourceKey("intent", row.intent_id)
        resource = self._desired.get(region_of(path), key)
        if resource is None:
            return False
        return not (self._fleet.is_delivered(store_path, resource) and (path == store_path or self._hears(path)))

    def _hears(self, device_path: str) -> bool:
        return self._fleet.is_connected(device_path)

    def _moved(self, row: IntentRow, waiting: tuple[str, ...]) -> IntentRow:
        if waiting:
            return dataclasses.replace(row, waiting_for=waiting)
        return dataclasses.replace(row, waiting_for=(), disposition=Disposition.APPLIED, settled_at=self._clock.now())

    async def _keep(self, tx: Transaction, row: IntentRow) -> None:
        await tx.put(schema.intents, {"number": await intent_rows.next_number(tx), **intent_rows.values(row)})
        tx.after_commit(lambda: self._mirror(row))

    async def _update(self, tx: Transaction, row: IntentRow) -> None:
        table = schema.intents
        await tx.run(update(table).where(table.c.intent_id == row.intent_id).values(**intent_rows.values(row)))
        tx.after_commit(lambda: self._mirror(row))

    def _mirror(self, row: IntentRow) -> None:
        if row.disposition is Disposition.QUEUED:
            self._queued[row.intent_id] = row
        else:
            self._queued.pop(row.intent_id, None)
        self._changes.notify()


def _check(intent: OperatorIntent) -> None:
    """Raise BadIntentError unless the intent has what its kind needs."""
    problem = ""
    if not _ID.fullmatch(intent.intent_id):
        problem = "intent_id: use 1 to 64 letters, digits, '-' or '_'"
    elif intent.kind in {*_WAVE_KINDS, IntentKind.APPROVE_ROLLBACK} and not intent.wave_id:
        problem = "wave_id: missing"
    elif intent.kind is IntentKind.APPROVE_ROLLBACK and not intent.attempt:
        problem = "attempt: missing; an approval is about one attempt"
    elif intent.kind in _NEEDS_REASON and not intent.reason.strip():
        problem = "reason: missing; say why, it is kept in the audit"
    elif intent.kind.is_for_device and not intent.device:
        problem = "device: missing"
    elif intent.kind is IntentKind.PREFETCH and not intent.policy_yaml:
        problem = "policy_yaml: missing"
    elif intent.kind is IntentKind.OVERRIDE_HOLD_AGE and not intent.stores:
        problem = "stores: missing; an override is for named stores"
    if problem:
        field = problem.split(":", 1)[0]
        msg = f"intent {intent.kind.name.lower()}: {problem}"
        raise BadIntentError(msg, field=field)
