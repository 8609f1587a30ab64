"""Registers stores and devices: what is registered stays, what is given is added or replaced, all or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import func, select

from control import requests, schema, store
from control.enrolments import refuse_rebound
from control.requests import BadRequestError
from wavemesh.errors import ConflictError
from wavemesh.v1 import operator_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Table

    from control.database import Transaction
    from control.fleet import Fleet

MAX_INVENTORY = 20_000
_AT_ONCE = 500


async def apply(
    tx: Transaction, request: operator_pb2.ApplyInventoryRequest, fleet: Fleet, fleet_name: str
) -> operator_pb2.ApplyInventoryResponse:
    """Register what the request names, and say what that changed; the fleet in memory follows after the commit.

    Raises BadRequestError, ConflictError for a device of an open wave that would change its class or revision.
    """
    if len(request.stores) + len(request.devices) > MAX_INVENTORY:
        raise BadRequestError("devices", f"more than {MAX_INVENTORY} stores and devices; send them in parts")
    stores = [requests.store_row(one, index, fleet_name) for index, one in enumerate(request.stores)]
    known = fleet.stores | {str(row["path"]) for row in stores}
    devices = [requests.device_row(one, index, fleet_name, known) for index, one in enumerate(request.devices)]
    await _refuse_changed_targets(tx, devices)
    await refuse_rebound(tx, devices)
    changes = [*await _changes(tx, schema.stores, stores), *await _changes(tx, schema.devices, devices)]
    await tx.put(schema.stores, *stores)
    await tx.put(schema.devices, *devices)
    paths = fleet.device_paths | {str(row["path"]) for row in devices}
    tx.after_commit(lambda: fleet.register(known, paths))
    totals = [await tx.scalar(select(func.count()).select_from(one)) for one in (schema.stores, schema.devices)]
    return operator_pb2.ApplyInventoryResponse(stores=totals[0], devices=totals[1], changes=changes)


async def _changes(
    tx: Transaction, table: Table, rows: Sequence[Mapping[str, object]]
) -> list[operator_pb2.InventoryChange]:
    """What is new or other than it is kept, by path."""
    held: dict[str, Mapping[str, object]] = {}
    for start in range(0, len(rows), _AT_ONCE):
        paths = [str(row["path"]) for row in rows[start : start + _AT_ONCE]]
        held |= {row["path"]: dict(row) for row in await tx.all(select(table).where(table.c.path.in_(paths)))}
    changes = []
    for row in sorted(rows, key=lambda row: str(row["path"])):
        path = str(row["path"])
        before = held.get(path)
        differences = [] if before is None else list(_differences(before, row))
        if before is None or differences:
            changes.append(operator_pb2.InventoryChange(path=path, is_new=before is None, differences=differences))
    return changes


def _differences(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    # The segment is one of the labels.
    return [
        f"{name}: {_said(before[name])} -> {_said(value)}"
        for name, value in after.items()
        if name != "segment" and before[name] != value
    ]


def _said(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={text}" for name, text in sorted(value.items())) or "none"
    return str(value)


async def _refuse_changed_targets(tx: Transaction, devices: Sequence[Mapping[str, object]]) -> None:
    """A device in an open wave keeps its class and revision: the wave's cohort was homogeneous when it was planned."""
    busy = await store.open_waves_by_device(tx)
    for row in devices:
        path = str(row["path"])
        if path not in busy:
            continue
        table = schema.devices
        held = await tx.first(select(table.c.device_class, table.c.hardware_revision).where(table.c.path == path))
        if held and (held["device_class"], held["hardware_revision"]) != (
            row["device_class"],
            row["hardware_revision"],
        ):
            msg = f"device {path} is in open wave {busy[path]!r}; its class and revision stay until that ends"
            raise ConflictError(msg, device=path, wave=busy[path])
