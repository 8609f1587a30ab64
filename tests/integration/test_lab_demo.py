"""The demo on small images, end to end: it comes out right, and each falsification makes it fail (acceptance 1, 2)."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from edgectl.main import run
from lab.checker import check
from lab.images import build_small_images
from lab.processes import states
from lab.scenario import Tamper, draw, parse_fault
from lab.tampering import tamper
from lab.topology import STORES, load_lab

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(240)
FAULTS = ("pos-03:battery", "pos-14:boot-probe")
# Whom seed 4 strikes: one loses power in a write, the other in the swap.
STRUCK = {"pos-05": "grub", "pos-06": "uboot"}
# RAUC mounts what it installs.
BACKENDS = STRUCK | ({"pos-02": "rauc"} if os.geteuid() == 0 else {})


def demo(directory: Path, *more: str) -> int:
    pair = build_small_images(directory.parent / "images")
    words = ["lab", "demo", "--old", str(pair.old), "--new", str(pair.new), "--dir", str(directory), "--output", "json"]
    return run([*words, *more])


def endings_of(told: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {device["device"]: (device["outcome"], device["gate"]) for device in told["devices"]}


def violated(directory: Path) -> list[str]:
    return [finding.fact for finding in check(directory) if not finding.holds]


def test_the_demo_comes_out_right_and_falsifications_do_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Faults change their devices alone; then bytes altered and a report deleted behind the checker's back."""
    faults = [word for fault in FAULTS for word in ("--fault", fault)]
    backends = [word for pair in BACKENDS.items() for word in ("--backend", ":".join(pair))]
    assert demo(tmp_path / "demo", "--seed", "4", *faults, *backends) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert {device["device"]: device["backend"] for device in told["devices"]} == dict.fromkeys(
        endings_of(told), "simulated"
    ) | BACKENDS
    endings = endings_of(told)
    assert endings.pop("pos-03") == ("refused", "battery")
    assert endings.pop("pos-14") == ("refused", "boot-probe")
    assert endings.pop("pos-17") == ("rolled back", "peripheral:scanner")
    assert set(endings.values()) == {("updated", "-")}
    assert told["wall_s"] < 120
    assert not any(process.running for process in states(load_lab(tmp_path / "demo")))
    scenario = draw(4, STORES, [parse_fault(fault) for fault in FAULTS])
    assert (scenario.write_cut.device, scenario.swap_cut.device) == tuple(STRUCK)
    for mode, fact in ((Tamper.SLOT, "slots hold whole images"), (Tamper.REPORT, "ledgers agree")):
        copy = tmp_path / mode.value
        shutil.copytree(tmp_path / "demo", copy, symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
        tamper(load_lab(copy), scenario, mode)
        assert fact in violated(copy)
    assert run(["lab", "demo", "--dir", str(tmp_path / "demo")]) == 4


def test_a_swap_limit_raised_behind_its_back_is_found(tmp_path: Path) -> None:
    assert demo(tmp_path / "demo", "--tamper", "limit") == 1
    assert violated(tmp_path / "demo") == ["swap limit kept"]


@pytest.mark.parametrize(
    "words", [["--fault", "pos-01:attestation"], ["--fault", "pos-99:battery"], ["--tamper", "clock"]]
)
def test_what_the_demo_cannot_do_is_refused_before_anything_starts(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["lab", "demo", "--dir", str(tmp_path / "demo"), *words]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "demo").exists()
