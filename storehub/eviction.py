"""Decides what the store's cache must keep, and why; what goes to make room is for ``wavemesh/artifacts/room.py``.

A *pin* is a reason a blob may not go: the target of a wave that is not closed, the running image or the last known good
of a device of this store, the base of a planned delta, a prefetch that was asked for. Where even the rest does not make
room, the plan is refused beforehand with gate ``cache-quota``: nothing is evicted for a plan that cannot fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from wavemesh.artifacts.room import Need


@dataclass(frozen=True, slots=True)
class DeviceImages:
    """Firmware of one device by SHA-256: what it runs and what it ran before; empty where unknown."""

    device_class: str
    running_sha256: str
    last_known_good_sha256: str


def pins(needs: Iterable[Need], devices: Iterable[DeviceImages]) -> Mapping[str, tuple[str, ...]]:
    """Reasons to keep a blob, by SHA-256, in words an operator reads."""
    reasons: dict[str, set[str]] = {}
    for need in needs:
        for digest in need.blobs:
            reasons.setdefault(digest.sha256, set()).add(need.reason)
    for device in devices:
        kind = device.device_class or "unknown"
        if device.running_sha256:
            reasons.setdefault(device.running_sha256, set()).add(f"running on class {kind}")
        if device.last_known_good_sha256:
            reasons.setdefault(device.last_known_good_sha256, set()).add(f"last known good of class {kind}")
    return {sha256: tuple(sorted(words)) for sha256, words in reasons.items()}
