"""``edgectl hub``: hubs, their caches, prefetch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgectl.cachetables import cache_lines, cache_parts, plan_parts, statistics_lines
from edgectl.client import CALL_TIMEOUT_S
from edgectl.completing import store_names
from edgectl.effects import preview
from edgectl.exits import Exit, UsageError
from edgectl.framework import DryRunOption, Session, command
from edgectl.intents import IntentIdOption, new_intent_id, now, submit
from edgectl.output import Table
from edgectl.tables import hubs_table, place, wait_lines
from edgectl.transfers import delivery_parts
from wavemesh.errors import NotFoundError

if TYPE_CHECKING:
    from wavemesh.trust.statements import OperatorIntent

app = typer.Typer(help="Hubs: who is heard, what they fetch beforehand and hold.", no_args_is_help=True)
cache = typer.Typer(help="The hub's cache.", no_args_is_help=True)
app.add_typer(cache, name="cache")

_MAX_ENTRIES = 10_000
PolicyOption = Annotated[Path, typer.Option("--policy", help="The policy whose artifacts are wanted.")]


@command(app, "prefetch")
def prefetch(
    session: Session,
    *,
    policy: PolicyOption,
    window: Annotated[str, typer.Option("--window", help='When, store-local: "00:30-03:30".')] = "",
    store: Annotated[
        list[str] | None,
        typer.Option(
            "--store",
            help="Only this store; repeatable.",
            show_default="all it reaches",
            autocompletion=store_names,
        ),
    ] = None,
    intent_id: IntentIdOption = None,
    dry_run: DryRunOption = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until every hub asked has it all.")] = False,
    timeout: Annotated[float, typer.Option("--timeout", min=1, max=86_400, help="Seconds --wait waits.")] = 3600,
) -> None:
    """Fetch a policy's artifacts into the cache, within a window. Asked of control, it goes to the stores.

    With --wait the hubs that have a context are looked at until they are done; exits 6 when time runs out before.
    """
    from edgectl.files import read_file
    from wavemesh.policy.reader import parse_policy
    from wavemesh.policy.windows import Window
    from wavemesh.trust.statements import IntentKind, OperatorIntent

    text = read_file(policy)
    parse_policy(text, str(policy))
    if window:
        Window.parse(window)
    intent = OperatorIntent(
        new_intent_id(intent_id),
        IntentKind.PREFETCH,
        now(),
        policy_yaml=text,
        window=window,
        stores=tuple(store or ()),
    )
    if dry_run:
        preview(session, intent)
        return
    submit(session, intent)
    if wait:
        _wait(session, intent, timeout)


def _wait(session: Session, intent: OperatorIntent, timeout_s: float) -> None:
    """Wait for the hubs and say what became of it at each."""
    from edgectl.intents import signed
    from edgectl.plain import plain
    from edgectl.waiting import wait_for_prefetch
    from wavemesh.v1.operator_pb2 import PreviewIntentRequest

    request = PreviewIntentRequest(intent=signed(session, intent))
    artifacts = plain(session.ask(lambda stub: stub.PreviewIntent(request, timeout=CALL_TIMEOUT_S)).effect)["artifacts"]
    named = {*intent.stores}
    hubs = [hub for hub in session.hubs() if not named or {hub.context.node.name, hub.context.node.path} & named]
    said, code = wait_for_prefetch(hubs, intent.intent_id, artifacts, timeout_s)
    rows = [(place(one["hub"]), one["disposition"], one["detail"] or "-") for one in said]
    session.show(said, Table("", ("hub", "state", "detail"), rows))
    if code is not Exit.OK:
        raise typer.Exit(code)


@command(app, "list")
def list_hubs(session: Session) -> None:
    """Show hubs, super hubs first. Who is heard, swaps under way, cache, pauses in force there."""
    data = _hubs(session)
    session.show(data, hubs_table(data))


@command(app, "show")
def show_hub(
    session: Session, *, name: Annotated[str, typer.Argument(help="Name or path.", autocompletion=store_names)]
) -> None:
    """Show one hub in full."""
    found = [hub for hub in _hubs(session) if name in {hub["hub"], place(hub["hub"]), hub["hub"].rsplit("/", 1)[1]}]
    if not found:
        msg = f"no hub {name!r} is known here; `edgectl hub list` shows them"
        raise NotFoundError(msg, hub=name)
    [hub] = found[:1]
    lines = [f"  paused here: wave {p['wave_id']} by {p['origin']}: {p['reason']}" for p in hub["local_pauses"]]
    lines += wait_lines(hub["waits"])
    lines += [f"  cache {line.strip()}" for line in statistics_lines(hub["cache"])]
    moved = delivery_parts((hub["hub"], one) for one in hub["deliveries"])
    session.show(hub, hubs_table([hub]), f"incarnation {hub['incarnation'] or '?'}", *lines, *moved)


def _hubs(session: Session) -> list[dict[str, Any]]:
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import GetFleetStatusRequest

    answer = session.ask(lambda stub: stub.GetFleetStatus(GetFleetStatusRequest(), timeout=CALL_TIMEOUT_S))
    return sorted(map(plain, answer.hubs), key=lambda hub: (hub["hub"].count("/"), hub["hub"]))


@command(cache, "list")
def cache_list(
    session: Session,
    *,
    pinned: Annotated[
        bool | None, typer.Option("--pinned/--unpinned", help="Only what may not, or may, be evicted.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="At most this many a hub.")] = 100,
) -> None:
    """Show what the cache holds. Oldest use first, and what pins it; asked of control, of every hub with a context."""
    caches = _caches(session, _MAX_ENTRIES if pinned is not None else limit)
    for one in caches:
        one["entries"] = [entry for entry in one["entries"] if pinned in {None, bool(entry["pins"])}][:limit]
    session.show(caches, *(part for data in caches for part in (place(data["hub"]), *cache_parts(data))))


@command(cache, "show")
def cache_show(
    session: Session, *, artifact: Annotated[str, typer.Argument(help="Its name, or the beginning of its SHA-256.")]
) -> None:
    """Show one artifact in the cache. How much is there, why it may not be evicted, whether it was found wrong."""
    caches = _caches(session, _MAX_ENTRIES)
    for one in caches:
        for key in ("entries", "incidents", "quarantine"):
            one[key] = [entry for entry in one[key] if _is_named(entry, artifact)]
    found = [one for one in caches if one["entries"] or one["incidents"] or one["quarantine"]]
    if not found:
        msg = f"no artifact {artifact!r} is in the cache; `edgectl hub cache list` shows what is"
        raise NotFoundError(msg, artifact=artifact)
    lines: list[str] = []
    for one in found:
        for entry in one["entries"]:
            lines.append(f"{place(one['hub'])}: {', '.join(entry['names']) or 'no release names it'}")
            lines.append(f"  sha256 {entry['digest']['sha256']}")
            lines.append(f"  {entry['present_bytes']} of {entry['digest']['size_bytes']} bytes are there")
            lines += [f"  pinned by {pin}" for pin in entry["pins"]] or ["  not pinned: evicted when room is needed"]
        lines += [f"{place(one['hub'])}: {line}" for line in cache_lines({**one, "statistics": None})]
    session.show(found, *lines)


def _is_named(entry: dict[str, Any], artifact: str) -> bool:
    return artifact in entry["names"] or bool(artifact and entry["digest"]["sha256"].startswith(artifact.lower()))


@command(cache, "plan")
def cache_plan(
    session: Session,
    *,
    release: Annotated[str, typer.Option("--release", help="All artifacts of this release.")] = "",
    wave: Annotated[str, typer.Option("--wave", help="All that this wave needs.")] = "",
    policy: Annotated[Path | None, typer.Option("--policy", help="The artifacts this policy file names.")] = None,
) -> None:
    """Show what it would take to cache something: what would be evicted, room before and after. Changes nothing.

    Where it does not fit, says why (gate cache-quota) and what would help; exits as refused.
    """
    from edgectl.files import read_file
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import PlanCacheRequest

    if sum(map(bool, (release, wave, policy))) != 1:
        msg = "give one of --release, --wave, --policy"
        raise UsageError(msg)
    yaml = read_file(policy) if policy is not None else b""
    request = PlanCacheRequest(release=release, wave_id=wave, policy_yaml=yaml, policy_name=str(policy or ""))
    plans: list[dict[str, Any]] = []
    for hub in session.hubs():
        answer = hub.ask(lambda stub: stub.PlanCache(request, timeout=CALL_TIMEOUT_S))
        plans.append({"hub": hub.context.node.path, **plain(answer)})
    session.show(plans, *(part for plan in plans for part in (place(plan["hub"]), *plan_parts(plan))))
    if any(plan["gate"] for plan in plans):
        raise typer.Exit(Exit.REFUSED)


def _caches(session: Session, limit: int) -> list[dict[str, Any]]:
    """The cache of each hub that is asked."""
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import ListCacheRequest

    request = ListCacheRequest(limit=limit)
    caches: list[dict[str, Any]] = []
    for hub in session.hubs():
        answer = hub.ask(lambda stub: stub.ListCache(request, timeout=CALL_TIMEOUT_S))
        caches.append({"hub": hub.context.node.path, **plain(answer)})
    return caches
