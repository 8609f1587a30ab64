"""Reference pages that follow from code: ``python -m tools.reference`` writes them, ``--check`` compares."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

from edgectl.reference import edgectl_page
from tools.api import api_page
from wavemesh.errors import LocalError, PeerError, WavemeshError
from wavemesh.policy.reference import gates_page, policy_page, schema_file

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
PACKAGES = ("wavemesh", "control", "superhub", "storehub", "device", "edgectl", "lab")

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
    _import_everything()
    meanings: dict[tuple[str, str], list[str]] = {}
    for error in _family(WavemeshError):
        if error is WavemeshError or error.__module__.split(".")[0] not in PACKAGES:
            continue
        fault = "peer" if issubclass(error, PeerError) else "local" if issubclass(error, LocalError) else "either"
        meaning = " ".join((error.__doc__ or "").split("\n\n")[0].split()).replace("|", "\\|").replace("``", "`")
        entry = meanings.setdefault((error.reason, fault), [])
        if meaning not in entry:
            entry.append(meaning)
    rows = (f"| `{reason}` | {fault} | {' '.join(entry)} |\n" for (reason, fault), entry in sorted(meanings.items()))
    return _ERRORS_HEAD + "".join(rows)


def _import_everything() -> None:
    # Not the stubs, which have no errors, nor what runs when imported: programs, and migrations for Alembic alone.
    for package in PACKAGES:
        root = importlib.import_module(package)
        for module in pkgutil.walk_packages(root.__path__, f"{package}."):
            if not {"v1", "migrations", "__main__"} & set(module.name.split(".")):
                importlib.import_module(module.name)


def _family(root: type[WavemeshError]) -> list[type[WavemeshError]]:
    found = [root]
    for child in root.__subclasses__():
        found.extend(_family(child))
    return sorted(set(found), key=lambda error: (error.reason, error.__module__, error.__qualname__))


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
