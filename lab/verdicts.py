"""How a checker's command ends: findings for people, JSON where it is wanted, the exit code.

Imports no product code, as no checker does.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lab.evidence import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Judged:
    """What a checker found: ``told`` is for people, ``data`` goes into the JSON beside ``holds``."""

    holds: bool
    told: str
    data: dict[str, Any]


class Judge(Protocol):
    """A checker; raises EvidenceError when there is nothing to judge by."""

    def __call__(self, directory: Path, /) -> Judged:
        """Judge what is in that directory."""
        ...


def command(prog: str, what: str, judge: Judge, argv: Sequence[str] | None) -> int:
    """Judge from the command line ``python -m PROG DIR [--json FILE]``, where ``what`` is said of the program.

    Returns 0 when everything holds, 1 when not, 2 when there is nothing to judge by. The findings go to stdout, and to
    stderr where the JSON takes that.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description=what.partition("\n")[0])
    parser.add_argument("directory", type=Path, metavar="DIR", help="what was run there and kept")
    parser.add_argument("--json", metavar="FILE", help="write the verdict as JSON; - is stdout")
    arguments = parser.parse_args(argv)
    try:
        judged = judge(arguments.directory)
    except EvidenceError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 2
    (sys.stderr if arguments.json == "-" else sys.stdout).write(judged.told)
    text = json.dumps({"holds": judged.holds, **judged.data}) + "\n"
    if arguments.json == "-":
        sys.stdout.write(text)
    elif arguments.json:
        Path(arguments.json).write_text(text, encoding="utf-8")
    return 0 if judged.holds else 1
