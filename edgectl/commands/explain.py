"""``edgectl explain WORD``."""

from __future__ import annotations

from typing import Annotated

import typer

from edgectl.framework import Session, command
from edgectl.output import Table
from wavemesh.errors import NotFoundError


class NoWordError(NotFoundError):
    """Nothing that edgectl prints has that name."""

    reason = "NO_WORD"


def words(incomplete: str) -> list[str]:
    """For the shell: what can be explained, without error reasons."""
    from edgectl.words import catalogue

    return sorted({one.word for one in catalogue() if one.word.startswith(incomplete)})


WordArgument = Annotated[
    str, typer.Argument(help='"battery", "peripheral:scanner", "silent", "queued", "LINK_DOWN" …', autocompletion=words)
]


def register(app: typer.Typer) -> None:
    """Add the command to the root."""

    @command(app, "explain")
    def explain(session: Session, *, word: WordArgument = "") -> None:
        """Say what a printed word means. Gates, outcomes, states, errors, and what to do; without a word, all of them.

        With errors every reason is listed too: `edgectl explain errors`.
        """
        from dataclasses import asdict

        from edgectl.words import catalogue, reasons
        from edgectl.words import explain as meanings_of

        if word in {"", "errors"}:
            found = reasons() if word else list(catalogue())
            rows = [(one.kind, one.word, one.meaning) for one in found]
            session.show([asdict(one) | {"more": dict(one.more)} for one in found], Table("", _COLUMNS, rows))
            return
        found = meanings_of(word)
        if not found:
            msg = f"nothing here is called {word!r}"
            raise NoWordError(msg)
        lines = []
        for one in found:
            lines.append(f"{one.word} ({one.kind}): {one.meaning}")
            lines += [f"  {name}: {text}" for name, text in one.more]
            lines += [f"  do: {one.remedy}"] if one.remedy else []
        session.show([asdict(one) | {"more": dict(one.more)} for one in found], *lines)


_COLUMNS = ("kind", "word", "meaning")
