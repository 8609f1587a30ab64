"""Actual beside forecast, as people read it (S5)."""

from __future__ import annotations

from typing import Any

from edgectl.output import Table
from edgectl.transfers import delivery_parts, forecast_parts

MIB = 1 << 20
STORE = "region/midwest/store/store-209"


def delivery(**changes: Any) -> dict[str, Any]:
    one = {
        "name": "fw.img",
        "sha256": "a" * 64,
        "size_bytes": 100 * MIB,
        "method": "delta",
        "state": "done",
        "forecast_bytes": 3 * MIB,
        "moved_bytes": 4 * MIB,
        "said": "because",
    }
    return one | changes


def rows(parts: tuple[Table | str, ...]) -> list[Any]:
    [table] = [part for part in parts if isinstance(part, Table)]
    return list(table.rows)


def test_what_was_moved_stands_beside_the_forecast() -> None:
    parts = delivery_parts([(STORE, delivery()), (STORE, delivery(moved_bytes=101 * MIB))])
    assert rows(parts)[0] == ("midwest/store-209", "fw.img", "delta", "done", "3.0 MiB", "4.0 MiB", "96.0 MiB")
    assert rows(parts)[1][-1] == "-1.0 MiB"


def test_what_is_not_there_says_why() -> None:
    parts = delivery_parts([(STORE, delivery(state="refused", method="", said="over the budget"))])
    assert rows(parts)[0][2:4] == ("-", "refused")
    assert rows(parts)[0][-1] == "-"
    assert parts[-1] == "  midwest/store-209: fw.img is refused: over the budget"
    assert delivery_parts([]) == ()


def test_a_forecast_says_what_is_unknown_and_who_is_over_the_budget() -> None:
    one = {"place": "fleet", "bytes": 5 * MIB, "full_bytes": 9 * MIB, "unknown_bytes": 0, "methods": {"delta": 2}}
    parts = forecast_parts([one | {"over_budget": 0}])
    assert rows(parts) == [("fleet", "5.0 MiB", "-", "9.0 MiB", "2 delta")]
    over = forecast_parts([one | {"over_budget": 2, "unknown_bytes": MIB}])
    assert rows(over)[0][2] == "1.0 MiB"
    assert "2 of its stores would exceed" in str(over[-1])
    assert forecast_parts([]) == ()
