"""``edgectl device``: see devices, their logs, roll one back."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgectl.client import CALL_TIMEOUT_S
from edgectl.framework import Session, command
from edgectl.intents import IntentIdOption, ReasonOption, new_intent_id, now, submit
from edgectl.tables import devices_table, ledger_parts

app = typer.Typer(help="One device or all of them.", no_args_is_help=True)

if TYPE_CHECKING:
    from wavemesh.v1.operator_pb2 import ListDevicesRequest, ListDevicesResponse
    from wavemesh.v1.operator_pb2_grpc import OperatorServiceAsyncStub

DeviceOption = Annotated[str, typer.Option("--id", help="The device's name, or its path where the name is not unique.")]
_PAGE_SIZE = 1000
_MAX_PAGES = 1000


@command(app, "rollback")
def rollback(
    session: Session,
    *,
    device: DeviceOption,
    reason: ReasonOption,
    wave: Annotated[str, typer.Option("--wave", help="The wave it belongs to, if not the current one.")] = "",
    intent_id: IntentIdOption = None,
) -> None:
    """Send a device back to its previous slot. Needs no permit; a hub does it at once."""
    from wavemesh.trust.statements import IntentKind, OperatorIntent

    identity = new_intent_id(intent_id)
    submit(
        session,
        OperatorIntent(identity, IntentKind.ROLLBACK_DEVICE, now(), wave_id=wave, device=device, reason=reason),
    )


@command(app, "list")
def list_devices(
    session: Session, *, store: Annotated[str, typer.Option("--store", help="Only this store, by name.")] = ""
) -> None:
    """Show the devices known to the node asked."""
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import ListDevicesRequest

    devices: list[dict[str, Any]] = []
    token = ""
    for _ in range(_MAX_PAGES):
        request = ListDevicesRequest(store=store, page_size=_PAGE_SIZE, page_token=token)
        answer = session.ask(functools.partial(_list_devices, request))
        devices += (plain(device) for device in answer.devices)
        token = answer.next_page_token
        if not token:
            break
    session.show(devices, devices_table(devices))


async def _list_devices(request: ListDevicesRequest, stub: OperatorServiceAsyncStub) -> ListDevicesResponse:
    return await stub.ListDevices(request, timeout=CALL_TIMEOUT_S)


@command(app, "show")
def show(session: Session, *, device: DeviceOption) -> None:
    """Show one device: status, labels, outcomes."""
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import GetDeviceRequest

    request = GetDeviceRequest(device=device)
    data = plain(session.ask(lambda stub: stub.GetDevice(request, timeout=CALL_TIMEOUT_S)).device)
    labels = ", ".join(f"{key}={value}" for key, value in data["labels"].items()) or "none"
    outcomes = {"entries": data["outcomes"], "gates": {}, "counts": None, "wave_id": "", "source": ""}
    table = ledger_parts(outcomes)[1]
    session.show(data, devices_table([data]), f"labels: {labels}", *([table] if data["outcomes"] else []))


@command(app, "logs")
def logs(
    session: Session,
    *,
    device: DeviceOption,
    since: Annotated[str, typer.Option("--since", help='"15 min ago", "2h" or a time.')] = "",
    wave: Annotated[str, typer.Option("--wave", help="Only lines of this wave.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=5000, help="At most this many, the newest.")] = 200,
) -> None:
    """Show a device's log as its store's hub keeps it, oldest line first. With control selected, its hub is asked."""
    from edgectl.plain import plain
    from edgectl.since import parse_since
    from wavemesh.v1.operator_pb2 import GetDeviceLogsRequest

    request = GetDeviceLogsRequest(device=device, wave_id=wave, limit=limit)
    if since:
        request.since.FromDatetime(parse_since(since, now()))
    answer = _hub_of(session, device).ask(lambda stub: stub.GetDeviceLogs(request, timeout=CALL_TIMEOUT_S))
    lines = [plain(line) for line in answer.lines]
    session.show(
        lines,
        *(f"{x['at']} {x['level']:7} {x['wave_id'] or '-':6} {x['trace_id'][:8] or '-':8} {x['text']}" for x in lines),
    )


def _hub_of(session: Session, device: str) -> Session:
    """Whom to ask about what only the device's hub knows."""
    from wavemesh.v1.operator_pb2 import GetDeviceRequest

    hubs = session.hubs()
    if hubs == [session]:
        return session
    request = GetDeviceRequest(device=device)
    path = session.ask(lambda stub: stub.GetDevice(request, timeout=CALL_TIMEOUT_S)).device.path
    return next((hub for hub in hubs if path.startswith(hub.context.node.path + "/")), session)
