"""What an intent would do: asked of the node, which does it, looks, and undoes it. And the question before the deed.

Rules: ``--dry-run`` changes nothing. What cannot be undone (a halt, a rollback) is asked about on a terminal, with what
it would do; ``--yes`` answers beforehand. Without a terminal nobody is asked: a script that waits for an answer at two
in the morning would be worse than one that does what it says.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgectl.client import CALL_TIMEOUT_S
from edgectl.exits import Exit
from edgectl.output import note
from edgectl.tables import place, plural

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgectl.framework import Session
    from wavemesh.trust.statements import OperatorIntent

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before it is done.")]
_NAMES_SHOWN = 12
_MIB = 1024 * 1024


def preview(session: Session, intent: OperatorIntent) -> None:
    """Show what the intent would do; exits with REFUSED when it would be refused."""
    data = _ask(session, intent)
    session.show(data, *lines(data), "  nothing was changed")
    if data["record"]["disposition"] == "refused":
        raise typer.Exit(Exit.REFUSED)


def confirm(session: Session, intent: OperatorIntent, assent: bool) -> None:  # noqa: FBT001  # what --yes says
    """On a terminal, show what the intent would do and ask; exits with CHECK_FAILED on a no."""
    if assent or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    for line in lines(_ask(session, intent)):
        note(line)
    if not typer.confirm("This cannot be undone. Do it?", err=True):
        note("nothing was done")
        raise typer.Exit(Exit.CHECK_FAILED)


def _ask(session: Session, intent: OperatorIntent) -> dict[str, Any]:
    from edgectl.intents import signed
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import PreviewIntentRequest

    request = PreviewIntentRequest(intent=signed(session, intent))
    return plain(session.ask(lambda stub: stub.PreviewIntent(request, timeout=CALL_TIMEOUT_S)))


def lines(answer: Mapping[str, Any]) -> list[str]:
    """What would happen, in words."""
    record, effect = answer["record"], answer["effect"]
    what = record["kind"].replace("_", " ")
    if answer["duplicate"]:
        return [f"{what}: nothing would be done: {record['detail'] or 'it is so already'}"]
    if record["disposition"] == "refused":
        return [f"{what}: would be refused: {record['detail']}"]
    found = [f"{what}: {_verdict(record)}"]
    if effect["state_before"] != "unspecified":
        found.append(f"  wave {record['wave_id']}: {effect['state_before']} -> {effect['state_after']}")
        found.append(
            f"  exposure: {effect['exposure_before']} -> {effect['exposure_after']}; "
            f"permits issued {effect['permits_issued']}, void {effect['permits_voided']}"
        )
    if effect["device_count"]:
        found.append(
            f"  {plural(effect['device_count'], 'device')}: {_some(effect['devices'], effect['device_count'])}"
        )
    if effect["stores"]:
        found.append(f"  {plural(len(effect['stores']), 'store')}: {_some(effect['stores'], len(effect['stores']))}")
    if effect["artifacts"]:
        size = sum(artifact["size_bytes"] for artifact in effect["artifacts"])
        found.append(f"  {plural(len(effect['artifacts']), 'artifact')}, {size / _MIB:.1f} MiB for each store")
    return found


def _verdict(record: Mapping[str, Any]) -> str:
    waits = _some(record["waiting_for"], len(record["waiting_for"]))
    if record["disposition"] == "applied":
        return "would be done at once" + (f", and told to {waits}" if waits else "")
    # Control acts on a wave at once; what waits is that its stores hear of it.
    if record["kind"].endswith("_wave") and "control" not in record["waiting_for"]:
        return f"would be in force at once, and told to {waits}"
    return f"would be queued, place {record['queue_place']} of what waits for {waits}"


def _some(paths: list[str], count: int) -> str:
    shown = ", ".join(map(place, paths[:_NAMES_SHOWN]))
    more = count - min(len(paths), _NAMES_SHOWN)
    return f"{shown} and {more} more" if more else shown
