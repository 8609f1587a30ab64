"""H6: the bounds of each rule of ``storehub/swaps.py``: on which side of them a slot is taken, kept, freed, judged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from storehub.swaps import HubView, PermitView, RollbackWish, Slot, SlotUse, WaveView, Word, decide
from tests.unit.storehub.test_swaps import MAXIMA_S, NOW, STORE, TIMING, TRIAL_S, device, granted, s, slot, view, wave
from wavemesh.trust.statements import OutcomeKind, UpdateState

LATE = NOW + s(MAXIMA_S)
NOT_ARMED = ("IDLE", "PREFLIGHT", "STAGING", "PAUSED", "VERIFIED", "REFUSED")


def word(
    kind: OutcomeKind = OutcomeKind.UPDATED, attempt: int = 1, *, by_device: bool = True, after_s: float = 1
) -> Word:
    return Word(kind, attempt, 1, by_device=by_device, received_at=NOW + s(after_s))


def has_ended(v: HubView) -> bool:
    return bool(decide(v).ended)


def rollback_slot(name: str) -> Slot:
    return Slot(STORE + name, "142", SlotUse.ROLLBACK, 0, NOW, LATE, LATE)


@pytest.mark.parametrize("state", UpdateState)
def test_which_states_after_the_leases_expiry_free_the_slot(state: UpdateState) -> None:
    """Rule 2: by a status outside any swap, dated at the expiry or after."""
    a = device("a", state, seen_at=NOW + s(61), said_at=NOW + s(60))
    assert has_ended(view([a], slots=(slot("a"),), now=NOW + s(62))) is (state.name in NOT_ARMED)
    dated_before = replace(a, said_at=NOW + s(59))
    assert not has_ended(view([dated_before], slots=(slot("a"),), now=NOW + s(62)))
    seen_before = replace(a, seen_at=NOW)
    assert not has_ended(view([seen_before], slots=(slot("a"),), now=NOW + s(62)))


@pytest.mark.parametrize("state", UpdateState)
def test_which_states_in_a_later_attempt_free_the_slot(state: UpdateState) -> None:
    a = device("a", state, attempt=2, seen_at=NOW + s(1), said_at=NOW + s(1))
    v = view([a], slots=(slot("a"),), now=NOW + s(2))
    assert has_ended(v) is (state.name in NOT_ARMED)
    assert not has_ended(replace(v, devices={a.path: replace(a, wave_id="141")}))
    assert not has_ended(replace(v, devices={a.path: replace(a, attempt=1)}))


@pytest.mark.parametrize("kind", OutcomeKind)
def test_which_words_free_the_slot(kind: OutcomeKind) -> None:
    """Rule 2: the device's own, about this burn or a later one."""
    frees = kind.name in {"UPDATED", "ROLLED_BACK", "FAILED", "INCONCLUSIVE"}
    a = device("a", UpdateState.TRIAL)

    def ended(heard: Word) -> bool:
        return has_ended(view([a], slots=(slot("a", attempt=2),), words={"a": heard}, now=NOW + s(2)))

    assert ended(word(kind, 2)) is frees
    assert ended(word(kind, 3)) is frees
    assert not ended(word(kind, 1))
    assert not ended(replace(word(kind, 2), by_device=False))


def test_what_ends_the_slot_of_a_rollback() -> None:
    """The device's word since it was told, or its status that it went back; no other device's, and no inference."""
    inside = device("a", UpdateState.ROLLING_BACK, seen_at=NOW + s(1))

    def ended(a: object = inside, words: dict[str, Word] | None = None, now_s: float = 2) -> bool:
        return has_ended(view([a], slots=(rollback_slot("a"),), words=words, now=NOW + s(now_s)))  # type: ignore[list-item]

    assert not ended()
    assert ended(words={"a": word(OutcomeKind.ROLLED_BACK)})
    assert not ended(words={"b": word(OutcomeKind.ROLLED_BACK)})
    assert not ended(words={"a": word(OutcomeKind.ROLLED_BACK, by_device=False)})
    assert not ended(words={"a": word(OutcomeKind.ROLLED_BACK, after_s=0)})
    assert ended(device("a", UpdateState.ROLLED_BACK, seen_at=NOW + s(1)))
    assert not ended(device("a", UpdateState.ROLLED_BACK, seen_at=NOW))
    assert ended(now_s=MAXIMA_S)


def test_a_rollback_that_ran_out_is_not_judged() -> None:
    """Its wave is told by the device's word alone."""
    a = device("a", UpdateState.ROLLING_BACK, seen_at=NOW + s(1))
    assert decide(view([a], slots=(rollback_slot("a"),), now=LATE)).inferred == ()


