"""docs/guarantees.md names tests that exist, and no row is without one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "guarantees.md"
HEAD = ["", "promise", "what keeps it", "tests"]


def rows() -> list[list[str]]:
    """Cells of every row of every table, heads left out."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [cells for line in lines if (cells := [cell.strip() for cell in line[1:-1].split("|")]) != HEAD]


def written() -> frozenset[str]:
    """Names of all test functions."""
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in HERE.rglob("test_*.py"))
    return frozenset(
        node.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_")
    )


def test_every_promise_names_tests_that_exist() -> None:
    known = written()
    named = {row[1]: re.findall(r"`(test_\w+)`", row[3]) for row in rows()}
    assert len(named) > 20
    assert [promise for promise, tests in named.items() if not tests] == []
    assert {test for tests in named.values() for test in tests if test not in known} == set()


def test_every_promise_has_its_mechanism_and_a_requirement() -> None:
    requirements = (HERE.parent / "docs" / "requirements.md").read_text(encoding="utf-8")
    numbers = set(re.findall(r"^- ([A-Z]\d+) ", requirements, re.MULTILINE))
    assert {row[0] for row in rows()} <= numbers
    assert [row[1] for row in rows() if not re.search(r"[\w)`]\.$", row[2])] == []
    modules = {name for row in rows() for name in re.findall(r"`([a-z]+/[\w/]*(?:\.py)?)`", row[2])}
    assert [name for name in sorted(modules) if not (HERE.parent / name).exists()] == []
