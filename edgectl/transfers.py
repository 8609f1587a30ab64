"""What was forecast, moved and saved on the links of stores, as tables for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgectl.output import Table
from edgectl.tables import place, short, size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


def delivery_parts(deliveries: Iterable[tuple[str, Mapping[str, Any]]]) -> tuple[Table | str, ...]:
    """How blobs came or come, each with its store: actual beside forecast. Nothing where there is nothing to say."""
    found = list(deliveries)
    if not found:
        return ()
    rows = [
        (
            place(store),
            one["name"] or short(one["sha256"]),
            one["method"] or "-",
            one["state"],
            size(one["forecast_bytes"]),
            size(one["moved_bytes"]),
            _saved(one),
        )
        for store, one in found
    ]
    columns = ("store", "artifact", "by", "state", "forecast", "moved", "saved")
    why = [
        f"  {place(store)}: {one['name'] or short(one['sha256'])} is {one['state']}: {one['said']}"
        for store, one in found
        if one["state"] in {"refused", "waiting"}
    ]
    return ("deliveries", Table("", columns, rows, ("forecast", "store")), *why)


def _saved(one: Mapping[str, Any]) -> str:
    """What reading the whole blob would have moved more; what cost more than that is said with a minus."""
    if one["state"] != "done":
        return "-"
    saved = one["size_bytes"] - one["moved_bytes"]
    return f"{'-' if saved < 0 else ''}{size(abs(saved))}"


def forecast_parts(forecast: Sequence[Mapping[str, Any]]) -> tuple[Table | str, ...]:
    """What a wave will move, by store, by region and in all."""
    if not forecast:
        return ()
    rows = [
        (
            place(one["place"]),
            size(one["bytes"]),
            size(one["unknown_bytes"]) if one["unknown_bytes"] else "-",
            size(one["full_bytes"]),
            ", ".join(f"{count} {method}" for method, count in one["methods"].items()),
        )
        for one in forecast
    ]
    columns = ("place", "expected", "of it unknown", "at most", "by")
    over = sum(one["over_budget"] for one in forecast if one["place"] == "fleet")
    budget = [f"  {over} of its stores would exceed the policy's byte budget: gate byte-budget"] if over else []
    return ("forecast", Table("", columns, rows, ("of it unknown",)), *budget)
