"""The benchmark of sessions, small: its keys, and that it checks its own results."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bench.__main__ import main
from bench.slow import BOUND_KIB

if TYPE_CHECKING:
    from pathlib import Path


def test_sessions(tmp_path: Path) -> None:
    target = tmp_path / "sessions.json"
    assert main(["sessions", "--devices", "5", "--rounds", "1", "--json", str(target)]) == 0
    result = json.loads(target.read_text())
    assert result["devices"] == 5
    for key in ("kib_per_session", "floor_kib", "open_per_s", "floor_open_per_s", "reconnect_s", "converged_s"):
        assert result[key] > 0
    assert {"machine", "versions", "commit"} <= result.keys()


def test_sessions_in_a_storm(tmp_path: Path) -> None:
    target = tmp_path / "storm.json"
    assert main(["sessions", "--storm", "--devices", "8", "--rounds", "1", "--json", str(target)]) == 0
    result = json.loads(target.read_text())
    for key in ("s", "calm_p99_ms", "live_p50_ms", "live_p99_ms", "live_worst_ms", "peak_mib"):
        assert result[f"storm_{key}"] > 0
        assert result[f"floor_storm_{key}"] > 0
    assert result["storm_reports"] > 0


def test_slow_readers(tmp_path: Path) -> None:
    """Their memory is bounded, they are cut, and whoever reads is not disturbed."""
    target = tmp_path / "slow.json"
    assert main(["sessions", "--slow", "--devices", "8", "--json", str(target)]) == 0
    result = json.loads(target.read_text())
    assert result["slow_kib"] <= 1.5 * BOUND_KIB
    assert result["slow_cut_s"] > 0


def test_unknown_names_are_refused() -> None:
    assert main(["nonsense"]) == 2
    assert main([]) == 2
