"""``hub prefetch --wait``: look at the hubs until the intent is settled at each, with a bar of what is there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgectl.client import CALL_TIMEOUT_S
from edgectl.exits import Exit
from edgectl.plain import plain
from edgectl.progress import bar
from wavemesh.errors import LinkDownError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgectl.framework import Session

LOOK_INTERVAL_S = 1.0
_MAX_CACHE_ENTRIES = 10_000


@dataclass(frozen=True, slots=True)
class Seen:
    """What one hub says: what became of the intent, and the bytes of its artifacts that are there."""

    disposition: str
    detail: str
    present_bytes: int


def wait_for_prefetch(
    hubs: Sequence[Session], intent_id: str, artifacts: Sequence[dict[str, Any]], timeout_s: float
) -> tuple[list[dict[str, Any]], Exit]:
    """What each hub said last, and how to exit: OK when all applied it, REFUSED, or UNREACHABLE when time ran out."""
    total = sum(one["size_bytes"] for one in artifacts) * len(hubs)
    with bar(f"prefetching at {len(hubs)} hubs", total) as advance:
        seen = asyncio.run(_look(hubs, intent_id, {one["sha256"] for one in artifacts}, timeout_s, advance))
    said = [
        {"hub": hub.context.node.path, "disposition": one.disposition, "detail": one.detail}
        for hub, one in zip(hubs, seen, strict=True)
    ]
    if all(one.disposition == "applied" for one in seen):
        return said, Exit.OK
    return said, Exit.UNREACHABLE if any(one.disposition in _OPEN for one in seen) else Exit.REFUSED


_OPEN = frozenset({"queued", "not there yet", "unreachable"})


async def _look(
    hubs: Sequence[Session], intent_id: str, wanted: set[str], timeout_s: float, advance: Callable[[int], None]
) -> list[Seen]:
    seen = [Seen("not there yet", "", 0) for _ in hubs]
    shown = 0
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout_s
    while True:
        for index, hub in enumerate(hubs):
            if seen[index].disposition in _OPEN:
                seen[index] = await asyncio.to_thread(_one, hub, intent_id, wanted, seen[index])
        present = sum(one.present_bytes for one in seen)
        advance(present - shown)
        shown = present
        if not any(one.disposition in _OPEN for one in seen) or loop.time() >= until:
            return seen
        await asyncio.sleep(min(LOOK_INTERVAL_S, max(0.0, until - loop.time())))


def _one(hub: Session, intent_id: str, wanted: set[str], before: Seen) -> Seen:
    """One hub now; one that cannot be reached, or was not told yet, may still be."""
    from wavemesh.v1.operator_pb2 import GetIntentRequest, ListCacheRequest

    async def question(stub: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        cache = await stub.ListCache(ListCacheRequest(limit=_MAX_CACHE_ENTRIES), timeout=CALL_TIMEOUT_S)
        intent = await stub.GetIntent(GetIntentRequest(intent_id=intent_id), timeout=CALL_TIMEOUT_S)
        return plain(intent.record), plain(cache)

    try:
        record, cache = hub.ask(question)
    except NotFoundError:
        return Seen("not there yet", "the hub has not been told", before.present_bytes)
    except LinkDownError as error:
        return Seen("unreachable", str(error), before.present_bytes)
    present = sum(one["present_bytes"] for one in cache["entries"] if one["digest"]["sha256"] in wanted)
    return Seen(record["disposition"], record["detail"], present)
