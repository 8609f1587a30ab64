"""``edgectl node revoke`` and ``revocations``: certificates taken back."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgectl.client import CALL_TIMEOUT_S
from edgectl.framework import Session, command
from edgectl.tables import place, revocations_table

if TYPE_CHECKING:
    from wavemesh.v1.operator_pb2 import RevokeNodeRequest

_PAGE_SIZE = 1000
_MAX_PAGES = 9
_SHOWN = 20
_REACHES = {"node": "the node's own certificates", "below": "its and all below", "authority": "all of the region's"}


def register(app: typer.Typer) -> None:
    """Add both commands to the noun ``node``."""
    command(app, "revoke")(revoke)
    command(app, "revocations")(revocations)


def revoke(
    session: Session,
    *,
    path: Annotated[str, typer.Argument(help='Path, "region/midwest/store/store-208/device/pos-03".')],
    reason: Annotated[str, typer.Option("--reason", help="Why; audited, and told to every node.")],
    below: Annotated[bool, typer.Option("--below", help="All nodes below it too.")] = False,
    authority: Annotated[
        bool, typer.Option("--authority", help="The region's authority and all it issued: its key was stolen.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say whom it hits.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Take a node's certificates back: its streams end within seconds. It comes back by being enrolled again."""
    from edgectl.exits import UsageError
    from wavemesh.v1.operator_pb2 import RevokeNodeRequest
    from wavemesh.v1.rollout_pb2 import RevocationReach

    if below and authority:
        msg = "--below and --authority exclude each other; an authority's certificate takes all it issued with it"
        raise UsageError(msg)
    reach = "AUTHORITY" if authority else "BELOW" if below else "NODE"
    request = RevokeNodeRequest(
        path=path, reason=reason, reach=RevocationReach.Value(f"REVOCATION_REACH_{reach}"), dry_run=True
    )
    would = _ask(session, request)
    if dry_run:
        session.show(would, f"would take back {_hit(would)}")
        return
    if not yes:
        _confirm(_hit(would))
    request.dry_run = False
    done = _ask(session, request)
    state = "was taken back before" if done["duplicate"] else f"taken back, epoch {done['epoch']}"
    session.show(done, f"{_hit(done)}: {state}; enrol again what is to come back")


def revocations(session: Session) -> None:
    """Show what was taken back, as the node asked knows it."""
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import ListRevocationsRequest

    found: list[dict[str, Any]] = []
    request = ListRevocationsRequest(page_size=_PAGE_SIZE)
    for _ in range(_MAX_PAGES):
        page = plain(session.ask(lambda stub: stub.ListRevocations(request, timeout=CALL_TIMEOUT_S)))
        found += page["revocations"]
        request.page_token = page["next_page_token"]
        if not request.page_token:
            break
    data = {"epoch": page["epoch"], "issued_at": page["issued_at"], "revocations": found}
    session.show(data, f"epoch {page['epoch']}" if found else "nothing was taken back", revocations_table(found))


def _ask(session: Session, request: RevokeNodeRequest) -> dict[str, Any]:
    from edgectl.plain import plain

    return plain(session.ask(lambda stub: stub.RevokeNode(request, timeout=CALL_TIMEOUT_S)))


def _hit(answer: dict[str, Any]) -> str:
    """Whom it hits, in words."""
    entry = answer["revocation"]
    some = ", ".join(map(place, answer["nodes"][:_SHOWN]))
    more = f" and {answer['nodes_total'] - _SHOWN} more" if answer["nodes_total"] > _SHOWN else ""
    known = f"{answer['nodes_total']} registered nodes ({some}{more})" if some else "no registered node"
    return (
        f"{place(entry['path'])}, {_REACHES[entry['reach']]} from before {entry['issued_before']}: "
        f"{known}, {answer['sessions_total']} of them connected"
    )


def _confirm(what: str) -> None:
    """Ask a person; raises UsageError where there is nobody to ask, Exit when the answer is no."""
    from edgectl.exits import Exit, UsageError

    if not sys.stdin.isatty():
        msg = f"nothing was done. It would take back {what}. Say --yes, or look with --dry-run"
        raise UsageError(msg)
    if not typer.confirm(f"Take back {what}?", err=True):
        raise typer.Exit(Exit.REFUSED)
