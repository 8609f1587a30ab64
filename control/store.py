"""What control keeps, as values and the queries behind them. Decisions are elsewhere; here rows are read and written.

Every function takes the caller's transaction, so that what is decided together is written together.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import and_, exists, func, insert, not_, or_, select, update

from control import schema
from control.ledger import HaltRule, Outcome, count
from control.permits import Issue, StoreShare, outstanding
from wavemesh.trust.statements import Digest, OutcomeKind, Pause, WaveState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, RowMapping

    from control.database import Transaction
    from wavemesh.outcomes import Counts

OPEN_STATES = (WaveState.PLANNED, WaveState.RUNNING)


@dataclass(frozen=True, slots=True)
class WaveRow:
    """A wave as planned and where it stands; ``state`` is never PAUSED, see ``WaveView.state``.

    ``firmware`` is absent for a config-only release. ``ended_at`` is when it halted or closed, ``closed_at`` when
    control gave its last word.
    """

    wave_id: str
    cohort: str
    device_class: str
    hardware_revision: str
    release: str
    firmware: Digest | None
    policy_digest: str
    attempts: int
    permit_batch: int | None
    halt_ratio: float
    halt_least_outcomes: int
    state: WaveState
    planned_at: datetime
    expires_at: datetime
    rotate_certificates: bool = False
    state_reason: str = ""
    generation: int = 1
    started_at: datetime | None = None
    ended_at: datetime | None = None
    closed_at: datetime | None = None

    @property
    def halt_rule(self) -> HaltRule:
        """When it halts by itself."""
        return HaltRule(self.halt_ratio, self.halt_least_outcomes)


@dataclass(frozen=True, slots=True)
class WaveView:
    """A wave with everything decisions about it rest on; ``targets`` are device paths by store path.

    ``stale`` are the devices whose certificate is older than the wave, where it rotates them.
    """

    row: WaveRow
    targets: Mapping[str, tuple[str, ...]]
    outcomes: Mapping[str, Outcome]
    issues: Mapping[str, Issue]
    pauses: tuple[Pause, ...]
    stale: frozenset[str] = frozenset()

    @property
    def state(self) -> WaveState:
        """The state with pauses counted in."""
        if self.row.state is WaveState.RUNNING and self.pauses:
            return WaveState.PAUSED
        return self.row.state

    @property
    def devices(self) -> tuple[str, ...]:
        """All target devices."""
        return tuple(device for devices in self.targets.values() for device in devices)

    def share(self, store: str, revoked: frozenset[str] = frozenset()) -> StoreShare:
        """One store's share; ``revoked`` are the devices that may not be given a permit now."""
        targets = self.targets.get(store, ())
        return StoreShare(targets, self.issues, self.outcomes, self.row.attempts, revoked, self.stale)

    def counts(self, stores: Iterable[str] | None = None) -> Counts:
        """Outcomes summed, of some stores or of all."""
        names = self.targets if stores is None else stores
        return count((device for store in names for device in self.targets.get(store, ())), self.outcomes)

    def exposed(self, store: str) -> int:
        """Devices of that store named in outstanding permits."""
        return len(outstanding(self.share(store)))


async def add_wave(tx: Transaction, row: WaveRow, targets: Mapping[str, Sequence[str]]) -> None:
    """Keep a new wave and its targets."""
    number = (await tx.scalar(select(func.max(schema.waves.c.number))) or 0) + 1
    await tx.run(insert(schema.waves).values(number=number, **_wave_values(row)))
    rows = [
        {"wave_id": row.wave_id, "store": store, "device": device}
        for store, devices in targets.items()
        for device in devices
    ]
    await tx.run(insert(schema.wave_targets), rows)


async def save_wave(tx: Transaction, row: WaveRow) -> None:
    """Keep where a wave stands now."""
    await tx.run(update(schema.waves).where(schema.waves.c.wave_id == row.wave_id).values(**_wave_values(row)))


async def wave(tx: Transaction, wave_id: str) -> WaveRow | None:
    """One wave, or None."""
    found = await tx.first(select(schema.waves).where(schema.waves.c.wave_id == wave_id))
    return None if found is None else _wave_row(found)


async def unclosed_waves(tx: Transaction) -> list[str]:
    """Ids of the waves on which control has not given its last word, oldest first."""
    table = schema.waves
    rows = await tx.all(select(table.c.wave_id).where(table.c.closed_at.is_(None)).order_by(table.c.number))
    return [row["wave_id"] for row in rows]


