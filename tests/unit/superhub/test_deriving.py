"""The shell that makes: once each, of what is right, durable in the right order, and never the end of the hub (S5)."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from superhub.derivations import AGAIN_AFTER, Dismissed, Limits, Made, Recipe
from superhub.derived import Derived
from superhub.deriving import MAX_FLIGHTS, RETRY_S, Deriving
from superhub.store import RegionStore
from wavemesh.artifacts.blobstore import BlobStore, QuotaExceededError
from wavemesh.artifacts.chunks import make_pack
from wavemesh.artifacts.delta.worker import DeltaBoundError
from wavemesh.artifacts.digests import blob_name, digest_of, digest_of_file, in_thread
from wavemesh.artifacts.likeness import Estimate
from wavemesh.artifacts.making import Makers
from wavemesh.artifacts.plan import Method
from wavemesh.errors import LinkDownError, WavemeshError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from wavemesh.trust.statements import Digest

LIMITS = Limits(memory_mib=4096, max_s=1200.0, parallel=1)
TARGET, BASE, OTHER = (bytes([number]) * 100_000 for number in range(3))
ALL = list(Method)


class HandClock:
    """Goes on when told."""

    def __init__(self) -> None:
        self.time = datetime(2026, 5, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()


class PlayedMakers(Makers):
    """Makes at once, what the test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[str] = []
        self.fault: WavemeshError | OSError | None = None
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.sizes = {"delta": 100, "full-zstd": 1000}
        self.estimate = Estimate(50_000, 40_000, 100, 1.0)

    async def _work(self, job: str, out: Path) -> None:
        self.jobs.append(job)
        await self.go_on.wait()
        if self.fault is not None:
            raise self.fault
        await in_thread(out.write_bytes, (job.encode() * self.sizes[job])[: self.sizes[job]])

    async def make(self, bases: Sequence[Path], target: Path, out: Path) -> None:
        assert await digest_of_file(target) != await digest_of_file(bases[0])
        await self._work("delta", out)

    async def compress(self, target: Path, out: Path, level: int) -> None:
        await self._work("full-zstd", out)

    async def pack(self, target: Path, out: Path, index: Path, level: int) -> None:
        self.jobs.append("chunks")
        make_pack(target, out, index, level=1)

    async def liken(self, bases: Sequence[Path], target: Path, out: Path) -> Estimate:
        self.jobs.append("liken")
        return self.estimate


class Rig:
    """A super hub's maker with a cache that holds a base and another."""

    def __init__(self, blobs: BlobStore, store: RegionStore, derived: Derived, clock: HandClock, folder: Path) -> None:
        self.blobs, self.store, self.derived, self.clock, self.folder = blobs, store, derived, clock, folder
        self.makers = PlayedMakers()
        self.brought: list[Digest] = []
        self.bringing = asyncio.Lock()
        self.bring_fault: WavemeshError | None = None
        self.room_fault: WavemeshError | None = None
        self.deriving: Deriving

    async def bring(self, digest: Digest) -> None:
        self.brought.append(digest)
        if self.bring_fault is not None:
            raise self.bring_fault
        async with self.bringing:
            if not self.blobs.has(digest):
                await put(self.blobs, TARGET)

    async def make_room(self, digest: Digest) -> None:
        if self.room_fault is not None:
            raise self.room_fault

    async def idle(self) -> None:
        async with asyncio.timeout(10):
            while self.deriving.at_work:  # noqa: ASYNC110  # tasks of a group have no common event
                await asyncio.sleep(0.001)

    async def rows(self) -> list[tuple[str, str]]:
        found = await self.store.database.fetch_all("SELECT method, state FROM derived ORDER BY method")
        return [(row[0], row[1]) for row in found]


async def put(blobs: BlobStore, content: bytes) -> Digest:
    digest = digest_of(content)
    async with blobs.writer(digest) as writer:
        await writer.write(content)
    return digest


@asynccontextmanager
async def rig(directory: Path) -> AsyncIterator[Rig]:
    clock = HandClock()
    blobs = await BlobStore.open(directory / "cache", 1 << 30, clock)
    store = await RegionStore.open(directory / "superhub.db")
    try:
        for content in (BASE, OTHER):
            if not blobs.has(digest_of(content)):
                await put(blobs, content)
        derived = await Derived.open(store.database, blobs, clock.now())
        made = Rig(blobs, store, derived, clock, directory / "deriving")
        async with asyncio.TaskGroup() as group:
            made.deriving = Deriving(
                directory=made.folder,
                blobs=blobs,
                derived=derived,
                makers=made.makers,
                limits=LIMITS,
                is_on=True,
                clock=clock,
                group=group,
                bring=made.bring,
                make_room=made.make_room,
            )
            await made.deriving.sweep()
            yield made
            made.deriving.stop_all()
    finally:
        await store.database.close()


