"""``wave watch``: a line a change without a terminal, a bar a store with one."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from edgectl.framework import Session
from edgectl.output import Output
from edgectl.watching import bar_text, line, showing

COUNTS = dict.fromkeys(
    ("pending", "refused", "updated", "rolled_back", "failed", "silent", "unknown", "inconclusive"), 0
)


def wave(**counts: int) -> dict[str, Any]:
    return {"wave_id": "142", "state": "running", "counts": COUNTS | counts, "exposure": 3}


def test_a_change_is_one_line_with_its_time() -> None:
    at = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
    assert line(wave(updated=4, pending=1, unknown=1), at) == (
        "2026-03-01 02:00:00Z  wave 142 running  4 of 6 settled: 4 updated, 1 unknown, 1 pending  exposure 3"
    )


@pytest.mark.parametrize(
    ("done", "target", "text"), [(0, 4, "░░░░ 0/4"), (1, 4, "█░░░ 1/4"), (4, 4, "████ 4/4"), (0, 0, "████ 0/0")]
)
def test_bars(done: int, target: int, text: str) -> None:
    assert bar_text(done, target, 4) == text


def test_without_a_terminal_nothing_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    with showing(Session(None, Output.TABLE)) as show:
        show(wave(updated=1))
        show(wave(updated=2))
    captured = capsys.readouterr()
    assert ([text.count("settled") for text in captured.out.splitlines()], captured.err) == ([1, 1], "")
    with showing(Session(None, Output.JSON)) as show:
        show(wave())
    assert json.loads(capsys.readouterr().out)["wave_id"] == "142"
