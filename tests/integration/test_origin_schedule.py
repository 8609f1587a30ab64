"""A region that keeps to its windows, over a real origin; and one copy where two names share content (S1, S4)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.integration.test_superhub_seeding import settled
from tests.session_kit import until
from tests.superhub_kit import MIB, Region, read_all, store_id
from wavemesh.codec.statements import decode
from wavemesh.errors import GateError
from wavemesh.trust.statements import HubStatus, WaveState

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import TrustKeys
    from wavemesh.identity.ca import FleetCa

STORE, OTHER = store_id("store-208"), store_id("store-209")
IMAGE = Random(3).randbytes(2 * MIB + 9)


@pytest.fixture
def region(tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys) -> Region:
    (tmp_path / "origin-files").mkdir()
    return Region(tmp_path, fleet_ca, trust_keys)


def window(first: timedelta, last: timedelta) -> str:
    """A window relative to now, in UTC."""
    now = datetime.now(UTC)
    return f"{now + first:%H:%M}-{now + last:%H:%M}"


def write_hub(region: Region, opens: str) -> None:
    region.write_hub()
    file = region.hub_dir / "config.toml"
    file.write_text(f'{file.read_text()}[origin.schedule]\nwindows = [{{ open = "{opens}" }}]\n')


async def test_ahead_of_its_wave_a_blob_waits_for_the_window_and_a_wave_does_not(region: Region) -> None:
    """S4: off-peak windows; the super hub's status says how it stands."""
    release = region.publish("firmware-1", IMAGE)
    digest = release.main.digest
    async with region.running_origin(), region.running_control():
        write_hub(region, window(timedelta(hours=2), timedelta(hours=3)))
        async with region.running_hub() as hub:
            await settled(region)
            client = region.client(STORE, hub.port)
            region.order(STORE, release, state=WaveState.PAUSED)
            await settled(region)
            with pytest.raises(GateError, match="is fetched into this region from") as caught:
                await read_all(client, digest)
            assert caught.value.gate == "window"
            assert region.bytes_served(digest) == 0
            region.order(OTHER, release, wave_id="143")
            await settled(region)
            assert await read_all(client, digest) == IMAGE
            await until(lambda: "shut until" in told(region), region.control)
    assert region.bytes_served(digest) == len(IMAGE)


def told(region: Region) -> str:
    """What control heard of the origin of this region."""
    body = region.control.statuses.get("hub")
    return decode(HubStatus, body).origin if body else ""


async def test_a_wave_that_is_paused_in_mid_transfer_falls_back_to_the_window(region: Region) -> None:
    """S4: the fetch ends, what arrived stays, and goes on at its byte when the wave runs again."""
    release = region.publish("firmware-1", IMAGE)
    digest, received = release.main.digest, 0
    async with region.running_origin(rate_bytes_per_s=MIB // 2), region.running_control():
        write_hub(region, window(timedelta(hours=2), timedelta(hours=3)))
        async with region.running_hub() as hub:
            await settled(region)
            region.order(STORE, release)
            await settled(region)
            pieces = region.client(STORE, hub.port).read(digest)
            received = len(await anext(pieces))
            region.order(STORE, release, state=WaveState.PAUSED, generation=2)
            with pytest.raises(GateError) as caught:
                received += sum([len(piece) async for piece in pieces])
            assert caught.value.gate == "window"
            region.order(STORE, release, generation=3)
            await until(lambda: hub.parts.sink._acceptance.orders_of(STORE.path)[0].generation == 3, region.control)
            assert await read_all(region.client(STORE, hub.port), digest) == IMAGE
    first, second = [entry for entry in region.access_log() if entry["path"].endswith(digest.sha256)]
    assert received < len(IMAGE)
    assert second["range_start"] >= received
    assert first["bytes"] < len(IMAGE)


async def test_what_the_region_holds_waits_for_no_window(region: Region) -> None:
    release = region.publish("firmware-1", IMAGE)
    async with region.running_origin(), region.running_control():
        write_hub(region, window(timedelta(hours=-1), timedelta(hours=1)))
        async with region.running_hub() as hub:
            await settled(region)
            assert await read_all(region.client(STORE, hub.port), release.main.digest) == IMAGE
        write_hub(region, window(timedelta(hours=2), timedelta(hours=3)))
        async with region.running_hub() as hub:
            assert await read_all(region.client(OTHER, hub.port), release.main.digest) == IMAGE


async def test_content_under_two_names_is_fetched_and_kept_once(region: Region) -> None:
    """S1."""
    first, second = region.publish("firmware-1", IMAGE), region.publish("firmware-2", IMAGE, version="3.8.3")
    assert first.main.digest == second.main.digest
    async with region.running_origin(), region.running_control():
        region.write_hub()
        async with region.running_hub() as hub:
            await settled(region)
            region.order(STORE, first)
            region.order(OTHER, second, wave_id="143")
            await settled(region)
            for store in (STORE, OTHER):
                assert await read_all(region.client(store, hub.port), first.main.digest) == IMAGE
    assert region.bytes_served(first.main.digest) == len(IMAGE)
    held = [path for path in (region.hub_dir / "state" / "cache").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size >= len(IMAGE) for path in held) == 1
