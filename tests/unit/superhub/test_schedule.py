"""When and how fast a region fetches: windows in its own time zone, rates, and what waves do (S4)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from superhub.config import SuperHubConfig
from superhub.schedule import Open, Purpose, Schedule, ScheduleConfig, Shut, Waves, WindowConfig
from wavemesh.artifacts.rates import Rate
from wavemesh.runtime.config import ConfigError, parse_config

CHICAGO = "America/Chicago"
NIGHT = WindowConfig("00:30-05:00")
BASE = b'listen = "a:1"\n[control]\naddress = "a:2"\nname = "main"\n[origin]\nurl = "https://o"\n'


def at(text: str, zone: str = CHICAGO) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


def test_without_windows_it_is_always_open() -> None:
    assert Schedule(ScheduleConfig()).decide(Purpose.AHEAD, at("2026-05-01T12:00")) == Open(None, None)
    limited = Schedule(ScheduleConfig(bytes_per_s=1_000_000))
    assert limited.decide(Purpose.AHEAD, at("2026-05-01T12:00")) == Open(Rate.of(1_000_000), None)


def test_what_is_ahead_waits_for_its_window_and_a_wave_does_not() -> None:
    schedule = Schedule(ScheduleConfig(CHICAGO, (NIGHT,), wave_bytes_per_s=5_000_000))
    noon = at("2026-05-01T12:00")
    assert schedule.decide(Purpose.AHEAD, noon) == Shut(at("2026-05-02T00:30"))
    assert schedule.decide(Purpose.WAVE, noon) == Open(Rate.of(5_000_000), None)
    assert schedule.decide(Purpose.AHEAD, at("2026-05-02T04:59")) == Open(None, at("2026-05-02T05:00"))
    assert schedule.decide(Purpose.AHEAD, at("2026-05-02T05:00")) == Shut(at("2026-05-03T00:30"))


def test_a_wave_waits_where_that_is_configured() -> None:
    config = ScheduleConfig(CHICAGO, (NIGHT,), bytes_per_s=7_000_000, waves=Waves.IN_WINDOW, wave_bytes_per_s=9_000_000)
    schedule = Schedule(config)
    assert schedule.decide(Purpose.WAVE, at("2026-05-01T12:00")) == Shut(at("2026-05-02T00:30"))
    assert schedule.decide(Purpose.WAVE, at("2026-05-02T01:00")) == Open(Rate.of(9_000_000), at("2026-05-02T05:00"))
    assert schedule.decide(Purpose.AHEAD, at("2026-05-02T01:00")) == Open(Rate.of(7_000_000), at("2026-05-02T05:00"))
    always = Schedule(ScheduleConfig(waves=Waves.IN_WINDOW))
    assert always.decide(Purpose.WAVE, at("2026-05-01T12:00")) == Open(None, None)


def test_of_windows_open_at_once_the_fastest_counts() -> None:
    evening = WindowConfig("22:00-02:00", 2_000_000)
    schedule = Schedule(ScheduleConfig(CHICAGO, (evening, NIGHT), bytes_per_s=4_000_000))
    assert schedule.decide(Purpose.AHEAD, at("2026-05-01T23:00")) == Open(Rate.of(2_000_000), at("2026-05-02T02:00"))
    assert schedule.decide(Purpose.AHEAD, at("2026-05-02T01:00")) == Open(Rate.of(4_000_000), at("2026-05-02T02:00"))
    free = Schedule(ScheduleConfig(CHICAGO, (evening, NIGHT)))
    assert free.decide(Purpose.AHEAD, at("2026-05-02T01:00")) == Open(None, at("2026-05-02T02:00"))


@pytest.mark.parametrize(
    ("zone", "spring", "autumn"),
    [(CHICAGO, "2026-03-08", "2026-11-01"), ("Europe/Berlin", "2026-03-29", "2026-10-25"), ("UTC", "", "")],
)
def test_a_window_is_as_long_as_its_night(zone: str, spring: str, autumn: str) -> None:
    """DST: an hour shorter when clocks go forward, an hour longer when they go back."""
    schedule = Schedule(ScheduleConfig(zone, (NIGHT,)))
    for day, hours in ((spring, 3.5), (autumn, 5.5), ("2026-07-01", 4.5)):
        if not day:
            continue
        state = schedule.decide(Purpose.AHEAD, at(f"{day}T00:30", zone))
        assert isinstance(state, Open)
        assert state.until is not None
        assert state.until - at(f"{day}T00:30", zone) == timedelta(hours=hours)


def test_it_is_described_for_people() -> None:
    schedule = Schedule(ScheduleConfig(CHICAGO, (NIGHT,), bytes_per_s=2_500_000, waves=Waves.IN_WINDOW))
    assert schedule.describe(at("2026-05-01T12:00")) == (
        "windows 00:30-05:00 America/Chicago, shut until 2026-05-02T05:30:00+00:00, waves wait for windows too"
    )
    assert "at most 2.5 MB/s, open until 2026-05-02T10:00:00+00:00" in schedule.describe(at("2026-05-02T01:00"))
    plain = Schedule(ScheduleConfig(wave_bytes_per_s=1_000_000)).describe(at("2026-05-02T01:00"))
    assert plain == "always open, at any rate, waves at most 1 MB/s"


def test_the_file_says_it_like_this() -> None:
    text = b"""[origin.schedule]
time_zone = "America/Chicago"
bytes_per_s = 8000000
waves = "in-window"
windows = [{ open = "00:30-05:00", bytes_per_s = 20000000 }, { open = "13:00-14:00" }]
"""
    config = parse_config(BASE + text, Path("config.toml"), SuperHubConfig)
    windows = (WindowConfig("00:30-05:00", 20_000_000), WindowConfig("13:00-14:00"))
    assert config.origin.schedule == ScheduleConfig(CHICAGO, windows, 8_000_000, Waves.IN_WINDOW)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b'time_zone = "Mars/Olympus"', r"origin\.schedule: time_zone 'Mars/Olympus' is not known"),
        (b'windows = [{ open = "25:00-26:00" }]', r"origin\.schedule\.windows\[0\]: window '25:00-26:00'"),
        (b"bytes_per_s = -1", r"origin\.schedule\.bytes_per_s: expected 0 to"),
        (b'waves = "never"', r"origin\.schedule\.waves: expected one of 'at-once', 'in-window'"),
        (b"burst = 1", r"origin\.schedule\.burst: unknown key"),
    ],
)
def test_a_bad_schedule_is_refused_by_its_key(text: bytes, problem: str) -> None:
    """Q2."""
    with pytest.raises(ConfigError, match=problem):
        parse_config(BASE + b"[origin.schedule]\n" + text, Path("config.toml"), SuperHubConfig)
