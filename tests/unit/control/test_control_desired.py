"""Desired state: published with the transaction, kept over restarts, by region."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from control.database import Database
from control.desired import EVERYBODY, DesiredState, Item
from wavemesh.session.frames import MAX_RESOURCE_BYTES, ResourceKey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

NORTH, SOUTH = "region/north", "region/south"


def item(scope: str, name: str, content: bytes = b"x", **more: bool) -> Item:
    return Item(scope, ResourceKey("order", name), content, (f"{scope}/store/s",), **more)


def seen(desired: DesiredState, region: str) -> dict[str, int]:
    return {key.name: one.version.counter for key, one in desired.of_region(region).items()}


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await Database.open(tmp_path / "control.sqlite")
    yield database
    await database.aclose()


async def test_regions_see_their_own(database: Database) -> None:
    """Two regions may use one name; what is for everybody is in each; a restart finds the same."""
    desired = await DesiredState.load(database, "epoch")
    told: list[str | None] = []
    desired.subscribe(told.append)
    async with database.transaction() as tx:
        await desired.publish(tx, item(NORTH, "142/s"), item(SOUTH, "142/s", b"y"), item(EVERYBODY, "all"))
        assert seen(desired, NORTH) == {}
    assert (seen(desired, NORTH), seen(desired, SOUTH)) == ({"142/s": 1, "all": 3}, {"142/s": 2, "all": 3})
    assert told == [None]
    async with database.transaction() as tx:
        await desired.withdraw(tx, NORTH, [ResourceKey("order", "142/s"), ResourceKey("order", "none")])
        await desired.withdraw(tx, SOUTH, [ResourceKey("order", "none")])
    assert (seen(desired, NORTH), seen(desired, SOUTH)) == ({"all": 3}, {"142/s": 2, "all": 3})
    assert told == [None, NORTH]
    again = await DesiredState.load(database, "epoch")
    assert {region: dict(again.of_region(region)) for region in (NORTH, SOUTH)} == {
        region: dict(desired.of_region(region)) for region in (NORTH, SOUTH)
    }


async def test_the_same_is_not_published_again(database: Database) -> None:
    """Its version stays, so nobody is sent it anew; any difference is a new version, above all before it."""
    desired = await DesiredState.load(database, "epoch")
    for expected, one in (
        (1, item(NORTH, "a")),
        (1, item(NORTH, "a")),
        (2, item(NORTH, "a", urgent=True)),
        (3, item(NORTH, "a", b"z", urgent=True)),
    ):
        async with database.transaction() as tx:
            await desired.publish(tx, one)
        assert seen(desired, NORTH) == {"a": expected}


async def test_a_failed_transaction_publishes_nothing(database: Database) -> None:
    """Nothing is served that a restart would take back."""
    desired = await DesiredState.load(database, "epoch")

    async def fail() -> None:
        async with database.transaction() as tx:
            await desired.publish(tx, item(NORTH, "a"))
            await desired.publish(tx, item(NORTH, "b", b"x" * (MAX_RESOURCE_BYTES + 1)))

    with pytest.raises(RuntimeError, match="order/b"):
        await fail()
    assert seen(desired, NORTH) == seen(await DesiredState.load(database, "epoch"), NORTH) == {}


async def test_many_are_withdrawn_at_once(database: Database) -> None:
    """A halt voids thousands of permits in one transaction."""
    desired = await DesiredState.load(database, "epoch")
    async with database.transaction() as tx:
        await desired.publish(tx, *(item(NORTH, f"{number}") for number in range(1200)))
    async with database.transaction() as tx:
        await desired.withdraw(tx, NORTH, [ResourceKey("order", f"{number}") for number in range(1199)])
    assert seen(desired, NORTH) == seen(await DesiredState.load(database, "epoch"), NORTH) == {"1199": 1200}