async def test_each_is_made_once_however_many_ask(tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        target, base = digest_of(TARGET), digest_of(BASE)
        asked = await asyncio.gather(*(one.deriving.offers(target, [base], (), ALL) for _ in range(300)))
        assert all(len(offers) == 4 for offers in asked)
        assert all(
            offer.payload is None and offer.ready_in_s >= 1 for offer in asked[0] if offer.method is not Method.FULL
        )
        await one.idle()
        assert sorted(one.makers.jobs) == ["chunks", "delta", "full-zstd"]
        offers = {offer.method: offer for offer in await one.deriving.offers(target, [base], (), ALL)}
        assert all(offer.payload is not None and offer.ready_in_s == 0 for offer in offers.values())
        assert (offers[Method.DELTA].read_bytes, offers[Method.DELTA].bases) == (100, (base,))
        assert await one.rows() == [("chunks", "made"), ("delta", "made"), ("full-zstd", "made")]
        assert list(one.folder.iterdir()) == []


async def test_what_others_run_is_begun_and_not_offered(tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        target = digest_of(TARGET)
        offers = await one.deriving.offers(target, [], [digest_of(OTHER)], [Method.DELTA])
        assert offers == []
        await one.idle()
        assert one.makers.jobs == ["delta"]


@pytest.mark.parametrize("kind", ["bound", "link", "process", "room"])
async def test_a_failure_is_survived_and_remembered_for_as_long_as_it_is_worth(tmp_path: Path, kind: str) -> None:
    """What is definite is durable, what may be an accident is tried again after a minute; nothing ends the hub."""
    faults: dict[str, WavemeshError | OSError] = {
        "bound": DeltaBoundError("too slow"),
        "process": OSError(11, "no more processes"),
    }
    async with rig(tmp_path) as one:
        target, base = digest_of(TARGET), digest_of(BASE)
        one.makers.fault = faults.get(kind)
        one.bring_fault = LinkDownError("no origin") if kind == "link" else None
        one.room_fault = QuotaExceededError("full") if kind == "room" else None
        ask: Callable[[], Awaitable[Sequence[object]]] = lambda: one.deriving.offers(target, [base], (), [Method.DELTA])  # noqa: E731
        assert len(await ask()) == 1
        await one.idle()
        assert await ask() == [], "not promised again at once"
        expected = [("delta", "dismissed")] if kind == "bound" else []
        assert await one.rows() == expected
        assert list(one.folder.iterdir()) == []
        one.makers.fault = one.bring_fault = one.room_fault = None
        one.clock.time += timedelta(seconds=RETRY_S)
        assert len(await ask()) == (0 if kind == "bound" else 1)
        one.clock.time += AGAIN_AFTER
        assert len(await ask()) == 1
        await one.idle()
        assert await one.rows() == [("delta", "made")]


async def test_a_base_that_went_bad_is_found_before_anything_is_made_of_it(tmp_path: Path) -> None:
    """H2: a delta from it would rebuild nowhere."""
    async with rig(tmp_path) as one:
        base = digest_of(BASE)
        one.blobs.file_of(base).write_bytes(BASE[:-1] + b"!")
        await one.deriving.offers(digest_of(TARGET), [base], (), [Method.DELTA])
        await one.idle()
        assert one.makers.jobs == []
        assert not one.blobs.has(base)


async def test_what_is_unlike_is_dismissed_before_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("superhub.derivations.LIKENED_FROM_BYTES", 1000)
    async with rig(tmp_path) as one:
        one.makers.estimate = Estimate(50_000, 60_000, 49_000, 1.0)
        await one.deriving.offers(digest_of(TARGET), [digest_of(BASE)], (), [Method.DELTA])
        await one.idle()
        assert one.makers.jobs == ["liken"]
        assert await one.rows() == [("delta", "dismissed")]


async def test_what_saves_too_little_is_not_kept(tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        one.makers.sizes["delta"] = 99_000
        await one.deriving.offers(digest_of(TARGET), [digest_of(BASE)], (), [Method.DELTA])
        await one.idle()
        assert await one.rows() == [("delta", "dismissed")]
        assert len(one.blobs.entries()) == 3


async def test_what_nobody_may_have_is_stopped_and_leaves_nothing(tmp_path: Path) -> None:
    """S2."""
    async with rig(tmp_path) as one:
        one.makers.go_on.clear()
        target = digest_of(TARGET)
        await one.deriving.offers(target, [digest_of(BASE)], (), ALL)
        async with asyncio.timeout(10):
            while "delta" not in one.makers.jobs:  # noqa: ASYNC110  # the job says so by a list
                await asyncio.sleep(0.001)
        one.deriving.stop_unless(lambda digest: digest != target)
        await one.idle()
        assert list(one.folder.iterdir()) == []
        assert "delta" not in [method for method, _ in await one.rows()]


async def test_flights_are_bounded(tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        one.makers.go_on.clear()
        promised = sum(
            len(one.deriving.begin(digest_of(bytes([number]) * 70_000), [], [Method.FULL_ZSTD]))
            for number in range(MAX_FLIGHTS + 5)
        )
        assert promised == MAX_FLIGHTS


def _made(recipe: Recipe, *blobs: Digest, at: datetime) -> Made:
    return Made(recipe, blobs[0], blobs[1] if len(blobs) > 1 else None, at, 1.5)


async def test_after_a_crash_what_is_whole_is_made_and_the_rest_is_gone(tmp_path: Path) -> None:
    """Kill -9 between the row and its blobs: the table never names what is not there, and no blob is nobody's."""
    whole, half, gone = (Recipe(Method.DELTA, digest_of(TARGET), (digest_of(bytes([n]) * 9),)) for n in range(3))
    async with rig(tmp_path) as one:
        now = one.clock.now()
        payload = await put(one.blobs, b"payload of the first")
        await one.derived.coming(_made(whole, payload, at=now))
        content = b"payload of the second" * 1000
        async with one.blobs.writer(digest_of(content)) as writer:
            await writer.write(content[:100])
        index = await put(one.blobs, b"index of the second")
        await one.derived.coming(_made(half, digest_of(content), index, at=now))
        evicted = await put(one.blobs, b"payload of the third")
        await one.derived.keep(_made(gone, evicted, at=now))
        await one.blobs.delete(evicted)
        assert one.derived.made(gone) is None
    async with rig(tmp_path) as one:
        assert [made.recipe for made in one.deriving.made] == [whole]
        assert await one.rows() == [("delta", "made")]
        assert one.deriving.source_of(payload) == ([whole.target], Method.DELTA)
        assert one.deriving.source_of(index) is None
        assert not one.blobs.has(index)
        assert not one.blobs.partial_size(digest_of(content))


async def test_a_blob_of_two_targets_belongs_to_both_and_stays_for_the_second(tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        payload = await put(one.blobs, b"the same pack")
        first, second = (Recipe(Method.FULL_ZSTD, digest_of(content)) for content in (BASE, OTHER))
        for recipe in (first, second):
            await one.derived.keep(_made(recipe, payload, at=one.clock.now()))
        source = one.deriving.source_of(payload)
        assert source is not None
        assert set(source[0]) == {first.target, second.target}
        await one.derived.forget(_made(first, payload, at=one.clock.now()))
        assert one.blobs.has(payload)
        source = one.deriving.source_of(payload)
        assert source is not None
        assert list(source[0]) == [second.target]


async def test_dismissals_last_a_day_over_restarts(tmp_path: Path) -> None:
    recipe = Recipe(Method.DELTA, digest_of(TARGET), (digest_of(BASE),))
    async with rig(tmp_path) as one:
        await one.derived.dismiss(Dismissed(recipe, "no", one.clock.now() - timedelta(hours=23)))
        await one.derived.dismiss(
            Dismissed(Recipe(Method.CHUNKS, digest_of(BASE)), "no", one.clock.now() - AGAIN_AFTER)
        )
    async with rig(tmp_path) as one:
        assert one.derived.dismissed(recipe) is not None
        assert await one.rows() == [("delta", "dismissed")]


async def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        async with one.store.database.transaction() as tx:
            name = blob_name(digest_of(BASE))
            row = ("delta", name, name, "made", "no blob", "", 0.0, one.clock.now().isoformat(), "")
            await tx.execute("INSERT INTO derived VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        with pytest.raises(WavemeshError, match="'no blob', which names none"):
            await Derived.open(one.store.database, one.blobs, one.clock.now())
