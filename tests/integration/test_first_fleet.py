"""docs/guide/first-fleet.md as a person types it: real processes, real ports, and nothing of the lab.

Then, on the same fleet, "Going back" of docs/guide/devices.md (D5, D6).

A fence ``sh`` is run once by bash, ``sh again`` until it answers as shown, ``sh service`` goes on, ``sh down`` is last.
The ``text`` fence after one is its whole answer, numbers and digests aside; ``…`` stands for what is left out.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

GUIDES = Path(__file__).resolve().parents[2] / "docs" / "guide"
# Everything that listens in the guide; here each gets a free port instead.
ADDRESSES = {
    "control": "127.0.0.1:7400",
    "super hub": "127.0.0.1:7410",
    "super hub, joins": "127.0.0.1:7411",
    "store hub": "127.0.0.1:7420",
    "store hub, joins": "127.0.0.1:7421",
}
FENCE = re.compile(r"^```([a-z ]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KINDS = ("sh", "sh again", "sh service", "sh down")
BASH = "/bin/bash"
PATIENCE_S = 45.0
STOP_S = 20.0
PAUSE_S = 0.1

pytestmark = pytest.mark.timeout(420)


@dataclass(frozen=True, slots=True)
class Step:
    """One fence of commands, and what the page says they answer; None where it says nothing."""

    kind: str
    commands: str
    shown: str | None = None


def steps(page: str) -> list[Step]:
    """All steps of the page, in its order."""
    found: list[Step] = []
    for kind, text in FENCE.findall(page):
        if kind == "text":
            found[-1] = replace(found[-1], shown=text)
        elif kind:  # a fence without a word is for another time
            assert kind in KINDS, kind
            found.append(Step(kind, text))
    return found


def plain(text: str) -> str:
    """The text without what differs from run to run: digests, numbers, units of time, padding."""
    text = re.sub(r"\b[0-9a-f]{12}\b", "N", text)
    text = re.sub(r"\d+(\.\d+)?", "N", text)
    text = re.sub(r"\bN (ms|s|min)\b", "N s", text)
    return "".join(" ".join(line.split()) + "\n" for line in text.splitlines())


def answers(told: str, shown: str | None) -> bool:
    """Whether what was told is what the page shows."""
    if shown is None:
        return True
    lines = plain(shown).splitlines()
    patterns = [r"(.*\n)*" if line == "…" else re.escape(line).replace("…", ".*") + r"\n" for line in lines]
    return re.fullmatch("".join(patterns), plain(told)) is not None


@dataclass(slots=True)
class Shell:
    """One person at one machine: a directory, an environment, and the programs that stay."""

    directory: Path
    environment: dict[str, str]
    services: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def follow(self, step: Step) -> None:
        """Do what the page says and compare what it answers."""
        if step.kind == "sh service":
            self.start(step.commands)
            return
        deadline = time.monotonic() + (PATIENCE_S if step.kind == "sh again" else 0)
        while True:
            code, told = self.types(step.commands)
            if code == 0 and answers(told, step.shown):
                return
            if time.monotonic() > deadline:
                pytest.fail(
                    f"exit code {code} of\n{step.commands}\n{told}\nthe page shows\n{step.shown}\n{self.logs()}"
                )
            time.sleep(PAUSE_S)

    def types(self, commands: str) -> tuple[int, str]:
        """Some commands in bash, which stops at the first that fails; exit code and what was told."""
        done = subprocess.run(
            [BASH, "-e", "-o", "pipefail", "-c", commands],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=2 * PATIENCE_S,
            check=False,
            text=True,
        )
        return done.returncode, done.stdout

    def start(self, command: str) -> None:
        """A terminal of its own."""
        with self._log(len(self.services)).open("wb") as log:
            service = subprocess.Popen(
                [BASH, "-c", f"exec {command}"],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.services.append(service)

    def interrupt(self) -> list[int]:
        """Ctrl-C in each terminal, the last one first; their exit codes."""
        codes = []
        for service in reversed(self.services):
            os.killpg(service.pid, signal.SIGINT)
            codes.append(service.wait(STOP_S))
        return codes

    def kill(self) -> None:
        """Whatever is left, and what it started."""
        for service in self.services:
            if service.poll() is None:
                os.killpg(service.pid, signal.SIGKILL)
                service.wait(STOP_S)

    def logs(self) -> str:
        """The end of what each service told."""
        return "\n".join(self._log(number).read_text()[-1500:] for number in range(len(self.services)))

    def _log(self, number: int) -> Path:
        return self.directory.parent / f"terminal-{number}.log"


def free_addresses() -> Iterator[str]:
    """As many as the guide needs, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in ADDRESSES]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        yield from [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]


def pages() -> tuple[str, str]:
    """The guide and what follows on its fleet, with ports that are free."""
    first = (GUIDES / "first-fleet.md").read_text()
    going_back = re.split(r"^## ", (GUIDES / "devices.md").read_text(), flags=re.MULTILINE)
    then = next(section for section in going_back if section.startswith("Going back\n"))
    for ours, address in zip(ADDRESSES.values(), free_addresses(), strict=True):
        assert ours in first
        first, then = first.replace(ours, address), then.replace(ours, address)
    return first, then


def forbid_lab(directory: Path) -> Path:
    """A package that takes the lab's place in every process; returns what is there once somebody imported it."""
    used = directory / "used"
    (directory / "lab").mkdir(parents=True)
    (directory / "lab" / "__init__.py").write_text(
        f"open({str(used)!r}, 'w').close()\nraise ImportError('a first fleet does without the lab')\n"
    )
    return used


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """An empty directory, the installed programs, and nobody's settings."""
    directory = tmp_path / "first-fleet"
    directory.mkdir()
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(tmp_path / "guard"),
        "LANG": "C.UTF-8",
    }
    shell = Shell(directory, environment)
    yield shell
    shell.kill()


def test_the_guide_sets_up_a_fleet_without_the_lab(shell: Shell, tmp_path: Path) -> None:
    """Every command of the page, in its order, from an empty directory to a closed wave, and away again."""
    used = forbid_lab(tmp_path / "guard")
    first, going_back = pages()
    todo = steps(first)
    down = [step for step in todo if step.kind == "sh down"]
    assert todo[-len(down) :] == down
    assert len([step for step in todo if step.kind == "sh service"]) == 4
    for step in todo[: -len(down)]:
        shell.follow(step)
    code, told = shell.types("edgectl ledger show --wave 1 -o json")
    assert code == 0, told
    entries = json.loads(told)["entries"]
    assert [(one["device"], one["kind"], one["slot"]) for one in entries] == [
        ("region/midwest/store/store-208/device/pos-17", "updated", "B")
    ]
    new = (shell.directory / "firmware-v1.1.0.img").read_bytes()
    slots = shell.directory / "pos-17" / "slots"
    assert (slots / "B.img").read_bytes() == new != (slots / "A.img").read_bytes()
    assert json.loads((slots / "bootenv.json").read_text())["active"]["slot"] == "B"
    for step in steps(going_back):
        shell.follow(step)
    assert shell.interrupt() == [0, 0, 0, 0]
    for step in down:
        shell.follow(step)
    assert not shell.directory.exists()
    assert not used.exists()


def test_the_lab_would_be_noticed(shell: Shell, tmp_path: Path) -> None:
    """The guard of the test above sees the lab's own command."""
    used = forbid_lab(tmp_path / "guard")
    code, _ = shell.types("edgectl lab status --dir lab-data")
    assert code != 0
    assert used.exists()
