"""Reconciles daily and on demand: gathers what control holds and has heard, and keeps what was found (C2).

What counts as a discrepancy is decided in control/reconciliation.py. A daily run writes one line of the audit for each
that is new and for each that is gone; asked for in between, nothing is written.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import and_, delete, func, insert, select

from control import schema, store
from control.permits import outstanding, waiting_for_certificate
from control.reconciliation import (
    Cause,
    DeviceFacts,
    Discrepancy,
    Facts,
    HubFacts,
    HubWord,
    Limits,
    PermitFacts,
    ShareFacts,
    WaveFacts,
    changes,
    reconcile,
)
from control.rollout import region_of
from control.views import is_told
from wavemesh.outcomes import ledger_digest
from wavemesh.trust.statements import WaveState
from wavemesh.v1 import operator_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping

    from control.config import Config
    from control.database import Database, Transaction
    from control.desired import DesiredState
    from control.fleet import Fleet
    from control.store import WaveView
    from wavemesh.runtime.clock import Clock

MAX_SHOWN = 1000
MAX_AUDITED = 1000
_LAST_RUN = "reconciled_at"


class Reconciling:
    """The shell around the comparison."""

    def __init__(
        self, *, database: Database, desired: DesiredState, fleet: Fleet, clock: Clock, config: Config, actor: str
    ) -> None:
        """``actor`` is this control's SPIFFE id, for the audit."""
        self._database = database
        self._desired = desired
        self._fleet = fleet
        self._clock = clock
        self._config = config
        self._actor = actor
        self._started_at = clock.now()

    async def answer(self, request: operator_pb2.ListDiscrepanciesRequest) -> operator_pb2.ListDiscrepanciesResponse:
        """Compare now, and show."""
        now = self._clock.now()
        async with self._database.reading() as tx:
            known = await _known(tx)
            found = [one for one in await self._compare(tx, now) if request.wave_id in {"", one.wave_id}]
        answer = operator_pb2.ListDiscrepanciesResponse(total=len(found))
        answer.checked_at.FromDatetime(now)
        for one in found[:MAX_SHOWN]:
            message = answer.discrepancies.add(
                cause=operator_pb2.DiscrepancyCause.ValueType(one.cause.value),
                subject=one.subject,
                wave_id=one.wave_id,
                expected=one.expected,
                reported=one.reported,
            )
            if one.key in known:
                message.since.FromDatetime(known[one.key])
        return answer

    async def tick(self, tx: Transaction) -> None:
        """Compare when a day has passed since the last time; audit what came and what went."""
        now, last = self._clock.now(), await store.value(tx, _LAST_RUN)
        if not last:
            # The first day is for the fleet to be heard.
            await store.set_value(tx, _LAST_RUN, now.isoformat())
        elif now - datetime.fromisoformat(last) >= timedelta(seconds=self._config.reconcile_s):
            await store.set_value(tx, _LAST_RUN, now.isoformat())
            await self._keep(tx, await self._compare(tx, now), now)

    async def _keep(self, tx: Transaction, found: tuple[Discrepancy, ...], now: datetime) -> None:
        known, table = await _known(tx), schema.discrepancies
        new, gone = changes(known, found[:MAX_AUDITED])
        rows = [{"cause": one.cause.name, "wave_id": one.wave_id, "subject": one.subject, "since": now} for one in new]
        await tx.run(insert(table), rows)
        for one in new:
            detail = f"{one.cause.word}{_of(one.wave_id)}: expected {one.expected}; {one.reported}"
            await self._audit(tx, now, "reconcile.found", one.subject, detail)
        for cause, wave_id, subject in gone:
            key = and_(table.c.cause == cause, table.c.wave_id == wave_id, table.c.subject == subject)
            await tx.run(delete(table).where(key))
            await self._audit(tx, now, "reconcile.settled", subject, f"{Cause[cause].word}{_of(wave_id)}")
        if len(found) > MAX_AUDITED:
            detail = f"{len(found)} discrepancies; the first {MAX_AUDITED} are kept and audited"
            await self._audit(tx, now, "reconcile.overflow", "fleet", detail)

    async def _audit(self, tx: Transaction, now: datetime, action: str, subject: str, detail: str) -> None:
        await store.append_audit(tx, at=now, actor=self._actor, action=action, subject=subject, detail=detail)

    async def _compare(self, tx: Transaction, now: datetime) -> tuple[Discrepancy, ...]:
        unclosed = [await store.view(tx, wave_id) for wave_id in await store.unclosed_waves(tx)]
        waves = [view for view in unclosed if view is not None]
        devices = await self._devices(tx, await store.open_waves_by_device(tx))
        facts = Facts(
            hubs=self._hubs(devices),
            devices=devices,
            shares=[await self._share(tx, view, path) for view in waves for path in view.targets],
            waves=[WaveFacts(view.row.wave_id, view.state.name.lower(), self._due_at(view)) for view in waves],
        )
        return reconcile(facts, Limits(self._config.unheard_s, self._config.settle_s), now)

    def _hubs(self, devices: list[DeviceFacts]) -> list[HubFacts]:
        latest: dict[str, datetime] = {}
        for device in devices:
            for hub in (device.path.rsplit("/", 2)[0], region_of(device.path)):
                if device.heard_at is not None:
                    latest[hub] = max(device.heard_at, latest.get(hub, device.heard_at))
        paths = self._fleet.stores | {region_of(path) for path in self._fleet.stores}
        heard = {path: status.at for path, status in self._fleet.hubs.items()}
        return [
            HubFacts(path, self._fleet.is_connected(path), heard.get(path) or latest.get(path) or self._started_at)
            for path in sorted(paths)
        ]

    async def _devices(self, tx: Transaction, busy: Mapping[str, str]) -> list[DeviceFacts]:
        table, signed = schema.devices, await _signed_firmware(tx)
        columns = (table.c.path, table.c.firmware_sha256, table.c.last_seen_at)
        found = []
        for row in await tx.all(select(*columns).order_by(table.c.path)):
            path, status = row["path"], self._fleet.devices.get(row["path"])
            found.append(
                DeviceFacts(
                    path=path,
                    is_connected=self._fleet.is_connected(path),
                    heard_at=status.at if status is not None else row["last_seen_at"],
                    runs_sha256=status.firmware_sha256 if status is not None else row["firmware_sha256"],
                    signed_sha256=signed.get(path, ""),
                    is_in_wave=path in busy,
                )
            )
        return found

    async def _share(self, tx: Transaction, view: WaveView, path: str) -> ShareFacts:
        row, fleet, share = view.row, self._fleet, view.share(path)
        issued = await _issued_at(tx, row.wave_id, path)
        ranks = {device: outcome.rank for device, outcome in view.outcomes.items()}
        incarnation, ledger = fleet.incarnation_of(path), fleet.ledger_of(path, row.wave_id)
        word = None
        if incarnation is not None:
            word = HubWord(*incarnation, *(ledger or ("", incarnation[1])))
        return ShareFacts(
            wave_id=row.wave_id,
            store=path,
            is_running=view.state is WaveState.RUNNING,
            since=row.ended_at or row.started_at or row.planned_at,
            is_told=is_told(view, path, fleet, self._desired),
            ledger=ledger_digest(share.devices, ranks),
            permits=[
                PermitFacts(device, issued[device], share.issues[device].hub_incarnation, self._says(path, device))
                for device in outstanding(share)
            ],
            without_certificate=waiting_for_certificate(share),
            hub=word,
        )

    def _says(self, store_path: str, device: str) -> str:
        """Where a device is, and why it waits."""
        status, hub = self._fleet.devices.get(device), self._fleet.hubs.get(store_path)
        waits = {one.device: one.reason for one in hub.waits} if hub is not None else {}
        state = status.state.name.lower() if status is not None else "not heard"
        gate = f", gate {status.gate}" if status is not None and status.gate else ""
        wait = waits.get(device.rsplit("/", 1)[1], "")
        return f"{state}{gate}" + (f"; waits: {wait}" if wait else "")

    def _due_at(self, view: WaveView) -> datetime:
        """When control's last word on a wave is due: at its expiry, or when a halt has settled."""
        row = view.row
        if row.ended_at is None:
            return row.expires_at
        settles_s = self._config.halt_settle_s if row.state is WaveState.HALTED else 0.0
        return row.ended_at + timedelta(seconds=settles_s)


async def _known(tx: Transaction) -> dict[tuple[str, str, str], datetime]:
    rows = await tx.all(select(schema.discrepancies))
    return {(row["cause"], row["wave_id"], row["subject"]): row["since"] for row in rows}


async def _signed_firmware(tx: Transaction) -> dict[str, str]:
    """The firmware that each device ran by its own latest signed outcome."""
    table = schema.outcomes
    latest = (
        select(table.c.device, func.max(table.c.at).label("at")).where(table.c.by_device).group_by(table.c.device)
    ).subquery()
    query = select(table.c.device, table.c.firmware_sha256).join(
        latest, and_(latest.c.device == table.c.device, latest.c.at == table.c.at)
    )
    return {row["device"]: row["firmware_sha256"] for row in await tx.all(query.where(table.c.by_device))}


async def _issued_at(tx: Transaction, wave_id: str, store_path: str) -> dict[str, datetime]:
    table = schema.permits
    query = select(table.c.device, table.c.issued_at).order_by(table.c.generation)
    rows = await tx.all(query.where(table.c.wave_id == wave_id, table.c.store == store_path))
    return {row["device"]: row["issued_at"] for row in rows}


def _of(wave_id: str) -> str:
    return f" in wave {wave_id}" if wave_id else ""
