"""Carries a wave through its life: what rollout.py, ledger.py and permits.py decide becomes rows and resources here.

Rules:
- Everything happens in the caller's transaction: the decision, the rows, the signed resources.
- ``settle`` is level-triggered: called after any change (an outcome, a hub's new incarnation, an operator's word, the
  clock) it looks at the whole wave and does what is due. Calling it twice does nothing more.
- A device that is revoked stays a target and counts as pending, so that it may still be updated once it is enrolled
  again; the wave then ends at its expiry at the latest.
- A change of state or pauses, or of the least hold epoch, is a higher generation of the orders of all its stores.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import delete, insert, select, update

from control import intent_rows, permits, schema, store
from control.desired import Item
from control.ledger import Move, decide
from control.rollout import name_of, region_of
from wavemesh.errors import ConflictError, NotFoundError
from wavemesh.session.frames import ResourceKey
from wavemesh.trust.statements import Permit, WaveClosed, WaveOrder, WaveState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from control.config import Config
    from control.database import Transaction
    from control.desired import DesiredState
    from control.releases import Releases
    from control.revocations import Revocations
    from control.signing import Signing
    from control.store import WaveRow, WaveView
    from control.tracing import Tracing
    from wavemesh.runtime.clock import Clock

_ENDED = frozenset({WaveState.HALTED, WaveState.CLOSED})


@dataclass(frozen=True, slots=True)
class Applied:
    """What an operator's word came to; ``duplicate`` when it was so before."""

    detail: str
    duplicate: bool = False


def order_key(wave_id: str, store_path: str) -> ResourceKey:
    """Key of the order of one store."""
    return ResourceKey("order", f"{wave_id}/{name_of(store_path)}")


def permit_key(wave_id: str, device_path: str, store_path: str) -> ResourceKey:
    """Key of the permit of one device."""
    return ResourceKey("permit", f"{wave_id}/{name_of(store_path)}/{name_of(device_path)}")


