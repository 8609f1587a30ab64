"""What really happened, read from files alone: slots, boot records, SQLite ledgers, the origin's log.

This module, ``lab/environments.py`` and ``lab/checker.py`` import nothing of the product, not even its generated
messages: a bug in the product's own reading must not hide itself. Protobuf is read field by field as its encoding
specification says.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from lab.environments import read_environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KINDS = ("", "pending", "refused", "updated", "rolled_back", "failed", "silent", "unknown", "inconclusive")
# From the first durable step towards the reboot until the agent knows how it ended.
SWAP_STATES = frozenset({"ARMED", "TRIAL", "COMMITTING", "ROLLING_BACK", "AWAITING_SIGNOFF"})
_SPENT = frozenset({"updated", "rolled_back", "failed"})
_PERMITTED = "SELECT device, store FROM permits WHERE wave_id = ?"
_DATABASES = {".sqlite", ".sqlite3", ".db"}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class EvidenceError(Exception):
    """A piece of evidence is missing or unreadable, which is itself a finding."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A device's outcome as some ledger has it."""

    device: str
    kind: str
    gate: str
    attempt: int
    firmware_sha256: str
    version: str


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a supervisor's record: a boot (``slot``, ``reason``) or a step (``step``)."""

    at: datetime
    boot_id: str
    slot: str = ""
    reason: str = ""
    step: str = ""


@dataclass(frozen=True, slots=True)
class Swap:
    """A stretch of time in which a device was inside a swap."""

    device: str
    begin: datetime
    end: datetime


def slot_sha256(device: Path, slot: str, size_bytes: int) -> str:
    """SHA-256 of the first bytes on a slot; empty when the slot is not there or shorter."""
    path = device / "slots" / f"{slot}.img"
    digest, left = hashlib.sha256(), size_bytes
    try:
        with path.open("rb") as file:
            while left and (piece := file.read(min(left, 1 << 20))):
                digest.update(piece)
                left -= len(piece)
    except OSError:
        return ""
    return "" if left else digest.hexdigest()


def boot_environment(device: Path) -> dict[str, object]:
    """What boots the device, whatever back-end it has."""
    try:
        return read_environment(device)
    except (OSError, ValueError, KeyError, AttributeError) as exc:
        raise EvidenceError(f"{device}: boot environment: {exc!r}") from exc


def records(device: Path, name: str) -> list[Record]:
    """The supervisor's records of that name ("boots", "steps"), oldest first."""
    found = []
    for path in (device / "run" / f"{name}.jsonl.1", device / "run" / f"{name}.jsonl"):
        if not path.exists():
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the line a kill -9 tore
            at = datetime.fromisoformat(entry.pop("at"))
            known = {key: entry[key] for key in ("boot_id", "slot", "reason", "step") if key in entry}
            found.append(Record(at, **known))
    return sorted(found, key=lambda record: record.at)


def swaps(device: Path) -> list[Swap]:
    """When the device was inside a swap, by the steps it announced to its board."""
    found: list[Swap] = []
    begin: datetime | None = None
    last: datetime | None = None
    for record in records(device, "steps"):
        last = record.at
        if not record.step.startswith("state:"):
            continue
        inside = record.step.removeprefix("state:") in SWAP_STATES
        if inside and begin is None:
            begin = record.at
        elif not inside and begin is not None:
            found.append(Swap(device.name, begin, record.at))
            begin = None
    if begin is not None and last is not None:
        found.append(Swap(device.name, begin, last))
    return found


def most_at_once(found: list[Swap]) -> tuple[int, list[str]]:
    """The largest number of swaps that overlap, and whose they were. A swap that ends as another begins does not."""
    edges = sorted([(s.begin, 1, s.device) for s in found] + [(s.end, 0, s.device) for s in found])
    inside: list[str] = []
    most: list[str] = []
    for _, begins, device in edges:
        if begins:
            inside.append(device)
            most = list(inside) if len(inside) > len(most) else most
        else:
            inside.remove(device)
    return len(most), most


def control_ledger(control: Path, wave: str) -> list[Outcome]:
    """Control's outcomes of a wave, from its database."""
    rows = _query(
        control,
        "SELECT device, kind, gate, attempt, firmware_sha256, firmware_version FROM outcomes WHERE wave_id = ?",
        wave,
    )
    return [Outcome(row[0], str(row[1]).lower(), *row[2:]) for row in rows]


