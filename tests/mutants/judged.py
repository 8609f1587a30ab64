"""What is on record of the mutants: the modules, which test files kill theirs, and who survives for which reason.

``survivors.json`` and the tables of docs/mutants.md are written by ``python -m tests.mutants --record``; the reasons in
the former are by hand, and kept.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.mutants.operators import Mutant
    from tests.mutants.running import Verdict

PLACE = Path(__file__).with_name("survivors.json")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "mutants.md"
_WRITTEN_FROM = "`python -m tests.mutants --record`. -->"
CPU_MOST_S = 30.0
CELL_MOST = 140

MODULES = (
    "control.ledger",
    "control.permits",
    "control.reconciliation",
    "control.rollout",
    "device.progress",
    "device.recovery",
    "device.refusals",
    "device.resets",
    "device.rotation",
    "device.signoff",
    "device.transitions",
    "device.update",
    "storehub.availability",
    "storehub.eviction",
    "storehub.ledger",
    "storehub.standing",
    "storehub.swaps",
    "storehub.witnesses",
    "superhub.compliance",
    "superhub.rollup",
    "wavemesh.outcomes",
    "wavemesh.policy.gates",
    "wavemesh.policy.versions",
    "wavemesh.policy.windows",
    "wavemesh.queueing",
    "wavemesh.session.admission",
    "wavemesh.session.backoff",
    "wavemesh.session.child",
    "wavemesh.session.frames",
    "wavemesh.session.lanes",
    "wavemesh.session.liveness",
    "wavemesh.session.negotiation",
    "wavemesh.session.parent",
    "wavemesh.trust.freshness",
    "wavemesh.trust.holds",
)


@dataclass(frozen=True, slots=True)
class Recorded:
    """The choice of tests of the run on record: the files that killed mutants of the module, the best first."""

    files: Mapping[str, Sequence[str]]

    def tests_of(self, mutant: Mutant) -> list[str]:
        """The files of the mutant's module."""
        return list(self.files.get(mutant.module, ()))

    def cpu_most_s(self, test: str) -> float:
        """The same for every test."""
        return CPU_MOST_S


def on_record() -> dict[str, dict[str, Any]]:
    """By module: ``tests``, ``mutants``, ``killed``, and ``survivors`` with the reason of each."""
    recorded: dict[str, dict[str, Any]] = json.loads(PLACE.read_text()) if PLACE.exists() else {}
    return recorded


def judged(record: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """The reason of each survivor by key, by module; those without one are not judged."""
    return {
        module: {key: reason for key, reason in row["survivors"].items() if reason} for module, row in record.items()
    }


def record(verdicts: Sequence[Verdict]) -> None:
    """Put the verdicts on record, module by module; a reason that was given stays."""
    known = on_record()
    rows: dict[str, dict[str, Any]] = {}
    for module in sorted({verdict.mutant.module for verdict in verdicts}):
        mine = [verdict for verdict in verdicts if verdict.mutant.module == module]
        killers = Counter(verdict.killed_by.partition("::")[0] for verdict in mine if "::" in verdict.killed_by)
        reasons = known.get(module, {}).get("survivors", {})
        rows[module] = {
            "mutants": len(mine),
            "killed": sum(bool(verdict.killed_by) for verdict in mine),
            "tests": [name for name, _ in sorted(killers.items(), key=lambda pair: (-pair[1], pair[0]))],
            "survivors": {v.mutant.key: reasons.get(v.mutant.key, "") for v in mine if not v.killed_by},
        }
    merged = {**known, **rows}
    text = json.dumps({module: merged[module] for module in sorted(merged)}, indent=1, ensure_ascii=False)
    PLACE.write_text(text + "\n")
    PAGE.write_text(page(merged))


def page(record: Mapping[str, Mapping[str, Any]]) -> str:
    """docs/mutants.md with the tables of that record."""
    by_hand = PAGE.read_text().partition(_WRITTEN_FROM)[0]
    mutants, killed = (sum(row[key] for row in record.values()) for key in ("mutants", "killed"))
    lines = [f"{by_hand}{_WRITTEN_FROM}", "", "| module | mutants | killed | score |", "|---|---|---|---|"]
    lines += [_score(f"`{name}`", row["mutants"], row["killed"]) for name, row in sorted(record.items())]
    lines += [_score("**all**", mutants, killed), "", "| survivor | judged |", "|---|---|"]
    for name, row in sorted(record.items()):
        lines += [f"| `{name}` {_cell(key)} | {_cell(reason)} |" for key, reason in row["survivors"].items()]
    return "\n".join(lines) + "\n"


def _score(name: str, mutants: int, killed: int) -> str:
    return f"| {name} | {mutants} | {killed} | {killed / mutants:.1%} |"


def _cell(text: str) -> str:
    shown = text if len(text) <= CELL_MOST else f"{text[:CELL_MOST]}…"
    return shown.replace("|", "\\|").replace("<", "&lt;")