class Waves:
    """The life of waves after they were planned."""

    def __init__(
        self,
        *,
        desired: DesiredState,
        releases: Releases,
        revocations: Revocations,
        signing: Signing,
        clock: Clock,
        config: Config,
        tracing: Tracing,
    ) -> None:
        """Take what every step needs."""
        self._tracing = tracing
        self._desired = desired
        self._releases = releases
        self._revocations = revocations
        self._signing = signing
        self._clock = clock
        self._config = config
        #: The incarnation that each store's permits are bound to, as committed.
        self.bound: dict[str, str] = {}

    async def require(self, tx: Transaction, wave_id: str) -> WaveView:
        """The wave; raises NotFoundError."""
        view = await store.view(tx, wave_id)
        if view is None:
            msg = f"no wave {wave_id!r} is known here; plan it first"
            raise NotFoundError(msg, wave=wave_id)
        return view

    async def add(self, tx: Transaction, view: WaveView, policy_payload: bytes, actor: str) -> None:
        """Keep a planned wave and publish its policy and orders (gen 1, PLANNED: hubs may prefetch)."""
        row = view.row
        await store.add_wave(tx, row, view.targets)
        await tx.put(schema.policies, {"digest": row.policy_digest, "payload": policy_payload})
        await self._publish_policy(tx, row.policy_digest)
        await self._publish_orders(tx, view)
        await self._tracing.planned(tx, view)
        detail = f"{len(view.devices)} devices of {row.cohort} in {len(view.targets)} stores to {row.release}"
        await self.audit(tx, actor, "wave.plan", row.wave_id, detail)

    async def start(self, tx: Transaction, wave_id: str, cohort: str, actor: str) -> Applied:
        """Start a planned wave. Raises NotFoundError, ConflictError (ended, other cohort, release held or gone)."""
        view = await self.require(tx, wave_id)
        row = view.row
        if cohort and cohort != row.cohort:
            msg = f"wave {wave_id} is planned for cohort {row.cohort!r}, not {cohort!r}; nothing was started"
            raise ConflictError(msg, wave=wave_id, cohort=row.cohort)
        self._refuse_ended(view)
        if row.state is not WaveState.PLANNED:
            return Applied(f"wave {wave_id} was started before", duplicate=True)
        self._releases.require_usable(row.release)
        running = dataclasses.replace(row, state=WaveState.RUNNING, started_at=self._clock.now(), state_reason="")
        await self.change(tx, running)
        await self.audit(tx, actor, "wave.start", wave_id, f"cohort {row.cohort}")
        await self.settle(tx, wave_id)
        return Applied(f"wave {wave_id} started")

    async def pause(self, tx: Transaction, wave_id: str, origin: str, reason: str, actor: str) -> Applied:
        """Put an origin's pause in force; a second one of the same origin replaces its reason."""
        view = await self.require(tx, wave_id)
        self._refuse_ended(view)
        before = {pause.origin: pause.reason for pause in view.pauses}
        if before.get(origin) == reason:
            return Applied(f"{origin} paused wave {wave_id} before", duplicate=True)
        since = self._clock.now()
        await tx.put(schema.pauses, {"wave_id": wave_id, "origin": origin, "reason": reason, "since": since})
        await self.change(tx, view.row)
        await self.audit(tx, actor, "wave.pause", wave_id, reason)
        return Applied(f"wave {wave_id} paused by {origin}")

    async def resume(self, tx: Transaction, wave_id: str, origin: str, reason: str, actor: str) -> Applied:
        """Lift an origin's own pause; the wave runs when none is left."""
        view = await self.require(tx, wave_id)
        self._refuse_ended(view)
        others = ", ".join(pause.origin for pause in view.pauses if pause.origin != origin)
        still = f"; still paused by {others}" if others else ""
        if all(pause.origin != origin for pause in view.pauses):
            return Applied(f"{origin} has no pause of wave {wave_id} in force{still}", duplicate=True)
        table = schema.pauses
        await tx.run(delete(table).where(table.c.wave_id == wave_id, table.c.origin == origin))
        await self.change(tx, view.row)
        await self.audit(tx, actor, "wave.resume", wave_id, reason)
        await self.settle(tx, wave_id)
        return Applied(f"pause of {origin} lifted{still}")

    async def halt(self, tx: Transaction, wave_id: str, reason: str, actor: str) -> Applied:
        """Halt a wave for ever; a closed one is refused with ConflictError."""
        view = await self.require(tx, wave_id)
        if view.row.state is WaveState.HALTED:
            return Applied(f"wave {wave_id} was halted before: {view.row.state_reason}", duplicate=True)
        self._refuse_ended(view)
        await self._halt(tx, view, reason, actor)
        return Applied(f"wave {wave_id} halted")

    async def settle(self, tx: Transaction, wave_id: str) -> None:
        """Do what is due: halt, complete, expire, issue permits, say the last word."""
        view = await store.view(tx, wave_id)
        if view is None or view.row.closed_at is not None:
            return
        row, now = view.row, self._clock.now()
        decision = decide(
            state=view.state,
            targets=view.devices,
            outcomes=view.outcomes,
            attempts=row.attempts,
            rule=row.halt_rule,
            expires_at=row.expires_at,
            now=now,
        )
        if decision.move is Move.HALT:
            await self._halt(tx, view, decision.reason, self._signing.uri)
        elif decision.move is Move.CLOSE:
            ended = dataclasses.replace(row, state=WaveState.CLOSED, state_reason=decision.reason, ended_at=now)
            await self.close(tx, dataclasses.replace(view, row=ended))
        elif view.state is WaveState.RUNNING and self._releases.is_usable(row.release):
            await self._issue_permits(tx, view)
        elif self._is_settled_halt(row, now):
            await self.close(tx, view)

    async def settle_all(self, tx: Transaction) -> None:
        """Settle every wave that is not closed."""
        for wave_id in await store.unclosed_waves(tx):
            await self.settle(tx, wave_id)

    async def hubs_reported(self, tx: Transaction, incarnations: Mapping[str, str]) -> None:
        """Stores' hubs showed their incarnations: permits are bound to these from now on."""
        tx.after_commit(lambda: self.bound.update(incarnations))
        affected: set[str] = set()
        for store_path, incarnation in incarnations.items():
            await store.bind_hub(tx, store_path, incarnation)
            affected.update(await self._unclosed_at(tx, store_path))
        for wave_id in sorted(affected):
            await self.settle(tx, wave_id)

    async def hub_snapshot(self, tx: Transaction, store_path: str, incarnation: str) -> None:
        """A store's hub of a new incarnation has told all it holds: write off what the old one had outstanding."""
        for wave_id in await self._unclosed_at(tx, store_path):
            view = await self.require(tx, wave_id)
            gone = permits.to_write_off(view.share(store_path), incarnation)
            await self._write_off(tx, view, store_path, gone, "of an earlier incarnation")
        await self.hubs_reported(tx, {store_path: incarnation})

    async def nodes_revoked(self, tx: Transaction) -> None:
        """Certificates were taken back: what revoked devices and hubs have outstanding is void, and counts as spent."""
        for wave_id in await store.unclosed_waves(tx):
            view = await self.require(tx, wave_id)
            for store_path in view.targets:
                gone = permits.to_take_back(self._share(view, store_path))
                await self._write_off(tx, view, store_path, gone, "of revoked nodes")
                keys = [permit_key(wave_id, device, store_path) for device in gone]
                await self._desired.withdraw(tx, region_of(store_path), keys)
            await self.settle(tx, wave_id)

    async def _write_off(
        self, tx: Transaction, view: WaveView, store_path: str, devices: Sequence[str], whose: str
    ) -> None:
        """Count outstanding permits as spent."""
        wave_id, table = view.row.wave_id, schema.permits
        for device in devices:
            issue = view.issues[device]
            one = (table.c.wave_id == wave_id, table.c.device == device, table.c.generation == issue.generation)
            await tx.run(update(table).where(*one).values(written_off=True))
        if devices:
            detail = f"{len(devices)} permits {whose} counted as spent: {', '.join(devices)[:1000]}"
            await self.audit(tx, self._signing.uri, "permits.write-off", f"{wave_id} {store_path}", detail)

    def _share(self, view: WaveView, store_path: str) -> permits.StoreShare:
        """A store's share with what is revoked of it."""
        devices = view.targets[store_path]
        if self._revocations.is_revoked(store_path):
            return view.share(store_path, frozenset(devices))
        return view.share(store_path, frozenset(filter(self._revocations.is_revoked, devices)))

    async def holds_changed(self, tx: Transaction, release: str) -> None:
        """The hold list changed for a release: its open waves need the new epoch from now on."""
        for wave_id in await store.unclosed_waves(tx):
            view = await self.require(tx, wave_id)
            if view.row.release == release and view.row.state not in _ENDED:
                await self.change(tx, view.row)
                await self.settle(tx, wave_id)

    async def halt_revoked(self, tx: Transaction) -> None:
        """The release keys may have taken releases back: halt the waves that carry them."""
        for wave_id in await store.unclosed_waves(tx):
            view = await self.require(tx, wave_id)
            if view.row.state not in _ENDED and self._releases.trusted.is_revoked(view.row.release):
                reason = f"release {view.row.release} was revoked"
                await self._halt(tx, view, reason, self._signing.uri)

    async def forget_closed(self, tx: Transaction) -> None:
        """Withdraw the last words that every store had time enough to hear."""
        before = self._clock.now() - timedelta(seconds=self._config.closed_keep_s)
        table = schema.waves
        rows = await tx.all(select(table.c.wave_id).where(table.c.closed_at < before))
        old = {ResourceKey("closed", row["wave_id"]) for row in rows}
        for scope, key in self._desired.published():
            if key in old:
                await self._desired.withdraw(tx, scope, [key])

    async def publish(self, tx: Transaction, *items: Item) -> None:
        """Publish what control signed before, as it was."""
        await self._desired.publish(tx, *items)

    async def audit(self, tx: Transaction, actor: str, action: str, subject: str, detail: str) -> None:
        """Who did what, now."""
        await store.append_audit(tx, at=self._clock.now(), actor=actor, action=action, subject=subject, detail=detail)

    def _is_settled_halt(self, row: WaveRow, now: datetime) -> bool:
        # Trials roll back after a halt and still report; the last word waits for them.
        if row.state is not WaveState.HALTED or row.ended_at is None:
            return False
        return now >= min(row.expires_at, row.ended_at + timedelta(seconds=self._config.halt_settle_s))

    def _refuse_ended(self, view: WaveView) -> None:
        if view.row.state in _ENDED:
            state = view.row.state.name.lower()
            msg = f"wave {view.row.wave_id} is {state} ({view.row.state_reason}); that is for ever, plan a new wave"
            raise ConflictError(msg, wave=view.row.wave_id, state=state)

    async def _halt(self, tx: Transaction, view: WaveView, reason: str, actor: str) -> None:
        wave_id = view.row.wave_id
        halted = dataclasses.replace(view.row, state=WaveState.HALTED, state_reason=reason, ended_at=self._clock.now())
        await self.change(tx, halted)
        await self._withdraw_permits(tx, view)
        await self.audit(tx, actor, "wave.halt", wave_id, reason)

    async def change(self, tx: Transaction, row: WaveRow) -> None:
        """Keep where a wave stands now, and say it: a higher generation of all its orders."""
        await store.save_wave(tx, dataclasses.replace(row, generation=row.generation + 1))
        await self._publish_orders(tx, await self.require(tx, row.wave_id))

    async def _publish_orders(self, tx: Transaction, view: WaveView) -> None:
        row = view.row
        now = self._clock.now()
        taken = await intent_rows.pauses_taken(tx, row.wave_id)
        orders = [
            WaveOrder(
                wave_id=row.wave_id,
                generation=row.generation,
                state=view.state,
                cohort=row.cohort,
                device_class=row.device_class,
                hardware_revision=row.hardware_revision,
                store=store_path,
                devices=tuple(name_of(device) for device in devices),
                release=row.release,
                policy_digest=row.policy_digest,
                least_hold_epoch=self._releases.hold_epoch,
                issued_at=now,
                expires_at=row.expires_at,
                pauses=view.pauses,
                planned_at=row.planned_at,
                pauses_taken=taken,
            )
            for store_path, devices in view.targets.items()
        ]
        items = [
            Item(
                scope=region_of(order.store),
                key=order_key(order.wave_id, order.store),
                content=content,
                audience=(order.store,),
                urgent=order.state in {WaveState.PAUSED, WaveState.HALTED},
            )
            for order, content in zip(orders, await self._signing.seal(orders), strict=True)
        ]
        await self._desired.publish(tx, *items)

    async def _publish_policy(self, tx: Transaction, digest: str) -> None:
        """Publish a policy to the stores whose waves use it, or withdraw it where none does any more."""
        waves, targets = schema.waves, schema.wave_targets
        query = (
            select(targets.c.store)
            .join(waves, waves.c.wave_id == targets.c.wave_id)
            .where(waves.c.policy_digest == digest, waves.c.closed_at.is_(None))
            .distinct()
        )
        by_region = _by_region(row["store"] for row in await tx.all(query))
        key = ResourceKey("policy", digest)
        for scope, published in self._desired.published():
            if published == key and scope not in by_region:
                await self._desired.withdraw(tx, scope, [key])
        if not by_region:
            return
        payload = await tx.scalar(select(schema.policies.c.payload).where(schema.policies.c.digest == digest))
        content = await self._signing.seal_policy(payload)
        items = [Item(region, key, content, audience=stores) for region, stores in by_region.items()]
        await self._desired.publish(tx, *items)

    async def _issue_permits(self, tx: Transaction, view: WaveView) -> None:
        row, now = view.row, self._clock.now()
        incarnations = await store.hub_incarnations(tx, view.targets)
        issued: list[tuple[str, Permit]] = []
        for store_path in view.targets:
            incarnation = incarnations.get(store_path, "")
            share = self._share(view, store_path)
            for device in permits.to_issue(share, hub_incarnation=incarnation, batch=row.permit_batch):
                last = view.issues.get(device)
                permit = Permit(
                    wave_id=row.wave_id,
                    device=device,
                    attempts=row.attempts,
                    generation=last.generation + 1 if last else 1,
                    firmware=row.firmware,
                    issued_at=now,
                    expires_at=row.expires_at,
                    hub_incarnation=incarnation,
                )
                issued.append((store_path, permit))
        rows = [
            {
                "wave_id": permit.wave_id,
                "device": permit.device,
                "generation": permit.generation,
                "store": store_path,
                "hub_incarnation": permit.hub_incarnation,
                "issued_at": permit.issued_at,
                "written_off": False,
            }
            for store_path, permit in issued
        ]
        await tx.run(insert(schema.permits), rows)
        contents = await self._signing.seal([permit for _, permit in issued])
        items = [
            Item(
                scope=region_of(store_path),
                key=permit_key(row.wave_id, permit.device, store_path),
                content=content,
                audience=(store_path,),
            )
            for (store_path, permit), content in zip(issued, contents, strict=True)
        ]
        await self._desired.publish(tx, *items)
        await self._tracing.permitted(tx, (permit for _, permit in issued))

    async def _withdraw_permits(self, tx: Transaction, view: WaveView) -> None:
        for store_path, devices in view.targets.items():
            keys = [permit_key(view.row.wave_id, device, store_path) for device in devices]
            await self._desired.withdraw(tx, region_of(store_path), keys)

    async def close(self, tx: Transaction, view: WaveView) -> None:
        """Control's last word: receivers may forget the wave."""
        now = self._clock.now()
        row = dataclasses.replace(view.row, closed_at=now)
        await store.save_wave(tx, row)
        [content] = await self._signing.seal([WaveClosed(row.wave_id, row.state, now)])
        key = ResourceKey("closed", row.wave_id)
        for region, stores in _by_region(view.targets).items():
            await self._desired.publish(tx, Item(region, key, content, audience=stores))
            await self._desired.withdraw(tx, region, [order_key(row.wave_id, path) for path in stores])
        await self._withdraw_permits(tx, view)
        await self._publish_policy(tx, row.policy_digest)
        await self.audit(tx, self._signing.uri, "wave.close", row.wave_id, row.state_reason)

    async def _unclosed_at(self, tx: Transaction, store_path: str) -> list[str]:
        waves, targets = schema.waves, schema.wave_targets
        query = (
            select(targets.c.wave_id)
            .join(waves, waves.c.wave_id == targets.c.wave_id)
            .where(targets.c.store == store_path, waves.c.closed_at.is_(None))
            .distinct()
        )
        return [row["wave_id"] for row in await tx.all(query)]


def _by_region(stores: Iterable[str]) -> dict[str, tuple[str, ...]]:
    regions: dict[str, list[str]] = defaultdict(list)
    for path in stores:
        regions[region_of(path)].append(path)
    return {region: tuple(sorted(paths)) for region, paths in sorted(regions.items())}
