"""``edgectl policy``: check a policy file without asking anybody."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgectl.exits import Exit
from edgectl.framework import Session, command
from edgectl.output import note

app = typer.Typer(help="Policy files.", no_args_is_help=True)

FileArgument = Annotated[Path, typer.Argument(help="The policy file.")]


@command(app, "validate")
def validate(session: Session, *, file: FileArgument) -> None:
    """Check a policy file; each problem with file, line, column, key and reason."""
    import json

    from edgectl.files import read_file
    from wavemesh.policy.document import PolicyError, policy_to_json
    from wavemesh.policy.reader import parse_policy

    try:
        policy = parse_policy(read_file(file), str(file))
    except PolicyError as exc:
        problems = [
            {"file": p.file, "line": p.line, "column": p.column, "key": p.key, "reason": p.reason} for p in exc.problems
        ]
        for p in problems:
            note(f"{p['file']}:{p['line']}:{p['column']}: {p['key']}: {p['reason']}")
        session.show({"valid": False, "problems": problems})
        raise typer.Exit(Exit.BAD_INPUT) from exc
    effective = json.loads(policy_to_json(policy))
    session.show({"valid": True, "problems": [], "policy": effective}, f"{file}: valid")


@command(app, "schema")
def schema(session: Session) -> None:
    """Print the JSON Schema of policy files; editors and CI validate with it."""
    import json

    from wavemesh.policy.schema import json_schema

    data = json_schema()
    session.show(data, json.dumps(data, indent=2))
