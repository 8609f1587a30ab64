"""docs/security.md and the hostile tests name each other: no attack without a test, no test that nobody finds."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "security.md"


def listed() -> list[str]:
    """Tests that the section's table names, once for each time."""
    section = PAGE.read_text(encoding="utf-8").partition("\n## A hostile hub\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[4] for line in section.splitlines() if line.startswith("| ")]
    return [name for row in rows[1:] for name in re.findall(r"`(test_\w+)`", row)]


def written() -> list[str]:
    """Test functions of the hostile files."""
    files = sorted(set(HERE.glob("test_hostile_*.py")) - {Path(__file__)})
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    functions = (
        node for tree in trees for node in tree.body if isinstance(node, (ast.AsyncFunctionDef, ast.FunctionDef))
    )
    return [node.name for node in functions if node.name.startswith("test_")]


def test_every_attack_is_listed_and_every_listed_one_is_a_test() -> None:
    """P2: the list is the checklist."""
    assert sorted(listed()) == sorted(written())
    assert len(listed()) > 50


def test_each_row_says_what_the_device_does_and_by_what_name() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("\n## A hostile hub\n")[2]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    assert rows[0] == ["attack", "the device", "gate or reason", "`tests/security/test_hostile_*.py`"]
    assert [row for row in rows[1:] if len(row) != 4 or not all(row)] == []
