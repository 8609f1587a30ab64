"""The ledger's bounds: on which side of them a wave halts, who may say what, and that the same word changes nothing."""

from __future__ import annotations

from datetime import UTC, datetime

from control.ledger import HUB_KINDS, HaltRule, Move, Outcome, beats, decide
from wavemesh.trust.statements import OutcomeKind, WaveState

NOW = datetime(2026, 5, 1, tzinfo=UTC)


def test_what_a_hub_may_say_in_a_devices_place() -> None:
    """Semantics: silent, unknown and failed are inferred, inconclusive by the hub's word; the rest a device signs."""
    assert {kind.name for kind in HUB_KINDS} == {"SILENT", "UNKNOWN", "FAILED", "INCONCLUSIVE"}


def test_the_same_word_again_replaces_nothing() -> None:
    held = Outcome("pos-1", 1, 1, OutcomeKind.UPDATED, "", by_device=True)
    assert not beats(held, held)
    assert beats(held, None)


def test_a_wave_halts_from_its_least_evidence_on() -> None:
    """The policy says 5: with the fifth, not the sixth; the reason counts them."""
    outcomes = {
        name: Outcome(name, 1, 1, kind, "watchdog", by_device=True)
        for name, kind in zip(
            "abcde", [OutcomeKind.ROLLED_BACK, OutcomeKind.SILENT, *[OutcomeKind.UPDATED] * 3], strict=True
        )
    }
    decision = decide(
        state=WaveState.RUNNING,
        targets=(*"abcde", "f"),
        outcomes=outcomes,
        attempts=3,
        rule=HaltRule(0.2, 5),
        expires_at=NOW,
        now=NOW,
    )
    assert decision.move is Move.HALT
    assert decision.reason == "rollback ratio 0.40 is above 0.2: 1 rolled_back + 0 failed + 1 silent of 5"
