"""``edgectl context``: whom to ask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgectl.completing import context_names
from edgectl.exits import UsageError
from edgectl.framework import Session, command
from edgectl.output import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgectl.contexts import Context, Contexts

app = typer.Typer(help="Whom to ask: control, or a store's hub.", no_args_is_help=True)


NameArgument = Annotated[str, typer.Argument(help="The context.", autocompletion=context_names)]
_PORTS = 65_536


@command(app, "list")
def list_contexts(session: Session) -> None:
    """Show the contexts. The selected one has a star; the file they are in is named."""
    from edgectl.contexts import contexts_path, load_contexts

    path = contexts_path()
    contexts = load_contexts(path)
    data = [_shown(one, contexts) for _, one in sorted(contexts.contexts.items())]
    rows = [
        ("*" if c["selected"] else "", c["name"], c["address"], c["node"].removeprefix("spiffe://"), c["identity"])
        for c in data
    ]
    session.show(data, f"from {path}", Table("", ("", "context", "address", "node", "identity"), rows, ("identity",)))


@command(app, "show")
def show(session: Session, *, name: NameArgument = "") -> None:
    """Show one context. Whom it asks, where, as whom; without a name, the one that would be asked now."""
    from edgectl.contexts import contexts_path, load_contexts

    path = contexts_path()
    contexts = load_contexts(path)
    one = contexts.select(name or session.context_name)
    data = _shown(one, contexts)
    lines = [f"{one.name}  (from {path})", f"  address   {one.address}", f"  node      {one.node.uri}"]
    session.show(data, *lines, f"  identity  {one.identity}")


@command(app, "current")
def current(session: Session) -> None:
    """Print whom is asked. --context, else EDGECTL_CONTEXT, else the selected one."""
    name = session.context.name
    session.show({"name": name}, name)


@command(app, "use")
def use(session: Session, *, name: NameArgument) -> None:
    """Select a context for the commands to come."""
    path = _change(lambda contexts: contexts.use(name))
    session.show({"selected": name, "file": str(path)}, f"{name} selected in {path}")


@command(app, "set")
def set_context(
    session: Session,
    *,
    name: NameArgument,
    address: Annotated[str, typer.Option("--address", help='Where the node listens, "control.example:7443".')] = "",
    node: Annotated[str, typer.Option("--node", help='Who must answer there, "spiffe://FLEET/control/NAME".')] = "",
    identity: Annotated[
        Path | None, typer.Option("--identity", help="Directory with your node.key, node.crt and ca.crt.")
    ] = None,
) -> None:
    """Add or change a context. What is not given stays; the first one added is selected."""
    from edgectl.contexts import Context
    from wavemesh.identity.nodes import NodeId

    def changed(contexts: Contexts) -> Contexts:
        before = contexts.contexts.get(name)
        if before is None and not (address and node and identity):
            raise UsageError(f"context {name!r} is new: give --address, --node and --identity")
        host, colon, port = (address or (before.address if before else "")).rpartition(":")
        if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < _PORTS):
            raise UsageError(f"--address {address!r}: write HOST:PORT")
        if before is None:
            return contexts.put(Context(name, address, NodeId.parse(node), Path(identity or "").resolve()))
        changes: dict[str, Any] = {"address": address or before.address}
        changes |= {"node": NodeId.parse(node)} if node else {}
        changes |= {"identity": identity.resolve()} if identity else {}
        return contexts.put(replace(before, **changes))

    path = _change(changed)
    session.show({"set": name, "file": str(path)}, f"{name} set in {path}")


@command(app, "rename")
def rename(session: Session, *, old: NameArgument, new: Annotated[str, typer.Argument(help="Its new name.")]) -> None:
    """Give a context another name; a selected one stays selected."""
    path = _change(lambda contexts: contexts.rename(old, new))
    session.show({"renamed": old, "to": new, "file": str(path)}, f"{old} is now {new} in {path}")


@command(app, "delete")
def delete(session: Session, *, name: NameArgument) -> None:
    """Delete a context; identities stay where they are."""
    path = _change(lambda contexts: contexts.without(name))
    session.show({"deleted": name, "file": str(path)}, f"{name} deleted from {path}")


def _change(change: Callable[[Contexts], Contexts]) -> Path:
    """Change the file in use; returns which it is."""
    from edgectl.contexts import contexts_path, load_contexts, save_contexts

    path = contexts_path()
    save_contexts(path, change(load_contexts(path)))
    return path


def _shown(one: Context, contexts: Contexts) -> dict[str, Any]:
    return {
        "name": one.name,
        "selected": one.name == contexts.current,
        "address": one.address,
        "node": one.node.uri,
        "identity": str(one.identity),
    }
