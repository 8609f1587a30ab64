"""Whom to ask: the contexts file.

TOML: ``current = NAME`` and a table ``[contexts.NAME]`` each with ``address`` ("127.0.0.1:7401"), ``node`` (SPIFFE id
the server must prove) and ``identity`` (directory of the operator's node.key, node.crt and ca.crt).

Which file: EDGECTL_CONFIG if set; else ``./lab-data/contexts.toml`` if a lab lives here; else
``$XDG_CONFIG_HOME/wavemesh/contexts.toml`` (``~/.config`` without it). Which context: ``--context``, else
EDGECTL_CONTEXT, else ``current``.
"""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from wavemesh.errors import ConflictError, LocalError, NotFoundError, PeerError
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.durable import Disk

if TYPE_CHECKING:
    from collections.abc import Mapping

LAB_CONTEXTS = Path("lab-data/contexts.toml")
_FIELDS = ("address", "node", "identity")


class BadContextsError(LocalError):
    """The contexts file cannot be read or is not of the form described."""

    reason = "BAD_CONTEXTS"


class NoContextError(NotFoundError):
    """No such context, or none selected."""

    reason = "NO_CONTEXT"


@dataclass(frozen=True, slots=True)
class Context:
    """One node to ask, and as whom."""

    name: str
    address: str
    node: NodeId
    identity: Path


@dataclass(frozen=True, slots=True)
class Contexts:
    """The file's content."""

    current: str
    contexts: Mapping[str, Context]

    def select(self, name: str | None) -> Context:
        """The context of that name, or the current one; raises NoContextError."""
        wanted = name or self.current
        if wanted not in self.contexts:
            known = ", ".join(sorted(self.contexts)) or "none"
            msg = f"no context {wanted!r}; known: {known}" if wanted else f"no context selected; known: {known}"
            raise NoContextError(msg)
        return self.contexts[wanted]

    def merged(self, other: Contexts) -> Contexts:
        """These with the other's added, the other's selection winning."""
        return Contexts(other.current or self.current, {**self.contexts, **other.contexts})

    def use(self, name: str) -> Contexts:
        """These with another selection; raises NoContextError."""
        return replace(self, current=self.select(name).name)

    def put(self, context: Context) -> Contexts:
        """These with a context added or replaced; the first one is selected."""
        return Contexts(self.current or context.name, {**self.contexts, context.name: context})

    def rename(self, old: str, new: str) -> Contexts:
        """These with one under another name; raises NoContextError, ConflictError when the name is taken."""
        context = self.select(old)
        if new in self.contexts:
            msg = f"there is a context {new!r} already; delete it first: `edgectl context delete {new}`"
            raise ConflictError(msg, context=new)
        others = {name: one for name, one in self.contexts.items() if name != old}
        return Contexts(new if self.current == old else self.current, {**others, new: replace(context, name=new)})

    def without(self, name: str) -> Contexts:
        """These without one; raises NoContextError. Deleting the selected one leaves none selected."""
        self.select(name)
        others = {other: one for other, one in self.contexts.items() if other != name}
        return Contexts("" if self.current == name else self.current, others)


def user_path(environment: Mapping[str, str] = os.environ) -> Path:
    """The user's own file: EDGECTL_CONFIG, else the one under the configuration directory."""
    if environment.get("EDGECTL_CONFIG"):
        return Path(environment["EDGECTL_CONFIG"])
    base = environment.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "wavemesh" / "contexts.toml"


def contexts_path(environment: Mapping[str, str] = os.environ) -> Path:
    """The file edgectl reads here and now."""
    if not environment.get("EDGECTL_CONFIG") and LAB_CONTEXTS.exists():
        return LAB_CONTEXTS
    return user_path(environment)


def load_contexts(path: Path) -> Contexts:
    """Read the file; an absent one holds nothing. Raises BadContextsError."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Contexts("", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        msg = f"{path}: {exc}"
        raise BadContextsError(msg) from exc
    tables = raw.get("contexts", {})
    current = raw.get("current", "")
    if not isinstance(tables, dict) or not isinstance(current, str):
        msg = f"{path}: wants `current = NAME` and tables [contexts.NAME]"
        raise BadContextsError(msg)
    return Contexts(current, {name: _read_context(path, name, table) for name, table in tables.items()})


def _read_context(path: Path, name: str, table: object) -> Context:
    if not isinstance(table, dict) or any(not isinstance(table.get(field), str) for field in _FIELDS):
        msg = f"{path}: [contexts.{name}] wants the strings {', '.join(_FIELDS)}"
        raise BadContextsError(msg)
    try:
        node = NodeId.parse(table["node"])
    except PeerError as exc:
        msg = f"{path}: [contexts.{name}] node: {exc}"
        raise BadContextsError(msg) from exc
    return Context(name, table["address"], node, Path(table["identity"]))


def save_contexts(path: Path, contexts: Contexts) -> None:
    """Write the file, creating its directory; raises DiskFaultError."""
    lines = [f"current = {_quoted(contexts.current)}", ""]
    for name in sorted(contexts.contexts):
        context = contexts.contexts[name]
        lines += [
            f"[contexts.{_quoted(name)}]",
            f"address = {_quoted(context.address)}",
            f"node = {_quoted(context.node.uri)}",
            f"identity = {_quoted(str(context.identity))}",
            "",
        ]
    disk = Disk()
    disk.make_dir(path.parent)
    disk.write_atomic(path, "\n".join(lines).encode())


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's escapes are a subset of TOML's."""
    return json.dumps(text, ensure_ascii=False)
