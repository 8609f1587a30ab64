"""The desired state of each region, as signed and published (docs/architecture.md, "What flows down").

Rules:
- A resource is written to the database in the transaction of the change it comes from; the mirror in memory, from which
  sessions are served, follows after the commit. So nothing is ever sent that a restart would take back.
- A resource has a scope: one region, or everybody. A wave that spans regions has its resources once in each, so that
  what a super hub is given names its own stores only, and a region's state is one dictionary, kept until it changes.
- Content that is the same is not published again: its version stays.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from sqlalchemy import delete, select

from control import schema, store
from wavemesh.session.frames import MAX_RESOURCE_BYTES, Resource, ResourceKey, ResourceVersion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from control.database import Database, Transaction

EVERYBODY = ""
_DELETE_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Item:
    """A resource to publish; ``scope`` is a region's path or EVERYBODY."""

    scope: str
    key: ResourceKey
    content: bytes
    audience: tuple[str, ...] = ()
    urgent: bool = False


class DesiredState:
    """What every super hub should hold."""

    def __init__(self, epoch: str, mirror: dict[tuple[str, ResourceKey], Resource]) -> None:
        """Use ``load``."""
        self.epoch = epoch
        self._mirror = mirror
        self._views: dict[str, Mapping[ResourceKey, Resource]] = {}
        self._subscribers: list[Callable[[str | None], None]] = []

    @classmethod
    async def load(cls, database: Database, epoch: str) -> DesiredState:
        """Read what was published before."""
        async with database.reading() as tx:
            rows = await tx.all(select(schema.resources))
        return cls(
            epoch,
            {
                (row["scope"], key): Resource(
                    key=key,
                    version=ResourceVersion(epoch, row["counter"]),
                    digest=row["digest"],
                    content=row["content"],
                    audience=tuple(row["audience"]),
                    urgent=row["urgent"],
                )
                for row in rows
                for key in (ResourceKey(row["type"], row["name"]),)
            },
        )

    def subscribe(self, notify: Callable[[str | None], None]) -> None:
        """Call back after each change with the region's path, or None when it concerns all."""
        self._subscribers.append(notify)

    def of_region(self, region: str) -> Mapping[ResourceKey, Resource]:
        """Everything a region's super hub should hold now."""
        view = self._views.get(region)
        if view is None:
            view = MappingProxyType(
                {key: resource for (scope, key), resource in self._mirror.items() if scope in {EVERYBODY, region}}
            )
            self._views[region] = view
        return view

    def get(self, scope: str, key: ResourceKey) -> Resource | None:
        """One published resource, or None."""
        return self._mirror.get((scope, key))

    def published(self) -> Iterable[tuple[str, ResourceKey]]:
        """Scope and key of all that is published."""
        return tuple(self._mirror)

    async def publish(self, tx: Transaction, *items: Item) -> None:
        """Publish resources. RuntimeError for content over the session's bound."""
        fresh = [item for item in items if not self._is_same(item)]
        if not fresh:
            return
        counter = int(await store.value(tx, "counter") or 0)
        await store.set_value(tx, "counter", str(counter + len(fresh)))
        resources = [(item.scope, self._resource(item, number)) for number, item in enumerate(fresh, start=counter + 1)]
        await tx.put(schema.resources, *(_row(scope, resource) for scope, resource in resources))

        def apply() -> None:
            self._mirror.update({(scope, resource.key): resource for scope, resource in resources})
            self._changed({scope for scope, _ in resources})

        tx.after_commit(apply)

    async def withdraw(self, tx: Transaction, scope: str, keys: Iterable[ResourceKey]) -> None:
        """Take resources back; those not published are passed over."""
        gone = [key for key in keys if (scope, key) in self._mirror]
        if not gone:
            return
        table = schema.resources
        for kind in sorted({key.type for key in gone}):
            names = [key.name for key in gone if key.type == kind]
            for start in range(0, len(names), _DELETE_AT_ONCE):
                some = table.c.name.in_(names[start : start + _DELETE_AT_ONCE])
                await tx.run(delete(table).where(table.c.scope == scope, table.c.type == kind, some))

        def apply() -> None:
            for key in gone:
                self._mirror.pop((scope, key), None)
            self._changed({scope})

        tx.after_commit(apply)

    def _is_same(self, item: Item) -> bool:
        held = self._mirror.get((item.scope, item.key))
        return held is not None and (held.content, held.audience, held.urgent) == (
            item.content,
            item.audience,
            item.urgent,
        )

    def _resource(self, item: Item, counter: int) -> Resource:
        if len(item.content) > MAX_RESOURCE_BYTES:
            msg = f"{item.key.type}/{item.key.name} of {len(item.content)} bytes is above {MAX_RESOURCE_BYTES}"
            raise RuntimeError(msg)
        digest = hashlib.sha256(item.content).hexdigest()
        version = ResourceVersion(self.epoch, counter)
        return Resource(item.key, version, digest, item.content, item.audience, item.urgent)

    def _changed(self, scopes: set[str]) -> None:
        if EVERYBODY in scopes:
            self._views.clear()
            self._tell(None)
            return
        for scope in scopes:
            self._views.pop(scope, None)
            self._tell(scope)

    def _tell(self, region: str | None) -> None:
        for notify in self._subscribers:
            notify(region)


def _row(scope: str, resource: Resource) -> dict[str, object]:
    return {
        "scope": scope,
        "type": resource.key.type,
        "name": resource.key.name,
        "counter": resource.version.counter,
        "digest": resource.digest,
        "content": resource.content,
        "audience": list(resource.audience),
        "urgent": resource.urgent,
    }
