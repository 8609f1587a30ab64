"""The super hub's tables: snapshots that fit reports, things told once, releases that entered."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from superhub import store as store_module
from superhub.rollup import Heard
from superhub.store import RegionStore
from tests.conftest import make_manifest
from wavemesh.codec.statements import decode, encode
from wavemesh.outcomes import Rank
from wavemesh.session.frames import MAX_REPORT_BYTES, Report
from wavemesh.session.sqlite import SqliteCursors, SqliteReportLog
from wavemesh.trust.statements import DeviceOutcome, Envelope, OutcomeKind, Signature, SnapshotReport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

NOW = datetime(2026, 5, 20, tzinfo=UTC)
NODE = "region/midwest"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[RegionStore]:
    made = await RegionStore.open(tmp_path / "superhub.db")
    yield made
    await made.database.close()


def heard(wave_id: str, number: int, sequence: int = 1) -> Heard:
    device = f"{NODE}/store/s/device/d{number:05}"
    outcome = DeviceOutcome(
        wave_id=wave_id,
        device=device,
        attempt=1,
        sequence=sequence,
        kind=OutcomeKind.UPDATED,
        gate="",
        evidence="",
        boot_id="",
        slot="A",
        firmware_sha256="",
        firmware_version="",
        log_sha256="",
        at=NOW,
    )
    envelope = Envelope("t", device.encode() + bytes(500), (Signature("k", b"s" * 70, b"c" * 600),))
    return Heard(outcome, Rank(1, sequence, by_device=True, payload_sha256="a"), envelope)


async def put(store: RegionStore, *outcomes: Heard) -> None:
    async with store.database.transaction() as tx:
        await store.put_outcomes(tx, outcomes)


async def snapshots(store: RegionStore) -> list[SnapshotReport]:
    async with store.database.transaction() as tx:
        reports = await store.snapshot(NODE, tx, "i" * 32)
    assert all(report.kind == "snapshot" and len(report.body) <= MAX_REPORT_BYTES for report in reports)
    return [decode(SnapshotReport, report.body) for report in reports]


async def test_a_snapshot_has_every_outcome_once_in_reports_that_fit(store: RegionStore) -> None:
    [empty] = await snapshots(store)
    assert (empty.outcomes, empty.last) == ((), True)
    await put(store, *(heard("142", number) for number in range(1000)))
    parts = await snapshots(store)
    assert len(parts) > 2
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert {part.node for part in parts} == {NODE}
    found = [envelope for part in parts for envelope in part.outcomes]
    assert found == [heard("142", number).envelope for number in range(1000)]


async def test_better_words_replace_worse_ones_and_closed_waves_go(store: RegionStore) -> None:
    await put(store, heard("142", 1), heard("143", 1))
    await put(store, heard("142", 1, 2))
    async with store.database.transaction() as tx:
        known = await store.ranks(tx, [heard("142", 1).key, heard("143", 1).key, heard("144", 1).key])
        assert [rank.sequence for rank in known.values()] == [2, 1]
        await store.close_wave(tx, "142")
        assert list(await store.ranks(tx, known)) == [heard("143", 1).key]


async def test_a_stores_snapshot_that_waits_survives_a_new_incarnation(store: RegionStore) -> None:
    """Control writes off a replaced store hub's permits on its snapshot, which nothing else says."""

    async def snapshot(tx: object, incarnation: str) -> list[Report]:
        return await store.snapshot(NODE, tx, incarnation)  # type: ignore[arg-type]  # the log's own transaction

    log = await SqliteReportLog.open(store.database, snapshot)
    waiting = SnapshotReport(f"{NODE}/store/s", "j" * 32, (), last=True)
    async with store.database.transaction() as tx:
        await log.append(tx, Report("snapshot", encode(waiting)))
    before = log.incarnation
    for _ in range(2):
        await log.restart()
    reports = await log.read(1, 10)
    assert [decode(SnapshotReport, report.body) for report in reports] == [
        waiting,
        SnapshotReport(NODE, log.incarnation, (), last=True),
    ]
    assert log.incarnation != before


async def test_every_store_that_was_heard_is_named_behind_the_outcomes(store: RegionStore) -> None:
    """P6: a restored control forgot that a hub came anew; the permits of the one before it are written off again."""
    cursors, a, b = SqliteCursors(store.database), f"{NODE}/store/a", f"{NODE}/store/b"
    for path, incarnation in ((a, "one"), (b, "two"), (a, "three")):
        async with store.database.transaction() as tx:
            await cursors.advance(tx, path, incarnation, 4)
    own, *named = await snapshots(store)
    assert (own.node, own.last) == (NODE, True)
    assert named == [SnapshotReport(a, "three", (), True), SnapshotReport(b, "two", (), True)]

    async def snapshot(tx: object, incarnation: str) -> list[Report]:
        return await store.snapshot(NODE, tx, incarnation)  # type: ignore[arg-type]  # the log's own transaction

    log = await SqliteReportLog.open(store.database, snapshot)
    for _ in range(3):
        await log.restart()
        assert log.next_number == 4, "each is told once, however often the log starts anew"


async def test_things_are_told_once_and_the_memory_of_it_is_bounded(
    store: RegionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "MAX_SEEN", 3)
    async with store.database.transaction() as tx:
        firsts = [await store.is_first(tx, "event", name) for name in ("a", "a", "b", "c", "d", "a", "d")]
        assert firsts == [True, False, True, True, True, True, False]
        assert await store.is_first(tx, "intent", "d")
        [count] = await tx.fetch_all("SELECT COUNT(*) FROM seen")
        assert count[0] == 3


async def test_the_first_entry_of_a_release_counts(tmp_path: Path, store: RegionStore) -> None:
    release = make_manifest()
    for now in (NOW, NOW.replace(year=2027)):
        async with store.database.transaction() as tx:
            await store.enter(tx, release, now)
    other = await RegionStore.open(tmp_path / "superhub.db")
    try:
        for one in (store, other):
            assert one.entered == {(release.name, release.main.digest.sha256): NOW}
            assert one.release_seen_with(release.signature.digest.sha256) == release.name
            assert one.release_seen_with("0" * 64 + "1") is None
    finally:
        await other.database.close()
