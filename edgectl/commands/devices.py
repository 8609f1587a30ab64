"""``edgectl device``: see devices, their logs, roll one back, sign off the rollback of a supervised one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgectl.client import CALL_TIMEOUT_S
from edgectl.completing import device_names, store_names, wave_ids
from edgectl.effects import YesOption, confirm, preview
from edgectl.framework import DEFAULT_LIMIT, DryRunOption, LimitOption, Session, command
from edgectl.intents import IntentIdOption, ReasonOption, new_intent_id, now, submit
from edgectl.tables import devices_table, entry_lines, place, signoff_lines

app = typer.Typer(help="One device or all of them.", no_args_is_help=True)

SocketOption = Annotated[
    Path | None, typer.Option("--socket", help="Ask the device itself: the agent's socket, DIR/run/agent.sock.")
]

_SIGNED_OFF = frozenset({"awaiting_signoff", "rolling_back", "rolled_back"})

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
    reason: ReasonOption,
    device: Annotated[str, typer.Option("--id", help="Its name or path.", autocompletion=device_names)] = "",
    wave: Annotated[
        str,
        typer.Option(
            "--wave",
            help="The wave to undo; after its rollback, the one before: a second rollback, from the packed image.",
            autocompletion=wave_ids,
        ),
    ] = "",
    at: SocketOption = None,
    again: Annotated[
        bool, typer.Option("--again", help="With --socket: leave what a rollback returned to as well.")
    ] = False,
    timeout_s: Annotated[float, typer.Option("--timeout", min=1, help="With --socket: wait so many seconds.")] = 600.0,
    intent_id: IntentIdOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
) -> None:
    """Send a device back to its previous slot. Needs no permit; a hub does it at once. Asks first on a terminal.

    With --socket the device itself is asked, by whoever stands before it: no network, hub or identity is needed.
    """
    from edgectl.exits import UsageError
    from wavemesh.trust.statements import IntentKind, OperatorIntent

    if (at is None) is (not device):
        raise UsageError("say which device: --id NAME, or --socket DIR/run/agent.sock of the one you stand before")
    if at is None and again:
        raise UsageError("--again is for --socket; elsewhere --wave names the wave before the one rolled back")
    if at is not None:
        _roll_back_here(session, at, "rollback-again" if again else "rollback", reason, timeout_s)
        return
    intent = OperatorIntent(
        new_intent_id(intent_id), IntentKind.ROLLBACK_DEVICE, now(), wave_id=wave, device=device, reason=reason
    )
    if dry_run:
        preview(session, intent)
        return
    confirm(session, intent, yes)
    submit(session, intent)


def _roll_back_here(session: Session, at: Path, verb: str, reason: str, timeout_s: float) -> None:
    from edgectl import standing
    from edgectl.exits import Exit

    standing.roll_back(at, verb, reason)
    status, went_back = standing.outcome(at, timeout_s)
    session.show(status, *standing.lines(status))
    if not went_back:
        raise typer.Exit(Exit.REFUSED)


@command(app, "status")
def status_here(
    session: Session,
    *,
    at: Annotated[Path, typer.Option("--socket", help="The agent's socket, DIR/run/agent.sock.")],
) -> None:
    """Ask the device you stand before how it is. By its agent's socket: no network, hub or identity is needed."""
    from edgectl import standing

    status = standing.look(at)
    session.show(status, *standing.lines(status))


@command(app, "approve-rollback")
def approve_rollback(
    session: Session,
    *,
    device: DeviceOption,
    wave: Annotated[str, typer.Option("--wave", help="The wave whose trial failed.", autocompletion=wave_ids)],
    reason: ReasonOption,
    attempt: Annotated[
        int | None, typer.Option("--attempt", min=1, help="The attempt that failed.", show_default="the one that waits")
    ] = None,
    intent_id: IntentIdOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
) -> None:
    """Sign off the rollback of a supervised device. Its trial failed, and it runs on until somebody signs."""
    from wavemesh.trust.statements import IntentKind, OperatorIntent

    intent = OperatorIntent(
        new_intent_id(intent_id),
        IntentKind.APPROVE_ROLLBACK,
        now(),
        wave_id=wave,
        device=device,
        reason=reason,
        attempt=attempt or _waiting_attempt(session, device, wave),
    )
    if dry_run:
        preview(session, intent)
        return
    confirm(session, intent, yes)
    submit(session, intent)


@command(app, "rehearse")
def rehearse(
    session: Session,
    *,
    device: Annotated[str, typer.Option("--id", help="Its name or path.", autocompletion=device_names)] = "",
    at: SocketOption = None,
    reason: Annotated[str, typer.Option("--reason", help="Why; audited.")] = "",
    intent_id: IntentIdOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Rehearse what a device has staged. Reads the slot back, runs the boot probe, commits nothing.

    With --socket the answer is shown at once; with --id the device answers through the mesh, and `edgectl intent show`
    has what it said.
    """
    from edgectl.exits import UsageError
    from wavemesh.trust.statements import IntentKind, OperatorIntent

    if (at is None) is (not device):
        raise UsageError("say which device: --id NAME, or --socket DIR/run/agent.sock of the one you stand before")
    if at is not None:
        _rehearse_here(session, at)
        return
    intent = OperatorIntent(new_intent_id(intent_id), IntentKind.REHEARSE_DEVICE, now(), device=device, reason=reason)
    if dry_run:
        preview(session, intent)
        return
    submit(session, intent)


def _rehearse_here(session: Session, at: Path) -> None:
    from edgectl import standing
    from edgectl.exits import Exit

    answer = standing.rehearse(at)
    session.show(answer, *standing.rehearsal_lines(answer))
    if not answer["passes"]:
        raise typer.Exit(Exit.CHECK_FAILED)


def _waiting_attempt(session: Session, device: str, wave: str) -> int:
    """The attempt of a device that waits for a sign-off, or was signed off; raises ConflictError for any other."""
    from wavemesh.errors import ConflictError

    data = _device(session, device)
    status = data["status"] or {"state": "never heard", "wave_id": "", "attempt": 0}
    if status["wave_id"] != wave or status["state"] not in _SIGNED_OFF:
        in_wave = f" in wave {status['wave_id']}" if status["wave_id"] else ""
        msg = (
            f"{place(data['path'])} does not wait for a sign-off in wave {wave}: here it is known as"
            f" {status['state']}{in_wave}; --attempt N approves an attempt that was not heard of yet"
        )
        raise ConflictError(msg, device=data["path"], wave=wave)
    return int(status["attempt"])


def _device(session: Session, device: str) -> dict[str, Any]:
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import GetDeviceRequest

    request = GetDeviceRequest(device=device)
    return plain(session.ask(lambda stub: stub.GetDevice(request, timeout=CALL_TIMEOUT_S)).device)


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
    data = _device(session, device)
    labels = ", ".join(f"{key}={value}" for key, value in data["labels"].items()) or "none"
    status = data["status"] or {}
    held_up = [f"{status['state']} by gate {status['gate']}: {status['evidence']}"] if status.get("gate") else []
    outcomes = [line for entry in data["outcomes"] for line in entry_lines(entry)]
    session.show(data, devices_table([data]), f"labels: {labels}", *held_up, *signoff_lines(data), *outcomes)


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
    hubs = session.hubs()
    if hubs == [session]:
        return session
    path = _device(session, device)["path"]
    return next((hub for hub in hubs if path.startswith(hub.context.node.path + "/")), session)
