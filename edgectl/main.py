"""edgectl: the root of the command line, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from edgectl.commands import authority, contexts, devices, explain, fleet, hub, lab, nodes, policy, releases, waves
from edgectl.exits import Exit, exit_of_error, hint_for
from edgectl.framework import OutputOption, RootContextOption, Session
from edgectl.output import Output, note
from wavemesh.errors import WavemeshError

app = typer.Typer(
    name="edgectl",
    help="Drive a wavemesh fleet. Asked twice, done once; what cannot be delivered now is queued and shown as queued.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for _name, _noun in {
    "wave": waves.app,
    "hub": hub.app,
    "device": devices.app,
    "release": releases.app,
    "node": nodes.app,
    "ca": authority.app,
    "policy": policy.app,
    "fleet": fleet.fleet,
    "ledger": fleet.ledger,
    "intent": fleet.intent,
    "audit": fleet.audit,
    "context": contexts.app,
    "lab": lab.app,
}.items():
    app.add_typer(_noun, name=_name)
explain.register(app)


def _version(wanted: bool) -> None:  # noqa: FBT001  # Typer hands a flag's value to its callback by position
    if wanted:
        from importlib.metadata import version

        typer.echo(f"edgectl {version('wavemesh')}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    *,
    context: RootContextOption = None,
    output: OutputOption = None,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")] = False,
) -> None:
    """Take the two options that every command has; they may stand on either side of the noun."""
    del version
    ctx.obj = Session(context, output or Output.TABLE)


def main() -> None:
    """Run edgectl with this process's arguments and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run edgectl and return the exit code."""
    try:
        code = app(arguments, standalone_mode=False)
    except WavemeshError as error:
        return report(error)
    except typer.TyperException as error:
        note(f"error: {error.format_message()} (`--help` after a command shows its options)")
        return Exit.BAD_INPUT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except KeyboardInterrupt:
        return 130
    return int(code or 0)


def report(error: WavemeshError) -> int:
    """One line on stderr: what, where, what to type next."""
    hint = hint_for(error.details.get("reason", error.reason))
    note(f"error: {error}" + (f" ({hint})" if hint else ""))
    return exit_of_error(error)
