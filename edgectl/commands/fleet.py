"""``edgectl fleet``, ``ledger`` and ``audit``: what is known, and who did what."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edgectl.client import CALL_TIMEOUT_S
from edgectl.completing import device_names, store_names, wave_ids
from edgectl.framework import DEFAULT_LIMIT, LimitOption, Session, command
from edgectl.tables import audit_table, discrepancy_parts, entry_lines, hubs_table, ledger_parts, place, waves_table
from wavemesh.errors import NotFoundError

fleet = typer.Typer(help="The whole fleet.", no_args_is_help=True)
ledger = typer.Typer(help="What became of each device of a wave.", no_args_is_help=True)
audit = typer.Typer(help="Who did what.", no_args_is_help=True)

WaveOption = Annotated[str, typer.Option("--wave", help="The wave.", autocompletion=wave_ids)]


@command(fleet, "status")
def status(session: Session) -> None:
    """Show hubs, devices, versions and open waves on one page."""
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import GetFleetStatusRequest

    data = plain(session.ask(lambda stub: stub.GetFleetStatus(GetFleetStatusRequest(), timeout=CALL_TIMEOUT_S)))
    versions = ", ".join(f"{version or '?'}: {count}" for version, count in data["firmware_versions"].items()) or "none"
    head = f"{data['devices_connected']} of {data['devices']} devices connected; versions {versions}"
    waves = waves_table(data["waves"]) if data["waves"] else "no open waves"
    session.show(data, head, hubs_table(data["hubs"]), waves)


@command(fleet, "reconcile")
def reconcile(
    session: Session,
    *,
    wave: Annotated[str, typer.Option("--wave", help="Only of this wave.", autocompletion=wave_ids)] = "",
) -> None:
    """Compare what should have been reported with what was. Control only; exit code 1 when something differs.

    Control does it daily as well and audits what came and what went: `edgectl audit list --action reconcile`.
    """
    from edgectl.exits import Exit
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import ListDiscrepanciesRequest

    request = ListDiscrepanciesRequest(wave_id=wave)
    data = plain(session.ask(lambda stub: stub.ListDiscrepancies(request, timeout=CALL_TIMEOUT_S)))
    session.show(data, *discrepancy_parts(data))
    if data["total"]:
        raise typer.Exit(Exit.CHECK_FAILED)


@command(ledger, "show")
def show_ledger(
    session: Session,
    *,
    wave: WaveOption,
    store: Annotated[str, typer.Option("--store", help="Only this store, by name.", autocompletion=store_names)] = "",
    outcome: Annotated[
        list[str] | None, typer.Option("--outcome", help="Only these: updated, silent, rolled_back …; repeatable.")
    ] = None,
    gate: Annotated[str, typer.Option("--gate", help='Only by this gate: "peripheral", "peripheral:scanner".')] = "",
) -> None:
    """Show the ledger of a wave. As the node asked knows it; a hub answers with the WAN down too.

    Filters narrow the entries; the sums stay those of the whole wave, or store.
    """
    from edgectl.plain import enum_number
    from wavemesh.v1.report_pb2 import OutcomeKind

    wanted = {enum_number(OutcomeKind.DESCRIPTOR, word) for word in outcome or ()}
    words = {OutcomeKind.Name(OutcomeKind.ValueType(number))[len("OUTCOME_KIND_") :].lower() for number in wanted}
    data = _ledger(session, wave, store)
    data["entries"] = [
        entry
        for entry in data["entries"]
        if (not words or entry["kind"] in words) and gate in {"", entry["gate"], entry["gate"].partition(":")[0]}
    ]
    session.show(data, *ledger_parts(data))


@command(ledger, "entry")
def show_entry(
    session: Session,
    *,
    wave: WaveOption,
    device: Annotated[str, typer.Option("--id", help="The device, by name or path.", autocompletion=device_names)],
) -> None:
    """Show one device of a ledger. Outcome, gate, evidence, who signed it."""
    found = [
        entry
        for entry in _ledger(session, wave, "")["entries"]
        if device in {entry["device"], entry["device"].rsplit("/", 1)[1], place(entry["device"])}
    ]
    if not found:
        msg = f"no device {device!r} is in wave {wave} here; `edgectl ledger show --wave {wave}` shows which are"
        raise NotFoundError(msg, wave=wave, device=device)
    session.show(found, *(line for entry in found for line in entry_lines(entry)))


def _ledger(session: Session, wave: str, store: str) -> dict[str, Any]:
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import GetLedgerRequest

    request = GetLedgerRequest(wave_id=wave, store=store)
    return plain(session.ask(lambda stub: stub.GetLedger(request, timeout=CALL_TIMEOUT_S)))


@command(audit, "list")
def list_audit(
    session: Session,
    *,
    actor: Annotated[str, typer.Option("--actor", help='Only by this one: "alice", or a SPIFFE id.')] = "",
    action: Annotated[str, typer.Option("--action", help='Only this, or a group: "wave.pause", "wave".')] = "",
    subject: Annotated[str, typer.Option("--subject", help="Only about this: a wave, a release, a device.")] = "",
    since: Annotated[str, typer.Option("--since", help='"15 min ago", "2h" or a time.')] = "",
    limit: LimitOption = DEFAULT_LIMIT,
) -> None:
    """Show the audit, newest first. Control only."""
    from edgectl.intents import now
    from edgectl.since import parse_since
    from wavemesh.v1.operator_pb2 import ListAuditRequest

    request = ListAuditRequest(actor=actor, action=action, subject=subject)
    if since:
        request.since.FromDatetime(parse_since(since, now()))
    data = session.collect(request, "entries", limit)
    session.show(data, audit_table(data))
