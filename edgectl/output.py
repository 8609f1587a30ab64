"""What a command prints: data on stdout as a table, JSON or YAML; everything else on stderr.

Tables are for people and may change; JSON and YAML carry every field and are for scripts. Without a terminal a table is
not cut to a width.
"""

from __future__ import annotations

import enum
import json
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from edgectl.plain import Plain

_WIDTH_WITHOUT_TERMINAL = 240


class Output(enum.StrEnum):
    """Forms of output."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


@dataclass(frozen=True, slots=True)
class Table:
    """A table for people: a title, which may be empty, column heads and rows of text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Page:
    """What a person gets: lines and tables, top to bottom."""

    parts: Sequence[Table | str] = field(default=())


def show(output: Output, data: Plain, page: Page) -> None:
    """Print the data in the form wanted; a stream of answers calls it once each."""
    if output is Output.JSON:
        sys.stdout.write(json.dumps(data, indent=None if not sys.stdout.isatty() else 2, ensure_ascii=False) + "\n")
    elif output is Output.YAML:
        import yaml

        sys.stdout.write(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, explicit_start=True))
    else:
        show_page(page)
    sys.stdout.flush()


def show_page(page: Page) -> None:
    """Print for people."""
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL, highlight=False, emoji=False)
    for part in page.parts:
        if isinstance(part, str):
            console.print(part, markup=False, soft_wrap=True)
            continue
        table = RichTable(title=part.title or None, box=None, title_justify="left", header_style="bold", pad_edge=False)
        for column in part.columns:
            table.add_column(column, overflow="fold")
        for row in part.rows:
            table.add_row(*(_escaped(row)))
        console.print(table)


def note(text: str) -> None:
    """Tell the person something that is not data."""
    sys.stderr.write(text + "\n")


def confirm(question: str, *, yes: bool) -> None:
    """Ask before what cannot be taken back; raises UsageError for a no, or where nobody can be asked."""
    from edgectl.exits import UsageError

    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} There is no terminal to ask at: add --yes")
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise UsageError("not done")


def _escaped(row: Iterable[str]) -> list[str]:
    from rich.markup import escape

    return [escape(cell) for cell in row]
