"""H6: never more than N devices inside a swap, and what is said of those not heard."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from storehub.swaps import (
    DeviceView,
    Group,
    HubView,
    PermitView,
    RollbackWish,
    Slot,
    SlotUse,
    Timing,
    WaveView,
    Word,
    decide,
)
from wavemesh.trust.statements import OutcomeKind, UpdateState

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
TIMING = Timing(lease_s=60, watchdog_s=120, witness_s=30)
TRIAL_S = 300.0
MAXIMA_S = 60 + 120 + TRIAL_S
STORE = "region/midwest/store/store-209/device/"


def s(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


YESTERDAY = NOW - s(86400)


def device(name: str, state: UpdateState = UpdateState.VERIFIED, attempt: int = 1, **changes: object) -> DeviceView:
    view = DeviceView(STORE + name, state, "142", attempt, NOW, NOW, NOW - s(100), heard_in_session=True)
    return replace(view, **changes)  # type: ignore[arg-type]  # keyword names are checked by the dataclass


def wave(*names: str, limit: int = 2, groups: tuple[Group, ...] = (), leasable: bool = True) -> WaveView:
    paths = frozenset(STORE + name for name in names)
    return WaveView("142", leasable, paths, NOW + s(86400), limit, TRIAL_S, groups)


def slot(name: str, attempt: int = 1, granted_at: datetime = NOW) -> Slot:
    return Slot(STORE + name, "142", SlotUse.SWAP, attempt, granted_at, granted_at + s(60), granted_at + s(MAXIMA_S))


def view(
    devices: list[DeviceView],
    *,
    slots: tuple[Slot, ...] = (),
    words: dict[str, Word] | None = None,
    waves: tuple[WaveView, ...] | None = None,
    now: datetime = NOW,
    since: datetime = YESTERDAY,
    rollbacks: tuple[RollbackWish, ...] = (),
) -> HubView:
    names = [d.path.rsplit("/", 1)[1] for d in devices]
    return HubView(
        now=now,
        timing=TIMING,
        incarnation="i1",
        incarnation_since=since,
        default_limit=5,
        waves=waves if waves is not None else (wave(*names),),
        devices={d.path: d for d in devices},
        permits={("142", d.path): PermitView(3, NOW + s(86400), "i1") for d in devices},
        slots={x.device: x for x in slots},
        words={("142", STORE + name): word for name, word in (words or {}).items()},
        rollbacks=rollbacks,
    )


def granted(v: HubView) -> list[str]:
    return [x.device.rsplit("/", 1)[1] for x in decide(v).granted]


def test_grants_up_to_the_limit_first_attempts_first() -> None:
    assert granted(view([device("a", attempt=2), device("b"), device("c"), device("d")])) == ["b", "c"]


def test_an_occupied_slot_counts_though_its_device_is_not_heard() -> None:
    gone = device("a", connected_since=None, seen_at=NOW - s(90), said_at=NOW - s(90))
    v = view([gone, device("b"), device("c")], slots=(slot("a", granted_at=NOW - s(70)),))
    assert granted(v) == ["b"]


def test_a_device_in_a_swap_the_hub_knows_nothing_of_counts() -> None:
    assert granted(view([device("a", UpdateState.TRIAL), device("b"), device("c")])) == ["b"]


def test_a_self_declared_swap_is_over_with_its_outcome_or_the_maxima() -> None:
    a = device("a", UpdateState.AWAITING_SIGNOFF)
    failed = Word(OutcomeKind.FAILED, 1, 1, by_device=False, received_at=NOW)
    assert granted(view([a, device("b"), device("c")], words={"a": failed})) == ["b", "c"]
    old = replace(a, seen_at=NOW - s(MAXIMA_S + 1))
    assert granted(view([old, device("b"), device("c")])) == ["b", "c"]


@pytest.mark.parametrize("state", [UpdateState.PREFLIGHT, UpdateState.VERIFIED, UpdateState.REFUSED])
def test_leaving_verified_before_the_lease_expired_frees_nothing(state: UpdateState) -> None:
    """The lease may still reach the device and be used."""
    a = device("a", state, seen_at=NOW + s(5), said_at=NOW + s(5))
    v = view([a], slots=(slot("a"),), now=NOW + s(10))
    assert decide(v).ended == ()
    assert decide(v).inside == {STORE + "a"}


def test_a_status_dated_after_the_leases_expiry_frees_the_slot() -> None:
    a = device("a", UpdateState.REFUSED, seen_at=NOW + s(61), said_at=NOW + s(61))
    decision = decide(view([a], slots=(slot("a"),), now=NOW + s(62)))
    assert [x.device for x in decision.ended] == [STORE + "a"]
    assert decision.inferred == ()


def test_an_inconclusive_outcome_frees_the_slot_and_the_next_attempt_is_leased() -> None:
    word = Word(OutcomeKind.INCONCLUSIVE, 1, 3, by_device=True, received_at=NOW)
    v = view([device("a", attempt=2, seen_at=NOW + s(1))], slots=(slot("a"),), words={"a": word}, now=NOW + s(2))
    decision = decide(v)
    assert [x.attempt for x in decision.ended] == [1]
    assert [x.attempt for x in decision.granted] == [2]


def test_a_refusal_for_good_frees_the_slot_and_a_passing_one_does_not() -> None:
    for gate, ended in (("class", 1), ("battery", 0), ("from the future", 0)):
        word = Word(OutcomeKind.REFUSED, 1, 1, by_device=True, received_at=NOW + s(1), gate=gate)
        refused = device("a", UpdateState.REFUSED, seen_at=NOW + s(1), said_at=NOW + s(1))
        assert len(decide(view([refused], slots=(slot("a"),), words={"a": word}, now=NOW + s(2))).ended) == ended
        assert granted(view([device("a")], words={"a": word})) == ([] if ended else ["a"])


def test_a_lapsed_lease_is_renewed_without_a_second_slot() -> None:
    v = view(
        [device("a"), device("b")],
        slots=(slot("a", granted_at=NOW - s(61)), slot("b", granted_at=NOW - s(10))),
        waves=(wave("a", "b", limit=2),),
    )
    assert granted(v) == ["a"]


@pytest.mark.parametrize("kind", [OutcomeKind.UPDATED, OutcomeKind.ROLLED_BACK, OutcomeKind.FAILED])
def test_a_device_with_a_final_outcome_gets_no_lease(kind: OutcomeKind) -> None:
    assert granted(view([device("a")], words={"a": Word(kind, 1, 1, by_device=True, received_at=NOW)})) == []


def test_no_lease_without_a_permit_for_this_incarnation_and_attempt() -> None:
    v = view([device("a", attempt=4)])
    assert granted(v) == []
    assert granted(replace(view([device("a")]), permits={})) == []
    cloned = {("142", STORE + "a"): PermitView(3, NOW + s(60), "another")}
    assert granted(replace(view([device("a")]), permits=cloned)) == []
    late = {("142", STORE + "a"): PermitView(3, NOW, "i1")}
    assert granted(replace(view([device("a")]), permits=late)) == []


def test_no_lease_while_the_wave_may_not_lease() -> None:
    assert granted(view([device("a")], waves=(wave("a", leasable=False),))) == []


def test_after_a_start_an_unheard_target_counts_as_inside_until_the_maxima() -> None:
    """The disk may be an older one, which does not know the lease that the device arms by just now."""
    unheard = device("a", connected_since=None, heard_in_session=False, seen_at=NOW - s(90), said_at=NOW - s(90))
    v = replace(view([unheard, device("b"), device("c")]), started_at=NOW - s(10))
    assert granted(v) == ["b"]
    assert granted(replace(v, started_at=NOW - s(MAXIMA_S))) == ["b", "c"]
    assert granted(replace(v, devices={**v.devices, unheard.path: replace(unheard, seen_at=NOW)})) == ["b", "c"]
    through = Word(OutcomeKind.UPDATED, 1, 1, by_device=True, received_at=YESTERDAY)
    assert granted(replace(v, words={("142", unheard.path): through})) == ["b", "c"]
    inferred = replace(through, kind=OutcomeKind.SILENT, by_device=False)
    assert granted(replace(v, words={("142", unheard.path): inferred})) == ["b"]


def test_a_new_incarnation_waits_for_every_target_or_the_maxima() -> None:
    fresh = NOW - s(10)
    unheard = device("b", connected_since=None, heard_in_session=False, seen_at=NOW - s(500))
    assert granted(view([device("a"), unheard], since=fresh)) == []
    assert granted(view([device("a"), unheard], since=NOW - s(MAXIMA_S))) == ["a"]
    assert granted(view([device("a"), device("b")], since=fresh)) == ["a", "b"]


def test_silent_needs_a_witness_that_has_been_there_for_a_while() -> None:
    late = NOW + s(MAXIMA_S)
    a = device("a", connected_since=None, heard_in_session=False)
    witness, newcomer = device("b", UpdateState.IDLE), device("b", UpdateState.IDLE, connected_since=late - s(5))
    [silent] = decide(view([a, witness], slots=(slot("a"),), now=late)).inferred
    assert (silent.kind, silent.attempt, silent.sequence, silent.gate) == (OutcomeKind.SILENT, 1, 1, "watchdog")
    [unknown] = decide(view([a, newcomer], slots=(slot("a"),), now=late)).inferred
    assert (unknown.kind, unknown.sequence, unknown.gate) == (OutcomeKind.UNKNOWN, 0, "lease-expired")


def test_unknown_becomes_silent_when_a_witness_appears() -> None:
    a = device("a", connected_since=None, heard_in_session=False)
    word = Word(OutcomeKind.UNKNOWN, 1, 0, by_device=False, received_at=NOW)
    [silent] = decide(view([a, device("b", UpdateState.IDLE)], words={"a": word})).inferred
    assert (silent.kind, silent.sequence) == (OutcomeKind.SILENT, 1)
    assert decide(view([device("a", UpdateState.IDLE), device("b")], words={"a": word})).inferred == ()


def test_heard_but_still_inside_after_the_maxima_is_failed_and_frees_its_slot() -> None:
    late = NOW + s(MAXIMA_S)
    a = device("a", UpdateState.AWAITING_SIGNOFF, gate="peripheral:scanner", seen_at=late - s(1))
    decision = decide(view([a], slots=(slot("a"),), now=late))
    [failed] = decision.inferred
    assert (failed.kind, failed.gate) == (OutcomeKind.FAILED, "peripheral:scanner")
    assert [x.device for x in decision.ended] == [STORE + "a"]


def test_an_inference_never_outranks_the_devices_next_word() -> None:
    late = NOW + s(MAXIMA_S)
    refused = Word(OutcomeKind.REFUSED, 1, 4, by_device=True, received_at=NOW)
    a = device("a", connected_since=None, heard_in_session=False)
    [silent] = decide(
        view([a, device("b", UpdateState.IDLE)], slots=(slot("a"),), words={"a": refused}, now=late)
    ).inferred
    assert silent.sequence == 5  # the device's next is at least 5 and wins the tie


def test_rollbacks_go_before_grants_and_within_the_limit() -> None:
    wishes = (RollbackWish("i-1", STORE + "c", "142"), RollbackWish("i-2", STORE + "d", "142"))
    v = view(
        [device("a"), device("b"), device("c", UpdateState.COMMITTED), device("d", UpdateState.COMMITTED)],
        slots=(slot("a"),),
        rollbacks=wishes,
    )
    decision = decide(v)
    assert [wish.intent_id for wish, _ in decision.relayed] == ["i-1"]
    assert decision.granted == ()


def test_a_sign_off_waits_for_no_slot() -> None:
    """D5: the device is inside a swap already, although its slot may have run out; only its session is needed."""
    waiting = device("d", UpdateState.AWAITING_SIGNOFF, seen_at=NOW - s(2 * MAXIMA_S))
    wish = RollbackWish("i-1", STORE + "d", "142", is_signoff=True)
    slots = (slot("a"), slot("b"))
    full = view([device("a"), device("b"), waiting], slots=slots, rollbacks=(wish,))
    assert [one.intent_id for one, _ in decide(full).relayed] == ["i-1"]
    away = replace(waiting, connected_since=None)
    assert decide(view([device("a"), device("b"), away], slots=slots, rollbacks=(wish,))).relayed == ()


def test_a_rehearsal_takes_no_slot() -> None:
    """O4: told to a connected device however full it is, and no place less for those that swap."""
    wish = RollbackWish("i-1", STORE + "c", "", is_rehearsal=True)
    full = decide(view([device("a"), device("b"), device("c")], slots=(slot("a"), slot("b")), rollbacks=(wish,)))
    assert full.relayed == ((wish, None),)
    free = view([device("a"), device("c", UpdateState.COMMITTED)], rollbacks=(wish,))
    assert [one.device for one in decide(free).granted] == [STORE + "a"]
    away = device("c", connected_since=None)
    assert decide(view([away], rollbacks=(wish,))).relayed == ()


def test_a_group_swaps_one_by_one_and_keeps_enough_up() -> None:
    tills = Group(frozenset(STORE + name for name in "abc"), min_up=2)
    limits = (wave("a", "b", "c", limit=5, groups=(tills,)),)
    devices = [device("a"), device("b"), device("c")]
    assert granted(view(devices, waves=limits)) == ["a"]
    assert granted(view(devices, waves=limits, slots=(slot("a"),))) == []
    down = [device("a"), device("b"), device("c", connected_since=None, heard_in_session=False)]
    assert granted(view(down, waves=limits)) == []
    inferred = Word(OutcomeKind.SILENT, 1, 1, by_device=False, received_at=NOW)
    unwell = [device("a"), device("b"), device("c", UpdateState.IDLE)]
    assert granted(view(unwell, waves=limits, words={"c": inferred})) == []
    healthy = Word(OutcomeKind.UPDATED, 1, 1, by_device=True, received_at=NOW)
    assert granted(view(devices, waves=limits, words={"a": healthy})) == ["b"]


def test_decisions_are_stable() -> None:
    """Nothing new follows from a state in which the last decision took effect."""
    v = view([device("a"), device("b"), device("c")])
    after = replace(v, slots={x.device: x for x in decide(v).granted})
    assert decide(after) == decide(replace(after))
    assert decide(after).granted == ()


@pytest.mark.parametrize("kind", [OutcomeKind.UPDATED, OutcomeKind.INCONCLUSIVE])
def test_what_a_device_said_is_not_inferred_over(kind: OutcomeKind) -> None:
    """The word came, and the hub stopped before it ended the slot: at ``until`` the device counts as having spoken."""
    told = Word(kind, 1, 1, by_device=True, received_at=NOW, gate="")
    away = device("pos-01", UpdateState.TRIAL, connected_since=None, heard_in_session=False)
    late = view([away, device("pos-02")], slots=(slot("pos-01"),), words={"pos-01": told}, now=NOW + s(MAXIMA_S))
    decision = decide(late)
    assert [one.device for one in decision.ended] == [STORE + "pos-01"]
    assert decision.inferred == ()
