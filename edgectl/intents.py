"""Operator intents: made, signed with the operator's own key, given to the node asked.

An intent's id is random. "Asked twice, done once" is the server's to keep, because only it knows what is in force: a
pause that is in force is answered ``duplicate``, while the same words after a resume are a new wish and act again. An
id derived from the words would forbid that. A script that must survive a lost answer gives its own id with
``--intent-id`` and sends it again: the same id is the same intent for ever.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from edgectl.client import CALL_TIMEOUT_S
from edgectl.tables import place

if TYPE_CHECKING:
    from edgectl.framework import Session
    from wavemesh.trust.statements import IntentCancellation, OperatorIntent
    from wavemesh.v1.envelope_pb2 import Envelope
    from wavemesh.v1.operator_pb2 import SubmitIntentResponse

IntentIdOption = Annotated[
    str | None,
    typer.Option(
        "--intent-id", help="Idempotency key of your own; sent again it is the same intent.", show_default="random"
    ),
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; it is audited and shown to everybody concerned.")]


def new_intent_id(given: str | None) -> str:
    """The id given, or 128 random bits in hex."""
    return given or secrets.token_hex(16)


def now() -> datetime:
    """The operator's clock, by which an intent is dated."""
    return datetime.now(UTC)


def signed(session: Session, intent: OperatorIntent | IntentCancellation) -> Envelope:
    """The intent's message, signed with the operator's own key; raises LocalError for an identity that is not whole."""
    from wavemesh.codec.statements import to_proto
    from wavemesh.identity.credentials import NodeCredentials
    from wavemesh.trust.envelope import sign_as_node

    message: Envelope = to_proto(sign_as_node(intent, NodeCredentials.load(session.context.identity)))
    return message


def submit(session: Session, intent: OperatorIntent) -> None:
    """Sign the intent, give it to the selected node and show what became of it; a refusal exits with its class."""
    from edgectl.exits import Exit
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import DISPOSITION_REFUSED, SubmitIntentRequest

    request = SubmitIntentRequest(intent=signed(session, intent))
    answer = session.ask(lambda stub: stub.SubmitIntent(request, timeout=CALL_TIMEOUT_S))
    session.show(plain(answer), sentence(answer))
    if answer.record.disposition == DISPOSITION_REFUSED:
        raise typer.Exit(Exit.REFUSED)


def sentence(answer: SubmitIntentResponse) -> str:
    """What became of the intent, in words."""
    from edgectl.plain import plain

    record = plain(answer.record)
    subjects = {"device": place(record["device"]), "wave": record["wave_id"]}
    what = " ".join([record["kind"].partition("_")[0], *(f"{noun} {name}" for noun, name in subjects.items() if name)])
    if record["disposition"] == "refused":
        return f"{what}: refused: {record['detail']}"
    state = "done"
    if record["disposition"] == "queued":
        state = "queued, waits for " + (", ".join(map(place, answer.record.waiting_for)) or "its next step")
        state += f" (place {record['queue_place']})" if record["queue_place"] else ""
    if answer.duplicate:
        state += " (asked before; nothing done twice)"
    detail = f" — {record['detail']}" if record["detail"] else ""
    # What control has acted on waits to be delivered only, and is not taken back.
    is_held = record["disposition"] == "queued" and (
        "control" in record["waiting_for"] or not record["kind"].endswith("_wave")
    )
    hint = f"; `edgectl intent cancel {record['intent_id']}` takes it back" if is_held else ""
    return f"{what}: {state}{detail}{hint}"
