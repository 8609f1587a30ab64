"""Vendor hooks: what is a gate, what cannot tell, and where they may be (D2, Q2)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from device.config import ProbeContainment, load_device_config
from device.gates.findings import Verdict
from device.gates.vendor import MAX_HOOKS, Hook, ask_hook, survey
from device.probes import Containment, ProbeRunner
from wavemesh.policy.gates import parse_gate
from wavemesh.runtime.config import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from device.gates.findings import Finding

CONFIG = """\
[device]
device_class = "pos"
hardware_revision = "r2"
[hub]
address = "h:1"
[board]
gates = "%s"
"""


@pytest.fixture
def hooks(tmp_path: Path) -> Path:
    directory = tmp_path / "device" / "hardware" / "gates"
    directory.mkdir(parents=True)
    return directory


def put(hooks: Path, name: str, script: str = "exit 0", mode: int = 0o755) -> Path:
    path = hooks / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(mode)
    return path


async def ask(hooks: Path, hook: Hook) -> Finding:
    device = hooks.parent.parent
    containment = Containment(ProbeContainment.REQUIRED, "nobody", device, device / "hardware")
    runner = ProbeRunner({"PATH": os.environ["PATH"]}, 5.0, containment)
    return await ask_hook(hook, runner, {"WAVEMESH_TARGET": "3.8.2"})


@pytest.mark.parametrize(
    ("script", "verdict", "evidence"),
    [
        ('test "$WAVEMESH_TARGET" = 3.8.2', Verdict.GOOD, ""),
        ("echo the dock is unlocked; exit 1", Verdict.BAD, "the dock is unlocked"),
        ("echo odd; exit 2", Verdict.CANNOT_TELL, "exit code 2; output: odd"),
        ("kill -9 $$", Verdict.CANNOT_TELL, "exit code 137"),
        ("echo x > /dev/shm/x || exit 1", Verdict.BAD, "Read-only"),
    ],
)
async def test_a_hook_says_by_its_exit_code(hooks: Path, script: str, verdict: Verdict, evidence: str) -> None:
    """It sees what it is to judge, and is shut in as a probe is."""
    put(hooks, "dock", script)
    [hook] = survey(hooks)
    finding = await ask(hooks, hook)
    assert (finding.gate, finding.verdict) == ("vendor:dock", verdict)
    assert evidence in finding.evidence


async def test_a_file_that_is_no_program_cannot_tell(hooks: Path) -> None:
    (hooks / "dock").write_bytes(b"\x7fELF of another machine")
    (hooks / "dock").chmod(0o755)
    finding = await ask(hooks, survey(hooks)[0])
    assert finding.verdict is Verdict.CANNOT_TELL


async def test_what_is_no_hook_by_mistake_is_not_passed_over(hooks: Path) -> None:
    put(hooks, "Dock Lock!", mode=0o755)
    put(hooks, "plain", mode=0o644)
    (hooks / "sub").mkdir()
    put(hooks, "_", mode=0o755)
    for name in (".hidden", "dock~"):
        put(hooks, name)
    found = {hook.gate: await ask(hooks, hook) for hook in survey(hooks)}
    assert set(found) == {"vendor:dock-lock", "vendor:plain", "vendor:sub", "vendor:hook"}
    assert {finding.verdict for finding in found.values()} == {Verdict.CANNOT_TELL}
    assert all(parse_gate(gate) for gate in found)


def test_the_order_is_that_of_names_and_the_number_is_bounded(hooks: Path) -> None:
    for number in range(MAX_HOOKS):
        put(hooks, f"hook-{number:02}")
    assert [hook.path.name for hook in survey(hooks)] == [f"hook-{number:02}" for number in range(MAX_HOOKS)]
    put(hooks, "one-more")
    [refusal] = survey(hooks)
    assert refusal.fault == "17 hooks, at most 16 are run"


def test_a_directory_that_is_not_there_cannot_tell(hooks: Path) -> None:
    assert survey(None) == ()
    [hook] = survey(hooks / "gone")
    assert (hook.gate, hook.fault) == ("vendor:hooks", "No such file or directory")


def test_hooks_are_where_probes_can_see_them(tmp_path: Path) -> None:
    """Q2: probes are shut off from the agent's directory, so hooks there could never run: said at the start."""
    for place in ("hardware/gates", "/usr/lib/wavemesh/gates"):
        (tmp_path / "config.toml").write_text(CONFIG % place)
        assert load_device_config(tmp_path).board.gates is not None
    (tmp_path / "config.toml").write_text(CONFIG % "state/gates")
    with pytest.raises(ConfigError, match=r"config.toml: board.gates: .* is hidden from hooks: choose one below"):
        load_device_config(tmp_path)
