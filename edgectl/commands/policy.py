"""``edgectl policy``: check a policy file without asking anybody; see those that waves were planned from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgectl.client import CALL_TIMEOUT_S
from edgectl.completing import wave_ids
from edgectl.exits import Exit, UsageError
from edgectl.framework import DEFAULT_LIMIT, LimitOption, Session, command
from edgectl.output import Table, note
from edgectl.tables import short

app = typer.Typer(help="Policies: check a file, see those in use.", no_args_is_help=True)

FileArgument = Annotated[Path, typer.Argument(help="The policy file.")]


@command(app, "validate")
def validate(session: Session, *, file: FileArgument) -> None:
    """Check a policy file. Each problem with file, line, column, key and reason; asks nobody."""
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
    """Print the JSON Schema of policies. Editors and CI validate with it."""
    import json

    from wavemesh.policy.schema import json_schema

    data = json_schema()
    session.show(data, json.dumps(data, indent=2))


@command(app, "list")
def list_policies(session: Session, *, limit: LimitOption = DEFAULT_LIMIT) -> None:
    """Show the policies of waves, by digest."""
    from wavemesh.v1.operator_pb2 import ListPoliciesRequest

    data = session.collect(ListPoliciesRequest(), "policies", limit)
    rows = [(short(one["digest"]), ", ".join(one["wave_ids"]) or "-") for one in data]
    session.show(data, Table("", ("policy", "waves"), rows))


@command(app, "show")
def show(
    session: Session,
    *,
    digest: Annotated[str, typer.Argument(help="The policy's digest, or the beginning of it.")] = "",
    wave: Annotated[str, typer.Option("--wave", help="Or: that of this wave.", autocompletion=wave_ids)] = "",
) -> None:
    """Show one policy in full. Defaults filled in, as control signed it."""
    import json

    from wavemesh.v1.operator_pb2 import GetPolicyRequest

    if bool(digest) == bool(wave):
        raise UsageError("give a policy's digest, or --wave W; `edgectl policy list` shows digests")
    request = GetPolicyRequest(digest=digest.lower(), wave_id=wave)
    found = session.ask(lambda stub: stub.GetPolicy(request, timeout=CALL_TIMEOUT_S)).policy
    policy = json.loads(found.json)
    data = {"digest": found.digest, "wave_ids": list(found.wave_ids), "policy": policy}
    head = f"policy {found.digest} of wave {', '.join(found.wave_ids) or 'none'}"
    session.show(data, head, json.dumps(policy, indent=2))
