"""What a command prints: data on stdout as a table, JSON or YAML; everything else on stderr.

Tables are for people and may change; JSON and YAML carry every field and are for scripts. Without a terminal a table is
not cut to a width.
"""

from __future__ import annotations

import enum
import json
import shutil
import sys
import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from edgectl.plain import Plain

_WIDTH_WITHOUT_TERMINAL = 240
_GAP = 2


class Output(enum.StrEnum):
    """Forms of output."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


@dataclass(frozen=True, slots=True)
class Table:
    """A table for people: a title, which may be empty, column heads and rows of text.

    ``spare`` columns are left out, first named first, where the terminal is too narrow for all.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    spare: Sequence[str] = ()

    def fitted(self, width: int) -> tuple[Table, tuple[str, ...]]:
        """The table without as many spare columns, in their order, as must go to fit; and which went."""
        gone: list[str] = []
        for name in self.spare:
            if self._natural_width(gone) <= width:
                break
            gone.append(name)
        kept = [index for index, name in enumerate(self.columns) if name not in gone]
        rows = [[row[index] for index in kept] for row in self.rows]
        return Table(self.title, [self.columns[index] for index in kept], rows), tuple(gone)

    def _natural_width(self, gone: Sequence[str]) -> int:
        widths = [
            max(len(line) for cell in (name, *(row[index] for row in self.rows)) for line in cell.split("\n"))
            for index, name in enumerate(self.columns)
            if name not in gone
        ]
        return sum(widths) + _GAP * (len(widths) - 1)


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
    gone: dict[str, None] = {}
    for part in page.parts:
        if isinstance(part, str):
            text = wrapped(part, console.width) if sys.stdout.isatty() else part
            console.print(text, markup=False, soft_wrap=True)
            continue
        fitted, left_out = part.fitted(console.width)
        gone.update(dict.fromkeys(left_out))
        table = RichTable(
            title=part.title or None,
            box=None,
            title_justify="left",
            header_style="bold",
            pad_edge=False,
            padding=(0, _GAP, 0, 0),
        )
        for column in fitted.columns:
            table.add_column(column, overflow="fold")
        for row in fitted.rows:
            table.add_row(*(_escaped(row)))
        console.print(table if fitted.rows else "(none)")
    if gone:
        note(f"(no room for: {', '.join(gone)}; a wider terminal or --output yaml shows all)")


def wrapped(text: str, width: int) -> str:
    """The text's lines broken between words, what is carried over indented under its line."""
    return "\n".join(
        textwrap.fill(
            line,
            width,
            subsequent_indent=" " * (len(line) - len(line.lstrip()) + _GAP),
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=True,
        )
        if len(line) > width
        else line
        for line in text.split("\n")
    )


def note(text: str) -> None:
    """Tell the person something that is not data."""
    if sys.stderr.isatty():
        text = wrapped(text, shutil.get_terminal_size().columns)
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
