"""``edgectl completion SHELL``: what makes TAB know edgectl's commands and the names of the fleet."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from edgectl.completing import VARIABLE
from edgectl.framework import Session, command


class Shell(enum.StrEnum):
    """Shells that are known."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def register(app: typer.Typer) -> None:
    """Add the command to the root."""

    @command(app, "completion")
    def completion(
        session: Session,
        *,
        shell: Annotated[Shell, typer.Argument(help="The shell.")],
        install: Annotated[bool, typer.Option("--install", help="Put it where the shell reads it.")] = False,
    ) -> None:
        """Make TAB know commands and names. Prints the shell's script; --install puts it where the shell reads it.

        For this shell only: eval "$(edgectl completion bash)".
        """
        from typer import _completion_shared as typers

        if install:
            _, path = typers.install(shell=shell.value, prog_name="edgectl", complete_var=VARIABLE)
            session.show({"shell": shell.value, "file": str(path)}, f"written to {path}; open a new {shell.value}")
            return
        script = typers.get_completion_script(prog_name="edgectl", complete_var=VARIABLE, shell=shell.value)
        session.show({"shell": shell.value, "script": script}, script)
