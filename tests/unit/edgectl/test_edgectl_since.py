"""``--since`` (D12)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from edgectl.exits import UsageError
from edgectl.since import parse_since

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "ago_s"),
    [("15 min ago", 900), ("15 mins ago", 900), ("2h", 7200), ("1 day ago", 86400), ("90 seconds", 90), ("30s", 30)],
)
def test_a_stretch_of_time(text: str, ago_s: int) -> None:
    assert parse_since(text, NOW) == NOW - timedelta(seconds=ago_s)


def test_a_moment_without_a_zone_is_utc() -> None:
    assert parse_since("2026-03-01T10:00", NOW) == datetime(2026, 3, 1, 10, tzinfo=UTC)
    assert parse_since("2026-03-01T10:00+02:00", NOW) == datetime(2026, 3, 1, 8, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "yesterday", "15 moons", "min", "99999999 s"])
def test_anything_else_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError, match="15 min ago"):
        parse_since(text, NOW)
