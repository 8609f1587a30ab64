"""What a cache holds, has done and would do, as people read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgectl.cachetables import cache_lines, cache_parts, plan_parts, statistics_lines
from edgectl.plain import plain
from wavemesh.v1 import operator_pb2 as pb
from wavemesh.v1 import report_pb2

if TYPE_CHECKING:
    from edgectl.output import Table


def entry(name: str, size_bytes: int, **more: Any) -> pb.CacheEntry:
    digest = pb.CacheEntry(names=[name], **more)
    digest.digest.sha256, digest.digest.size_bytes = name[0] * 64, size_bytes
    return digest


def text(parts: tuple[Table | str, ...]) -> str:
    return "\n".join(part if isinstance(part, str) else str(part.rows) for part in parts)


def test_a_plan_that_fits_says_what_goes_and_the_room_before_and_after() -> None:
    answer = pb.PlanCacheResponse(
        artifacts=[entry("new", 3 << 20)],
        evictions=[entry("old", 2 << 20, present_bytes=2 << 20)],
        fetch_bytes=3 << 20,
        before_bytes=4 << 20,
        after_bytes=5 << 20,
        quota_bytes=6 << 20,
        disk_before_bytes=10 << 20,
        disk_after_bytes=-(1 << 20),
    )
    shown = text(plan_parts(plain(answer)))
    assert "1 artifact of 3.0 MiB, 3.0 MiB to be fetched" in shown
    assert "1 would be evicted" in shown
    assert "'old'" in shown
    assert "quota: 4.0 MiB -> 5.0 MiB of 6.0 MiB; disk: 10.0 MiB -> -1.0 MiB free for blobs" in shown


def test_a_plan_that_does_not_fit_says_why_and_what_would_help() -> None:
    answer = pb.PlanCacheResponse(
        artifacts=[entry("new", 10)],
        quota_bytes=100,
        gate="cache-quota",
        reason="too small",
        bound="quota",
        excess_bytes=50,
        helps=[pb.PlanCacheResponse.Help(reason="target of wave 1", frees_bytes=60)],
    )
    shown = text(plan_parts(plain(answer)))
    assert "does not fit: cache-quota: too small" in shown
    assert 'would free 60 B: the end of "target of wave 1"' in shown
    assert "a quota_bytes of 150 in the hub's config.toml" in shown
    answer.bound = "disk"
    assert "or 50 B freed on the hub's disk" in text(plan_parts(plain(answer)))


def test_what_was_found_wrong_is_shown_beside_what_is_held() -> None:
    answer = pb.ListCacheResponse(entries=[entry("fw.img", 10, present_bytes=10)], bytes=10, quota_bytes=20)
    answer.incidents.add(names=["fw.img"], detail="other bytes").digest.sha256 = "f" * 64
    answer.quarantine.add(present_bytes=10).digest.sha256 = "e" * 64
    shown = text(cache_parts(plain(answer)))
    assert "10 B of 20 B held" in shown
    assert "found wrong -, not healed yet: fw.img ffffffffffff: other bytes" in shown
    assert "in quarantine: - eeeeeeeeeeee, 10 B" in shown


def test_the_statistics_of_a_hub_that_tells_none_are_none() -> None:
    assert statistics_lines(None) == []
    assert cache_lines({"incidents": [], "quarantine": [], "statistics": None}) == []


def test_statistics_name_each_number() -> None:
    counts = report_pb2.CacheStatistics(
        hits=3,
        misses=1,
        served_bytes=2048,
        fetched_bytes=1024,
        evicted=5,
        swept=6,
        quarantined=7,
        healed=8,
        incidents=9,
        quarantine_files=1,
        partials=2,
        scrub_done_bytes=1,
        scrub_total_bytes=4,
    )
    counts.since.GetCurrentTime()
    shown = "\n".join(statistics_lines(plain(counts)))
    assert "3 hits (75%), 1 not held when asked for; 2.0 KiB served, 1.0 KiB fetched" in shown
    assert "5 evicted (0 B), 6 partial given up (0 B), 7 set aside, 8 healed" in shown
    assert "now 2 partial blobs (0 B), 9 incidents, 1 file in quarantine (0 B)" in shown
    assert "scrub: 25% of a round that began -; last ended -" in shown