def test_a_slot_freed_by_a_word_is_not_judged() -> None:
    v = view([device("a", UpdateState.TRIAL)], slots=(slot("a"),), words={"a": word()}, now=NOW + s(2))
    assert decide(v).inferred == ()


@pytest.mark.parametrize("state", UpdateState)
def test_which_states_take_a_slot_by_the_devices_own_word(state: UpdateState) -> None:
    """Rule 3."""
    inside = state.name in {"ARMED", "TRIAL", "COMMITTING", "ROLLING_BACK", "AWAITING_SIGNOFF"}
    a = device("a", state, seen_at=NOW - s(MAXIMA_S - 1))
    assert decide(view([a])).inside == ({STORE + "a"} if inside else set())
    assert decide(view([replace(a, seen_at=NOW - s(MAXIMA_S))])).inside == set()


def test_the_maxima_are_those_of_the_longest_trial() -> None:
    waves = (wave("a"), replace(wave("a"), wave_id="143", trial_s=TRIAL_S + 100))
    a = device("a", UpdateState.TRIAL, seen_at=NOW - s(MAXIMA_S + 99))
    assert decide(view([a], waves=waves)).inside == {STORE + "a"}
    assert decide(view([a], waves=())).inside == set()
    bare = TIMING.lease_s + TIMING.watchdog_s
    assert decide(view([replace(a, seen_at=NOW - s(bare - 1))], waves=())).inside == {STORE + "a"}
    assert decide(view([replace(a, seen_at=NOW - s(bare))], waves=())).inside == set()


@pytest.mark.parametrize(
    ("state", "heard", "settled"),
    [
        (UpdateState.TRIAL, word(OutcomeKind.INCONCLUSIVE), True),
        (UpdateState.TRIAL, word(OutcomeKind.REFUSED), False),
        (UpdateState.TRIAL, word(OutcomeKind.UPDATED, 0), False),
        (UpdateState.TRIAL, word(OutcomeKind.UPDATED, 2), True),
        (UpdateState.ROLLING_BACK, word(OutcomeKind.UPDATED), False),
        (UpdateState.ROLLING_BACK, word(OutcomeKind.ROLLED_BACK), True),
        (UpdateState.ROLLING_BACK, word(OutcomeKind.FAILED), True),
    ],
)
def test_a_swap_whose_outcome_is_known_takes_no_slot(state: UpdateState, heard: Word, settled: bool) -> None:  # noqa: FBT001 - a table
    v = view([device("a", state)], words={"a": heard})
    assert decide(v).inside == (set() if settled else {STORE + "a"})


def test_who_is_heard_and_outside_any_swap_at_the_end_is_not_judged() -> None:
    """It never armed: its status says so, and its outcome is still to come."""
    a = device("a", UpdateState.STAGING, seen_at=NOW)
    assert decide(view([a], slots=(slot("a"),), now=LATE)).inferred == ()


@pytest.mark.parametrize("changes", [{"connected_since": None}, {"heard_in_session": False}])
def test_who_is_connected_but_said_nothing_yet_counts_as_not_heard(changes: dict[str, Any]) -> None:
    a = replace(device("a", UpdateState.TRIAL), **changes)
    [unheard] = decide(view([a], slots=(slot("a"),), now=LATE)).inferred
    assert unheard.kind is OutcomeKind.UNKNOWN


def test_failed_without_a_gate_of_the_device_is_the_watchdogs() -> None:
    [failed] = decide(view([device("a", UpdateState.TRIAL)], slots=(slot("a"),), now=LATE)).inferred
    assert (failed.kind, failed.gate, failed.wave_id, failed.device) == (
        OutcomeKind.FAILED,
        "watchdog",
        "142",
        STORE + "a",
    )
    assert failed.evidence.endswith(f"last heard {NOW.isoformat()} in TRIAL")
    [never] = decide(view([], slots=(slot("a"),), waves=(wave("a"),), now=LATE)).inferred
    assert never.evidence.endswith("never heard")


def test_an_inference_starts_anew_for_another_attempt() -> None:
    """Rule 6: sequences count within an attempt."""
    gone = device("a", connected_since=None, heard_in_session=False)
    earlier = replace(word(OutcomeKind.INCONCLUSIVE, 1), sequence=7)
    v = view([gone, device("b", UpdateState.IDLE)], slots=(slot("a", attempt=2),), words={"a": earlier}, now=LATE)
    [silent] = decide(v).inferred
    assert (silent.attempt, silent.sequence) == (2, 1)


