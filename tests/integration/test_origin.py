"""The lab's origin tells the truth about what it served; the super hub's reader understands origins, good and bad."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import aclosing, asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web

from superhub.origin import Origin
from tests.superhub_kit import MIB, REGION, Region
from wavemesh.artifacts.digests import digest_of
from wavemesh.errors import BusyError, LinkDownError, NotFoundError, PeerError
from wavemesh.identity.contexts import TlsFilesError, client_context

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.conftest import TrustKeys
    from wavemesh.identity.ca import FleetCa
    from wavemesh.trust.statements import Digest

CONTENT = Random(2).randbytes(3 * MIB + 5)
DIGEST = digest_of(CONTENT)


@pytest.fixture
def region(tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys) -> Region:
    (tmp_path / "origin-files").mkdir()
    region = Region(tmp_path, fleet_ca, trust_keys)
    region.credentials(REGION, tmp_path / "identity")
    region.put_at_origin(CONTENT)
    return region


@asynccontextmanager
async def connected(region: Region) -> AsyncIterator[Origin]:
    url = f"https://127.0.0.1:{region.origin_port}"
    async with Origin.connect(url, region.directory / "identity", 2) as origin:
        yield origin


async def read(origin: Origin, offset: int = 0, digest: Digest = DIGEST) -> bytes:
    async with aclosing(origin.read(digest, offset)) as pieces:
        return b"".join([bytes(piece) async for piece in pieces])


async def test_whole_and_partial_reads_are_logged_to_the_byte(region: Region) -> None:
    """S4: resumable."""
    async with region.running_origin(), connected(region) as origin:
        assert await read(origin) == CONTENT
        assert await read(origin, 1000) == CONTENT[1000:]
        with pytest.raises(NotFoundError):
            await read(origin, digest=digest_of(b"unknown"))
        with pytest.raises(LinkDownError, match="416"):
            await read(origin, len(CONTENT))
    whole, partial, unknown, beyond = region.access_log()
    assert (whole["status"], whole["range_start"], whole["bytes"]) == (200, 0, len(CONTENT))
    assert (partial["status"], partial["range_start"], partial["bytes"]) == (206, 1000, len(CONTENT) - 1000)
    assert (unknown["status"], beyond["status"], beyond["bytes"]) == (404, 416, 0)
    assert all(entry["complete"] and entry["client"] == REGION.uri for entry in region.access_log())


async def test_an_aborted_transfer_counts_what_it_moved(region: Region) -> None:
    async with (
        region.running_origin(rate_bytes_per_s=MIB),
        connected(region) as origin,
        aclosing(origin.read(DIGEST, 0)) as pieces,
    ):
        received = len(await anext(pieces))
    [entry] = region.access_log()
    assert not entry["complete"]
    assert received <= entry["bytes"] < len(CONTENT)


async def test_who_shows_no_certificate_gets_nothing(region: Region) -> None:
    async with region.running_origin():
        bare = ssl.create_default_context(cafile=str(region.directory / "identity" / "ca.crt"))
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError):
                await session.get(f"https://127.0.0.1:{region.origin_port}/blobs/{DIGEST.sha256}", ssl=bare)
    assert region.access_log() == []


@asynccontextmanager
async def odd_origin(
    region: Region, answer: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> AsyncIterator[Origin]:
    """An origin that answers as the test wants."""
    application = web.Application()
    application.router.add_get("/blobs/{name}", answer)
    identity = region.directory / "identity"
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(identity / "ca.crt"))
    context.load_cert_chain(identity / "node.crt", identity / "node.key")
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    region.origin_port = runner.addresses[0][1]
    try:
        async with connected(region) as origin:
            yield origin
    finally:
        await runner.cleanup()


async def busy(_: web.Request) -> web.StreamResponse:
    return web.Response(status=503, headers={"Retry-After": "7"})


async def deaf_to_ranges(_: web.Request) -> web.StreamResponse:
    return web.Response(body=CONTENT)


async def moved(_: web.Request) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": "https://example.invalid/"})


async def other_size(_: web.Request) -> web.StreamResponse:
    return web.Response(body=CONTENT[:-1])


async def other_range(_: web.Request) -> web.StreamResponse:
    total = len(CONTENT)
    return web.Response(status=206, body=b"x", headers={"Content-Range": f"bytes 5-{total - 1}/{total}"})


async def cut_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.content_length = len(CONTENT)
    await response.prepare(request)
    await response.write(CONTENT[:1000])
    assert request.transport is not None
    request.transport.abort()
    return response


@pytest.mark.parametrize(
    ("answer", "offset", "error"),
    [
        (busy, 0, BusyError),
        (deaf_to_ranges, 10, LinkDownError),
        (moved, 0, LinkDownError),
        (other_size, 0, LinkDownError),
        (other_range, 10, LinkDownError),
        (cut_off, 0, LinkDownError),
    ],
)
async def test_odd_origins_are_broken_links(
    region: Region,
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]],
    offset: int,
    error: type[PeerError],
) -> None:
    """Never a byte in the wrong place: what is not exactly the rest of the blob is an error, to be tried again."""
    async with odd_origin(region, answer) as origin:
        with pytest.raises(error) as caught:
            await read(origin, offset)
    if isinstance(caught.value, BusyError):
        assert caught.value.retry_after_s == 7.0


async def test_an_origin_that_is_not_there_is_a_broken_link(region: Region) -> None:
    async with region.running_origin():
        pass
    async with connected(region) as origin:
        with pytest.raises(LinkDownError):
            await read(origin)


def test_a_missing_identity_is_said(tmp_path: Path) -> None:
    with pytest.raises(TlsFilesError, match="enrol the node again"):
        client_context(tmp_path)


async def test_reads_at_the_same_time_share_the_connections(region: Region) -> None:
    async with region.running_origin(), connected(region) as origin, asyncio.TaskGroup() as group:
        reads = [group.create_task(read(origin, offset)) for offset in (0, 1, 2)]
    assert [one.result() for one in reads] == [CONTENT, CONTENT[1:], CONTENT[2:]]
