"""docs/guide/devices.md, "A Linux board", as a person types it: on this machine, whose bootloader knows no slots."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.test_first_fleet import Shell, steps

if TYPE_CHECKING:
    from collections.abc import Iterator

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "devices.md"


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    path = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
    shell = Shell(tmp_path, {"PATH": path, "LANG": "C.UTF-8"})
    yield shell
    shell.kill()


def test_an_agent_without_a_certain_slot(shell: Shell) -> None:
    section = GUIDE.read_text().partition("## A Linux board\n")[2].partition("\n## ")[0]
    todo = steps(section)
    assert len(todo) == 1
    for step in todo:
        shell.follow(step)