@pytest.mark.parametrize(("since_s", "convicts"), [(30, True), (29.9, False)])
def test_a_witness_counts_from_its_time_on(since_s: float, convicts: bool) -> None:  # noqa: FBT001 - a table
    """Rule 5."""
    gone = device("a", connected_since=None, heard_in_session=False)
    b = device("b", UpdateState.IDLE, connected_since=LATE - s(since_s))
    [said] = decide(view([gone, b], slots=(slot("a"),), now=LATE)).inferred
    assert said.kind is (OutcomeKind.SILENT if convicts else OutcomeKind.UNKNOWN)


@pytest.mark.parametrize(
    ("kind", "by_device", "convicted"),
    [(OutcomeKind.UNKNOWN, False, True), (OutcomeKind.UNKNOWN, True, False), (OutcomeKind.FAILED, False, False)],
)
def test_only_an_inferred_unknown_turns_silent(kind: OutcomeKind, by_device: bool, convicted: bool) -> None:  # noqa: FBT001 - a table
    gone = device("a", connected_since=None, heard_in_session=False)
    heard = {"a": word(kind, by_device=by_device)}
    inferred = decide(view([gone, device("b", UpdateState.IDLE)], words=heard)).inferred
    assert [one.gate for one in inferred] == (["watchdog"] if convicted else [])
    assert decide(view([gone], words=heard)).inferred == ()


def test_a_rollback_of_a_device_inside_needs_no_second_slot() -> None:
    wish = RollbackWish("i-1", STORE + "a", "142")
    inside = device("a", UpdateState.TRIAL)
    full = decide(view([inside, device("b")], slots=(slot("a"), slot("b")), rollbacks=(wish,)))
    assert [one for _, one in full.relayed] == [rollback_slot("a")]
    other = RollbackWish("i-2", STORE + "c", "142")
    both = view([inside, device("b"), device("c", UpdateState.COMMITTED)], slots=(slot("b"),), rollbacks=(wish, other))
    assert [one.intent_id for one, _ in decide(both).relayed] == ["i-1"]


def test_a_rollback_that_must_wait_holds_up_no_later_one() -> None:
    wishes = (RollbackWish("i-1", STORE + "c", "142"), RollbackWish("i-2", STORE + "a", "142"))
    away = (RollbackWish("i-3", STORE + "x", "142"), RollbackWish("i-4", "", "142", is_rehearsal=True))
    v = view(
        [device("a", UpdateState.TRIAL), device("b"), device("c", UpdateState.COMMITTED)],
        slots=(slot("a"), slot("b")),
        rollbacks=(*away, *wishes),
    )
    assert [one.intent_id for one, _ in decide(v).relayed] == ["i-2"]


def test_a_device_that_is_told_to_roll_back_gets_no_lease() -> None:
    wish = RollbackWish("i-1", STORE + "a", "142", is_rehearsal=True)
    v = view([device("a"), device("b")], rollbacks=(wish,))
    assert granted(v) == ["b"]
    assert decide(v).relayed == ((wish, None),)


def test_the_strictest_of_the_waves_that_lease_is_the_limit() -> None:
    names = [device(name) for name in "abcdef"]
    loose = wave(*"abcdef", limit=4)
    assert len(granted(view(names, waves=(loose, replace(wave("z", limit=3), wave_id="143"))))) == 3
    assert len(granted(view(names, waves=(loose, replace(wave("z", limit=1, leasable=False), wave_id="143"))))) == 4
    rollbacks = tuple(RollbackWish(name, STORE + name, "142") for name in "abcdef")
    assert len(decide(view(names, waves=(), rollbacks=rollbacks)).relayed) == 5


def test_a_wave_that_may_not_lease_holds_up_no_other() -> None:
    names = [device("a", wave_id="143")]
    first = (
        wave("a", leasable=False),
        replace(wave("a"), expires_at=NOW),
        replace(wave("a", "never-heard"), wave_id="141"),
    )
    for closed in first:
        later = replace(wave("a"), wave_id="143")
        v = replace(
            view(names, waves=(closed, later), since=NOW - s(1)),
            permits={("143", STORE + "a"): PermitView(3, NOW + s(9), "i1")},
        )
        assert granted(v) == ["a"]


def test_a_wave_that_has_expired_leases_nothing() -> None:
    """A lease would have run out when it is given."""
    assert granted(view([device("a")], waves=(replace(wave("a"), expires_at=NOW),))) == []
    assert granted(view([device("a")], waves=(replace(wave("a"), expires_at=NOW + s(1)),))) == ["a"]


