"""The benchmarks of a whole fleet, small: their keys, that they come out right, and that falsifications do not."""

from __future__ import annotations

import json
import shutil
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from bench import truth
from bench.__main__ import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.timeout(300)
STORES, DEVICES = 2, 3


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A rollout that was run once: its directory and its figures."""
    directory = tmp_path_factory.mktemp("fleet")
    words = ["--stores", str(STORES), "--devices", str(DEVICES), "--regions", "2", "--image-kib", "64", "--seed", "7"]
    figures = directory / "fleet.json"
    assert main(["fleet", *words, "--dir", str(directory / "site"), "--json", str(figures)]) == 0
    return directory / "site", json.loads(figures.read_text())


def victim(directory: Path, ending: str) -> Path:
    """The first device that had to end so."""
    devices = json.loads((directory / "expected.json").read_text())["devices"]
    name: str = next(name for name, wanted in devices.items() if wanted["ending"] == ending)
    return directory / "devices" / name


def flip_a_byte(directory: Path) -> None:
    """Behind everybody's back, on the slot that a device runs."""
    with (victim(directory, "updated") / "slots" / "B.img").open("r+b") as file:
        byte = file.read(1)[0]
        file.seek(0)
        file.write(bytes([byte ^ 1]))


def forget_a_device(directory: Path) -> None:
    """In control's ledger."""
    (path,) = (directory / "control" / "state").glob("*.sqlite")
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("DELETE FROM outcomes WHERE device LIKE ?", (f"%/{victim(directory, 'updated').name}",))
    connection.close()


def boot_twice(directory: Path) -> None:
    """By a board's record."""
    path = victim(directory, "rolled_back") / "run" / "boots.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, *(line for line in lines if '"slot": "B"' in line)]) + "\n")


def reopen_the_wave(directory: Path) -> None:
    """In control's database."""
    (path,) = (directory / "control" / "state").glob("*.sqlite")
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE waves SET state = 'RUNNING'")
    connection.close()


def test_a_rollout_on_a_small_fleet(fleet: tuple[Path, dict[str, Any]]) -> None:
    _, figures = fleet
    assert figures["devices"] == STORES * DEVICES
    assert (figures["updated"], figures["rolled_back"]) == (STORES * DEVICES - 1, 1)
    assert [figures[key] for key in ("failed", "bricked", "unaccounted")] == [0, 0, 0]
    assert figures["control_streams"] == 2
    for key in ("control_bytes_per_device", "wall_s", "peak_rss_mb", "cpu_ms_per_device", "probe_cpu_ms_per_device"):
        assert figures[key] > 0
    assert all(figures["cpu_ms_per_device_by_tier"][tier] > 0 for tier in ("control", "superhub", "storehub", "agents"))
    assert {"machine", "versions", "commit"} <= figures.keys()


def test_idle_agents_hold_no_thread_and_few_files(fleet: tuple[Path, dict[str, Any]]) -> None:
    """The threads are grpcio's own, however many agents there are; files are connection, socket, log and lock."""
    _, figures = fleet
    assert figures["idle_threads_per_agent_process"] <= 12
    # What the process itself holds is shared by few here.
    assert figures["idle_files_per_device"] <= 4 + 16 / (STORES * DEVICES)


@pytest.mark.parametrize(
    ("falsify", "kind"),
    [
        (flip_a_byte, "bricked"),
        (forget_a_device, "unaccounted"),
        (boot_twice, "duplicated"),
        (reopen_the_wave, "wrong"),
    ],
)
def test_falsifications_are_found(
    falsify: Callable[[Path], None], kind: str, fleet: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    copy = tmp_path / "site"
    shutil.copytree(fleet[0], copy, symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
    assert truth.main([str(copy), "--json", str(tmp_path / "before.json")]) == 0
    falsify(copy)
    assert truth.main([str(copy), "--json", str(tmp_path / "after.json")]) == 1
    found = json.loads((tmp_path / "after.json").read_text())
    assert len(found[kind]) == 1
    assert not found["holds"]


def test_nothing_to_judge_is_no_success(tmp_path: Path) -> None:
    assert truth.main([str(tmp_path)]) == 2


def test_a_fleet_whose_link_is_cut_twice(tmp_path: Path) -> None:
    figures = tmp_path / "resume.json"
    words = ["--stores", "2", "--devices", "4", "--image-kib", "1024", "--outage", "1"]
    assert main(["resume", *words, "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())
    assert (found["devices"], found["outages"], found["outage_s"]) == (4, 2, 1.0)
    assert [found[key] for key in ("lost", "duplicated", "bricked")] == [0, 0, 0]
    assert (found["updated"], found["rolled_back"]) == (3, 1)
    assert len(found["converged_s_each"]) == 2
    assert found["converged_s"] > 0
    assert found["floor_s"] > 0
    # The images crossed the link once, in the calm fleet and in the other.
    assert found["calm_bytes"] > 4 * 1024 * 1024
