"""Reference pages that follow from code: ``python -m tools.reference`` writes them, ``--check`` compares."""

from __future__ import annotations

import sys
from pathlib import Path

from edgectl.reference import edgectl_page
from edgectl.words import error_meanings
from tools.api import api_page
from wavemesh.policy.reference import gates_page, policy_page, schema_file

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"

_ERRORS_HEAD = """\
# Errors

<!-- Written by `make reference` from the error classes; do not edit. -->

Every error says what, where and what to do. Its *reason* is the stable word for programs: over gRPC it is
`google.rpc.ErrorInfo.reason` with domain `wavemesh`, and what the error is about is in the metadata. The *fault* tells
who has to act: the `peer` that sent or asked, or this side (`local`): its disk, its configuration, its machine.

| reason | fault | meaning |
|---|---|---|
"""


def errors_page() -> str:
    """The page on errors: each reason once, with what its classes say of themselves."""
    rows = (
        f"| `{reason}` | {fault} | {meaning.replace('|', chr(92) + '|').replace('``', '`')} |\n"
        for reason, (fault, meaning, _) in sorted(error_meanings().items())
    )
    return _ERRORS_HEAD + "".join(rows)


def pages() -> dict[str, str]:
    """Every generated page by file name."""
    return {
        "policy.md": policy_page(),
        "policy.schema.json": schema_file(),
        "gates.md": gates_page(),
        "errors.md": errors_page(),
        "edgectl.md": edgectl_page(),
        "api.md": api_page(),
    }


def differences() -> list[str]:
    """Names of the pages that are not current."""
    current = {name: REFERENCE / name for name in pages()}
    return [name for name, text in pages().items() if not current[name].exists() or current[name].read_text() != text]


def main(arguments: list[str]) -> int:
    """Write or compare."""
    if arguments != ["--check"]:
        REFERENCE.mkdir(parents=True, exist_ok=True)
        for name, text in pages().items():
            (REFERENCE / name).write_text(text)
        return 0
    stale = differences()
    if stale:
        print(f"docs/reference is not current: {', '.join(stale)}; run `make reference`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