def test_who_is_leased_by_one_wave_is_not_leased_by_the_next() -> None:
    """And what one wave took counts for the next."""
    devices = [device("a"), device("b"), device("c", wave_id="143")]
    later = replace(wave("a", "b", "c"), wave_id="143")
    v = view(devices, waves=(wave("a", "b", "c"), later))
    v = replace(v, permits={**v.permits, ("143", STORE + "c"): PermitView(3, NOW + s(9), "i1")})
    assert granted(v) == ["a", "b"]


@pytest.mark.parametrize(
    "changes",
    [
        {"state": UpdateState.STAGING},
        {"wave_id": "141"},
        {"connected_since": None},
        {"heard_in_session": False},
        {"attempt": 0},
        {"attempt": 4},
    ],
)
def test_who_does_not_ask_gets_no_lease(changes: dict[str, Any]) -> None:
    assert granted(view([device("a"), replace(device("b"), **changes)], waves=(wave("a", "b"),))) == ["a"]
    assert granted(view([device("a", attempt=3)])) == ["a"]


@pytest.mark.parametrize("kind", OutcomeKind)
def test_which_words_end_the_wave_for_a_device(kind: OutcomeKind) -> None:
    final = kind.name in {"UPDATED", "ROLLED_BACK", "FAILED"}
    refused = replace(word(kind), gate="battery")
    assert granted(view([device("a")], words={"a": refused})) == ([] if final else ["a"])


@pytest.mark.parametrize(
    ("held", "lapsed"),
    [
        (slot("a", granted_at=NOW - s(60)), True),
        (slot("a", granted_at=NOW - s(59)), False),
        (replace(slot("a", granted_at=NOW - s(60)), wave_id="141"), False),
        (replace(slot("a", granted_at=NOW - s(60)), use=SlotUse.ROLLBACK), False),
    ],
)
def test_which_lease_is_renewed(held: Slot, lapsed: bool) -> None:  # noqa: FBT001 - a table
    v = view([device("a", seen_at=NOW - s(100))], slots=(held,), now=NOW)
    assert granted(v) == (["a"] if lapsed else [])


@pytest.mark.parametrize("shortest", ["lease", "wave", "permit"])
def test_a_lease_ends_with_the_first_of_lease_wave_and_permit(shortest: str) -> None:
    ends = {"lease": NOW + s(60), "wave": NOW + s(600), "permit": NOW + s(600), shortest: NOW + s(min(60, 40))}
    expected = NOW + s(60) if shortest == "lease" else NOW + s(40)
    v = view([device("a")], waves=(replace(wave("a"), expires_at=ends["wave"]),))
    v = replace(v, permits={("142", STORE + "a"): PermitView(3, ends["permit"], "i1")})
    [lease] = decide(v).granted
    until = expected + s(TRIAL_S + TIMING.watchdog_s)
    assert lease == Slot(STORE + "a", "142", SlotUse.SWAP, 1, NOW, expected, until)


@pytest.mark.parametrize(
    ("changes", "settled"),
    [
        ({"heard_in_session": True, "seen_at": NOW - s(500)}, True),
        ({"heard_in_session": False, "seen_at": NOW - s(10)}, True),
        ({"heard_in_session": False, "seen_at": NOW - s(11)}, False),
    ],
)
def test_who_has_said_where_it_is_since_the_new_incarnation(changes: dict[str, Any], settled: bool) -> None:  # noqa: FBT001 - a table
    """Rule 4: in this session, or by a status since then."""
    v = view([device("a"), replace(device("b", UpdateState.IDLE), **changes)], since=NOW - s(10))
    assert granted(v) == (["a"] if settled else [])


def test_nobody_is_judged_by_a_wave_without_devices_heard() -> None:
    """Rule 4: a target that this hub never heard of has not said where it is."""
    waves: tuple[WaveView, ...] = (wave("a", "b"),)
    assert granted(view([device("a")], waves=waves, since=NOW - s(10))) == []


@pytest.mark.parametrize("kind", OutcomeKind)
def test_who_is_not_heard_since_a_start_takes_a_place_until_it_is_through(kind: OutcomeKind) -> None:
    """Rule 4, after a start: by its own last word of the wave, or when the maxima are over."""
    gone = device("a", UpdateState.COMMITTED, connected_since=None, heard_in_session=False, seen_at=NOW - s(600))
    v = view([gone, device("b"), device("c")], words={"a": word(kind)})
    through = kind.name in {"UPDATED", "ROLLED_BACK", "FAILED"}
    assert granted(replace(v, started_at=NOW - s(MAXIMA_S - 1))) == (["b", "c"] if through else ["b"])
    assert granted(replace(v, started_at=NOW - s(MAXIMA_S))) == ["b", "c"]
