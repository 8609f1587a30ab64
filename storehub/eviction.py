"""Decides what the cache must keep and what goes first when it must make room.

A *pin* is a reason a blob may not go: the target of a wave that is not closed, the running image or the last known good
of a device of this store. Everything else goes oldest use first, and only as much as is needed. Where even that does
not make room, the plan is refused beforehand with gate ``cache-quota``: nothing is evicted for a plan that cannot fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wavemesh.errors import GateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from wavemesh.trust.statements import Digest


@dataclass(frozen=True, slots=True)
class CachedBlob:
    """A blob on disk, whole or in part (room for all of it is reserved), and when it was last asked for."""

    digest: Digest
    last_used_at: datetime


@dataclass(frozen=True, slots=True)
class Need:
    """Blobs that something active needs here, and what: "target of wave 142"."""

    reason: str
    blobs: tuple[Digest, ...]


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


def oldest_first(blobs: Iterable[CachedBlob]) -> tuple[CachedBlob, ...]:
    """The order of eviction, pinned ones included: least recently used first, ties by name."""
    return tuple(sorted(blobs, key=lambda blob: (blob.last_used_at, blob.digest.sha256)))


def make_room(
    blobs: Sequence[CachedBlob],
    pinned: Mapping[str, tuple[str, ...]],
    wanted: Sequence[Digest],
    quota_bytes: int,
) -> tuple[Digest, ...]:
    """What to evict so that all of ``wanted`` fits within the quota; raises GateError ``cache-quota``.

    Blobs that are wanted themselves stay, whatever is pinned; those present need no further room.
    """
    needed = frozenset(wanted)
    present = {blob.digest for blob in blobs}
    used = sum(digest.size_bytes for digest in present)
    excess = used + sum(digest.size_bytes for digest in needed - present) - quota_bytes
    evicted: list[Digest] = []
    for blob in oldest_first(blobs):
        if excess <= 0:
            break
        if blob.digest.sha256 in pinned or blob.digest in needed:
            continue
        evicted.append(blob.digest)
        excess -= blob.digest.size_bytes
    if excess > 0:
        msg = f"the cache quota of {quota_bytes} bytes is {excess} bytes too small for what is wanted and pinned"
        raise GateError("cache-quota", msg, excess_bytes=str(excess), quota_bytes=str(quota_bytes))
    return tuple(evicted)
