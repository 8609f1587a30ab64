"""The benchmark of transfers, small: its keys, and that one wrong byte in any kind's slot makes it fail."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from bench import transfer
from bench.__main__ import main

if TYPE_CHECKING:
    from pathlib import Path

SMALL = ["transfer", "--size-mib", "3", "--rounds", "1", "--devices", "2"]
KEYS = ("ours_mb_s", "peer_mb_s", "floor_mb_s", "ratio_peer", "ratio_floor")
CPU_KEYS = ("cpu_s_per_gb", "peer_cpu_s_per_gb", "floor_cpu_s_per_gb")
PEAK_KEYS = ("server_peak_mib", "client_peak_mib", "peer_server_peak_mib", "floor_client_peak_mib")

# Runs the real device, and changes one byte of the slot of one kind just before its answer is heard.
SABOTEUR = """\
import subprocess, sys
kind, slot, command = sys.argv[1], sys.argv[5] + "/slots/B.img", [sys.executable, "-m", "bench.transfer_device"]
device = subprocess.Popen([*command, *sys.argv[2:]], stdout=subprocess.PIPE, text=True)
for line in device.stdout:
    if kind == sys.argv[2] and "sha256" in line:
        with open(slot, "r+b") as file:
            file.seek(1_500_000)
            byte = file.read(1)[0]
            file.seek(1_500_000)
            file.write(bytes([byte ^ 1]))
    print(line, end="", flush=True)
"""


def test_transfer(tmp_path: Path) -> None:
    target = tmp_path / "transfer.json"
    assert main([*SMALL, "--dir", str(tmp_path), "--json", str(target)]) == 0
    result = json.loads(target.read_text())
    one, ten = result["one"], result["ten"]
    assert (one["devices"], ten["devices"]) == (1, 2)
    for key in KEYS:
        assert result[key] == min(one[key], ten[key]) > 0
    for key in CPU_KEYS:
        assert result[key] == max(one[key], ten[key]) > 0
    for key in PEAK_KEYS:
        assert 1 < result[key] == max(one[key], ten[key]) < transfer.PEAK_BOUND_MIB
    assert one["ratio_floor"] == pytest.approx(one["ours_mb_s"] / one["floor_mb_s"], rel=0.01)
    assert {"machine", "versions", "commit"} <= result.keys()
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


@pytest.mark.parametrize("kind", transfer.KINDS)
def test_one_wrong_byte_is_a_wrong_result(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "saboteur.py"
    script.write_text(SABOTEUR)
    monkeypatch.setattr(transfer, "DEVICE", (sys.executable, str(script), kind))
    monkeypatch.setenv("PYTHONPATH", ".")
    monkeypatch.setattr(transfer, "KINDS", (kind,) if kind == "floor" else (kind, "floor"))
    assert main([*SMALL[:-1], "1", "--json", str(tmp_path / "result.json")]) == 1
    assert "differs from the image" in capsys.readouterr().err
    assert not (tmp_path / "result.json").exists()
