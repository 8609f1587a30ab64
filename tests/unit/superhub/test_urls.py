"""URLs of the origin: asked ahead of need, durable, renewed at half of their life, tried late without control (S4)."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from superhub.store import RegionStore
from superhub.urls import KEPT_AFTER_EXPIRY, OriginUrlError, UrlBook
from wavemesh.artifacts.digests import digest_of
from wavemesh.artifacts.objectstore import Place
from wavemesh.artifacts.signedurls import (
    ASK_KIND,
    MAX_URLS,
    OriginRefusal,
    OriginUrl,
    OriginUrlsAnswer,
    OriginUrlsRequest,
)
from wavemesh.codec.statements import decode, encode
from wavemesh.errors import GateError, LinkDownError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from wavemesh.trust.statements import Digest

PLACE, ENDPOINT = Place("artifacts", "fleet"), "https://s3.example"
DIGEST, OTHER = digest_of(b"image"), digest_of(b"other")
LIFE = timedelta(hours=48)


class World:
    """Control and the clock, as the test wants them."""

    def __init__(self) -> None:
        self.at = datetime(2026, 5, 1, 12, tzinfo=UTC)
        self.is_dark = False
        self.signed = 0
        self.asked: list[int] = []
        self.refusal = ""
        self.form = "https://s3.example/artifacts/fleet/{sha256}?signed={number}"
        self.wanted: set[Digest] = set()

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()

    async def ask(self, kind: str, body: bytes, timeout_s: float) -> bytes:
        assert (kind, timeout_s > 0) == (ASK_KIND, True)
        await asyncio.sleep(0)
        if self.is_dark:
            raise LinkDownError("dark")
        digests = decode(OriginUrlsRequest, body).digests
        self.asked.append(len(digests))
        if self.refusal:
            return encode(
                OriginUrlsAnswer(refused=tuple(OriginRefusal(one, self.refusal, "because") for one in digests))
            )
        return encode(OriginUrlsAnswer(tuple(self._sign(one) for one in digests)))

    def _sign(self, digest: Digest) -> OriginUrl:
        self.signed += 1
        url = self.form.format(sha256=digest.sha256, number=self.signed)
        return OriginUrl(digest, url, self.at, self.at + LIFE)


@asynccontextmanager
async def book(directory: Path, world: World, endpoint: str = ENDPOINT) -> AsyncIterator[UrlBook]:
    store = await RegionStore.open(directory / "superhub.db")
    try:
        opened = UrlBook(PLACE, endpoint, store.database, world)
        await opened.load()
        opened.use(world.ask, lambda: world.wanted)
        yield opened
    finally:
        await store.database.close()


def numbered(url: OriginUrl) -> str:
    return url.url.rpartition("=")[2]


async def test_a_url_is_asked_for_once_and_survives_a_restart(tmp_path: Path) -> None:
    world = World()
    async with book(tmp_path, world) as urls:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(urls.url(DIGEST)) for _ in range(5)]
        assert {numbered(one.result()) for one in asked} == {"1"}
    world.is_dark = True
    async with book(tmp_path, world) as urls:
        assert numbered(await urls.url(DIGEST)) == "1"
        with pytest.raises(LinkDownError, match=f"no URL of the origin for blob {OTHER.sha256}.*dark"):
            await urls.url(OTHER)


async def test_one_that_looks_expired_is_replaced_or_tried_all_the_same(tmp_path: Path) -> None:
    """The store's clock decides, not this hub's."""
    world = World()
    async with book(tmp_path, world) as urls:
        await urls.url(DIGEST)
        world.at += LIFE
        world.is_dark = True
        assert numbered(await urls.url(DIGEST)) == "1"
        world.is_dark = False
        assert numbered(await urls.url(DIGEST)) == "2"
    world.is_dark = True
    async with book(tmp_path, world) as urls:
        assert numbered(await urls.url(DIGEST)) == "2"


async def test_one_that_was_refused_is_never_given_again(tmp_path: Path) -> None:
    world = World()
    async with book(tmp_path, world) as urls:
        first = await urls.url(DIGEST)
        world.is_dark = True
        with pytest.raises(LinkDownError):
            await urls.another(DIGEST, first)
        with pytest.raises(LinkDownError):
            await urls.url(DIGEST)
    async with book(tmp_path, world) as urls:
        with pytest.raises(LinkDownError):
            await urls.url(DIGEST)
        world.is_dark = False
        second = await urls.another(DIGEST, first)
        assert numbered(second) == "2"
        assert await urls.another(DIGEST, first) == second


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # it becomes true on this very loop
            await asyncio.sleep(0)


async def test_what_orders_name_has_urls_before_anybody_asks(tmp_path: Path) -> None:
    """And new ones at half of their life: a region may lose its control for a day at any moment."""
    world = World()
    async with book(tmp_path, world) as urls, asyncio.TaskGroup() as group:
        running = group.create_task(urls.run())
        world.wanted = {digest_of(bytes([number])) for number in range(MAX_URLS + 3)}
        urls.wake()
        await until(lambda: sum(world.asked) == MAX_URLS + 3)
        assert max(world.asked) == MAX_URLS
        world.at += LIFE / 2 - timedelta(seconds=1)
        urls.wake()
        world.wanted |= {DIGEST}
        await until(lambda: sum(world.asked) == MAX_URLS + 4)
        world.at += timedelta(seconds=1)
        urls.wake()
        await until(lambda: sum(world.asked) == 2 * MAX_URLS + 7)
        world.is_dark = True
        world.wanted |= {OTHER}
        urls.wake()
        await asyncio.sleep(0)
        world.is_dark = False
        urls.wake()
        await until(lambda: sum(world.asked) == 2 * MAX_URLS + 8)
        running.cancel()


@pytest.mark.parametrize(("gate", "error"), [("hold", GateError), ("class", GateError), ("NOT_FOUND", NotFoundError)])
async def test_a_refusal_by_control_is_an_answer(tmp_path: Path, gate: str, error: type[Exception]) -> None:
    world = World()
    world.refusal = gate
    async with book(tmp_path, world) as urls:
        with pytest.raises(error, match="control gives no URL of the origin: because"):
            await urls.url(DIGEST)


@pytest.mark.parametrize(
    "form",
    [
        "https://evil.example/artifacts/fleet/{sha256}?{number}",
        "http://s3.example/artifacts/fleet/{sha256}?{number}",
        "https://s3.example/artifacts/other/{sha256}?{number}",
        "https://s3.example/artifacts/fleet/../{sha256}?{number}",
        "https://s3.example/fleet/{sha256}?{number}",
        "https://s3.example/artifacts/fleet/" + OTHER.sha256 + "?{number}",
        "https://user@s3.example/artifacts/fleet/{sha256}?{number}",
    ],
)
async def test_a_url_that_leads_elsewhere_is_refused(tmp_path: Path, form: str) -> None:
    """P2: whoever holds control cannot send a region's super hub anywhere but to its bucket."""
    world = World()
    world.form = form
    async with book(tmp_path, world) as urls:
        with pytest.raises(OriginUrlError, match=r"compare origin\."):
            await urls.url(DIGEST)


@pytest.mark.parametrize("endpoint", [ENDPOINT, ""])
async def test_the_bucket_may_stand_in_the_host(tmp_path: Path, endpoint: str) -> None:
    world = World()
    world.form = "https://artifacts.s3.example/fleet/{sha256}?{number}"
    async with book(tmp_path, world, endpoint) as urls:
        assert (await urls.url(DIGEST)).url.startswith("https://artifacts.s3.example")


async def test_what_expired_long_ago_goes(tmp_path: Path) -> None:
    world = World()
    async with book(tmp_path, world) as urls:
        await urls.url(DIGEST)
        world.at += LIFE + KEPT_AFTER_EXPIRY + timedelta(seconds=1)
        await urls.url(OTHER)
    world.is_dark = True
    async with book(tmp_path, world) as urls:
        assert numbered(await urls.url(OTHER)) == "2"
        with pytest.raises(LinkDownError):
            await urls.url(DIGEST)
