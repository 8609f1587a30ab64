"""Desired state on its way: differences, lanes, refusals, settled."""

from __future__ import annotations

import pytest

from tests.session_kit import by_key, resource
from wavemesh.session.faults import SessionViolationError, TooManyResourcesError
from wavemesh.session.frames import (
    MAX_HELD,
    HeldResource,
    Rejection,
    Resource,
    ResourceKey,
    ResourceUpdate,
    ResourceVerdict,
)
from wavemesh.session.lanes import MAX_KEYS_PER_UPDATE, ResourceLanes


def lanes(*held: Resource, update_bytes: int = 100) -> ResourceLanes:
    return ResourceLanes(
        [HeldResource(r.key, r.version, r.digest) for r in held], update_bytes=update_bytes, verdict_timeout_s=9.0
    )


def names(update: ResourceUpdate | None) -> list[str]:
    assert update is not None
    return [r.key.name for r in update.changed]


def accept(made: ResourceLanes, update: ResourceUpdate | None) -> None:
    assert update is not None
    made.verdict(ResourceVerdict(update.nonce, ()))


def test_nothing_is_sent_before_the_first_offer() -> None:
    made = lanes(resource("held"))
    assert made.next_urgent(0.0) is None
    assert made.next_other(0.0) is None


def test_only_differences_travel_removals_included() -> None:
    """M3."""
    same, old, new, gone = resource("same"), resource("x", b"old"), resource("x", b"new"), resource("gone")
    made = lanes(same, old, gone)
    made.offer(by_key(same, new))
    update = made.next_other(0.0)
    assert update == ResourceUpdate(1, (new,), (gone.key,), settled=True)
    assert made.deadline == 9.0
    accept(made, update)
    assert made.next_other(0.0) is None
    assert made.deadline == float("inf")


def test_a_new_version_of_the_same_content_travels() -> None:
    """A policy that a second wave uses: its audience grows, its content stays."""
    made = lanes(resource("policy", counter=1))
    made.offer(by_key(resource("policy", counter=2)))
    assert names(made.next_other(0.0)) == ["policy"]


def test_settled_without_a_difference_is_said_once() -> None:
    made = lanes(resource("same"))
    made.offer(by_key(resource("same")))
    update = made.next_other(0.0)
    assert update == ResourceUpdate(1, (), (), settled=True)
    accept(made, update)
    made.offer(by_key(resource("same")))
    assert made.next_other(0.0) is None


def test_one_update_per_lane_split_by_size() -> None:
    big = [resource(f"r{n}", bytes([n]) * 60) for n in range(3)]
    huge = resource("huge", bytes(1000))
    made = lanes()
    made.offer(by_key(*big, huge))
    first = made.next_other(0.0)
    assert names(first) == ["r0"]
    assert made.next_other(0.0) is None
    sent = [first]
    while sent[-1] is not None and not sent[-1].settled:
        accept(made, sent[-1])
        sent.append(made.next_other(0.0))
    assert [names(update) for update in sent] == [["r0"], ["r1"], ["r2"], ["huge"]]


def test_many_removals_are_split() -> None:
    held = [resource(f"r{n}") for n in range(MAX_KEYS_PER_UPDATE + 1)]
    made = lanes(*held)
    made.offer({})
    first = made.next_other(0.0)
    assert first is not None
    assert (len(first.removed), first.settled) == (MAX_KEYS_PER_UPDATE, False)
    accept(made, first)
    second = made.next_other(0.0)
    assert second is not None
    assert (len(second.removed), second.settled) == (1, True)


def test_urgent_overtakes_and_trust_metadata_comes_first() -> None:
    """M5; the rest is verified with trust metadata."""
    made = lanes()
    made.offer(by_key(resource("slow")))
    slow = made.next_other(0.0)
    made.offer(by_key(resource("slow"), resource("halt", b"h", urgent=True), resource("metadata", kind="tuf")))
    urgent = made.next_urgent(0.0)
    assert names(urgent) == ["metadata", "halt"]
    assert urgent is not None
    assert urgent.settled
    assert made.next_urgent(0.0) is None
    with pytest.raises(SessionViolationError, match="oldest"):
        made.verdict(ResourceVerdict(urgent.nonce, ()))
    accept(made, slow)
    accept(made, urgent)


def test_a_key_under_way_that_changes_is_sent_again() -> None:
    running, paused = resource("order", b"run"), resource("order", b"pause", urgent=True)
    made = lanes()
    made.offer(by_key(running))
    first = made.next_other(0.0)
    made.offer(by_key(paused))
    second = made.next_urgent(0.0)
    assert second is not None
    assert second.changed == (paused,)
    accept(made, first)
    accept(made, second)
    assert made.next_urgent(0.0) is None
    assert made.next_other(0.0) is None


def test_desired_and_removed_again_while_under_way() -> None:
    made = lanes()
    made.offer(by_key(resource("x")))
    first = made.next_other(0.0)
    made.offer({})
    accept(made, first)
    second = made.next_other(0.0)
    assert second is not None
    assert second.removed == (ResourceKey("policy", "x"),)


def test_refused_content_waits_for_new_trust_metadata() -> None:
    bad, tuf = resource("bad", b"x"), resource("metadata", b"1", kind="tuf")
    made = lanes()
    made.offer(by_key(bad))
    update = made.next_other(0.0)
    assert update is not None
    rejection = Rejection(bad.key, bad.digest, "signature", "")
    assert made.verdict(ResourceVerdict(update.nonce, (rejection,))) == ()
    assert made.next_other(0.0) is None
    other = resource("bad", b"y")
    made.offer(by_key(other))
    accept(made, made.next_other(0.0))
    made.offer(by_key(bad))
    assert made.next_other(0.0) is None
    made.offer(by_key(bad, tuf))
    accept(made, made.next_urgent(0.0))
    assert names(made.next_other(0.0)) == ["bad"]


def test_verdicts_that_cannot_be() -> None:
    made = lanes()
    with pytest.raises(SessionViolationError):
        made.verdict(ResourceVerdict(1, ()))
    made.offer(by_key(resource("x")))
    assert made.next_other(0.0) is not None
    alien = Rejection(ResourceKey("policy", "y"), "0" * 64, "signature", "")
    with pytest.raises(SessionViolationError, match="did not carry"):
        made.verdict(ResourceVerdict(1, (alien,)))


def test_too_much_desired_state_is_an_error_here() -> None:
    with pytest.raises(TooManyResourcesError):
        lanes().offer(by_key(*(resource(str(n)) for n in range(MAX_HELD + 1))))
