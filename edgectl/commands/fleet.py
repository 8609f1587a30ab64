"""``edgectl fleet``, ``ledger``, ``intent`` and ``audit``: what is known, and who did what."""

from __future__ import annotations

from typing import Annotated

import typer

from edgectl.client import CALL_TIMEOUT_S
from edgectl.framework import Session, command
from edgectl.tables import audit_table, hubs_table, intents_table, ledger_parts, waves_table

fleet = typer.Typer(help="The whole fleet.", no_args_is_help=True)
ledger = typer.Typer(help="What became of each device of a wave.", no_args_is_help=True)
intent = typer.Typer(help="What operators asked for and what became of it.", no_args_is_help=True)
audit = typer.Typer(help="Who did what.", no_args_is_help=True)

LimitOption = Annotated[int, typer.Option("--limit", min=1, max=1000, help="At most this many, newest first.")]


@command(fleet, "status")
def status(session: Session) -> None:
    """Show hubs, devices, versions and open waves on one page."""
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import GetFleetStatusRequest

    data = plain(session.ask(lambda stub: stub.GetFleetStatus(GetFleetStatusRequest(), timeout=CALL_TIMEOUT_S)))
    versions = ", ".join(f"{version or '?'}: {count}" for version, count in data["firmware_versions"].items()) or "none"
    head = f"{data['devices_connected']} of {data['devices']} devices connected; versions {versions}"
    session.show(data, head, hubs_table(data["hubs"]), waves_table(data["waves"]))


@command(ledger, "show")
def show_ledger(
    session: Session,
    *,
    wave: Annotated[str, typer.Option("--wave", help="The wave.")],
    store: Annotated[str, typer.Option("--store", help="Only this store, by name.")] = "",
) -> None:
    """Show the ledger of a wave as the node asked knows it; a hub answers with the WAN down too."""
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import GetLedgerRequest

    request = GetLedgerRequest(wave_id=wave, store=store)
    data = plain(session.ask(lambda stub: stub.GetLedger(request, timeout=CALL_TIMEOUT_S)))
    session.show(data, *ledger_parts(data))


@command(intent, "list")
def list_intents(session: Session, *, limit: LimitOption = 100) -> None:
    """Show intents, what is queued and whom it waits for."""
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import ListIntentsRequest

    request = ListIntentsRequest(page_size=limit)
    data = plain(session.ask(lambda stub: stub.ListIntents(request, timeout=CALL_TIMEOUT_S)))
    session.show(data["intents"], intents_table(data["intents"]))


@command(audit, "list")
def list_audit(session: Session, *, limit: LimitOption = 100) -> None:
    """Show the audit, newest first. Control only."""
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import ListAuditRequest

    request = ListAuditRequest(page_size=limit)
    data = plain(session.ask(lambda stub: stub.ListAudit(request, timeout=CALL_TIMEOUT_S)))
    session.show(data["entries"], audit_table(data["entries"]))
