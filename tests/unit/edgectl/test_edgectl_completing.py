"""TAB: names of contexts and words; silence when the node is not there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edgectl.completing import COMPLETION_TIMEOUT_S, VARIABLE
from edgectl.contexts import Context, Contexts, save_contexts
from edgectl.exits import Exit
from edgectl.main import run
from wavemesh.identity.nodes import NodeId

if TYPE_CHECKING:
    from tests.conftest import CredentialsFactory

FLEET = "test.example"


@pytest.fixture
def contexts_file(tmp_path: Path, credentials: CredentialsFactory) -> Path:
    """Two contexts with a good identity at an address where nobody listens."""
    made = credentials("operator/alice")
    identity = tmp_path / "alice"
    identity.mkdir()
    (identity / "node.key").write_bytes(made._key_pem)
    (identity / "node.crt").write_bytes(made._chain_pem)
    (identity / "ca.crt").write_bytes(made._ca_pem)
    control = NodeId(FLEET, "control/cloud-1")
    path = tmp_path / "contexts.toml"
    names = ("cloud", "store-208", "store-209")
    save_contexts(path, Contexts("cloud", {name: Context(name, "127.0.0.1:1", control, identity) for name in names}))
    return path


def pressed(line: str, contexts_file: Path) -> subprocess.CompletedProcess[str]:
    """What the shell is told when TAB is pressed at the end of the line."""
    words = line.split(" ")
    environment = {
        **os.environ,
        VARIABLE: "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "EDGECTL_CONFIG": str(contexts_file),
    }
    environment.pop("EDGECTL_CONTEXT", None)
    command = [sys.executable, "-m", "edgectl"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_contexts_commands_and_words_are_offered(contexts_file: Path) -> None:
    assert pressed("edgectl context use sto", contexts_file).stdout.split() == ["store-208", "store-209"]
    assert pressed("edgectl --context cl", contexts_file).stdout.split() == ["cloud"]
    assert pressed("edgectl intent can", contexts_file).stdout.split() == ["cancel"]
    assert "inconclusive" in pressed("edgectl explain incon", contexts_file).stdout.split()


def test_a_node_that_is_not_there_offers_nothing_says_nothing_and_takes_no_time(contexts_file: Path) -> None:
    begin = time.monotonic()
    done = pressed("edgectl wave halt --wave 1", contexts_file)
    assert (done.stdout.strip(), done.stderr) == ("", "")
    # Python and gRPC take their time to start on a machine under load; a call without a limit would take 20 s.
    assert time.monotonic() - begin < COMPLETION_TIMEOUT_S + 12
    contexts_file.write_text("current = 7")
    done = pressed("edgectl wave halt --wave 1", contexts_file)
    assert (done.stdout.strip(), done.stderr) == ("", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == Exit.OK
    assert f"{VARIABLE}=complete_{shell}" in capsys.readouterr().out


def test_the_script_is_installed_where_the_shell_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for _ in range(2):
        assert run(["completion", "bash", "--install"]) == Exit.OK
    assert str(tmp_path) in capsys.readouterr().out
    assert (tmp_path / ".bashrc").read_text().count("edgectl.sh") == 1
    assert run(["completion", "tcsh"]) == Exit.BAD_INPUT
