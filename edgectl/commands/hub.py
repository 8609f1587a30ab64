"""``edgectl hub``: prefetch and cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgectl.client import CALL_TIMEOUT_S
from edgectl.framework import Session, command
from edgectl.intents import IntentIdOption, new_intent_id, now, submit
from edgectl.tables import cache_parts, place

app = typer.Typer(help="What a store's hub fetches beforehand and holds.", no_args_is_help=True)
cache = typer.Typer(help="The hub's cache.", no_args_is_help=True)
app.add_typer(cache, name="cache")

PolicyOption = Annotated[Path, typer.Option("--policy", help="The policy whose artifacts are wanted.")]


@command(app, "prefetch")
def prefetch(
    session: Session,
    *,
    policy: PolicyOption,
    window: Annotated[str, typer.Option("--window", help='When, store-local: "00:30-03:30".')] = "",
    store: Annotated[
        list[str] | None, typer.Option("--store", help="Only this store; repeatable.", show_default="all it reaches")
    ] = None,
    intent_id: IntentIdOption = None,
) -> None:
    """Fetch a policy's artifacts into the cache, within a window. Asked of control, it goes to the stores."""
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
    submit(session, intent)


@command(cache, "list")
def cache_list(
    session: Session,
    *,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="At most this many.")] = 100,
) -> None:
    """Show what the cache holds, oldest use first, and what pins it. Control holds none: there, of every hub known."""
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import ListCacheRequest

    request = ListCacheRequest(limit=limit)
    caches: list[dict[str, Any]] = []
    for hub in session.hubs():
        answer = hub.ask(lambda stub: stub.ListCache(request, timeout=CALL_TIMEOUT_S))
        caches.append({"hub": hub.context.node.path, **plain(answer)})
    session.show(caches, *(part for data in caches for part in (place(data["hub"]), *cache_parts(data))))
