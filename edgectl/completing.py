"""What a shell offers after TAB: names of contexts, waves, devices, releases, stores, and words to explain.

Rules: the node is asked once, within ``COMPLETION_TIMEOUT_S``; whatever goes wrong, nothing is offered and nothing is
said: a prompt is no place for errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer  # noqa: TC002  # Typer reads the annotations

from wavemesh.errors import WavemeshError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

COMPLETION_TIMEOUT_S = 1.5
MAX_OFFERED = 200
VARIABLE = "_EDGECTL_COMPLETE"


def context_names(incomplete: str) -> list[str]:
    """Contexts of the file in use."""
    from edgectl.contexts import contexts_path, load_contexts

    try:
        return _offered(load_contexts(contexts_path()).contexts, incomplete)
    except WavemeshError:
        return []


def wave_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    """Waves known to the node."""
    return _names(ctx, incomplete, "ListWaves", lambda answer: [wave.wave_id for wave in answer.waves])


def device_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Devices known to the node, by name."""
    return _names(ctx, incomplete, "ListDevices", lambda answer: [_name(device.path) for device in answer.devices])


def store_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Stores known to the node, by name."""
    return _names(ctx, incomplete, "ListStores", lambda answer: [_name(store.path) for store in answer.stores])


def release_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Releases known to the node."""
    return _names(ctx, incomplete, "ListReleases", lambda answer: [release.name for release in answer.releases])


def cohort_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Cohorts known to the node."""
    return _names(ctx, incomplete, "ListCohorts", lambda answer: [cohort.name for cohort in answer.cohorts])


def intent_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    """Intents known to the node, newest first."""
    return _names(ctx, incomplete, "ListIntents", lambda answer: [intent.intent_id for intent in answer.intents])


def _names(ctx: typer.Context, incomplete: str, method: str, read: Callable[[Any], Iterable[str]]) -> list[str]:
    """Ask the node of the context on the line; nothing when it does not answer in time."""
    from edgectl.client import ask
    from edgectl.contexts import contexts_path, load_contexts
    from wavemesh.v1 import operator_pb2

    request = getattr(operator_pb2, f"{method}Request")()
    if "page_size" in request.DESCRIPTOR.fields_by_name:
        request.page_size = 1000

    async def question(stub: Any) -> Any:
        return await getattr(stub, method)(request, timeout=COMPLETION_TIMEOUT_S)

    try:
        context = load_contexts(contexts_path()).select(_context_on_the_line(ctx))
        return _offered(dict.fromkeys(read(ask(context, question))), incomplete)
    except (WavemeshError, OSError, TimeoutError):
        return []


def _context_on_the_line(ctx: typer.Context) -> str | None:
    """``--context`` where it is given, nearer to the verb first."""
    here: Any = ctx
    while here is not None:
        if here.params.get("context"):
            return str(here.params["context"])
        here = here.parent
    return None


def _offered(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)][:MAX_OFFERED]


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]
