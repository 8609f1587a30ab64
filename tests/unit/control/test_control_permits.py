"""Permits (P6): who gets one, what is exposed, new incarnations."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from control.ledger import Outcome, is_final, merge
from control.permits import (
    Issue,
    StoreShare,
    exposure,
    outstanding,
    to_issue,
    to_take_back,
    to_write_off,
    waiting_for_certificate,
)
from wavemesh.trust.statements import OutcomeKind

DEVICES = tuple(f"pos-{number}" for number in range(6))
ATTEMPTS = 3
BATCH = 3


def done(device: str, kind: OutcomeKind = OutcomeKind.UPDATED, **fields: object) -> Outcome:
    base = Outcome(device, 1, 1, kind, "watchdog", by_device=True)
    return replace(base, **fields)  # type: ignore[arg-type]  # fields of an outcome


@given(st.sets(st.sampled_from(DEVICES)), st.sets(st.sampled_from(DEVICES)), st.one_of(st.none(), st.integers(1, 6)))
def test_issue(held: set[str], final: set[str], batch: int | None) -> None:
    """Only devices that may be tried and have none; at most the batch outstanding; by default all."""
    issues = {device: Issue(device, 1, "i") for device in held}
    share = StoreShare(DEVICES, issues, {device: done(device) for device in final}, ATTEMPTS)
    issued = to_issue(share, hub_incarnation="i", batch=batch)
    assert not set(issued) & (held | final)
    assert exposure([share]) == len(outstanding(share)) == len(held - final)
    if batch is None:
        assert set(issued) == set(DEVICES) - held - final
    else:
        assert len(issued) == min(len(set(DEVICES) - held - final), max(0, batch - len(held - final)))


@given(st.sets(st.sampled_from(DEVICES)), st.sets(st.sampled_from(DEVICES)), st.one_of(st.none(), st.integers(1, 6)))
def test_who_is_revoked_gets_none_and_has_spent_what_it_had(
    held: set[str], revoked: set[str], batch: int | None
) -> None:
    """Those written off are exactly the revoked ones that held one, and nobody else has to wait for them."""
    issues = {device: Issue(device, 1, "i") for device in held}
    share = StoreShare(DEVICES, issues, {}, ATTEMPTS, frozenset(revoked))
    gone = to_take_back(share)
    assert set(gone) == held & revoked
    after = replace(share, issues={**issues, **{one: replace(issues[one], written_off=True) for one in gone}})
    issued = to_issue(after, hub_incarnation="i", batch=batch)
    assert not set(issued) & revoked
    wanting = set(DEVICES) - held - revoked
    assert len(issued) == (len(wanting) if batch is None else min(len(wanting), max(0, batch - len(held - revoked))))


def test_an_unknown_hub_gets_none() -> None:
    assert to_issue(StoreShare(DEVICES, {}, {}, ATTEMPTS), hub_incarnation="", batch=None) == ()


@given(
    st.sets(st.sampled_from(DEVICES)),
    st.sets(st.sampled_from(DEVICES)),
    st.sets(st.sampled_from(DEVICES)),
    st.one_of(st.none(), st.integers(1, 6)),
)
def test_who_must_renew_first_waits_and_holds_up_nobody(
    held: set[str], final: set[str], stale: set[str], batch: int | None
) -> None:
    """No permit before the certificate is younger; a batch is filled with those that wait for nothing."""
    issues = {device: Issue(device, 1, "i") for device in held}
    share = StoreShare(DEVICES, issues, {device: done(device) for device in final}, ATTEMPTS, stale=frozenset(stale))
    issued = set(to_issue(share, hub_incarnation="i", batch=batch))
    waiting = set(waiting_for_certificate(share))
    assert not issued & stale
    assert waiting == stale - held - final
    ready = set(DEVICES) - held - final - stale
    room = len(ready) if batch is None else max(0, batch - len(held - final))
    assert issued <= ready
    assert len(issued) == min(len(ready), room)


class Hub(RuleBasedStateMachine):
    """Outcomes, clones and restores in any order: the exposure never exceeds the target, the bound of P6."""

    def __init__(self) -> None:
        super().__init__()
        self.issues: dict[str, Issue] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.incarnation = "first"
        self.totals = 0

    @property
    def share(self) -> StoreShare:
        return StoreShare(DEVICES, self.issues, self.outcomes, ATTEMPTS)

    @rule()
    def issue(self) -> None:
        before = outstanding(self.share)
        old = to_write_off(self.share, self.incarnation)
        issued = to_issue(self.share, hub_incarnation=self.incarnation, batch=BATCH)
        assert not (old and issued), "a hub with another incarnation's outstanding gets none"
        assert len({*before, *issued}) <= max(BATCH, len(before))
        for device in issued:
            last = self.issues.get(device)
            self.issues[device] = Issue(device, last.generation + 1 if last else 1, self.incarnation)
            self.totals += 1

    @rule(name=st.sampled_from(["first", "clone", "spare"]))
    def show(self, name: str) -> None:
        self.incarnation = name

    @rule()
    def snapshot(self) -> None:
        for device in to_write_off(self.share, self.incarnation):
            self.issues[device] = replace(self.issues[device], written_off=True)
        assert not to_write_off(self.share, self.incarnation)

    @rule(
        device=st.sampled_from(DEVICES),
        kind=st.sampled_from([OutcomeKind.UPDATED, OutcomeKind.INCONCLUSIVE, OutcomeKind.UNKNOWN]),
        attempt=st.integers(1, 3),
        sequence=st.integers(1, 5),
    )
    def report(self, device: str, kind: OutcomeKind, attempt: int, sequence: int) -> None:
        outcome = done(device, kind, gate="power-loss", attempt=attempt, sequence=sequence)
        self.outcomes = merge(self.outcomes, [outcome])

    @invariant()
    def exposure_is_of_the_target(self) -> None:
        named = outstanding(self.share)
        assert set(named) <= set(self.issues) <= set(DEVICES)
        assert not any(is_final(self.outcomes.get(device), ATTEMPTS) for device in named)

    @invariant()
    def totals_only_grow(self) -> None:
        assert self.totals == sum(issue.generation for issue in self.issues.values())


TestHub = Hub.TestCase
TestHub.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_a_silent_device_may_come_back_and_counts_as_exposed() -> None:
    """Its hub infers silence: the batch goes on without it, but its permit is outstanding until it speaks itself."""
    inferred = done("pos-0", OutcomeKind.SILENT, by_device=False)
    share = StoreShare(DEVICES, {"pos-0": Issue("pos-0", 1, "i")}, {"pos-0": inferred}, ATTEMPTS)
    assert outstanding(share) == ("pos-0",)
    assert to_issue(share, hub_incarnation="i", batch=1) == ("pos-1",)
    assert to_write_off(share, "j") == ("pos-0",)
    spoke = replace(share, outcomes={"pos-0": done("pos-0")})
    assert outstanding(spoke) == ()
