"""Whether silence tells of the device or of its store (semantics, "Populations and numbers"; C2)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from storehub.swaps import DeviceView, Word, decide
from storehub.witnesses import has_witness
from tests.unit.storehub.test_swaps import MAXIMA_S, NOW, STORE, device, s, slot, view
from wavemesh.trust.statements import OutcomeKind, UpdateState

if TYPE_CHECKING:
    from datetime import datetime

LATE = NOW + s(MAXIMA_S)
SINCE = NOW + s(1)
INFERRED = Word(OutcomeKind.UNKNOWN, 1, 0, by_device=False, received_at=LATE)


def gone(name: str, seen_at: datetime = SINCE) -> DeviceView:
    return device(name, UpdateState.IDLE, connected_since=None, heard_in_session=False, seen_at=seen_at)


def heard(name: str) -> DeviceView:
    return device(name, UpdateState.IDLE)


def store(witnesses: int, fallen: int) -> list[DeviceView]:
    """The silent device, and its bystanders."""
    return [gone("a"), *(heard(f"w{n}") for n in range(witnesses)), *(gone(f"f{n}") for n in range(fallen))]


@pytest.mark.parametrize(
    ("witnesses", "fallen", "tells"),
    [
        (0, 0, False),
        (1, 0, True),
        (1, 1, False),
        (2, 1, True),
        (3, 2, False),
        (25, 25, False),  # a dead switch
        (1, 40, False),  # closing time, and one till left on
        (40, 5, True),
    ],
)
def test_at_most_one_fell_for_every_two_witnesses(witnesses: int, fallen: int, tells: bool) -> None:  # noqa: FBT001 - a table
    found = view(store(witnesses, fallen), slots=(slot("a"),), now=LATE)
    assert has_witness(found, STORE + "a", NOW) is tells
    [said] = decide(found).inferred
    assert said.kind is (OutcomeKind.SILENT if tells else OutcomeKind.UNKNOWN)


def test_a_switch_that_died_just_before_the_lease_is_noticed_just_after() -> None:
    """Seed 1926: the last words are older than the lease, the ends of the sessions are younger."""
    devices = [gone("a"), *(heard(f"w{n}") for n in range(10))]
    lost = [replace(gone(f"f{n}", NOW - s(300)), left_at=NOW + s(15)) for n in range(10)]
    assert has_witness(view([*devices, *lost[:5]], now=LATE), STORE + "a", NOW)
    assert not has_witness(view([*devices, *lost], now=LATE), STORE + "a", NOW)
    before = [replace(one, left_at=NOW) for one in lost]
    assert has_witness(view([*devices, *before], now=LATE), STORE + "a", NOW)


def test_who_is_back_a_moment_convicts_nobody_and_speaks_for_who_is_not_back_yet() -> None:
    """Seed 1926: the switch works again, and nineteen of twenty are a few seconds faster than the one in its swap."""
    witness_s = view([]).timing.witness_s
    back = [replace(heard(f"b{n}"), left_at=NOW + s(15)) for n in range(10)]
    devices = [gone("a"), *(heard(f"w{n}") for n in range(10))]
    for since_s, tells in ((1, False), (witness_s, True)):
        returned = [replace(one, connected_since=LATE - s(since_s)) for one in back]
        assert has_witness(view([*devices, *returned], now=LATE), STORE + "a", NOW) is tells
    new = [replace(one, connected_since=LATE - s(1), left_at=None) for one in back]
    assert has_witness(view([*devices, *new], now=LATE), STORE + "a", NOW), "after a start of the hub all are new"


def test_a_hub_that_started_since_has_not_seen_who_left() -> None:
    """Seed 1926: it crashed while the switch was dead; whom it has not heard may have been there."""
    devices = [gone("a"), *(heard(f"w{n}") for n in range(10))]
    lost = [gone(f"f{n}", NOW - s(300)) for n in range(10)]
    found = replace(view([*devices, *lost], now=LATE), started_at=NOW + s(60))
    assert not has_witness(found, STORE + "a", NOW)
    long_dead = [replace(one, seen_at=NOW - s(86_400)) for one in lost]
    assert has_witness(replace(found, devices=view([*devices, *long_dead]).devices), STORE + "a", NOW)
    late = [replace(heard(one.path.rpartition("/")[2]), connected_since=LATE - s(1)) for one in lost]
    assert not has_witness(replace(found, devices=view([*devices, *late]).devices), STORE + "a", NOW)
    soon = replace(found, started_at=LATE - s(2), devices=view([*devices, *late]).devices)
    assert has_witness(soon, STORE + "a", NOW), "those who came at once after the start were not away"


def test_who_was_gone_before_the_swap_has_not_fallen() -> None:
    devices = [gone("a"), heard("b"), gone("c", NOW), gone("d", NOW - s(86_400))]
    assert has_witness(view(devices, now=LATE), STORE + "a", NOW)
    assert not has_witness(view(devices, now=LATE), STORE + "a", NOW - s(1))


@pytest.mark.parametrize("by_device", [False, True])
@pytest.mark.parametrize("kind", [OutcomeKind.UNKNOWN, OutcomeKind.SILENT, OutcomeKind.FAILED])
def test_whom_the_release_may_have_silenced_is_no_bystander(kind: OutcomeKind, by_device: bool) -> None:  # noqa: FBT001 - a table
    """Others in a swap, and those that an earlier swap left silent; who spoke for itself is one."""
    devices = [gone("a"), heard("b"), gone("c"), gone("d")]
    others = (slot("a"), slot("c"))
    word = Word(kind, 1, 0, by_device=by_device, received_at=NOW)
    found = view(devices, slots=others, words={"d": word}, now=LATE)
    assert has_witness(found, STORE + "a", NOW) is not by_device
    alone = view([gone("a"), heard("c")], slots=others, now=LATE)
    assert not has_witness(alone, STORE + "a", NOW)


def test_the_night_convicts_nobody_and_the_morning_who_stays_away() -> None:
    night = view([gone("a"), heard("w"), gone("f0"), gone("f1")], words={"a": INFERRED}, now=LATE + s(8 * 3600))
    assert decide(night).inferred == ()
    morning = view([gone("a"), heard("w"), heard("f0"), heard("f1")], words={"a": INFERRED}, now=LATE + s(9 * 3600))
    assert [(one.device, one.kind) for one in decide(morning).inferred] == [(STORE + "a", OutcomeKind.SILENT)]


def test_who_came_back_is_not_convicted_of_an_earlier_silence() -> None:
    """It was unknown once, came back, and reboots into its next trial: a second after that it is not silent."""
    earlier = {"a": INFERRED}
    soon = LATE + s(60)
    assert decide(view([gone("a", LATE), heard("b")], words=earlier, now=soon)).inferred != ()
    assert decide(view([gone("a", soon - s(1)), heard("b")], words=earlier, now=soon)).inferred == ()
    leased = slot("a", granted_at=soon - s(1))
    assert decide(view([gone("a", LATE), heard("b")], slots=(leased,), words=earlier, now=soon)).inferred == ()
