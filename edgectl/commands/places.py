"""``edgectl region``, ``store`` and ``cohort``: where devices are, and who they are."""

from __future__ import annotations

from collections import defaultdict
from typing import Annotated, Any

import typer

from edgectl.client import CALL_TIMEOUT_S
from edgectl.completing import cohort_names, store_names, wave_ids
from edgectl.framework import DEFAULT_LIMIT, LimitOption, Session, command
from edgectl.output import Table
from edgectl.tables import ago, cohorts_table, place, store_parts, stores_table
from wavemesh.errors import NotFoundError

region = typer.Typer(help="Regions: a super hub and its stores.", no_args_is_help=True)
store = typer.Typer(help="Stores: a hub and its devices.", no_args_is_help=True)
cohort = typer.Typer(help="Cohorts: whom waves are for.", no_args_is_help=True)

RegionOption = Annotated[str, typer.Option("--region", help="Only of this region, by name or path.")]
_ALL = 100_000


@command(store, "list")
def list_stores(
    session: Session,
    *,
    in_region: RegionOption = "",
    wave: Annotated[str, typer.Option("--wave", help="Only with devices in it.", autocompletion=wave_ids)] = "",
    limit: LimitOption = DEFAULT_LIMIT,
) -> None:
    """Show stores. Whether their hub is heard, devices, open waves, exposure, intents that wait for them."""
    from wavemesh.v1.operator_pb2 import ListStoresRequest

    data = session.collect(ListStoresRequest(region=in_region, wave_id=wave), "stores", limit)
    session.show(data, stores_table(data))


@command(store, "show")
def show_store(
    session: Session, *, name: Annotated[str, typer.Argument(help="Name or path.", autocompletion=store_names)]
) -> None:
    """Show one store. Its hub, pauses in force there, open waves, exposure."""
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import GetStoreRequest

    request = GetStoreRequest(store=name)
    data = plain(session.ask(lambda stub: stub.GetStore(request, timeout=CALL_TIMEOUT_S)).store)
    session.show(data, *store_parts(data))


@command(region, "list")
def list_regions(session: Session) -> None:
    """Show regions. Whether their super hub is heard, stores, devices, exposure."""
    data = _regions(session)
    rows = [
        (
            place(one["path"]),
            "yes" if one["connected"] else "no",
            f"{one['stores_connected']} of {len(one['stores'])}",
            f"{one['devices_connected']} of {one['devices']}",
            ", ".join(one["wave_ids"]) or "-",
            str(one["exposure"]),
            ago(one["heard_at"]) if one["heard_at"] else "never",
        )
        for one in data
    ]
    columns = ("region", "connected", "stores", "devices", "waves", "exposure", "heard")
    session.show(data, Table("", columns, rows, ("heard",)))


@command(region, "show")
def show_region(session: Session, *, name: Annotated[str, typer.Argument(help="Name or path.")]) -> None:
    """Show one region and its stores."""
    found = [one for one in _regions(session) if name in {one["path"], place(one["path"])}]
    if not found:
        msg = f"no region {name!r} is known here; `edgectl region list` shows them"
        raise NotFoundError(msg, region=name)
    [one] = found
    heard = f"heard {ago(one['heard_at'])}" if one["heard_at"] else "never heard"
    head = f"region {place(one['path'])}: super hub {'connected' if one['connected'] else 'not connected'}, {heard}"
    origin = [f"origin {one['origin']}"] if one["origin"] else []
    session.show(one, head, *origin, stores_table(one["stores"]))


def _regions(session: Session) -> list[dict[str, Any]]:
    """Regions as their stores and the fleet's status show them."""
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import GetFleetStatusRequest, ListStoresRequest

    fleet = plain(session.ask(lambda stub: stub.GetFleetStatus(GetFleetStatusRequest(), timeout=CALL_TIMEOUT_S)))
    hubs = {hub["hub"]: hub for hub in fleet["hubs"]}
    by_region: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in session.collect(ListStoresRequest(), "stores", _ALL):
        by_region["/".join(one["path"].split("/")[:2])].append(one)
    for path in hubs:
        if path.count("/") == 1:
            by_region[path] = by_region[path]
    return [
        {
            "path": path,
            "connected": bool(hubs.get(path, {}).get("connected")),
            "heard_at": hubs.get(path, {}).get("at"),
            "origin": hubs.get(path, {}).get("origin", ""),
            "stores_connected": sum(bool(one["hub"] and one["hub"]["connected"]) for one in stores),
            "devices": sum(one["devices"] for one in stores),
            "devices_connected": sum(one["devices_connected"] for one in stores),
            "exposure": sum(one["exposure"] for one in stores),
            "wave_ids": sorted({wave for one in stores for wave in one["wave_ids"]}),
            "stores": stores,
        }
        for path, stores in sorted(by_region.items())
    ]


@command(cohort, "list")
def list_cohorts(
    session: Session,
    *,
    segment: Annotated[str, typer.Option("--segment", help="Only of this segment.")] = "",
    limit: LimitOption = DEFAULT_LIMIT,
) -> None:
    """Show cohorts. By the name `wave plan` takes: devices, how many are in open waves, versions. Control only."""
    from wavemesh.v1.operator_pb2 import ListCohortsRequest

    data = session.collect(ListCohortsRequest(segment=segment), "cohorts", limit)
    session.show(data, cohorts_table(data))


@command(cohort, "show")
def show_cohort(
    session: Session, *, name: Annotated[str, typer.Argument(help="The cohort.", autocompletion=cohort_names)]
) -> None:
    """Show one cohort and its stores. Control only."""
    from wavemesh.v1.operator_pb2 import ListCohortsRequest

    request = ListCohortsRequest(segment=name.split("/", 1)[0])
    found = [one for one in session.collect(request, "cohorts", _ALL) if one["name"] == name]
    if not found:
        msg = f"no cohort {name!r} is known here; `edgectl cohort list` shows them"
        raise NotFoundError(msg, cohort=name)
    session.show(found[0], cohorts_table(found), "stores: " + ", ".join(map(place, found[0]["stores"])))
