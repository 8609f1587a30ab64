"""``edgectl context``: whom to ask."""

from __future__ import annotations

from typing import Annotated

import typer

from edgectl.framework import Session, command
from edgectl.output import Table

app = typer.Typer(help="Whom to ask: control, or a store's hub.", no_args_is_help=True)


@command(app, "list")
def list_contexts(session: Session) -> None:
    """Show the contexts, the selected one with a star, and the file they are in."""
    from edgectl.contexts import contexts_path, load_contexts

    path = contexts_path()
    contexts = load_contexts(path)
    data = [
        {
            "name": c.name,
            "selected": c.name == contexts.current,
            "address": c.address,
            "node": c.node.uri,
            "identity": str(c.identity),
        }
        for c in contexts.contexts.values()
    ]
    rows = [
        ("*" if c["selected"] else "", *(str(c[key]) for key in ("name", "address", "node", "identity"))) for c in data
    ]
    session.show(data, f"from {path}", Table("", ("", "context", "address", "node", "identity"), rows))


@command(app, "use")
def use(session: Session, *, name: Annotated[str, typer.Argument(help="The context.")]) -> None:
    """Select a context for the commands to come."""
    from edgectl.contexts import contexts_path, load_contexts, save_contexts

    path = contexts_path()
    contexts = load_contexts(path).use(name)
    save_contexts(path, contexts)
    session.show({"selected": name, "file": str(path)}, f"{name} selected in {path}")