async def waves_before(
    tx: Transaction,
    number: int | None,
    limit: int,
    states: Iterable[WaveState] = (),
    stores: Iterable[str] | None = None,
    *,
    release: str = "",
    cohort: str = "",
) -> list[tuple[int, str]]:
    """(number, id) of waves, newest first, below a number if given.

    ``states`` (with pauses counted in; none for all), ``stores`` (paths; None for all), ``release`` and ``cohort``
    (empty for all) narrow it.
    """
    table, targets = schema.waves, schema.wave_targets
    query = select(table.c.number, table.c.wave_id).order_by(table.c.number.desc()).limit(limit)
    if number is not None:
        query = query.where(table.c.number < number)
    if wanted := [_is_in(state) for state in states]:
        query = query.where(or_(*wanted))
    if release:
        query = query.where(table.c.release == release)
    if cohort:
        query = query.where(table.c.cohort == cohort)
    if stores is not None:
        query = query.where(exists().where(targets.c.wave_id == table.c.wave_id, targets.c.store.in_(list(stores))))
    return [(row["number"], row["wave_id"]) for row in await tx.all(query)]


async def first_start(tx: Transaction, release: str) -> datetime | None:
    """When the first wave of a release started, for the bootloader freeze."""
    started: datetime | None = await tx.scalar(
        select(func.min(schema.waves.c.started_at, type_=schema.UtcTime)).where(schema.waves.c.release == release)
    )
    return started


async def view(tx: Transaction, wave_id: str) -> WaveView | None:
    """A wave with its targets, ledger, permits and pauses; None if unknown."""
    row = await wave(tx, wave_id)
    if row is None:
        return None
    targets: dict[str, list[str]] = defaultdict(list)
    table = schema.wave_targets
    query = select(table.c.store, table.c.device).where(table.c.wave_id == wave_id)
    for found in await tx.all(query.order_by(table.c.store, table.c.device)):
        targets[found["store"]].append(found["device"])
    return WaveView(
        row=row,
        targets={store: tuple(devices) for store, devices in targets.items()},
        outcomes=await ledger(tx, wave_id),
        issues=await issues(tx, wave_id),
        pauses=await pauses(tx, wave_id),
        stale=await stale_devices(tx, row) if row.rotate_certificates else frozenset(),
    )


async def stale_devices(tx: Transaction, row: WaveRow) -> frozenset[str]:
    """Target devices whose certificate was issued before the wave was planned, and not for it.

    A device of which no certificate is known is of a version that cannot say, and renews none: it is not waited for.
    """
    targets, certificates = schema.wave_targets, schema.certificates
    query = (
        select(targets.c.device)
        .join(certificates, certificates.c.path == targets.c.device)
        .where(
            targets.c.wave_id == row.wave_id,
            certificates.c.issued_at < row.planned_at,
            certificates.c.wave_id != row.wave_id,
        )
    )
    return frozenset([found["device"] for found in await tx.all(query)])


async def ledger(tx: Transaction, wave_id: str) -> dict[str, Outcome]:
    """The latest outcome of each device of a wave, by device path."""
    table = schema.outcomes
    columns = (table.c.device, table.c.attempt, table.c.sequence, table.c.kind, table.c.gate, table.c.by_device)
    rows = await tx.all(select(*columns, table.c.payload_sha256).where(table.c.wave_id == wave_id))
    return {row["device"]: _outcome(row) for row in rows}


async def outcome(tx: Transaction, wave_id: str, device: str) -> Outcome | None:
    """The latest outcome of one device of a wave, or None."""
    table = schema.outcomes
    row = await tx.first(select(table).where(table.c.wave_id == wave_id, table.c.device == device))
    return None if row is None else _outcome(row)


async def ledger_rows(tx: Transaction, wave_id: str) -> Mapping[str, RowMapping]:
    """The same in full, by device path."""
    rows = await tx.all(select(schema.outcomes).where(schema.outcomes.c.wave_id == wave_id))
    return {row["device"]: row for row in rows}


