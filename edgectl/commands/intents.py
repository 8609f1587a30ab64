"""``edgectl intent``: what operators asked for, what became of it, and taking it back."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from edgectl.client import CALL_TIMEOUT_S
from edgectl.completing import device_names, intent_ids, wave_ids
from edgectl.framework import DEFAULT_LIMIT, DryRunOption, LimitOption, Session, command
from edgectl.intents import now, signed
from edgectl.tables import intent_lines, intents_table

app = typer.Typer(help="What operators asked for; taking it back.", no_args_is_help=True)

IntentArgument = Annotated[
    str, typer.Argument(help="The intent's id, or the beginning of it as lists show it.", autocompletion=intent_ids)
]
_BEGINNING = re.compile(r"[0-9a-f]{6,31}")


@command(app, "list")
def list_intents(
    session: Session,
    *,
    state: Annotated[str, typer.Option("--state", help="queued, applied, refused or cancelled.")] = "",
    kind: Annotated[str, typer.Option("--kind", help="start_wave, pause_wave, rollback_device, prefetch …")] = "",
    wave: Annotated[str, typer.Option("--wave", help="Only of this wave.", autocompletion=wave_ids)] = "",
    device: Annotated[str, typer.Option("--device", help="Only about this device.", autocompletion=device_names)] = "",
    operator: Annotated[str, typer.Option("--operator", help="Only of this operator, by name.")] = "",
    since: Annotated[str, typer.Option("--since", help='"15 min ago", "2h" or a time.')] = "",
    limit: LimitOption = DEFAULT_LIMIT,
) -> None:
    """Show intents, newest first. What is queued, for whom, at which place."""
    from edgectl.plain import enum_number
    from edgectl.since import parse_since
    from wavemesh.v1 import operator_pb2, rollout_pb2

    request = operator_pb2.ListIntentsRequest(wave_id=wave, device=device, operator=operator)
    if state:
        request.disposition = operator_pb2.Disposition.ValueType(
            enum_number(operator_pb2.Disposition.DESCRIPTOR, state)
        )
    if kind:
        request.kind = rollout_pb2.IntentKind.ValueType(enum_number(rollout_pb2.IntentKind.DESCRIPTOR, kind))
    if since:
        request.since.FromDatetime(parse_since(since, now()))
    data = session.collect(request, "intents", limit)
    session.show(data, intents_table(data))


@command(app, "show")
def show(session: Session, *, intent: IntentArgument) -> None:
    """Show one intent. What became of it, whom it waits for, its place in the queue."""
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import GetIntentRequest

    request = GetIntentRequest(intent_id=_whole_id(session, intent))
    data = plain(session.ask(lambda stub: stub.GetIntent(request, timeout=CALL_TIMEOUT_S)).record)
    session.show(data, *intent_lines(data))


@command(app, "cancel")
def cancel(
    session: Session,
    *,
    intent: IntentArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is audited.")] = "",
    dry_run: DryRunOption = False,
) -> None:
    """Take back a waiting intent. Whoever gave it; what was acted on is refused with what undoes it.

    Ask the node that holds it: a hub for what was given there, control for the rest. Asked twice, it is done once.
    """
    from edgectl.plain import plain
    from wavemesh.trust.statements import IntentCancellation
    from wavemesh.v1.operator_pb2 import CancelIntentRequest

    word = signed(session, IntentCancellation(_whole_id(session, intent), reason, now()))
    request = CancelIntentRequest(cancellation=word, dry_run=dry_run)
    data = plain(session.ask(lambda stub: stub.CancelIntent(request, timeout=CALL_TIMEOUT_S)))
    head = "would be cancelled; nothing was changed" if dry_run else "cancelled"
    if data["duplicate"]:
        head = "was cancelled before"
    session.show(data, head, *intent_lines(data["record"]))


def _whole_id(session: Session, given: str) -> str:
    """The id that begins so, where exactly one of the latest does; else what was given."""
    from wavemesh.v1.operator_pb2 import ListIntentsRequest

    if not _BEGINNING.fullmatch(given):
        return given
    known = [one["intent_id"] for one in session.collect(ListIntentsRequest(), "intents", DEFAULT_LIMIT)]
    found = [one for one in known if one.startswith(given)]
    return found[0] if len(found) == 1 and given not in known else given
