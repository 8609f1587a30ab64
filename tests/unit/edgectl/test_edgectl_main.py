"""The command line without a server: exit codes, forms of output, what the person reads (acceptance 5)."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import jsonschema
import pytest
import yaml

from edgectl.exits import Exit
from edgectl.main import run

if TYPE_CHECKING:
    from pathlib import Path

P1 = """\
targets:
  segment: "retail-us-midwest"
  percentage: 5            # progressive increment per wave
  hubBudget: 2             # hubs per wave
guardrails:
  minBattery: 40           # percent
  requireDualPartition: true
  rollbackOnHealthLossMins: 5
  offlineRollbackAllowed: true
artifacts:
  firmware: "firmware-v3.8.2.img"
  config: "pos-app-12.4.1.tar.gz"
  signature: "firmware-v3.8.2.sig"
verification:
  bootProbe: "systemd-analyze verify /boot/inactive"
  peripheralChecks:
    - "lsusb | grep scanner"
  healthPingEndpoint: "https://control-plane/health"
"""


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(P1)
    return path


@pytest.fixture(autouse=True)
def _no_contexts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECTL_CONFIG", str(tmp_path / "contexts.toml"))
    monkeypatch.delenv("EDGECTL_CONTEXT", raising=False)


def test_p1_is_accepted_as_written(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """P1, and the default authority is the one the endpoint names."""
    assert run(["policy", "validate", str(policy), "--output", "json"]) == Exit.OK
    data = json.loads(capsys.readouterr().out)
    assert data["valid"]
    assert data["policy"]["verification"]["healthAuthority"] == "control"


def test_the_published_schema_validates_p1_and_refuses_what_the_reader_refuses(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["policy", "schema"]) == Exit.OK
    schema = json.loads(capsys.readouterr().out)
    jsonschema.validate(yaml.safe_load(P1), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(P1.replace("percentage: 5 ", "percentage: 101 ")), schema)


@pytest.mark.parametrize(
    ("before", "after", "where"),
    [
        ("minBattery", "minBatery", (6, "guardrails.minBatery")),
        ("requireDualPartition: true", "requireDualPartition: 7", (7, "guardrails.requireDualPartition")),
        ("percentage: 5 ", "percentage: 0 ", (3, "targets.percentage")),
        ("percentage: 5 ", "percentage: 101 ", (3, "targets.percentage")),
        ("artifacts:", 'windows:\n  swap: "25:00-03:30"\nartifacts:', (11, "windows.swap")),
    ],
)
def test_a_bad_policy_is_refused_with_file_line_key_and_reason(
    policy: Path, capsys: pytest.CaptureFixture[str], before: str, after: str, where: tuple[int, str]
) -> None:
    policy.write_text(P1.replace(before, after))
    assert run(["policy", "validate", str(policy), "-o", "json"]) == Exit.BAD_INPUT
    captured = capsys.readouterr()
    (problem,) = json.loads(captured.out)["problems"]
    assert (problem["file"], problem["line"], problem["key"]) == (str(policy), *where)
    assert problem["reason"]
    assert captured.err.startswith(f"{policy}:{where[0]}:")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["wave", "list"], Exit.NOT_FOUND, "edgectl lab up"),
        (["wave", "list", "--colour"], Exit.BAD_INPUT, "--colour"),
        (["wave", "list", "--output", "xml"], Exit.BAD_INPUT, "xml"),
        (["policy", "validate", "/nowhere.yaml"], Exit.BAD_INPUT, "/nowhere.yaml: No such file"),
        (["explain", "batery"], Exit.NOT_FOUND, "batery"),
        (["lab", "status", "--dir", "/nowhere"], Exit.LOCAL_FAULT, "edgectl lab up"),
    ],
)
def test_errors_say_what_where_and_what_next(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: Exit, words: str
) -> None:
    assert run(arguments) == code
    captured = capsys.readouterr()
    assert (captured.out, words in captured.err) == ("", True)


def test_a_window_is_checked_before_anybody_is_asked(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["hub", "prefetch", "--policy", str(policy), "--window", "25:00-03:30"]) == Exit.BAD_INPUT
    assert "25:00" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["json", "yaml", "table"])
def test_options_stand_on_either_side_of_the_noun(capsys: pytest.CaptureFixture[str], form: str) -> None:
    assert run(["--output", form, "explain", "peripheral:scanner"]) == Exit.OK
    before = capsys.readouterr().out
    assert run(["explain", "peripheral:scanner", "--output", form]) == Exit.OK
    assert capsys.readouterr().out == before
    if form != "table":
        assert [one["word"] for one in yaml.safe_load(before)] == ["peripheral:scanner"]


def test_help_does_not_load_what_it_does_not_need() -> None:
    """gRPC, cryptography and YAML take longer to import than everything else together."""
    code = (
        "import sys; from edgectl.main import run; run(['--help']); "
        "sys.exit(','.join(m for m in ('grpc', 'cryptography', 'yaml', 'tuf') if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
