"""The log ring: numbered, tagged, bounded, readable by time (D12)."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from device.logs import DeviceLog, parse_since, read_lines
from device.logupload import MAX_TEXT_BYTES, _upload_once, bounded_run
from wavemesh.codec.statements import encode
from wavemesh.runtime.durable import DiskFullError
from wavemesh.telemetry.uploads import LogUploadAnswer

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime.now(UTC)


class StillClock:
    """Stands where the test puts it."""

    def __init__(self) -> None:
        self.time = NOW

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return 0.0


def ring(path: Path, clock: StillClock, quota_bytes: int = 64 * 1024) -> DeviceLog:
    return DeviceLog(path, clock, timedelta(hours=24), quota_bytes)


def test_numbers_go_on_after_a_restart_and_a_torn_line(tmp_path: Path) -> None:
    log = ring(tmp_path, StillClock())
    log.wave_id = "142"
    log.note("one")
    log.alert("two")
    log.close()
    [segment] = tmp_path.iterdir()
    with segment.open("a") as file:
        file.write('{"n": 3, "at": "20')
    again = ring(tmp_path, StillClock())
    assert again.next_number == 3
    again.fail("three")
    again.close()
    lines = list(read_lines(tmp_path, 0))
    assert [(line.number, line.level, line.wave_id, line.text) for line in lines][:2] == [
        (1, "info", "142", "one"),
        (2, "warning", "142", "two"),
    ]
    assert lines[-1].text == "three"


def test_the_ring_is_bounded_in_bytes(tmp_path: Path) -> None:
    log = ring(tmp_path, StillClock())
    for number in range(2000):
        log.note(f"{number} " + "x" * 200)
    log.close()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 64 * 1024 + 4096
    numbers = [line.number for line in read_lines(tmp_path, 0)]
    assert numbers == list(range(numbers[0], 2001))
    assert [line.number for line in read_lines(tmp_path, 1990)] == list(range(1990, 2001))


def test_since_is_read_as_people_write_it() -> None:
    assert parse_since("15 min ago", NOW) == NOW - timedelta(minutes=15)
    assert parse_since("2h", NOW) == NOW - timedelta(hours=2)
    assert parse_since("2026-05-01T00:00:00", NOW) == datetime(2026, 5, 1, tzinfo=UTC)
    with pytest.raises(ValueError, match="ISO 8601"):
        parse_since("yesterday", NOW)


def test_the_command_prints_what_is_young_enough(tmp_path: Path) -> None:
    clock = StillClock()
    log = ring(tmp_path / "state" / "log", clock)
    now = datetime.now(UTC)  # the command's clock is the machine's
    clock.time = now - timedelta(hours=1)
    log.note("old")
    clock.time = now
    log.note("young")
    log.close()
    command = [sys.executable, "-m", "device.logs", "--dir", str(tmp_path), "--since", "15 min ago"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "young" in printed
    assert "old" not in printed


def test_an_upload_is_contiguous_and_bounded(tmp_path: Path) -> None:
    log = ring(tmp_path, StillClock(), 1024 * 1024)
    for _ in range(100):
        log.note("x" * 2000)
    lines = log.lines(1, 500)
    run = bounded_run(lines)
    assert 0 < sum(len(line.text) for line in run) <= MAX_TEXT_BYTES
    assert [line.number for line in bounded_run([*lines[:3], *lines[5:]])] == [1, 2, 3]
    log.close()
    assert json.loads((tmp_path / "000000000001.jsonl").read_text().splitlines()[0])["n"] == 1


async def test_a_full_disk_costs_an_upload_and_not_the_agent(tmp_path: Path) -> None:
    """Which lines the hub has can be done without: they are told again."""
    log = ring(tmp_path, StillClock(), 1024 * 1024)
    log.note("x")

    def note(through: int) -> None:
        told.append(through)
        raise DiskFullError("no space left")

    async def ask(kind: str, body: bytes, timeout_s: float) -> bytes:
        return encode(LogUploadAnswer(1))

    told: list[int] = []
    store = SimpleNamespace(document=SimpleNamespace(logs_uploaded=0), note_logs_uploaded=note)
    equipment: Any = SimpleNamespace(log=log, store=store)
    upstream: Any = SimpleNamespace(ask=ask)
    assert not await _upload_once(equipment, upstream)
    assert told == [1]
    log.close()
