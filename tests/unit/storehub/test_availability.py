"""H6: what a device counts as for its availability group, and what the group lets go."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from storehub.availability import Condition, Roster
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
from wavemesh.trust.statements import OutcomeKind as K
from wavemesh.trust.statements import UpdateState as S

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=9)


def device(name: str, state: S = S.VERIFIED, **changes: object) -> DeviceView:
    since = NOW - timedelta(seconds=100)
    view = DeviceView(name, state, "142", 1, NOW, NOW, since, heard_in_session=True)
    return replace(view, **changes)  # type: ignore[arg-type]  # keyword names are checked by the dataclass


def gone(name: str, state: S = S.VERIFIED) -> DeviceView:
    return device(name, state, connected_since=None, heard_in_session=False)


def word(kind: K, *, by_device: bool = True, attempt: int = 1, ago_s: float = 5, gate: str = "") -> Word:
    return Word(kind, attempt, 1, by_device, NOW - timedelta(seconds=ago_s), gate)


def view(
    *devices: DeviceView,
    words: dict[str, Word] | None = None,
    floor: int = 2,
    members: str | None = "abc",
    slots: tuple[Slot, ...] = (),
    rollbacks: tuple[RollbackWish, ...] = (),
    limit: int = 5,
) -> HubView:
    group = Group(frozenset(members) if members is not None else None, floor, "till/lane-a")
    later = NOW + timedelta(days=1)
    paths = frozenset(one.path for one in devices)
    wave = WaveView("142", leasable=True, devices=paths, expires_at=later, max_concurrent_swaps=limit, trial_s=300)
    return HubView(
        now=NOW,
        timing=Timing(lease_s=60, watchdog_s=120, witness_s=30),
        incarnation="i",
        incarnation_since=LONG_AGO,
        default_limit=limit,
        waves=(replace(wave, groups=(group,)),),
        devices={one.path: one for one in devices},
        permits={("142", one.path): PermitView(3, later, "i") for one in devices},
        slots={one.device: one for one in slots},
        words={("142", name): one for name, one in (words or {}).items()},
        rollbacks=rollbacks,
    )


def slot(name: str, use: SlotUse = SlotUse.SWAP, until: datetime = NOW + timedelta(minutes=5)) -> Slot:
    since = NOW - timedelta(seconds=1)
    return Slot(name, "142", use, 1, since, NOW + timedelta(seconds=59), until)


def granted(v: HubView) -> list[str]:
    return [one.device for one in decide(v).granted]


def reasons(v: HubView) -> dict[str, str]:
    return {wait.device: wait.reason for wait in decide(v).waits}


UP, DOWN, OWING = Condition.UP, Condition.DOWN, Condition.OWING
AS = (
    # Never swapped in this wave.
    (device("a", S.IDLE), None, UP),
    (device("a", S.PREFLIGHT), None, UP),
    (device("a", S.STAGING), None, UP),
    (device("a", S.PAUSED), None, UP),
    (device("a", S.VERIFIED), None, UP),
    (device("a", S.COMMITTED, wave_id="140"), None, UP),
    (gone("a"), None, DOWN),
    (device("a", connected_since=None), None, DOWN),
    (device("a", heard_in_session=False), None, DOWN),
    # Refused.
    (device("a", S.REFUSED, gate="hardware"), word(K.REFUSED, gate="hardware"), UP),
    (device("a", S.REFUSED, gate="battery"), word(K.REFUSED, gate="battery"), UP),
    (device("a", S.REFUSED, gate="peripheral:scanner"), word(K.REFUSED, gate="peripheral:scanner"), DOWN),
    (device("a", S.REFUSED, gate="vendor:payment"), word(K.REFUSED, gate="vendor:payment"), DOWN),
    # Swapped, and signed.
    (device("a", S.COMMITTED), word(K.UPDATED), UP),
    (device("a", S.ROLLED_BACK), word(K.ROLLED_BACK, gate="boot-probe"), UP),
    (device("a", S.ROLLED_BACK), word(K.INCONCLUSIVE, gate="halted"), UP),
    (device("a", S.VERIFIED, attempt=2), word(K.INCONCLUSIVE, gate="power-loss"), UP),
    (gone("a", S.COMMITTED), word(K.UPDATED), DOWN),
    # Swapped, and not signed.
    (device("a", S.COMMITTED), None, OWING),
    (device("a", S.COMMITTED, attempt=2), word(K.INCONCLUSIVE), OWING),
    (device("a", S.ROLLED_BACK), None, OWING),
    (device("a", S.ROLLED_BACK), word(K.UPDATED), OWING),
    (device("a", S.COMMITTED), word(K.SILENT, by_device=False), OWING),
    (device("a", S.ROLLED_BACK), word(K.UNKNOWN, by_device=False), OWING),
    # Sick.
    (device("a", S.TRIAL), None, OWING),
    (device("a", S.ROLLING_BACK), None, OWING),
    (device("a", S.AWAITING_SIGNOFF), word(K.FAILED, by_device=False), OWING),
    (device("a", S.AWAITING_SIGNOFF), word(K.FAILED), OWING),
    (device("a", S.COMMITTED), word(K.FAILED), OWING),
    # Timed out.
    (gone("a"), word(K.SILENT, by_device=False), OWING),
    (gone("a"), word(K.UNKNOWN, by_device=False), OWING),
    (device("a", heard_in_session=False), word(K.SILENT, by_device=False), OWING),
    (device("a", S.VERIFIED), word(K.SILENT, by_device=False, ago_s=0), OWING),
    # Back, and it had never armed.
    (device("a", S.VERIFIED), word(K.SILENT, by_device=False), UP),
    (device("a", S.STAGING), word(K.UNKNOWN, by_device=False), UP),
)


@pytest.mark.parametrize(("seen", "said", "expected"), AS)
def test_what_a_device_counts_as(seen: DeviceView, said: Word | None, expected: Condition) -> None:
    roster = Roster(view(seen, words={"a": said} if said else {}))
    assert roster.condition("a", frozenset()) is expected
    assert roster.condition("a", {"a"}) is Condition.AWAY


def test_two_of_three_stay_up_and_the_operator_reads_why() -> None:
    three = (device("a"), device("b"), device("c"))
    assert granted(view(*three)) == ["a"]
    assert reasons(view(*three)) == dict.fromkeys("bc", "till/lane-a: a inside a swap")
    one_dead = view(device("a"), device("b"), gone("c"))
    assert granted(one_dead) == []
    assert reasons(one_dead) == dict.fromkeys("ab", "till/lane-a has 2 of 3 up (not c), floor 2")
    never_heard = view(device("a"), device("b"))
    assert reasons(never_heard)["a"] == "till/lane-a has 2 of 3 up (not c), floor 2"


def test_the_next_waits_for_signed_health_of_the_last_though_the_floor_would_hold() -> None:
    five = [device(name) for name in "bcde"]
    sick = view(device("a", S.COMMITTED), *five, members="abcde")
    assert granted(sick) == []
    assert reasons(sick)["b"] == "till/lane-a waits for signed health of a"
    assert granted(view(device("a", S.COMMITTED), *five, members="abcde", words={"a": word(K.UPDATED)})) == ["b"]


def test_the_pass_that_gives_a_device_up_lets_no_other_go() -> None:
    """Its inference is not among the words yet, and it must hold up the group all the same."""
    four = [device(name) for name in "bcde"]
    v = view(gone("a"), *four, members="abcde", slots=(slot("a", until=NOW),))
    decision = decide(v)
    assert [one.kind for one in decision.inferred] == [K.SILENT]
    assert decision.granted == ()


def test_a_device_outside_the_group_swaps_meanwhile() -> None:
    assert granted(view(device("a"), device("b"), gone("c"), device("z"))) == ["z"]


def test_another_waves_floor_counts_as_well() -> None:
    """Policies without the group take nothing from the one that has it."""
    v = view(device("a", wave_id="143"), device("b"), gone("c"))
    [guarded] = v.waves
    bare = replace(guarded, wave_id="143", groups=())
    asks = replace(v, waves=(guarded, bare), permits={("143", "a"): PermitView(3, NOW + timedelta(days=1), "i")})
    assert granted(asks) == []
    assert granted(replace(asks, waves=(bare,))) == ["a"]


def test_a_floor_that_nobody_can_keep_and_a_group_nobody_knows_are_named() -> None:
    three = (device("a"), device("b"), device("c"))
    full = view(*three, floor=3)
    assert granted(full) == []
    assert reasons(full)["a"] == "till/lane-a has 3 devices and a floor of 3: none of them can ever swap"
    unknown = view(*three, members=None)
    assert granted(unknown) == []
    assert reasons(unknown)["b"] == "no group till/lane-a in this hub's config.toml: list its devices there, or none"


def test_two_devices_that_timed_out_do_not_wait_for_each_other() -> None:
    lost = {"a": word(K.SILENT, by_device=False), "b": word(K.UNKNOWN, by_device=False)}
    assert granted(view(device("a"), device("b"), device("c"), words=lost)) == ["a"]


def test_an_unused_lease_is_held_back_while_others_fall() -> None:
    """The device has not armed by its last word; once it has, or its lease lapsed, there is nothing to hold back."""
    leased = (slot("a"),)
    fallen = view(device("a"), device("b"), gone("c"), slots=leased)
    assert decide(fallen).recalled == {"a"}
    assert reasons(fallen)["a"] == "its lease is held back: till/lane-a has 1 of 2 others up, floor 2"
    assert decide(view(device("a"), device("b"), device("c"), slots=leased)).recalled == frozenset()
    assert decide(view(device("a", S.TRIAL), device("b"), gone("c"), slots=leased)).recalled == frozenset()
    assert decide(view(device("a"), device("b"), gone("c"), slots=leased, members="bcd")).recalled == frozenset()
    back = (slot("a", SlotUse.ROLLBACK),)
    assert decide(view(device("a"), device("b"), gone("c"), slots=back)).recalled == frozenset()
    lapsed = replace(leased[0], expires_at=NOW)
    earlier = device("a", said_at=NOW - timedelta(milliseconds=1))
    assert decide(view(earlier, device("b"), gone("c"), slots=(lapsed,))).recalled == frozenset()


def relayed(v: HubView) -> list[str]:
    return [wish.device for wish, _ in decide(v).relayed]


def wish(name: str, *, is_signoff: bool = False) -> RollbackWish:
    return RollbackWish(f"i-{name}", name, "142", is_signoff=is_signoff)


def test_rollbacks_keep_the_floor_one_by_one() -> None:
    done = {name: word(K.UPDATED) for name in "abc"}
    three = [device(name, S.COMMITTED) for name in "abc"]
    asked = (wish("a"), wish("b"))
    v = view(*three, words=done, rollbacks=asked)
    assert relayed(v) == ["a"]
    assert reasons(v) == {"b": "rollback: till/lane-a: a inside a swap"}
    short = view(*three[:2], gone("c", S.COMMITTED), words=done, rollbacks=asked)
    assert relayed(short) == []
    assert reasons(short)["a"] == "rollback: till/lane-a has 2 of 3 up (not c), floor 2"


def test_a_rollback_of_a_device_that_is_not_up_takes_nothing_away() -> None:
    refused = device("a", S.REFUSED, gate="peripheral:scanner")
    assert relayed(view(refused, device("b"), gone("c"), rollbacks=(wish("a"),))) == ["a"]
    trying = device("a", S.AWAITING_SIGNOFF)
    said = {"a": word(K.FAILED, by_device=False)}
    assert relayed(view(trying, gone("b"), gone("c"), words=said, rollbacks=(wish("a", is_signoff=True),))) == ["a"]


def test_a_rollback_does_not_wait_for_who_owes_its_health() -> None:
    done = {name: word(K.UPDATED) for name in "bcd"} | {"a": word(K.SILENT, by_device=False)}
    four = (gone("a"), device("b", S.COMMITTED), device("c", S.COMMITTED), device("d", S.COMMITTED))
    assert relayed(view(*four, words=done, members="abcd", rollbacks=(wish("b"),))) == ["b"]
