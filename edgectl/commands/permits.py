"""``edgectl permit`` and ``hold``: what may still swap, and what may not."""

from __future__ import annotations

from typing import Annotated

import typer

from edgectl.client import CALL_TIMEOUT_S
from edgectl.completing import device_names, release_names, store_names, wave_ids
from edgectl.framework import DEFAULT_LIMIT, LimitOption, Session, command
from edgectl.tables import holds_parts, permits_table
from wavemesh.errors import NotFoundError

permit = typer.Typer(help="Permits: which devices may swap in a wave.", no_args_is_help=True)
hold = typer.Typer(help="Holds: which releases may not be installed.", no_args_is_help=True)

WaveOption = Annotated[str, typer.Option("--wave", help="The wave.", autocompletion=wave_ids)]
DeviceOption = Annotated[str, typer.Option("--id", help="The device, by name or path.", autocompletion=device_names)]


@command(permit, "list")
def list_permits(
    session: Session,
    *,
    wave: Annotated[
        str, typer.Option("--wave", help="Only of this wave.", show_default="all open", autocompletion=wave_ids)
    ] = "",
    store: Annotated[str, typer.Option("--store", help="Only of this store.", autocompletion=store_names)] = "",
    device: DeviceOption = "",
    state: Annotated[
        list[str] | None, typer.Option("--state", help="outstanding, spent, written_off or void; repeatable.")
    ] = None,
    limit: LimitOption = DEFAULT_LIMIT,
) -> None:
    """Show the latest permit of each device. `--state outstanding` is what a halt may still expose."""
    from edgectl.plain import enum_number
    from wavemesh.v1 import operator_pb2

    request = operator_pb2.ListPermitsRequest(wave_id=wave, store=store, device=device)
    kind = operator_pb2.PermitState.DESCRIPTOR
    request.states.extend(operator_pb2.PermitState.ValueType(enum_number(kind, word)) for word in state or ())
    data = session.collect(request, "permits", limit)
    session.show(data, permits_table(data))


@command(permit, "show")
def show_permit(session: Session, *, wave: WaveOption, device: DeviceOption) -> None:
    """Show the permit of one device in one wave."""
    from wavemesh.v1.operator_pb2 import ListPermitsRequest

    found = session.collect(ListPermitsRequest(wave_id=wave, device=device), "permits", 100)
    if not found:
        msg = f"no permit of {device} in wave {wave} is known here; `edgectl permit list --wave {wave}` shows them"
        raise NotFoundError(msg, wave=wave, device=device)
    session.show(found, permits_table(found))


@command(hold, "list")
def list_holds(session: Session) -> None:
    """Show the hold list in force at the node asked. A dark hub shows how old its own is."""
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import ListHoldsRequest

    data = plain(session.ask(lambda stub: stub.ListHolds(ListHoldsRequest(), timeout=CALL_TIMEOUT_S)))
    session.show(data, *holds_parts(data))


@command(hold, "show")
def show_hold(
    session: Session, *, release: Annotated[str, typer.Argument(help="The release.", autocompletion=release_names)]
) -> None:
    """Show the hold of one release; `edgectl release hold` and `release unhold` change it."""
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import ListHoldsRequest

    data = plain(session.ask(lambda stub: stub.ListHolds(ListHoldsRequest(), timeout=CALL_TIMEOUT_S)))
    found = [one for one in data["holds"] if one["release"] == release]
    if not found:
        msg = f"release {release!r} is not on hold here; `edgectl hold list` shows which are"
        raise NotFoundError(msg, release=release)
    session.show(found[0], *holds_parts({**data, "holds": found}))
