"""``edgectl inventory``: the stores and devices that are registered, from a file and to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgectl.client import CALL_TIMEOUT_S
from edgectl.exits import UsageError
from edgectl.framework import DryRunOption, Session, command
from edgectl.output import Table
from edgectl.tables import place, plural
from wavemesh.errors import PeerError

app = typer.Typer(help="Stores and devices as registered. Control only.", no_args_is_help=True)

FileOption = Annotated[Path, typer.Option("--file", "-f", help="YAML, JSON or TOML; `inventory export` writes one.")]
_ALL = 1_000_000


@command(app, "apply")
def apply(
    session: Session,
    *,
    file: FileOption,
    dry_run: DryRunOption = False,
) -> None:
    """Register what a file says. All or nothing; what is registered and not in the file stays.

    With --dry-run the node checks the file and says what would change.
    """
    from edgectl.inventory_file import read_inventory
    from edgectl.plain import plain

    inventory = read_inventory(file)
    request = inventory.request()
    request.dry_run = dry_run
    try:
        data = plain(session.ask(lambda stub: stub.ApplyInventory(request, timeout=CALL_TIMEOUT_S)))
    except PeerError as error:
        if error.details.get("field", "").startswith(("stores[", "devices[")):
            raise UsageError(f"{inventory.where(error.details['field'])}: {error}") from error
        raise
    changes = data["changes"]
    added = sum(change["is_new"] for change in changes)
    said = f"{added} added, {len(changes) - added} changed, {_unchanged(request, changes)} as before"
    head = f"would be: {said}; nothing was changed" if dry_run else f"{said}; {_totals(data)} registered"
    rows = [
        (place(change["path"]), "new" if change["is_new"] else "changed", "; ".join(change["differences"]) or "-")
        for change in changes
    ]
    session.show(data, head, *([Table("", ("path", "change", "differences"), rows)] if rows else []))


def _unchanged(request: Any, changes: list[dict[str, Any]]) -> int:
    return len({one.path for one in (*request.stores, *request.devices)}) - len(changes)


def _totals(data: dict[str, Any]) -> str:
    return f"{plural(data['stores'], 'store')} and {plural(data['devices'], 'device')}"


@command(app, "export")
def export(session: Session) -> None:
    """Print what is registered, to a file. As `inventory apply` takes it: YAML, or JSON with --output json."""
    import yaml

    data = _registered(session)
    session.show(data, yaml.safe_dump(data, sort_keys=False, allow_unicode=True).rstrip("\n"))


@command(app, "list")
def list_inventory(session: Session) -> None:
    """Show what is registered. Every store and device with zone, class, revision, labels."""
    data = _registered(session)
    rows = [(place(store["path"]), "store", store["time_zone"], "-") for store in data["stores"]]
    rows += [
        (
            place(device["path"]),
            "device",
            f"{device['class']}/{device['hardware']}",
            ", ".join(f"{name}={text}" for name, text in device["labels"].items()) or "-",
        )
        for device in data["devices"]
    ]
    totals = f"{plural(len(data['stores']), 'store')}, {plural(len(data['devices']), 'device')}"
    session.show(data, totals, Table("", ("path", "what", "zone or class", "labels"), sorted(rows)))


@command(app, "show")
def show(session: Session, *, path: Annotated[str, typer.Argument(help="Name or path of a store or device.")]) -> None:
    """Show one store or device as registered."""
    from wavemesh.errors import NotFoundError

    data = _registered(session)
    found = [one for one in (*data["stores"], *data["devices"]) if path in {one["path"], one["path"].rsplit("/", 1)[1]}]
    if not found:
        msg = f"{path!r} is not registered; `edgectl inventory list` shows what is"
        raise NotFoundError(msg, path=path)
    lines = []
    for one in found:
        lines.append(one["path"])
        lines += [f"  {key}: {value}" for key, value in one.items() if key not in {"path", "labels"}]
        lines += [f"  label {name}: {text}" for name, text in one.get("labels", {}).items()]
    session.show(found, *lines)


def _registered(session: Session) -> dict[str, list[dict[str, Any]]]:
    from wavemesh.v1.operator_pb2 import ListDevicesRequest, ListStoresRequest

    stores = session.collect(ListStoresRequest(), "stores", _ALL)
    devices = session.collect(ListDevicesRequest(), "devices", _ALL)
    return {
        "stores": [{"path": one["path"], "time_zone": one["time_zone"]} for one in stores],
        "devices": [
            {
                "path": one["path"],
                "class": one["device_class"],
                "hardware": one["hardware_revision"],
                "labels": one["labels"],
            }
            for one in devices
        ],
    }
