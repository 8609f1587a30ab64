"""What control concludes about who is connected and what reached whom."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest

from control.fleet import Fleet
from wavemesh.session.frames import Resource, ResourceKey, ResourceVersion
from wavemesh.trust.statements import DeviceStatus, HubStatus, LedgerView, UpdateState

NOW = datetime(2026, 5, 1, tzinfo=UTC)
REGION = "region/midwest"
STORE = f"{REGION}/store/store-208"
DEVICE = f"{STORE}/device/pos-01"
ORDER = Resource(ResourceKey("order", "142/store-208"), ResourceVersion("e", 1), "d1", b"", (STORE,))


@pytest.fixture
def fleet() -> Fleet:
    fleet = Fleet()
    fleet.register([STORE], [DEVICE])
    return fleet


def hear(fleet: Fleet, *, hub: bool, device: bool = True) -> None:
    fleet.hubs[STORE] = HubStatus(STORE, NOW, connected=hub)
    fleet.devices[DEVICE] = DeviceStatus(DEVICE, UpdateState.IDLE, NOW, connected=device)


def test_connected_is_a_chain(fleet: Fleet) -> None:
    """A device is known to be connected only while its hub and its region are."""
    hear(fleet, hub=True)
    assert not fleet.is_connected(DEVICE)
    fleet.region_up(REGION, {})
    assert fleet.is_connected(REGION)
    assert fleet.is_connected(STORE)
    assert fleet.is_connected(DEVICE)
    hear(fleet, hub=False)
    assert not fleet.is_connected(DEVICE)
    hear(fleet, hub=True)
    fleet.region_down(REGION)
    assert not fleet.is_connected(STORE)


def test_delivery_is_concluded_and_kept(fleet: Fleet) -> None:
    """The super hub holds that content and the hub is connected; it stays so when the store goes dark later."""
    hear(fleet, hub=False)
    fleet.region_up(REGION, {ORDER.key: "d1"})
    assert not fleet.is_delivered(STORE, ORDER)
    hear(fleet, hub=True)
    fleet.note_deliveries(REGION, {ORDER.key: ORDER})
    hear(fleet, hub=False)
    assert fleet.is_delivered(STORE, ORDER)
    newer = dataclasses.replace(ORDER, digest="d2")
    assert not fleet.is_delivered(STORE, newer)
    fleet.region_holds(REGION, [newer])
    assert not fleet.is_delivered(STORE, newer)
    hear(fleet, hub=True)
    assert fleet.is_delivered(STORE, newer)
    fleet.region_up(REGION, {})
    fleet.note_deliveries(REGION, {})
    assert not fleet.is_delivered(STORE, newer)


def test_since_when_a_hub_shows_what_it_shows() -> None:
    """Said again, it is not news; another digest, another life, or a wave less is."""
    fleet, later = Fleet(), NOW + timedelta(minutes=1)

    def says(incarnation: str, at: datetime, *ledgers: LedgerView) -> None:
        fleet.hub_says(HubStatus(STORE, at, incarnation=incarnation, ledgers=ledgers), at)

    says("i1", NOW, LedgerView("142", "a"), LedgerView("143", "b"))
    says("i1", later, LedgerView("142", "a"), LedgerView("143", "c"))
    assert fleet.incarnation_of(STORE) == ("i1", NOW)
    assert fleet.ledger_of(STORE, "142") == ("a", NOW)
    assert fleet.ledger_of(STORE, "143") == ("c", later)
    says("i2", later, LedgerView("142", "a"))
    assert fleet.incarnation_of(STORE) == ("i2", later)
    assert fleet.ledger_of(STORE, "143") is None
