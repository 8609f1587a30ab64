"""The ledger (C2, H7): merge, counts, ratio, halt, completion."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.ledger import HaltRule, Move, Outcome, count, decide, gate_counts, is_final, merge
from wavemesh.outcomes import Counts, Rank, ledger_digest
from wavemesh.policy.gates import Gate, gate_name
from wavemesh.trust.statements import OutcomeKind, WaveState

NOW = datetime(2026, 5, 1, tzinfo=UTC)
NAMES = [f"pos-{number}" for number in range(6)]
GATES = [gate_name(gate, "scanner" if gate.is_named else "") for gate in Gate]
KINDS = st.sampled_from(list(OutcomeKind))
OUTCOMES = st.builds(
    Outcome,
    device=st.sampled_from(NAMES),
    attempt=st.integers(1, 3),
    sequence=st.integers(1, 4),
    kind=KINDS,
    gate=st.sampled_from(GATES),
    by_device=st.booleans(),
    payload_sha256=st.sampled_from(["a", "b"]),
)
LEDGERS = st.lists(OUTCOMES, max_size=30)


def ranked(outcomes: list[Outcome]) -> list[Outcome]:
    """As signers make them: one content for one rank."""
    return list({(one.device, one.rank): one for one in outcomes}.values())


@given(LEDGERS, LEDGERS, st.randoms())
def test_merge_is_order_free_and_idempotent(first: list[Outcome], second: list[Outcome], random: object) -> None:
    """Replays, reconnects, refills: the same outcomes in any order, any number of times, are the same ledger."""
    every = ranked([*first, *second])
    once = merge({}, every)
    assert merge(once, every) == once
    shuffled = [*every, *every]
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis gives a Random
    assert merge({}, shuffled) == once
    half = len(every) // 2
    assert merge(merge({}, every[:half]), merge({}, every[half:]).values()) == once


@pytest.mark.parametrize(
    ("weak", "strong"),
    [
        ({"attempt": 1, "sequence": 9}, {"attempt": 2, "sequence": 1}),
        ({"sequence": 1, "by_device": True}, {"sequence": 2, "by_device": False}),
        ({"sequence": 2, "by_device": False}, {"sequence": 2, "by_device": True}),
    ],
)
def test_the_latest_wins_and_the_device_beats_the_hub(weak: dict[str, int], strong: dict[str, int]) -> None:
    base = Outcome("pos-1", 1, 1, OutcomeKind.SILENT, "boot-timer", by_device=False)
    one, other = replace(base, **weak), replace(base, **strong)  # type: ignore[arg-type]  # fields of an outcome
    assert merge({}, [one, other]) == merge({}, [other, one]) == {"pos-1": other}


@given(LEDGERS)
def test_counts_sum_to_the_target(outcomes: list[Outcome]) -> None:
    """Exclusive, and they sum to the target, whatever was reported of others."""
    targets = NAMES[:4]
    merged = merge({}, outcomes)
    counts = count(targets, merged)
    assert sum(getattr(counts, kind.name.lower()) for kind in OutcomeKind) == len(targets)
    assert sum(gate_counts(targets, merged).values()) == sum(one in merged for one in targets)
    assert 0 <= counts.rollback_ratio <= 1


def test_the_ratio_leaves_out_what_says_nothing_of_the_release() -> None:
    """(rolled_back + failed + silent) / (those + updated)."""
    counts = Counts(pending=5, refused=5, updated=6, rolled_back=1, failed=2, silent=1, unknown=5, inconclusive=5)
    assert (counts.evidence, counts.rollback_ratio) == (10, 0.4)
    assert Counts(pending=5).rollback_ratio == 0.0


@pytest.mark.parametrize(
    ("kind", "gate", "attempt", "final"),
    [
        (OutcomeKind.PENDING, "", 0, False),
        (OutcomeKind.UPDATED, "", 1, True),
        (OutcomeKind.ROLLED_BACK, "peripheral:scanner", 1, True),
        (OutcomeKind.FAILED, "boot-timer", 1, True),
        (OutcomeKind.SILENT, "boot-timer", 1, True),
        (OutcomeKind.UNKNOWN, "lease-expired", 3, False),
        (OutcomeKind.REFUSED, "battery", 3, False),
        (OutcomeKind.REFUSED, "peripheral:scanner", 1, False),
        (OutcomeKind.REFUSED, "dual-partition", 1, True),
        (OutcomeKind.INCONCLUSIVE, "power-loss", 2, False),
        (OutcomeKind.INCONCLUSIVE, "power-loss", 3, True),
        (OutcomeKind.INCONCLUSIVE, "halted", 1, True),
    ],
)
def test_what_is_final(kind: OutcomeKind, gate: str, attempt: int, *, final: bool) -> None:
    """Transient refusals, unknowns and unburned attempts are tried again within the wave."""
    assert is_final(Outcome("pos-1", attempt, 1, kind, gate, by_device=True), attempts=3) is final
    assert not is_final(None, attempts=3)


def decided(bad: int, good: int, *, state: WaveState = WaveState.RUNNING, more: int = 1, age_s: int = 0) -> Move:
    devices = [f"pos-{number}" for number in range(bad + good + more)]
    kinds = [OutcomeKind.ROLLED_BACK] * bad + [OutcomeKind.UPDATED] * good
    ledger = {
        name: Outcome(name, 1, 1, kind, "watchdog", by_device=True) for name, kind in zip(devices, kinds, strict=False)
    }
    return decide(
        state=state,
        targets=devices,
        outcomes=ledger,
        attempts=3,
        rule=HaltRule(0.2, 5),
        expires_at=NOW + timedelta(seconds=60),
        now=NOW + timedelta(seconds=age_s),
    ).move


def test_a_wave_halts_above_the_ratio_with_enough_evidence() -> None:
    """C2: strictly above the ratio, from haltMinOutcomes on, paused or not, even with its last outcome."""
    assert decided(4, 0) is Move.STAY
    assert decided(1, 4) is Move.STAY
    assert decided(2, 4) is Move.HALT
    assert decided(2, 4, state=WaveState.PAUSED) is Move.HALT
    assert decided(2, 4, more=0) is Move.HALT
    assert decided(5, 0, state=WaveState.PLANNED) is Move.STAY


def test_a_wave_closes_when_nothing_is_left_or_it_expired() -> None:
    assert decided(0, 4, more=0) is Move.CLOSE
    assert decided(0, 4, age_s=59) is Move.STAY
    assert decided(0, 4, age_s=60) is Move.CLOSE
    assert decided(0, 0, state=WaveState.PLANNED, age_s=60) is Move.CLOSE
    for state in (WaveState.HALTED, WaveState.CLOSED):
        assert decided(5, 0, more=0, state=state, age_s=60) is Move.STAY


def test_ledgers_that_agree_have_one_digest_and_others_another() -> None:
    """C2: what a hub tells of its ledger in a few bytes; order and devices that are no targets make no difference."""
    rank = Rank(1, 2, True, "a")
    held = {"pos-1": rank, "pos-2": rank}
    digest = ledger_digest(["pos-2", "pos-1", "pos-1", "pos-3"], {**held, "pos-9": rank})
    assert digest == ledger_digest(["pos-1", "pos-2"], dict(reversed(held.items())))
    others = [Rank(2, 2, True, "a"), Rank(1, 3, True, "a"), Rank(1, 2, False, "a"), Rank(1, 2, True, "b")]
    different = {digest, ledger_digest(["pos-1"], held), ledger_digest(["pos-1"], {"pos-1": others[0]})}
    different |= {ledger_digest(["pos-1", "pos-2"], {**held, "pos-2": other}) for other in others}
    assert len(different) == 3 + len(others)
    assert ledger_digest(["pos-1", "pos-2"], {"pos-1": rank}) == ledger_digest(["pos-1"], held)
