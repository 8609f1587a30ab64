"""What a hub's cache holds, has done and would do, for people; each function takes what ``plain`` made of a message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgectl.output import Table
from edgectl.tables import ago, plural, short, size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def cache_parts(cache: Mapping[str, Any]) -> tuple[Table | str, ...]:
    """The cache in order of eviction, what was found wrong in it, and what it has done."""
    head = f"{size(cache['bytes'])} of {size(cache['quota_bytes'])} held; oldest use first"
    return head, _entries(cache["entries"]), *cache_lines(cache)


def _entries(entries: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        (
            _named(e),
            short(e["digest"]["sha256"]),
            f"{size(e['present_bytes'])} of {size(e['digest']['size_bytes'])}",
            "; ".join(e["pins"]) or "-",
            ago(e["last_used_at"]),
        )
        for e in entries
    ]
    return Table("", ("artifact", "sha256", "present", "pinned by", "used"), rows, ("sha256", "used"))


def _named(entry: Mapping[str, Any]) -> str:
    return ", ".join(entry["names"]) or "-"


def cache_lines(cache: Mapping[str, Any]) -> list[str]:
    """What was found wrong, and the statistics; a hub before 0.2 tells none."""
    lines = [
        f"found wrong {ago(one['found_at'])}, not healed yet: {_named(one)} {short(one['digest']['sha256'])}: "
        f"{one['detail']}"
        for one in cache["incidents"]
    ]
    lines += [
        f"in quarantine: {_named(one)} {short(one['digest']['sha256'])}, {size(one['present_bytes'])}"
        for one in cache["quarantine"]
    ]
    return lines + statistics_lines(cache["statistics"])


def statistics_lines(counts: Mapping[str, Any] | None) -> list[str]:
    """What a cache has done since its hub started, and how its scrub stands."""
    if counts is None or not counts["since"]:
        return []
    reads = counts["hits"] + counts["misses"]
    share = f" ({counts['hits'] / reads:.0%})" if reads else ""
    total = counts["scrub_total_bytes"]
    done = f"{counts['scrub_done_bytes'] / total:.0%}" if total else "-"
    return [
        (
            f"since {ago(counts['since'])}: {plural(counts['hits'], 'hit')}{share}, "
            f"{counts['misses']} not held when asked for; {size(counts['served_bytes'])} served, "
            f"{size(counts['fetched_bytes'])} fetched"
        ),
        (
            f"  {counts['evicted']} evicted ({size(counts['evicted_bytes'])}), {counts['swept']} partial given up "
            f"({size(counts['swept_bytes'])}), {counts['quarantined']} set aside, {counts['healed']} healed"
        ),
        (
            f"  now {plural(counts['partials'], 'partial blob')} ({size(counts['partial_bytes'])}), "
            f"{plural(counts['incidents'], 'incident')}, {plural(counts['quarantine_files'], 'file')} in quarantine "
            f"({size(counts['quarantine_bytes'])})"
        ),
        (
            f"  scrub: {done} of a round that began {ago(counts['scrub_began_at'])}; last ended "
            f"{ago(counts['scrub_ended_at'])}"
        ),
    ]


def plan_parts(plan: Mapping[str, Any]) -> tuple[Table | str, ...]:
    """What it would take to cache something, or why it cannot be and what would help."""
    wanted = sum(e["digest"]["size_bytes"] for e in plan["artifacts"])
    parts: list[Table | str] = [
        f"{plural(len(plan['artifacts']), 'artifact')} of {size(wanted)}, {size(plan['fetch_bytes'])} to be fetched",
        _entries(plan["artifacts"]),
    ]
    if plan["gate"]:
        parts.append(f"does not fit: {plan['gate']}: {plan['reason']}")
        parts += [f'  would free {size(one["frees_bytes"])}: the end of "{one["reason"]}"' for one in plan["helps"]]
        if plan["bound"] == "quota":
            parts.append(f"  or a quota_bytes of {plan['quota_bytes'] + plan['excess_bytes']} in the hub's config.toml")
        else:
            parts.append(f"  or {size(plan['excess_bytes'])} freed on the hub's disk")
    elif plan["evictions"]:
        parts += [f"{len(plan['evictions'])} would be evicted, in this order:", _entries(plan["evictions"])]
    else:
        parts.append("nothing would be evicted")
    parts.append(
        f"quota: {size(plan['before_bytes'])} -> {size(plan['after_bytes'])} of {size(plan['quota_bytes'])}; disk: "
        f"{_signed(plan['disk_before_bytes'])} -> {_signed(plan['disk_after_bytes'])} free for blobs"
    )
    return tuple(parts)


def _signed(count: int) -> str:
    return size(count) if count >= 0 else f"-{size(-count)}"
