"""H1: oldest first, never what is pinned or wanted, no more than is needed, nothing at all for what cannot fit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wavemesh.artifacts.room import (
    Bound,
    CachedBlob,
    Help,
    Room,
    RoomPlan,
    make_room,
    oldest_first,
    plan_room,
    refusal,
    stale,
)
from wavemesh.errors import GateError
from wavemesh.trust.statements import Digest

AT = datetime(2026, 3, 1, tzinfo=UTC)


def digest(name: str, size_bytes: int = 10) -> Digest:
    return Digest(name * 64, size_bytes)


def blob(name: str, age: int, size_bytes: int = 10, *, is_complete: bool = True) -> CachedBlob:
    return CachedBlob(digest(name, size_bytes), AT - timedelta(hours=age), is_complete)


def test_oldest_goes_first_and_only_as_much_as_is_needed() -> None:
    blobs = [blob("a", 1), blob("b", 3), blob("c", 2)]
    assert [one.digest for one in oldest_first(blobs)] == [digest("b"), digest("c"), digest("a")]
    assert make_room(blobs, {}, [digest("d")], Room(30)) == (digest("b"),)
    assert make_room(blobs, {}, [digest("d")], Room(40)) == ()


def test_equal_ages_go_by_name_and_one_byte_counts() -> None:
    blobs = [blob("b", 1), blob("a", 1)]
    assert [one.digest for one in oldest_first(blobs)] == [digest("a"), digest("b")]
    assert make_room(blobs, {}, [digest("d")], Room(29)) == (digest("a"),)
    assert make_room(blobs, {}, [digest("d")], Room(30)) == ()
    with pytest.raises(GateError, match="1 bytes too small"):
        make_room([], {}, [digest("d")], Room(9))


def test_pinned_and_wanted_blobs_stay() -> None:
    blobs = [blob("a", 9), blob("b", 8), blob("c", 7)]
    assert make_room(blobs, {"a" * 64: ("why",)}, [digest("b"), digest("d")], Room(30)) == (digest("c"),)


def test_the_disk_counts_like_the_quota() -> None:
    """Disk-full is known before a transfer starts, and what goes from the cache makes room on the disk."""
    blobs = [blob("a", 9), blob("b", 8), blob("c", 7)]
    assert make_room(blobs, {}, [digest("d")], Room(1000, 10)) == ()
    assert make_room(blobs, {}, [digest("d")], Room(1000, 9)) == (digest("a"),)
    assert make_room(blobs, {}, [digest("d")], Room(1000, -11)) == (digest("a"), digest("b"), digest("c"))
    with pytest.raises(GateError, match="the disk lacks 2 bytes") as refused:
        make_room(blobs, {}, [digest("d")], Room(1000, -22))
    assert refused.value.details["bound"] == "disk"


def test_a_wanted_blob_that_is_partly_here_needs_disk_for_its_rest_alone() -> None:
    """Its room is reserved: it is part of what is promised."""
    blobs = [blob("a", 9), blob("b", 8, is_complete=False)]
    assert make_room(blobs, {}, [digest("b")], Room(1000, 0)) == ()
    assert make_room(blobs, {}, [digest("b")], Room(1000, -1)) == (digest("a"),)
    assert make_room([blob("a", 9), blob("b", 8)], {}, [digest("b")], Room(1000, -1)) == ()


def test_a_plan_that_cannot_fit_is_refused_evicts_nothing_and_says_what_would_help() -> None:
    blobs = [blob("a", 9, 4), blob("b", 8), blob("c", 7, 6), blob("e", 1, 5)]
    pinned = {
        "a" * 64: ("target of wave 1",),
        "c" * 64: ("target of wave 1",),
        "e" * 64: ("running on class pos", "target of wave 2"),
    }
    room = Room(30)
    plan = plan_room(blobs, pinned, [digest("d", 25)], room)
    assert plan == RoomPlan((digest("d", 25),), (), 25, 25, 10, Bound.QUOTA, (Help("target of wave 1", 10),))
    assert not plan.fits
    error = refusal(plan, room)
    assert error.gate == "cache-quota"
    assert error.details["excess_bytes"] == "10"
    assert "10 bytes are kept by this alone: target of wave 1" in str(error)


def test_helps_come_largest_first_and_what_is_wanted_itself_is_none() -> None:
    blobs = [blob("a", 1, 5), blob("b", 1, 7), blob("c", 1, 9)]
    pinned = {name * 64: (f"wave {name}",) for name in "abc"}
    plan = plan_room(blobs, pinned, [digest("c", 9), digest("d", 30)], Room(40))
    assert plan.helps == (Help("wave b", 7), Help("wave a", 5))


def test_before_and_after_are_what_the_quota_sees() -> None:
    blobs = [blob("a", 9, 4), blob("b", 8, 6)]
    plan = plan_room(blobs, {}, [digest("d", 8), digest("d", 8), digest("b", 6)], Room(15))
    assert (plan.missing, plan.evicted) == ((digest("d", 8),), (digest("a", 4),))
    assert (plan.before_bytes, plan.after_bytes) == (10, 14)
    assert plan.fits


def test_partial_blobs_are_swept_once_nobody_wants_them_and_they_are_old() -> None:
    partials = [blob(name, age, is_complete=False) for name, age in (("a", 30), ("b", 30), ("c", 30), ("d", 24))]
    swept = stale(partials, {"b" * 64: ("why",)}, {digest("c")}, AT, timedelta(hours=24))
    assert swept == (digest("a"),)
    assert stale(partials, {}, {digest("c")}, AT + timedelta(seconds=1), timedelta(hours=24)) == (
        digest("a"),
        digest("b"),
        digest("d"),
    )


SIZES = st.integers(0, 20)
NAMES = st.sampled_from("abcdefgh")


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[CachedBlob], dict[str, tuple[str, ...]], list[Digest], Room]:
    sizes = {name: draw(SIZES) for name in "abcdefgh"}
    held = draw(st.sets(NAMES))
    blobs = [blob(name, draw(st.integers(0, 3)), sizes[name], is_complete=draw(st.booleans())) for name in sorted(held)]
    pinned: dict[str, tuple[str, ...]] = {name * 64: ("why",) for name in draw(st.sets(NAMES))}
    wanted = [digest(name, sizes[name]) for name in draw(st.lists(NAMES, min_size=1))]
    return blobs, pinned, wanted, Room(draw(st.integers(0, 120)), draw(st.none() | st.integers(-30, 80)))


@given(situations())
def test_whatever_the_situation(
    situation: tuple[list[CachedBlob], dict[str, tuple[str, ...]], list[Digest], Room],
) -> None:
    """H1 as properties: nothing pinned or wanted goes, what goes is the oldest that may, as little as will do; and a
    plan is refused only where even all that may go would not do.
    """
    blobs, pinned, wanted, room = situation
    plan = plan_room(blobs, pinned, wanted, room)
    may_go = [one.digest for one in oldest_first(blobs) if one.digest.sha256 not in pinned and one.digest not in wanted]
    held = {one.digest for one in blobs}
    whole = {one.digest for one in blobs if one.is_complete}
    coming = {one for one in wanted if one not in held}

    def would_do(evicted: list[Digest]) -> bool:
        freed = sum(one.size_bytes for one in evicted)
        used = sum(one.size_bytes for one in held | coming) - freed
        needs_disk = room.free_bytes is not None and not set(wanted) <= whole
        short = sum(one.size_bytes for one in coming) - (room.free_bytes or 0) - freed
        return used <= room.quota_bytes and not (needs_disk and short > 0)

    assert set(plan.missing) == coming
    if plan.fits:
        assert list(plan.evicted) == may_go[: len(plan.evicted)]
        assert would_do(list(plan.evicted))
        assert not plan.evicted or not would_do(list(plan.evicted[:-1]))
        assert plan.after_bytes == plan.before_bytes + sum(one.size_bytes for one in coming) - sum(
            one.size_bytes for one in plan.evicted
        )
        assert make_room(blobs, pinned, wanted, room) == plan.evicted
    else:
        assert not would_do(may_go)
        assert plan.evicted == ()
        assert plan.excess_bytes > 0
        with pytest.raises(GateError):
            make_room(blobs, pinned, wanted, room)
