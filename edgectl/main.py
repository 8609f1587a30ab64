"""edgectl: the root of the command line, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from edgectl.commands import (
    authority,
    completion,
    contexts,
    devices,
    explain,
    fleet,
    hub,
    intents,
    inventory,
    keys,
    lab,
    nodes,
    permits,
    places,
    policy,
    releases,
    revocations,
    traces,
    waves,
)
from edgectl.completing import VARIABLE
from edgectl.exits import Exit, exit_of_error, hint_for
from edgectl.framework import OutputOption, RootContextOption, Session
from edgectl.output import Output, note
from wavemesh.errors import WavemeshError

_HELP = """Drive a wavemesh fleet. Asked twice, done once; what cannot be delivered now is queued and shown as queued.

Begin: `edgectl lab up` makes a fleet on this machine to play with, `edgectl ca create` begins one of your own
(docs/guide/first-fleet.md goes on). `edgectl context list` shows whom you ask, `edgectl fleet status` how it goes;
`edgectl explain WORD` says what any word here means. Scripts take `--output json`. What lowers risk (pause, halt,
rollback, prefetch) a store's hub does at once, WAN or no WAN; what raises it waits: see `intent list`.
"""

app = typer.Typer(
    name="edgectl",
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for _name, _noun in {
    "wave": waves.app,
    "device": devices.app,
    "intent": intents.app,
    "ledger": fleet.ledger,
    "fleet": fleet.fleet,
    "hub": hub.app,
    "store": places.store,
    "region": places.region,
    "cohort": places.cohort,
    "inventory": inventory.app,
    "node": nodes.app,
    "ca": authority.app,
    "release": releases.app,
    "keys": keys.app,
    "hold": permits.hold,
    "permit": permits.permit,
    "policy": policy.app,
    "audit": fleet.audit,
    "trace": traces.app,
    "context": contexts.app,
    "lab": lab.app,
}.items():
    app.add_typer(_noun, name=_name)
explain.register(app)
revocations.register(nodes.app)
completion.register(app)


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
    if VARIABLE in os.environ:
        _complete()
    sys.exit(run(sys.argv[1:]))


def _complete() -> None:
    """Answer the shell, which asks what may follow what was typed so far; nothing of it goes to stderr. Exits."""
    from typer._completion_classes import completion_init

    completion_init()
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    app(prog_name="edgectl", complete_var=VARIABLE)


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
    hint = hint_for(error.details.get("reason", error.reason), error.details.get("gate", ""))
    # A message that names a command itself needs no second one.
    note(f"error: {error}" + (f" ({hint})" if hint and "`edgectl" not in str(error) else ""))
    return exit_of_error(error)
