"""Desired state on its way: bounds of an update, what is under way when more is wanted, how long refusals last."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.session_kit import by_key, resource
from tests.unit.session.test_session_lanes import accept, lanes, names
from wavemesh.session.frames import MAX_HELD, Rejection, Resource, ResourceVerdict
from wavemesh.session.lanes import MAX_KEYS_PER_UPDATE, ResourceLanes

if TYPE_CHECKING:
    import pytest


def refuse(made: ResourceLanes, one: Resource) -> None:
    made.offer(by_key(one))
    update = made.next_other(0.0)
    assert update is not None
    made.verdict(ResourceVerdict(update.nonce, (Rejection(one.key, one.digest, "signature", ""),)))


def test_an_update_is_full_to_the_byte() -> None:
    made = lanes(update_bytes=100)
    made.offer(by_key(resource("a", bytes(50)), resource("b", bytes([1]) * 50)))
    assert names(made.next_other(0.0)) == ["a", "b"]
    made = lanes(update_bytes=99)
    made.offer(by_key(resource("a", bytes(50)), resource("b", bytes([1]) * 50)))
    assert names(made.next_other(0.0)) == ["a"]


def test_the_audience_counts_as_bytes() -> None:
    made = lanes(update_bytes=100)
    told = replace(resource("b", bytes([1]) * 50), audience=("x",))
    made.offer(by_key(resource("a", bytes(50)), told))
    assert names(made.next_other(0.0)) == ["a"]


def test_removals_and_changes_share_the_number_of_keys() -> None:
    made = lanes(resource("gone"), update_bytes=1 << 20)
    made.offer(by_key(*(resource(f"r{n}") for n in range(MAX_KEYS_PER_UPDATE))))
    update = made.next_other(0.0)
    assert update is not None
    assert (len(update.removed), len(update.changed), update.settled) == (1, MAX_KEYS_PER_UPDATE - 1, False)


def test_as_much_as_is_held_at_most_can_be_desired() -> None:
    one = resource("one")
    lanes().offer({replace(one.key, name=str(number)): one for number in range(MAX_HELD)})


def test_what_the_other_lane_carries_is_counted_as_settled() -> None:
    made = lanes()
    made.offer(by_key(resource("halt", urgent=True), resource("slow")))
    urgent, other = made.next_urgent(0.0), made.next_other(0.0)
    assert urgent is not None
    assert other is not None
    assert (urgent.settled, other.settled) == (False, True)


def test_a_removal_under_way_is_counted_as_settled() -> None:
    made = lanes(resource("gone"))
    made.offer({})
    assert made.next_other(0.0) is not None
    made.offer(by_key(resource("halt", urgent=True)))
    urgent = made.next_urgent(0.0)
    assert urgent is not None
    assert urgent.settled


def test_trust_metadata_among_others_brings_back_what_was_refused() -> None:
    bad, halt, tuf = resource("bad", b"x"), resource("halt", urgent=True), resource("metadata", b"1", kind="tuf")
    made = lanes()
    refuse(made, bad)
    made.offer(by_key(bad, halt, tuf))
    urgent = made.next_urgent(0.0)
    assert names(urgent) == ["metadata", "halt"]
    assert made.next_other(0.0) is None
    accept(made, urgent)
    assert names(made.next_other(0.0)) == ["bad"]


def test_only_so_many_refusals_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is sent once more; it costs its bytes and nothing else."""
    monkeypatch.setattr("wavemesh.session.lanes.MAX_REFUSED", 2)
    first, second, third = (resource(name, name.encode()) for name in "abc")
    made = lanes()
    refuse(made, first)
    refuse(made, second)
    made.offer(by_key(first, second))
    assert made.next_other(0.0) is None
    refuse(made, third)
    made.offer(by_key(first, second, third))
    assert names(made.next_other(0.0)) == ["a"]
