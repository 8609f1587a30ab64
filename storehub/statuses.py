"""Status that goes up: this hub's own, and its devices', coalesced so that a chatty store costs the WAN little."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from wavemesh.codec.statements import encode
from wavemesh.replacement import replaced

if TYPE_CHECKING:
    from collections.abc import Callable

    from storehub.hub import Hub
    from storehub.views import Views


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Statuses:
    """Collects what changed and hands it to the session upwards, at most once an interval."""

    def __init__(self, hub: Hub, views: Views, set_status: Callable[[str, bytes | None], None]) -> None:
        """``set_status`` is the session's latest-wins value."""
        self._hub = hub
        self._views = views
        self._set_status = set_status
        self._dirty: set[str] = set()

    def device_changed(self, path: str) -> None:
        """A device's status changed."""
        self._dirty.add(path)

    async def run(self) -> None:
        """Pass on for as long as the hub runs, once an interval at most."""
        self._dirty.update(self._hub.store.devices)
        interval_s = self._hub.config.status_interval_s
        last_hub, waited_s = b"", 0.0
        while True:
            self._pass_on_devices()
            status = self._views.hub_status()
            # Compared without its time and what its cache counts: a hub in which nothing happens says so rarely.
            shape = encode(replaced(status, at=_EPOCH, cache=None))
            if shape != last_hub or waited_s >= self._hub.config.hub_status_interval_s:
                self._set_status("hub", encode(status))
                last_hub, waited_s = shape, 0.0
            await asyncio.sleep(interval_s)
            waited_s += interval_s

    def _pass_on_devices(self) -> None:
        dirty, self._dirty = self._dirty, set()
        for path in sorted(dirty):
            record = self._hub.store.devices.get(path)
            if record is not None:
                connected = path in self._hub.present
                status = record.status
                shown = status if status.connected is connected else replaced(status, connected=connected)
                self._set_status(f"device/{path.rsplit('/', 1)[1]}", encode(shown))
