"""What control has heard of the fleet and may forget: status, connectivity, and what reached whom. In memory only.

Rules: only registered stores and devices have a status here, so memory is bounded by the inventory. Control has a
session with super hubs alone; that a store's hub got a resource is concluded, never told: its super hub holds that very
content, and the store's hub has been connected since. The conclusion is kept until the content changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from control.rollout import region_of, store_of
from wavemesh.identity.revocations import hits

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from wavemesh.session.frames import Resource, ResourceKey
    from wavemesh.trust.statements import DeviceStatus, HubStatus, Revocation


class Fleet:
    """The fleet as heard since control started."""

    def __init__(self) -> None:
        """Nothing was heard yet."""
        self.hubs: dict[str, HubStatus] = {}
        self._shown: dict[str, dict[str, tuple[str, datetime]]] = {}
        self.devices: dict[str, DeviceStatus] = {}
        self._stores: frozenset[str] = frozenset()
        self._device_paths: frozenset[str] = frozenset()
        self._held: dict[str, dict[ResourceKey, str]] = {}
        self._connected: set[str] = set()
        self._delivered: dict[tuple[str, ResourceKey], str] = {}

    def hub_says(self, status: HubStatus, now: datetime) -> None:
        """A hub's latest status; since when it shows what it shows is kept."""
        self.hubs[status.hub] = status
        before = self._shown.get(status.hub, {})
        shown = {"": status.incarnation} | {one.wave_id: one.sha256 for one in status.ledgers}
        self._shown[status.hub] = {
            name: before[name] if name in before and before[name][0] == value else (value, now)
            for name, value in shown.items()
        }

    def incarnation_of(self, hub: str) -> tuple[str, datetime] | None:
        """The incarnation that a hub shows, and since when; None before it was heard."""
        return self._shown.get(hub, {}).get("")

    def ledger_of(self, hub: str, wave_id: str) -> tuple[str, datetime] | None:
        """The digest that a hub shows of its ledger of a wave, and since when; None while it shows none."""
        return self._shown.get(hub, {}).get(wave_id)

    def register(self, stores: Iterable[str], devices: Iterable[str]) -> None:
        """The whole inventory, by path."""
        self._stores, self._device_paths = frozenset(stores), frozenset(devices)

    def knows_store(self, path: str) -> bool:
        """Whether a store is registered."""
        return path in self._stores

    def knows_device(self, path: str) -> bool:
        """Whether a device is registered."""
        return path in self._device_paths

    @property
    def stores(self) -> frozenset[str]:
        """Paths of all registered stores."""
        return self._stores

    @property
    def device_paths(self) -> frozenset[str]:
        """Paths of all registered devices."""
        return self._device_paths

    def hit_by(self, entry: Revocation) -> list[str]:
        """Registered hubs and devices that a revocation concerns, by path."""
        known = {region_of(path) for path in self._stores} | self._stores | self._device_paths
        return sorted(path for path in known if hits(entry, path))

    def region_up(self, region: str, held: Mapping[ResourceKey, str]) -> None:
        """A super hub's session is open; ``held`` are the digests it holds by key."""
        self._connected.add(region)
        self._held[region] = dict(held)

    def region_down(self, region: str) -> None:
        """It ended. What is below it is not known to be connected any more."""
        self._connected.discard(region)

    def region_holds(self, region: str, accepted: Iterable[Resource]) -> None:
        """A super hub made these resources durable."""
        self._held.setdefault(region, {}).update({resource.key: resource.digest for resource in accepted})

    def is_connected(self, path: str) -> bool:
        """Whether a super hub, store hub or device has an open session, as far as is known."""
        region = region_of(path)
        if region not in self._connected:
            return False
        if path == region:
            return True
        if path in self._stores:
            return path in self.hubs and self.hubs[path].connected
        return path in self.devices and self.devices[path].connected and self.is_connected(store_of(path))

    def is_delivered(self, store: str, resource: Resource) -> bool:
        """Whether a store's hub got that very content, as far as is known."""
        if self._delivered.get((store, resource.key)) == resource.digest:
            return True
        got = self._held.get(region_of(store), {}).get(resource.key) == resource.digest and self.is_connected(store)
        if got:
            self._delivered[store, resource.key] = resource.digest
        return got

    def note_deliveries(self, region: str, desired: Mapping[ResourceKey, Resource]) -> None:
        """Conclude what reached whom, now that a verdict came or a store connected; forget what is withdrawn."""
        for store, key in [entry for entry in self._delivered if region_of(entry[0]) == region]:
            if key not in desired:
                del self._delivered[store, key]
        for resource in desired.values():
            if resource.key.type in {"order", "intent", "closed"}:
                for path in resource.audience:
                    store = path if path in self._stores else store_of(path)
                    self.is_delivered(store, resource)
