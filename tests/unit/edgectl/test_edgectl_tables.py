"""How people read numbers: ages, durations, sizes; and what rows are made of."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from edgectl.tables import ago, duration, holds_parts, intent_lines, intents_table, place, plural, share_bar, size

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (119.9, "119 s"), (120, "2 min"), (7_199, "119 min"), (7_200, "2 h"), (172_800, "2 d")],
)
def test_durations_have_one_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_ages() -> None:
    assert ago("2026-03-01T11:55:00Z", NOW) == "5 min ago"
    # Clocks differ: what comes from the future is now.
    assert ago("2026-03-01T12:00:09Z", NOW) == "0 s ago"
    assert ago(None, NOW) == "-"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (4_613_734, "4.4 MiB"), (5 << 30, "5.0 GiB")]
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


def test_words() -> None:
    assert (plural(1, "device"), plural(2, "device")) == ("1 device", "2 devices")
    assert place("region/midwest/store/store-209/device/pos-17") == "midwest/store-209/pos-17"


def record(**changes: object) -> dict[str, object]:
    return {
        "intent_id": "0123456789abcdef0123456789abcdef",
        "kind": "start_wave",
        "wave_id": "142",
        "device": "",
        "operator": "spiffe://f/operator/alice",
        "reason": "",
        "disposition": "queued",
        "waiting_for": ["control"],
        "detail": "raises risk",
        "received_at": "2026-03-01T11:55:00Z",
        "queue_place": 3,
    } | changes


def test_an_intent_shows_its_place() -> None:
    [row] = intents_table([record()]).rows
    assert row[:7] == ("0123456789ab", "start wave", "142", "queued", "3", "control", "alice")
    [named] = intents_table([record(intent_id="my-own-key", queue_place=0)]).rows
    assert (named[0], named[4]) == ("my-own-key", "-")
    assert "  queued; waits for control, place 3" in intent_lines(record())


def test_a_hub_without_a_hold_list_says_so() -> None:
    assert holds_parts({"epoch": 0, "issued_at": None, "holds": []}) == ("no hold list was ever heard here",)


def test_a_prefetch_shows_a_bar() -> None:
    """O1: how far it is, in a log and in a pipe too."""
    assert share_bar({"present_bytes": 50, "wanted_bytes": 100}) == f"[{'#' * 20}{'.' * 20}] 50%"
    assert share_bar({"present_bytes": 0, "wanted_bytes": 0}).endswith("100%")
    assert "#" not in share_bar({"present_bytes": 0, "wanted_bytes": 9})