def permits_in_force(control: Path, wave: str, store: str) -> set[str]:
    """Devices of a store (paths) whose permit control issued and neither wrote off nor knows to be spent.

    It is spent by a final outcome in the device's own word.
    """
    rows = _query(
        control,
        "SELECT p.device, o.kind, o.by_device FROM permits p LEFT JOIN outcomes o"
        " ON o.wave_id = p.wave_id AND o.device = p.device WHERE p.wave_id = ? AND p.store = ? AND NOT p.written_off",
        wave,
        store,
    )
    return {str(row[0]) for row in rows if not (row[2] and str(row[1]).lower() in _SPENT)}


def permitted(control: Path, wave: str) -> dict[str, str]:
    """Devices (paths) that control ever issued a permit of that wave for, written off or not, and their stores."""
    return {str(row[0]): str(row[1]) for row in _query(control, _PERMITTED, wave)}


def permits_unspent(control: Path, wave: str) -> set[str]:
    """Devices (paths) that may still swap by a permit: one was issued, and no final word of the device is known.

    As ``permits_in_force``, but for all stores, and a permit that was written off may be in somebody's hands.
    """
    spent = {
        str(row[0])
        for row in _query(control, "SELECT device, kind, by_device FROM outcomes WHERE wave_id = ?", wave)
        if row[2] and str(row[1]).lower() in _SPENT
    }
    return permitted(control, wave).keys() - spent


def is_closed(control: Path, wave: str) -> bool:
    """Whether control has said its last word on a wave."""
    rows = _query(control, "SELECT closed_at FROM waves WHERE wave_id = ?", wave)
    return bool(rows) and rows[0][0] is not None


def wave_state(control: Path, wave: str) -> str:
    """A wave's state in control's database, lower case; empty when there is no such wave."""
    return next((str(row[0]).lower() for row in _query(control, "SELECT state FROM waves WHERE wave_id = ?", wave)), "")


def hub_ledger(hub: Path, wave: str) -> list[Outcome]:
    """A store hub's or super hub's outcomes of a wave, from its database: the signed statements themselves."""
    rows = _query(hub, "SELECT device, envelope FROM outcomes WHERE wave_id = ?", wave)
    return [signed_outcome(row[1]) for row in rows]


def signed_outcome(envelope: bytes) -> Outcome:
    """The outcome inside an envelope (envelope.proto, report.proto)."""
    payload = b""
    for number, value in fields(envelope):
        if number == 2 and isinstance(value, bytes):
            payload = value
    found = dict(fields(payload))
    return Outcome(
        device=_text(found.get(2)),
        kind=KINDS[_number(found.get(5))],
        gate=_text(found.get(6)),
        attempt=_number(found.get(3)),
        firmware_sha256=_text(found.get(10)),
        version=_text(found.get(11)),
    )


def audit(control: Path) -> list[tuple[str, str, str]]:
    """Control's audit as (action, subject, detail)."""
    return [(str(a), str(s), str(d)) for a, s, d in _query(control, "SELECT action, subject, detail FROM audit")]


def origin_bytes(log: Path) -> dict[str, int]:
    """Bytes that left the origin, by SHA-256."""
    totals: dict[str, int] = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        entry = json.loads(line)
        if int(entry["status"]) in {200, 206}:
            name = str(entry["path"]).rpartition("/")[2]
            totals[name] = totals.get(name, 0) + int(entry["bytes"])
    return totals


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message as (number, value); groups, long obsolete, are refused."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield number, value
        elif kind == _BYTES:
            length, at = _varint(message, at)
            yield number, message[at : at + length]
            at += length
        elif kind in {_FIXED32, _FIXED64}:
            length = 4 if kind == _FIXED32 else 8
            yield number, int.from_bytes(message[at : at + length], "little")
            at += length
        else:
            raise EvidenceError(f"wire type {kind} in a stored message")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise EvidenceError("a stored message is cut short")
        value |= (message[at] & 0x7F) << shift
        at += 1
        if not message[at - 1] & 0x80:
            return value, at
        shift += 7


def database(node: Path) -> Path:
    """A node's database; raises EvidenceError where there is none."""
    for path in sorted((node / "state").iterdir()) if (node / "state").exists() else ():
        if path.suffix in _DATABASES:
            return path
    raise EvidenceError(f"{node}/state: no database")


def _query(node: Path, sql: str, *parameters: str) -> list[tuple[Any, ...]]:
    """Read a node's database without writing to it; a missing or broken one is an EvidenceError."""
    path = database(node)
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
        try:
            return connection.execute(sql, parameters).fetchall()
        finally:
            connection.close()
    except sqlite3.Error as exc:
        raise EvidenceError(f"{path}: {exc}") from exc


def _text(value: int | bytes | None) -> str:
    return value.decode() if isinstance(value, bytes) else ""


def _number(value: int | bytes | None) -> int:
    return value if isinstance(value, int) else 0
