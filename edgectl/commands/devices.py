"""``edgectl device``: see devices, their logs, roll one back."""

from __future__ import annotations

from typing import Annotated

import typer

from edgectl.client import CALL_TIMEOUT_S
from edgectl.completing import device_names, store_names, wave_ids
from edgectl.effects import YesOption, confirm, preview
from edgectl.framework import DEFAULT_LIMIT, DryRunOption, LimitOption, Session, command
from edgectl.intents import IntentIdOption, ReasonOption, new_intent_id, now, submit
from edgectl.tables import devices_table, entry_lines

app = typer.Typer(help="One device or all of them.", no_args_is_help=True)

DeviceOption = Annotated[
    str,
    typer.Option(
        "--id", help="The device's name, or its path where the name is not unique.", autocompletion=device_names
    ),
]


@command(app, "rollback")
def rollback(
    session: Session,
    *,
    device: DeviceOption,
    reason: ReasonOption,
    wave: Annotated[
        str,
        typer.Option("--wave", help="The wave it belongs to, if not the current one.", autocompletion=wave_ids),
    ] = "",
    intent_id: IntentIdOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
) -> None:
    """Send a device back to its previous slot. Needs no permit; a hub does it at once. Asks first on a terminal."""
    from wavemesh.trust.statements import IntentKind, OperatorIntent

    intent = OperatorIntent(
        new_intent_id(intent_id), IntentKind.ROLLBACK_DEVICE, now(), wave_id=wave, device=device, reason=reason
    )
    if dry_run:
        preview(session, intent)
        return
    confirm(session, intent, yes)
    submit(session, intent)


@command(app, "list")
def list_devices(
    session: Session,
    *,
    store: Annotated[str, typer.Option("--store", help="Only this store.", autocompletion=store_names)] = "",
    region: Annotated[str, typer.Option("--region", help="Only this region.")] = "",
    device_class: Annotated[str, typer.Option("--class", help="Only this device class.")] = "",
    label: Annotated[list[str] | None, typer.Option("--label", help="NAME=VALUE, repeatable. Control only.")] = None,
    state: Annotated[
        list[str] | None, typer.Option("--state", help="idle, staging, trial, refused …; repeatable.")
    ] = None,
    outcome: Annotated[
        list[str] | None,
        typer.Option("--outcome", help="With it in an open wave: updated, silent, rolled_back …; repeatable."),
    ] = None,
    gate: Annotated[str, typer.Option("--gate", help="Held up, refused or rolled back by it.")] = "",
    version: Annotated[str, typer.Option("--version", help="Running this firmware version.")] = "",
    limit: LimitOption = DEFAULT_LIMIT,
) -> None:
    """Show devices. As the node asked knows them; filters narrow, and all of them must hold."""
    from edgectl.exits import UsageError
    from edgectl.plain import enum_number
    from wavemesh.v1 import operator_pb2, report_pb2

    labels = dict(text.partition("=")[::2] for text in label or ())
    if not all(labels) or any("=" not in text for text in label or ()):
        raise UsageError("--label: write NAME=VALUE")
    states, outcomes = report_pb2.UpdateState, report_pb2.OutcomeKind
    request = operator_pb2.ListDevicesRequest(
        store=store,
        region=region,
        device_class=device_class,
        labels=labels,
        states=[states.ValueType(enum_number(states.DESCRIPTOR, word)) for word in state or ()],
        outcomes=[outcomes.ValueType(enum_number(outcomes.DESCRIPTOR, word)) for word in outcome or ()],
        gate=gate,
        firmware_version=version,
    )
    data = session.collect(request, "devices", limit)
    session.show(data, devices_table(data))


@command(app, "show")
def show(session: Session, *, device: DeviceOption) -> None:
    """Show one device. Status, labels, and why a gate holds it up, refused it or rolled it back."""
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import GetDeviceRequest

    request = GetDeviceRequest(device=device)
    data = plain(session.ask(lambda stub: stub.GetDevice(request, timeout=CALL_TIMEOUT_S)).device)
    labels = ", ".join(f"{key}={value}" for key, value in data["labels"].items()) or "none"
    status = data["status"] or {}
    held_up = [f"{status['state']} by gate {status['gate']}: {status['evidence']}"] if status.get("gate") else []
    outcomes = [line for entry in data["outcomes"] for line in entry_lines(entry)]
    session.show(data, devices_table([data]), f"labels: {labels}", *held_up, *outcomes)


@command(app, "logs")
def logs(
    session: Session,
    *,
    device: DeviceOption,
    since: Annotated[str, typer.Option("--since", help='"15 min ago", "2h" or a time.')] = "",
    wave: Annotated[str, typer.Option("--wave", help="Only lines of this wave.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=5000, help="At most this many, the newest.")] = 200,
) -> None:
    """Show a device's log, oldest line first. Its store's hub keeps it and is asked, also with control selected."""
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
