"""A trace as a tree: parents before children, what has no parent at the margin, every span once."""

from __future__ import annotations

from typing import Any

import pytest

from edgectl.commands.traces import took, trace_parts
from edgectl.output import Table

DEVICE = "region/midwest/store/store-209/device/pos-17"


def span(name: str, parent: str = "", **more: Any) -> dict[str, Any]:
    return {
        "span_id": name,
        "parent_span_id": parent,
        "name": name,
        "node": DEVICE,
        "began_at": "2026-11-26T22:00:00Z",
        "ended_at": "2026-11-26T22:00:01.5Z",
        "gate": "",
        "error": "",
        "attributes": {},
        "links": [],
        **more,
    }


def shown(*spans: dict[str, Any], dropped: int = 0) -> tuple[list[str], Table]:
    data = {"trace_id": "ab", "device": DEVICE, "spans": list(spans), "dropped": dropped, "source": "control/main"}
    *lines, table = trace_parts("142", data)
    assert isinstance(table, Table)
    return [str(line) for line in lines], table


def test_a_tree_by_parents() -> None:
    lines, table = shown(span("plan"), span("permit", "plan"), span("outcome", "plan"), span("lease", "permit"))
    assert [row[0] for row in table.rows] == ["plan", "  permit", "    lease", "  outcome"]
    assert "midwest/store-209/pos-17" in lines[0]
    assert len(lines) == 2


def test_what_has_no_parent_here_stands_at_the_margin_and_circles_do_not_hang() -> None:
    _, table = shown(span("a", "b"), span("b", "a"), span("self", "self"), span("lost", "elsewhere"))
    assert sorted(row[0] for row in table.rows) == ["a", "b", "lost", "self"]


def test_a_row_says_how_it_ended_and_what_it_acted_on() -> None:
    end = {"attributes": {"wavemesh.outcome": "rolled_back", "wavemesh.attempt": "2"}, "gate": "watchdog"}
    _, table = shown(span("plan"), span("end", "plan", links=["plan", "gone"], **end))
    assert table.rows[1][3:] == ("1.5 s", "2", "rolled back [watchdog]", "plan, gone")


def test_gaps_are_told() -> None:
    lines, _ = shown(span("plan"), dropped=3)
    assert "3 telemetry batches were dropped" in lines[2]


@pytest.mark.parametrize(
    ("ended_at", "text"),
    [
        ("2026-11-26T22:00:00Z", "-"),
        ("2026-11-26T22:00:00.000100Z", "1 ms"),
        ("2026-11-26T22:00:00.340Z", "340 ms"),
        ("2026-11-26T22:00:12.5Z", "12.5 s"),
        ("2026-11-26T22:03:20Z", "3 min 20 s"),
        ("2026-11-27T00:05:00Z", "2 h 5 min"),
    ],
)
def test_durations_are_for_people(ended_at: str, text: str) -> None:
    assert took("2026-11-26T22:00:00Z", ended_at) == text
