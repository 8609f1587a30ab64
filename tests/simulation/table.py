"""The faults of a run as the table of docs/simulation.md: ``python -m tests.simulation ... --markdown -``."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from tests.simulation.kinds import Fault

if TYPE_CHECKING:
    from collections.abc import Mapping

_SOURCE = Path(__file__).with_name("kinds.py")


def described() -> dict[str, str]:
    """What each kind of fault does, as its documentation in ``kinds.py`` says, in that order."""
    tree = ast.parse(_SOURCE.read_text(encoding="utf-8"))
    [body] = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == Fault.__name__]
    texts: dict[str, str] = {}
    for member, said in itertools.pairwise(body):
        if isinstance(member, ast.Assign) and isinstance(member.targets[0], ast.Name) and isinstance(said, ast.Expr):
            kind = Fault[member.targets[0].id]
            texts[kind.value] = str(ast.literal_eval(said.value)).rstrip(".")
    return texts


def table(faults: Mapping[str, int]) -> str:
    """Kinds, what happens, and how often it did."""
    rows = [f"| `{kind}` | {text} | {faults.get(kind, 0):,} |" for kind, text in described().items()]
    return "\n".join(["| kind | what happens | times |", "|---|---|---|", *rows]) + "\n"
