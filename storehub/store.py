"""What a store hub knows, durably: a SQLite file mirrored in memory.

Every change goes through a transaction of the caller, so that one effect is one transaction: an outcome, the report
that carries it up and the child's cursor; a set of leases before any of them leaves. The mirror follows on commit, so
readers see committed state only, without touching the disk.
"""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from storehub.delivery_rows import DeliveryRows
from storehub.ledger import Entry, supersedes
from storehub.records import DeviceRecord, Disposition, IntentRecord, IntentSource, SlotRecord, WaveRecord
from storehub.schema import MIGRATIONS, from_stamp, to_stamp
from storehub.standing import PauseEffect, PauseHere
from storehub.swaps import Slot, SlotUse
from wavemesh.artifacts.incidents import Incidents
from wavemesh.codec.statements import decode, encode
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.sqlite import Database
from wavemesh.trust.statements import (
    DeviceOutcome,
    DeviceStatus,
    Digest,
    Envelope,
    OperatorIntent,
    WaveOrder,
    WaveState,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping
    from pathlib import Path

    from wavemesh.runtime.sqlite import Transaction

K = TypeVar("K")
V = TypeVar("V")

MAX_INTENTS = 5_000
MAX_CLOSED_WAVES = 100
MAX_DEVICES = 5_000


class HubStore:
    """The tables of the hub itself; the session's tables live in the same file (``database``)."""

    def __init__(self, database: Database) -> None:
        """Use ``open``."""
        self.database = database
        self.incidents = Incidents()
        self._facts: dict[str, str] = {}
        self._devices: dict[str, DeviceRecord] = {}
        self._slots: dict[str, SlotRecord] = {}
        self._ledgers: dict[str, dict[str, Entry]] = {}
        self._waves: dict[str, WaveRecord] = {}
        self._pauses: dict[tuple[str, str], PauseHere] = {}
        self._intents: dict[str, IntentRecord] = {}
        self.deliveries = DeliveryRows({})

    @classmethod
    async def open(cls, path: Path) -> HubStore:
        """Open or create the file; raises LocalError."""
        store = cls(await Database.open(path, MIGRATIONS))
        async with AsyncExitStack() as undo:
            undo.push_async_callback(store.close)  # an open database's threads would keep a failed start alive
            await store._load()
            undo.pop_all()
        return store

    async def close(self) -> None:
        """Close the file."""
        await self.database.close()

    # -- reading, from the mirror -----------------------------------------------------------------------------------

    @property
    def devices(self) -> Mapping[str, DeviceRecord]:
        """Devices ever heard, by path."""
        return self._devices

    @property
    def slots(self) -> Mapping[str, SlotRecord]:
        """Occupied slots, by path of the device."""
        return self._slots

    @property
    def waves(self) -> Mapping[str, WaveRecord]:
        """Waves of this store, by id, closed ones for a while."""
        return self._waves

    @property
    def pauses(self) -> Mapping[tuple[str, str], PauseHere]:
        """Pauses and halts given here, by (wave, origin)."""
        return self._pauses

    @property
    def intents(self) -> Mapping[str, IntentRecord]:
        """Intents known here, by id."""
        return self._intents

    def ledger(self, wave_id: str) -> Mapping[str, Entry]:
        """Outcomes of a wave, by path of the device."""
        return self._ledgers.get(wave_id, {})

    def entries(self) -> Mapping[tuple[str, str], Entry]:
        """All outcomes, by (wave, device)."""
        return {(wave, device): entry for wave, ledger in self._ledgers.items() for device, entry in ledger.items()}

    def fact(self, name: str) -> str:
        """A remembered fact; empty if there is none."""
        return self._facts.get(name, "")

    # -- writing, in the caller's transaction -----------------------------------------------------------------------

    async def put_fact(self, tx: Transaction, name: str, value: str) -> None:
        """Remember a fact."""
        await tx.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))
        tx.on_commit(lambda: self._facts.__setitem__(name, value))

    async def put_device(self, tx: Transaction, record: DeviceRecord) -> None:
        """Keep a device's last state."""
        path = record.status.device
        await tx.execute(
            "INSERT OR REPLACE INTO devices VALUES (?, ?, ?, ?)",
            (path, encode(record.status), to_stamp(record.seen_at), record.last_known_good_sha256),
        )
        tx.on_commit(lambda: self._devices.__setitem__(path, record))

    def touch_device(self, record: DeviceRecord) -> None:
        """Show progress that need not survive a restart: same state, other vitals."""
        self._devices[record.status.device] = record

    async def put_slot(self, tx: Transaction, record: SlotRecord) -> None:
        """Occupy a slot; the device's former one, if any, is replaced."""
        slot = record.slot
        times = (to_stamp(slot.granted_at), to_stamp(slot.expires_at), to_stamp(slot.until))
        await tx.execute(
            "INSERT OR REPLACE INTO slots VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                slot.device,
                slot.wave_id,
                slot.use.value,
                slot.attempt,
                *times,
                record.lease_id,
                record.grant,
                record.intent_id,
                record.epoch,
                record.counter,
            ),
        )
        tx.on_commit(lambda: self._slots.__setitem__(slot.device, record))

    async def end_slot(self, tx: Transaction, device: str) -> None:
        """Free a device's slot."""
        await tx.execute("DELETE FROM slots WHERE device = ?", (device,))
        tx.on_commit(partial(_drop, self._slots, device))

    async def merge(self, tx: Transaction, entry: Entry) -> bool:
        """Merge an outcome into the ledger; returns whether it changed anything."""
        wave_id, device = entry.outcome.wave_id, entry.outcome.device
        row = await tx.fetch_one("SELECT * FROM outcomes WHERE wave_id = ? AND device = ?", (wave_id, device))
        if not supersedes(entry, _entry(row) if row is not None else None):
            return False
        await tx.execute(
            "INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?, ?)",
            (wave_id, device, encode(entry.envelope), entry.signed_by, to_stamp(entry.received_at)),
        )
        tx.on_commit(lambda: self._ledgers.setdefault(wave_id, {}).__setitem__(device, entry))
        return True

    async def put_wave(self, tx: Transaction, record: WaveRecord) -> None:
        """Keep a wave's latest order; of closed waves only the last MAX_CLOSED_WAVES stay."""
        wave_id = record.order.wave_id
        blobs = json.dumps([[blob.sha256, blob.size_bytes] for blob in record.blobs])
        closed = (
            record.closed_state.value if record.closed_state else None,
            to_stamp(record.closed_at) if record.closed_at else None,
        )
        await tx.execute(
            "INSERT OR REPLACE INTO waves VALUES (?, ?, ?, ?, ?, ?)",
            (wave_id, encode(record.order), blobs, to_stamp(record.first_seen_at), *closed),
        )
        tx.on_commit(lambda: self._waves.__setitem__(wave_id, record))
        if record.closed_at is not None:
            await self._forget_closed(tx, wave_id)

    async def _forget_closed(self, tx: Transaction, just_closed: str) -> None:
        closed = sorted(
            (record.closed_at, wave_id)
            for wave_id, record in self._waves.items()
            if record.closed_at is not None and wave_id != just_closed
        )
        for _, wave_id in closed[: max(0, len(closed) + 1 - MAX_CLOSED_WAVES)]:
            await tx.execute("DELETE FROM outcomes WHERE wave_id = ?", (wave_id,))
            await tx.execute("DELETE FROM waves WHERE wave_id = ?", (wave_id,))
            tx.on_commit(partial(self._drop_wave, wave_id))

    def _drop_wave(self, wave_id: str) -> None:
        self._waves.pop(wave_id, None)
        self._ledgers.pop(wave_id, None)

    async def put_pause(self, tx: Transaction, pause: PauseHere) -> None:
        """Pause or halt a wave here."""
        key = (pause.wave_id, pause.origin)
        values = (*key, pause.reason, pause.effect.value, pause.intent_id)
        await tx.execute("INSERT OR REPLACE INTO pauses VALUES (?, ?, ?, ?, ?)", values)
        tx.on_commit(lambda: self._pauses.__setitem__(key, pause))

    async def drop_pause(self, tx: Transaction, wave_id: str, origin: str) -> None:
        """Lift a pause of one origin here."""
        await tx.execute("DELETE FROM pauses WHERE wave_id = ? AND origin = ?", (wave_id, origin))
        tx.on_commit(partial(_drop, self._pauses, (wave_id, origin)))

    async def put_intent(self, tx: Transaction, record: IntentRecord) -> None:
        """Keep an intent and its fate; the oldest finished ones go beyond MAX_INTENTS."""
        intent_id = record.intent.intent_id
        await tx.execute(
            "INSERT OR REPLACE INTO intents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                intent_id,
                encode(record.envelope),
                record.operator,
                record.source.value,
                record.disposition.value,
                record.device_path,
                json.dumps(record.waiting_for),
                record.detail,
                to_stamp(record.received_at),
                record.report_number,
                record.epoch,
                record.counter,
                json.dumps([[digest.sha256, digest.size_bytes] for digest in record.digests]),
            ),
        )
        tx.on_commit(lambda: self._intents.__setitem__(intent_id, record))
        excess = len(self._intents) + 1 - MAX_INTENTS
        for old in _oldest_finished(self._intents, excess) if excess > 0 else ():
            await tx.execute("DELETE FROM intents WHERE intent_id = ?", (old,))
            tx.on_commit(partial(_drop, self._intents, old))

    async def change_intent(
        self,
        tx: Transaction,
        intent_id: str,
        disposition: Disposition,
        detail: str,
        waiting_for: tuple[str, ...] = (),
    ) -> None:
        """Say what became of a known intent."""
        record = self._intents[intent_id]
        await self.put_intent(tx, replace(record, disposition=disposition, detail=detail, waiting_for=waiting_for))

    # -- loading ----------------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        rows = self.database.fetch_all
        self._facts = {row["name"]: row["value"] for row in await rows("SELECT * FROM facts")}
        self._devices = {row["path"]: _device(row) for row in await rows("SELECT * FROM devices")}
        self._slots = {row["device"]: _slot(row) for row in await rows("SELECT * FROM slots")}
        self._waves = {row["wave_id"]: _wave(row) for row in await rows("SELECT * FROM waves")}
        for row in await rows("SELECT * FROM pauses"):
            effect = PauseEffect(row["effect"])
            pause = PauseHere(row["wave_id"], row["origin"], row["reason"], effect, row["intent_id"])
            self._pauses[pause.wave_id, pause.origin] = pause
        for row in await rows("SELECT * FROM outcomes"):
            entry = _entry(row)
            self._ledgers.setdefault(entry.outcome.wave_id, {})[entry.outcome.device] = entry
        self.deliveries = await DeliveryRows.load(self.database)
        self._intents = {row["intent_id"]: _intent(row) for row in await rows("SELECT * FROM intents")}
        self.incidents = await Incidents.open(self.database)


