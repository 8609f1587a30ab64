"""``edgectl explain GATE``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edgectl.framework import Session, command
from edgectl.output import Table
from wavemesh.errors import NotFoundError


class NoGateError(NotFoundError):
    """No gate has that name."""

    reason = "NO_GATE"


def register(app: typer.Typer) -> None:
    """Add the command to the root."""

    @command(app, "explain")
    def explain(
        session: Session, *, gate: Annotated[str, typer.Argument(help='"battery", "peripheral:scanner" …')] = ""
    ) -> None:
        """Say what a gate means, when it is checked and what to do; without one, list them all."""
        from wavemesh.policy.gates import BadGateError, Gate, Lasting, parse_gate

        try:
            wanted = [parse_gate(gate).gate if ":" in gate else Gate(gate)] if gate else list(Gate)
        except (ValueError, BadGateError) as exc:
            msg = f"no gate {gate!r}; `edgectl explain` lists them all"
            raise NoGateError(msg) from exc
        data: list[dict[str, Any]] = [
            {
                "gate": (gate or g.value) if len(wanted) == 1 else g.value + (":<name>" if g.is_named else ""),
                "meaning": g.notes.meaning,
                "remedy": g.notes.remedy,
                "checked": [stage.value for stage in g.notes.stages],
                "lasting": g.notes.lasting is Lasting.FINAL,
            }
            for g in wanted
        ]
        if len(data) == 1:
            [one] = data
            stages = ", ".join(one["checked"])
            session.show(one, f"{one['gate']}: {one['meaning']}", f"  checked: {stages}", f"  do: {one['remedy']}")
            return
        session.show(data, Table("", ("gate", "meaning"), [(str(d["gate"]), str(d["meaning"])) for d in data]))
