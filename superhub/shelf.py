"""Which child gets which resource: the desired state of all stores, kept by store so that looking it up is cheap.

A resource concerns a store if one of its audience lies above, at or below it (``nodes.is_for``). An audience at or
above the region, or none, concerns all stores; one below concerns the store on its way; others concern nobody here.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from wavemesh.identity.nodes import is_within

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from wavemesh.session.frames import Resource, ResourceKey

_STORE_SEGMENTS = 4  # region/R/store/S


class Shelf:
    """The resources that may be served, by store."""

    def __init__(self, region_path: str) -> None:
        """Start empty; ``region_path`` is this super hub's path."""
        self._region_path = region_path
        self._common: dict[ResourceKey, Resource] = {}
        self._by_store: dict[str, dict[ResourceKey, Resource]] = defaultdict(dict)
        self._stores_of: dict[ResourceKey, frozenset[str]] = {}

    def put(self, resource: Resource) -> None:
        """Add a resource, in place of an older one of its key."""
        self.remove(resource.key)
        stores = self._stores(resource.audience)
        if stores is None:
            self._common[resource.key] = resource
            return
        self._stores_of[resource.key] = stores
        for store in stores:
            self._by_store[store][resource.key] = resource

    def remove(self, key: ResourceKey) -> None:
        """Forget a resource, if it is here."""
        self._common.pop(key, None)
        for store in self._stores_of.pop(key, ()):
            self._by_store[store].pop(key, None)

    def desired(self, store_path: str) -> Mapping[ResourceKey, Resource]:
        """Everything that concerns one store."""
        return {**self._common, **self._by_store.get(store_path, {})}

    def _stores(self, audience: Iterable[str]) -> frozenset[str] | None:
        """The stores an audience concerns; None for all of them."""
        stores: set[str] = set()
        anybody = False
        for path in audience:
            anybody = True
            if is_within(self._region_path, path):
                return None
            if is_within(path, self._region_path):
                stores.add("/".join(path.split("/")[:_STORE_SEGMENTS]))
        return frozenset(stores) if anybody else None
