"""The benchmark of a region, small: its keys, a super hub that is killed, and one wrong byte that makes it fail."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from bench import region
from bench.__main__ import main

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(180)
STORES, MIB = 12, 1024 * 1024
SMALL = ["region", "--stores", str(STORES), "--size-mib", "4", "--processes", "2"]
UNSYNCED_BYTES = 2 * MIB
"""What may be on its way to a super hub that is killed on a machine that is busy; 1 % of an image that is not small."""

# Runs the real stores, and lets the first of them say that it got something else.
SABOTEUR = """\
import json, subprocess, sys
stores = subprocess.Popen([sys.executable, "-m", "bench.region_stores", *sys.argv[1:]], stdout=subprocess.PIPE)
for line in stores.stdout:
    told = json.loads(line)
    for store in told.get("stores", [])[:1]:
        store["sha256"] = "0" * 64
    print(json.dumps(told), flush=True)
"""


def test_region_with_its_peer(tmp_path: Path) -> None:
    """S1, M6: an image crosses the origin's link once for twelve stores, and flows through while it does; more than may
    read at a time are told when to come again, and all get it.
    """
    target = tmp_path / "region.json"
    assert main([*SMALL, "--reads", "8", "--origin-mib-s", "8", "--dir", str(tmp_path), "--json", str(target)]) == 0
    result = json.loads(target.read_text())
    assert (result["stores"], result["artifact_bytes"], result["kills"]) == (STORES, 4 * MIB, 0)
    assert result["origin_bytes"] == 4 * MIB
    assert result["ratio_origin"] == 1.0
    assert result["store_bytes"] == STORES * 4 * MIB
    assert result["sheds"] >= STORES - 8
    assert 0 < result["first_byte_s"] < result["fetch_s"] <= result["wall_s"] + 1
    assert result["peer"]["origin_bytes"] == 4 * MIB
    assert result["ratio_peer_wall"] == pytest.approx(result["peer"]["wall_s"] / result["wall_s"], rel=0.01)
    assert {"machine", "versions", "commit"} <= result.keys()
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_a_killed_super_hub_fetches_the_rest(tmp_path: Path) -> None:
    """S4, M3: kill -9 half way, counted at the origin's own log."""
    target = tmp_path / "region.json"
    words = ["--origin-mib-s", "2", "--kill", "--no-peer", "--dir", str(tmp_path), "--json", str(target)]
    assert main([*SMALL, *words]) == 0
    result = json.loads(target.read_text())
    assert (result["kills"], result["origin_requests"], result["refetched_bytes"]) == (1, 2, 0)
    assert 4 * MIB <= result["origin_bytes"] <= 4 * MIB + UNSYNCED_BYTES


def test_other_bytes_at_one_store_are_a_wrong_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "saboteur.py"
    script.write_text(SABOTEUR)
    monkeypatch.setattr(region, "STORES", (sys.executable, str(script)))
    monkeypatch.setenv("PYTHONPATH", ".")
    words = ["region", "--stores", "2", "--size-mib", "1", "--no-peer", "--json", str(tmp_path / "result.json")]
    assert main(words) == 1
    assert "a store digested 000000" in capsys.readouterr().err
    assert not (tmp_path / "result.json").exists()
