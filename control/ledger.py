"""A wave's ledger and what follows from it: merge, counts, halt, completion (semantics, "Populations"). Pure.

The ledger of a wave is, per target device, its latest signed outcome by the order of wavemesh/outcomes.py.

An outcome is *final* when the wave will not try that device again: updated, rolled back, failed, silent; refused by a
gate that does not pass by waiting; inconclusive with every attempt burned.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wavemesh.outcomes import Counts, Rank, tally, tally_gates
from wavemesh.policy.gates import Gate, parse_gate
from wavemesh.trust.statements import OutcomeKind, WaveState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

_FINAL = frozenset({OutcomeKind.UPDATED, OutcomeKind.ROLLED_BACK, OutcomeKind.FAILED, OutcomeKind.SILENT})
_BAD = (OutcomeKind.ROLLED_BACK, OutcomeKind.FAILED, OutcomeKind.SILENT)

#: What a store hub may say of a device in its place, because it infers it.
HUB_KINDS = frozenset({OutcomeKind.SILENT, OutcomeKind.UNKNOWN, OutcomeKind.FAILED, OutcomeKind.INCONCLUSIVE})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the ledger must know of one signed outcome; ``device`` is a path."""

    device: str
    attempt: int
    sequence: int
    kind: OutcomeKind
    gate: str
    by_device: bool
    payload_sha256: str = ""

    @property
    def rank(self) -> Rank:
        """Its place in the order of outcomes of one device."""
        return Rank(self.attempt, self.sequence, self.by_device, self.payload_sha256)


@dataclass(frozen=True, slots=True)
class HaltRule:
    """The policy's ``haltRollbackRatio`` and ``haltMinOutcomes``."""

    ratio: float
    least_outcomes: int


class Move(enum.Enum):
    """What a wave does next."""

    STAY = "stay"
    HALT = "halt"
    CLOSE = "close"


@dataclass(frozen=True, slots=True)
class Decision:
    """A move and its reason, for people."""

    move: Move
    reason: str = ""


def beats(incoming: Outcome, held: Outcome | None) -> bool:
    """Whether the incoming outcome replaces the one held for the same (wave, device)."""
    return held is None or incoming.rank > held.rank


def merge(held: Mapping[str, Outcome], incoming: Iterable[Outcome]) -> dict[str, Outcome]:
    """The ledger after more outcomes of the same wave, by device path."""
    merged = dict(held)
    for outcome in incoming:
        if beats(outcome, merged.get(outcome.device)):
            merged[outcome.device] = outcome
    return merged


def is_final(outcome: Outcome | None, attempts: int) -> bool:
    """Whether the wave will not try that device again."""
    if outcome is None:
        return False
    if outcome.kind is OutcomeKind.REFUSED:
        return not parse_gate(outcome.gate).gate.is_transient
    if outcome.kind is OutcomeKind.INCONCLUSIVE:
        return outcome.attempt >= attempts or outcome.gate == Gate.HALTED.value
    return outcome.kind in _FINAL


def count(targets: Iterable[str], outcomes: Mapping[str, Outcome]) -> Counts:
    """Outcomes of the targets; a target that nobody spoke of is pending."""
    return tally(targets, {device: outcome.kind for device, outcome in outcomes.items()})


def gate_counts(targets: Iterable[str], outcomes: Mapping[str, Outcome]) -> dict[str, int]:
    """Failures by gate, by name of gate (H7)."""
    return tally_gates(targets, {device: outcome.gate for device, outcome in outcomes.items()})


def decide(
    *,
    state: WaveState,
    targets: Iterable[str],
    outcomes: Mapping[str, Outcome],
    attempts: int,
    rule: HaltRule,
    expires_at: datetime,
    now: datetime,
) -> Decision:
    """What the ledger and the clock make of a wave (C2); halted and closed waves stay.

    A planned wave can only expire. Bad news counts before completion: a wave whose last device tips the ratio halts.
    """
    if state in {WaveState.HALTED, WaveState.CLOSED}:
        return Decision(Move.STAY)
    devices = tuple(targets)
    if state is not WaveState.PLANNED:
        counts = count(devices, outcomes)
        if counts.evidence >= rule.least_outcomes and counts.rollback_ratio > rule.ratio:
            bad = " + ".join(f"{getattr(counts, kind.name.lower())} {kind.name.lower()}" for kind in _BAD)
            return Decision(
                Move.HALT,
                f"rollback ratio {counts.rollback_ratio:.2f} is above {rule.ratio:g}: {bad} of {counts.evidence}",
            )
        if all(is_final(outcomes.get(device), attempts) for device in devices):
            return Decision(Move.CLOSE, "every device has its outcome")
    if now >= expires_at:
        return Decision(Move.CLOSE, "expired")
    return Decision(Move.STAY)
