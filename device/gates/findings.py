"""What a gate says: it passes, fails with evidence, or cannot tell. Pure.

A gate never raises. What it cannot tell does not pass, unless the policy lists the gate under
``guardrails.passWhenCannotTell``. An outcome names exactly one gate: the first that does not pass, in a fixed order.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from device.progress import Rules


class Verdict(enum.Enum):
    """What a gate says."""

    GOOD = "good"
    BAD = "bad"
    CANNOT_TELL = "cannot-tell"


@dataclass(frozen=True, slots=True)
class Finding:
    """One gate's word, with the evidence behind it: a sentence, and the two values apart where it compares any."""

    gate: str
    verdict: Verdict
    evidence: str = ""
    observed: str = ""
    required: str = ""

    @property
    def passes(self) -> bool:
        """Whether the update may go on as far as this gate is concerned."""
        return self.verdict is Verdict.GOOD

    @property
    def words(self) -> tuple[str, str, str, str]:
        """Gate, evidence, observed and required value, as the machine's events take them."""
        return self.gate, self.evidence, self.observed, self.required


def good(gate: str) -> Finding:
    """It passes."""
    return Finding(gate, Verdict.GOOD)


def bad(gate: str, evidence: str, observed: str, required: str) -> Finding:
    """It fails."""
    return Finding(gate, Verdict.BAD, evidence, observed, required)


def cannot_tell(gate: str, evidence: str, required: str) -> Finding:
    """Its source does not answer, or not with anything that means something."""
    return Finding(gate, Verdict.CANNOT_TELL, f"cannot tell: {evidence}", "cannot tell", required)


def settled(finding: Finding, rules: Rules) -> Finding:
    """The finding as the policy takes it: a gate that cannot tell may pass."""
    word = finding.gate.partition(":")[0]
    if finding.verdict is Verdict.CANNOT_TELL and word in rules.pass_when_cannot_tell:
        return replace(finding, verdict=Verdict.GOOD)
    return finding


def first_failure(findings: Iterable[Finding], rules: Rules) -> Finding | None:
    """The first finding that does not pass."""
    return next((one for one in (settled(finding, rules) for finding in findings) if not one.passes), None)
