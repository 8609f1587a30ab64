"""H1: what the cache must keep, and why."""

from __future__ import annotations

from storehub.eviction import DeviceImages, pins
from wavemesh.artifacts.room import Need
from wavemesh.trust.statements import Digest


def digest(name: str, size_bytes: int = 10) -> Digest:
    return Digest(name * 64, size_bytes)


def test_pins_say_why_and_keep_the_last_known_good_of_each_class() -> None:
    reasons = pins(
        [Need("target of wave 142", (digest("a"), digest("b")))],
        [DeviceImages("pos", "a" * 64, "c" * 64), DeviceImages("", "", ""), DeviceImages("", "d" * 64, "")],
    )
    assert reasons == {
        "a" * 64: ("running on class pos", "target of wave 142"),
        "b" * 64: ("target of wave 142",),
        "c" * 64: ("last known good of class pos",),
        "d" * 64: ("running on class unknown",),
    }


def test_bases_of_planned_deltas_are_pins_like_any_need() -> None:
    """Semantics, "Cache"."""
    assert pins([Need("base of a delta for wave 142", (digest("e"),))], []) == {
        "e" * 64: ("base of a delta for wave 142",)
    }