async def issues(tx: Transaction, wave_id: str) -> dict[str, Issue]:
    """The permit in force, or last in force, of each device of a wave."""
    table = schema.permits
    rows = await tx.all(select(table).where(table.c.wave_id == wave_id).order_by(table.c.generation))
    return {
        row["device"]: Issue(row["device"], row["generation"], row["hub_incarnation"], row["written_off"])
        for row in rows
    }


async def pauses(tx: Transaction, wave_id: str) -> tuple[Pause, ...]:
    """Pauses in force, oldest first."""
    table = schema.pauses
    rows = await tx.all(select(table).where(table.c.wave_id == wave_id).order_by(table.c.since, table.c.origin))
    return tuple(Pause(row["origin"], row["reason"]) for row in rows)


async def open_waves_by_device(tx: Transaction) -> dict[str, str]:
    """The open wave each device is in."""
    targets, waves_ = schema.wave_targets, schema.waves
    query = (
        select(targets.c.device, targets.c.wave_id)
        .join(waves_, waves_.c.wave_id == targets.c.wave_id)
        .where(waves_.c.state.in_([state.name for state in OPEN_STATES]))
    )
    return {row["device"]: row["wave_id"] for row in await tx.all(query)}


async def open_waves_of(tx: Transaction, device: str) -> list[str]:
    """Open waves that a device is a target of."""
    targets, waves_ = schema.wave_targets, schema.waves
    query = (
        select(targets.c.wave_id)
        .join(waves_, waves_.c.wave_id == targets.c.wave_id)
        .where(targets.c.device == device, waves_.c.state.in_([state.name for state in OPEN_STATES]))
    )
    return [row["wave_id"] for row in await tx.all(query)]


async def hub_incarnations(tx: Transaction, paths: Iterable[str]) -> dict[str, str]:
    """The incarnation each store's permits are bound to; empty for a hub that was never heard."""
    table = schema.stores
    rows = await tx.all(select(table.c.path, table.c.hub_incarnation).where(table.c.path.in_(list(paths))))
    return {row["path"]: row["hub_incarnation"] for row in rows}


async def bind_hub(tx: Transaction, store: str, incarnation: str) -> None:
    """From now on permits of that store are bound to this incarnation."""
    await tx.run(update(schema.stores).where(schema.stores.c.path == store).values(hub_incarnation=incarnation))


async def value(tx: Transaction, name: str) -> str:
    """A single value; empty if it was never set."""
    found: str | None = await tx.scalar(select(schema.meta.c.value).where(schema.meta.c.name == name))
    return found or ""


async def set_value(tx: Transaction, name: str, text: str) -> None:
    """Set a single value."""
    await tx.put(schema.meta, {"name": name, "value": text})


async def append_audit(tx: Transaction, *, at: datetime, actor: str, action: str, subject: str, detail: str) -> None:
    """Who did what, by SPIFFE id."""
    row = {"at": at, "actor": actor, "action": action, "subject": subject, "detail": detail}
    await tx.run(insert(schema.audit).values(**row))


def _is_in(state: WaveState) -> ColumnElement[bool]:
    """``WaveView.state`` as a condition on rows."""
    paused = exists().where(schema.pauses.c.wave_id == schema.waves.c.wave_id)
    if state is WaveState.PAUSED:
        return and_(schema.waves.c.state == WaveState.RUNNING.name, paused)
    if state is WaveState.RUNNING:
        return and_(schema.waves.c.state == state.name, not_(paused))
    return schema.waves.c.state == state.name


def _wave_values(row: WaveRow) -> dict[str, object]:
    values = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    firmware = values.pop("firmware")
    values["state"] = row.state.name
    values["firmware_sha256"] = firmware.sha256 if firmware else ""
    values["firmware_size_bytes"] = firmware.size_bytes if firmware else 0
    return values


def _wave_row(found: RowMapping) -> WaveRow:
    values = dict(found)
    del values["number"]
    sha256, size_bytes = values.pop("firmware_sha256"), values.pop("firmware_size_bytes")
    values["state"] = WaveState[values["state"]]
    return WaveRow(firmware=Digest(sha256, size_bytes) if sha256 else None, **values)


def _outcome(row: RowMapping) -> Outcome:
    return Outcome(
        device=row["device"],
        attempt=row["attempt"],
        sequence=row["sequence"],
        kind=OutcomeKind[row["kind"]],
        gate=row["gate"],
        by_device=row["by_device"],
        payload_sha256=row["payload_sha256"],
    )
