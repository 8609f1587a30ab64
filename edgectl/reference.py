"""``docs/reference/edgectl.md``, written from the command line itself: every command, its options, every exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typer.main import get_command

from edgectl.exits import Exit
from edgectl.main import app

if TYPE_CHECKING:
    from collections.abc import Iterator

_EVERYWHERE = frozenset({"context", "output", "help"})
_HEAD = """\
# edgectl

<!-- Written by `make reference` from the command line; do not edit. -->

Every command takes `--context NAME` (whom to ask; also before the noun, or in `EDGECTL_CONTEXT`) and
`--output table|json|yaml` (also `-o`). Data goes to stdout, everything else to stderr. With JSON and YAML every field
is always there; a stream gives one document an answer.

Contexts are read from `EDGECTL_CONFIG` if it is set, else from `./lab-data/contexts.toml` if a lab lives here, else
from `~/.config/wavemesh/contexts.toml`. What only hubs know (their cache, the logs of their devices) is asked of them
when control is selected: of each, or of the one concerned.

Every mutation is idempotent: asked twice, it is done once, and the second answer says so. What lowers risk (pause,
halt, rollback, prefetch) a hub does at once, WAN or no WAN; what raises it (start, resume) it queues for control. What
cannot be delivered now is queued durably, shown as queued with whom it waits for and its place, and delivered later,
or taken back with `intent cancel`. A script that must survive a lost answer gives `--intent-id` and sends the same id
again.

`--dry-run` changes nothing and says what would happen. `wave halt` and `device rollback` cannot be undone: on a
terminal they show what they would do and ask; `--yes` answers beforehand, and without a terminal nobody is asked.

Lists follow the node's pages up to `--limit` and say on stderr when there is more. On a narrow terminal a table leaves
columns out and says which. Bars and live tables are drawn on stderr, on terminals only.

## Exit codes

| code | meaning |
|---|---|
"""


def edgectl_page() -> str:
    """The page."""
    codes = "".join(f"| {code.value} | {code.meaning} |\n" for code in Exit)
    return _HEAD + codes + "".join(_sections(get_command(app), "edgectl"))


def _sections(command: Any, path: str) -> Iterator[str]:
    """A group and what is in it, depth first, in the order of the command line."""
    children = getattr(command, "commands", {})
    if path != "edgectl" or not children:
        yield from _group(command, path) if children else _command(command, path)
    for name, child in children.items():
        yield from _sections(child, f"{path} {name}")


def _group(command: Any, path: str) -> Iterator[str]:
    if path.count(" ") == 1:
        yield f"\n## {path}\n\n{command.help}\n"


def _command(command: Any, path: str) -> Iterator[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name not in _EVERYWHERE]
    words = [path, *(f"{p.name.upper()}" if p.required else f"[{p.name.upper()}]" for p in arguments)]
    words += [f"{p.opts[0]} {_value(p)}".strip() for p in options if p.required]
    yield f"\n### `{' '.join(words)}`\n\n{' '.join(command.help.split())}\n"
    rows = [f"| `{p.name.upper()}` | {_text(p)} |\n" for p in arguments]
    rows += [f"| `{', '.join(p.opts)}` {_needed(p)}| {_text(p)} |\n" for p in options]
    if rows:
        yield "\n| option | meaning |\n|---|---|\n" + "".join(rows)


def _value(parameter: Any) -> str:
    return "" if parameter.is_flag else parameter.name.upper()


def _needed(parameter: Any) -> str:
    return "(required) " if parameter.required else ""


def _text(parameter: Any) -> str:
    return str(parameter.help or "").replace("|", "\\|")
