"""H1: oldest first, never what is pinned, nothing at all for a plan that cannot fit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from storehub.eviction import DeviceImages, pins
from wavemesh.artifacts.room import Need
from wavemesh.errors import GateError
from wavemesh.trust.statements import Digest

AT = datetime(2026, 3, 1, tzinfo=UTC)


def digest(name: str, size_bytes: int = 10) -> Digest:
    return Digest(name * 64, size_bytes)


def blob(name: str, age: int, size_bytes: int = 10) -> CachedBlob:
    return CachedBlob(digest(name, size_bytes), AT - timedelta(hours=age))


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


def test_oldest_goes_first_and_only_as_much_as_is_needed() -> None:
    blobs = [blob("a", 1), blob("b", 3), blob("c", 2)]
    assert [one.digest for one in oldest_first(blobs)] == [digest("b"), digest("c"), digest("a")]
    assert make_room(blobs, {}, [digest("d")], 30) == (digest("b"),)
    assert make_room(blobs, {}, [digest("d")], 40) == ()


def test_equal_ages_go_by_name_and_one_byte_counts() -> None:
    blobs = [blob("b", 1), blob("a", 1)]
    assert [one.digest for one in oldest_first(blobs)] == [digest("a"), digest("b")]
    assert make_room(blobs, {}, [digest("d")], 29) == (digest("a"),)
    assert make_room(blobs, {}, [digest("d")], 30) == ()
    with pytest.raises(GateError, match="1 bytes too small"):
        make_room([], {}, [digest("d")], 9)


def test_pinned_and_wanted_blobs_stay() -> None:
    blobs = [blob("a", 9), blob("b", 8), blob("c", 7)]
    assert make_room(blobs, {"a" * 64: ("why",)}, [digest("b"), digest("d")], 30) == (digest("c"),)


def test_a_plan_that_cannot_fit_is_refused_and_evicts_nothing() -> None:
    blobs = [blob("a", 9), blob("b", 8)]
    with pytest.raises(GateError) as refused:
        make_room(blobs, {"a" * 64: ("why",)}, [digest("d", 25)], 30)
    assert refused.value.gate == "cache-quota"
    assert refused.value.details["excess_bytes"] == "5"
