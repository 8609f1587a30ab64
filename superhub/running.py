"""What the devices of the region run, as their statuses say: bases of deltas, made before they are asked for.

In memory and best effort: a status comes again, and a delta that is not made in time is made when it is asked for.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from wavemesh.trust.statements import DeviceStatus

MAX_DEVICES = 100_000


class Running:
    """Firmware by device."""

    def __init__(self) -> None:
        """Nothing is known."""
        self._by_device: dict[str, tuple[str, str]] = {}

    def says(self, device: str, status: DeviceStatus | None) -> None:
        """A device's latest status, None if it has none any more; beyond MAX_DEVICES others are left out."""
        if status is None or not status.firmware_sha256:
            self._by_device.pop(device, None)
        elif device in self._by_device or len(self._by_device) < MAX_DEVICES:
            self._by_device[device] = (status.device_class, status.firmware_sha256)

    def ranked(self, classes: Collection[str]) -> list[str]:
        """SHA-256 of the firmware that devices of these classes run, that of most devices first, ties by name."""
        counts = Counter(sha256 for kind, sha256 in self._by_device.values() if kind in classes)
        return [sha256 for sha256, _ in sorted(counts.items(), key=lambda one: (-one[1], one[0]))]
