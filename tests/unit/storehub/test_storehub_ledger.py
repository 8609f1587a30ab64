"""H7: the ledger is a merge, so replays and reorderings change nothing."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from random import Random

import pytest

from storehub.ledger import Entry, summarise, supersedes
from wavemesh.codec.statements import encode
from wavemesh.trust.statements import DeviceOutcome, Envelope, OutcomeKind

AT = datetime(2026, 3, 1, tzinfo=UTC)
DEVICE = "region/midwest/store/store-209/device/pos-12"


def entry(
    kind: OutcomeKind,
    attempt: int = 1,
    sequence: int = 1,
    *,
    by_device: bool = True,
    gate: str = "",
    device: str = DEVICE,
) -> Entry:
    outcome = DeviceOutcome("142", device, attempt, sequence, kind, gate, "", "", "", "", "", "", AT)
    return Entry(outcome, Envelope(outcome.payload_type, encode(outcome), ()), "x", by_device, AT)


def test_the_highest_attempt_and_sequence_win_and_the_same_again_changes_nothing() -> None:
    old = entry(OutcomeKind.INCONCLUSIVE, 1, 5, gate="power-loss")
    assert supersedes(old, None)
    assert not supersedes(old, old)
    assert supersedes(entry(OutcomeKind.UPDATED, 2, 1), old)
    assert not supersedes(entry(OutcomeKind.UPDATED, 1, 4), old)


def test_a_devices_word_beats_an_inference_at_equal_numbers() -> None:
    own, inferred = entry(OutcomeKind.UPDATED), entry(OutcomeKind.SILENT, by_device=False, gate="watchdog")
    assert supersedes(own, inferred)
    assert not supersedes(inferred, own)


@pytest.mark.parametrize("seed", range(20))
def test_any_order_gives_the_same_entry(seed: int) -> None:
    rng = Random(seed)
    entries = [
        entry(rng.choice(list(OutcomeKind)), rng.randint(1, 3), rng.randint(0, 3), by_device=rng.random() < 0.5)
        for _ in range(12)
    ]
    results = set()
    for _ in range(5):
        rng.shuffle(entries)
        held: Entry | None = None
        for one in entries:
            held = one if supersedes(one, held) else held
        assert held is not None
        results.add(held.envelope.payload)
    assert len(results) == 1


def test_sums_are_of_the_targets_and_the_ratio_leaves_out_what_says_nothing() -> None:
    kinds = {
        "a": OutcomeKind.UPDATED,
        "b": OutcomeKind.ROLLED_BACK,
        "c": OutcomeKind.REFUSED,
        "d": OutcomeKind.UNKNOWN,
        "stranger": OutcomeKind.FAILED,
    }
    entries = {name: entry(kind, gate="" if name == "a" else f"gate-{name}") for name, kind in kinds.items()}
    summary = summarise(["a", "b", "c", "d", "e"], entries)
    assert sum(asdict(summary.counts).values()) == 5
    assert summary.counts.pending == 1
    assert summary.counts.rollback_ratio == pytest.approx(0.5)
    assert summary.gates == {"gate-b": 1, "gate-c": 1, "gate-d": 1}
    assert summarise([], {}).counts.rollback_ratio == 0