def _drop(mapping: dict[K, V], key: K) -> None:
    mapping.pop(key, None)


def _oldest_finished(intents: Mapping[str, IntentRecord], count: int) -> list[str]:
    finished = [
        (record.received_at, intent_id)
        for intent_id, record in intents.items()
        if record.disposition is not Disposition.QUEUED and not record.waiting_for
    ]
    return [intent_id for _, intent_id in sorted(finished)[:count]]


def _device(row: sqlite3.Row) -> DeviceRecord:
    return DeviceRecord(decode(DeviceStatus, row["status"]), from_stamp(row["seen_at"]), row["last_known_good_sha256"])


def _slot(row: sqlite3.Row) -> SlotRecord:
    slot = Slot(
        row["device"],
        row["wave_id"],
        SlotUse(row["use"]),
        row["attempt"],
        from_stamp(row["granted_at"]),
        from_stamp(row["expires_at"]),
        from_stamp(row["until"]),
    )
    return SlotRecord(slot, row["lease_id"], row["grant_content"], row["intent_id"], row["epoch"], row["counter"])


def _entry(row: sqlite3.Row) -> Entry:
    envelope = decode(Envelope, row["envelope"])
    outcome = decode(DeviceOutcome, envelope.payload)
    is_own = NodeId.parse(row["signed_by"]).path == outcome.device
    return Entry(outcome, envelope, row["signed_by"], is_own, from_stamp(row["received_at"]))


def _wave(row: sqlite3.Row) -> WaveRecord:
    return WaveRecord(
        decode(WaveOrder, row["order_content"]),
        from_stamp(row["first_seen_at"]),
        _digests(row["blobs"]),
        WaveState(row["closed_state"]) if row["closed_state"] is not None else None,
        from_stamp(row["closed_at"]) if row["closed_at"] is not None else None,
    )


def _intent(row: sqlite3.Row) -> IntentRecord:
    envelope = decode(Envelope, row["envelope"])
    return IntentRecord(
        intent=decode(OperatorIntent, envelope.payload),
        envelope=envelope,
        operator=row["operator"],
        source=IntentSource(row["source"]),
        disposition=Disposition(row["disposition"]),
        received_at=from_stamp(row["received_at"]),
        device_path=row["device_path"],
        waiting_for=tuple(json.loads(row["waiting_for"])),
        detail=row["detail"],
        report_number=row["report_number"],
        epoch=row["epoch"],
        counter=row["counter"],
        digests=_digests(row["digests"]),
    )


def _digests(text: str) -> tuple[Digest, ...]:
    return tuple(Digest(sha256, size_bytes) for sha256, size_bytes in json.loads(text))
