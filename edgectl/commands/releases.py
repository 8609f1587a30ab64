"""``edgectl release``: make, sign, publish and hold releases."""

from __future__ import annotations

import typer

app = typer.Typer(help="Signed releases.", no_args_is_help=True)
