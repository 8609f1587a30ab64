"""``bench delta`` in its short form (S5): real peers, small images, every way right and the best one chosen."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from bench import delta_page, delta_peers
from bench.report import WrongResultError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    """Two versions of a megabyte: noise that stays, words that were edited, a compressed stream of them."""
    seeded = random.Random(1)
    noise = seeded.randbytes(400_000)
    words = [seeded.randbytes(4).hex().encode() for _ in range(2_000)]
    text = b" ".join(seeded.choices(words, k=60_000))
    edited = text[:100_000] + b"and so on" + text[130_000:]
    for name, body in (("old", text), ("new", edited)):
        (tmp_path / name).write_bytes(noise + body + zlib.compress(body, 9))
    return tmp_path / "old", tmp_path / "new"


@pytest.mark.timeout(180)
def test_every_way_is_measured_beside_its_peers(tmp_path: Path, images: tuple[Path, Path]) -> None:
    missing = set(delta_peers.NAMES) - set(delta_peers.installed())
    if missing:
        pytest.skip(f"not installed here: {sorted(missing)}; .ci/run installs them")
    command = [*(sys.executable, "-m", "bench", "delta"), *map(str, images), *("--rounds", "1")]
    done = subprocess.run(
        [*command, "--work", str(tmp_path), "--json", "-"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["peers"]) == set(delta_peers.NAMES)
    assert found["chosen"] == "delta"
    assert found["chosen_bytes"] == found["forecast_bytes"] == found["pairwise"]
    assert found["regret"] == 0
    assert found["chosen_bytes"] <= 0.9 * min(peer["bytes"] for peer in found["peers"].values())
    assert found["guess"]["is_delta_worth_making"]
    assert {"full_zstd", "chunks", "make_s", "apply_s", "machine", "versions", "commit"} <= set(found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]
    (tmp_path / "delta-small.json").write_text(done.stdout)
    delta_page.write(tmp_path)
    assert f"| **{found['pairwise']:,}** |" in (tmp_path / "delta.md").read_text()
    assert (tmp_path / "delta.svg").read_text().count("<rect") == 8


def test_a_missing_peer_is_named_and_fails_in_ci(tmp_path: Path, images: tuple[Path, Path]) -> None:
    command = [*(sys.executable, "-m", "bench", "delta"), *map(str, images), *("--peers", "bsdiff")]
    environment = {**os.environ, "CI": "true", "PATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "apt-get install bsdiff" in done.stderr


def test_a_peer_that_rebuilds_something_else_is_found(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"one")
    other.write_bytes(b"two")
    with pytest.raises(WrongResultError, match="nobody"):
        delta_peers.check("nobody", one, other)
