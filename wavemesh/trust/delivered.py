"""What hubs say of deliveries in their status: how blobs came to a store, and what a super hub has made for that."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class DeliveryState(enum.Enum):
    """How far a delivery is; values as in report.proto."""

    WAITING = 1
    READING = 2
    DONE = 3
    REFUSED = 4


@dataclass(frozen=True, slots=True)
class DeliveryView:
    """One blob on its way to a store, or arrived: ``forecast_bytes`` before the first byte, ``moved_bytes`` so far.

    ``wave_id`` is what it is charged to, empty for a prefetch without a wave; ``method`` is empty while nothing is
    planned; ``said`` is why it is so.
    """

    sha256: str
    size_bytes: int
    state: DeliveryState
    wave_id: str = ""
    name: str = ""
    method: str = ""
    forecast_bytes: int = 0
    moved_bytes: int = 0
    said: str = ""


@dataclass(frozen=True, slots=True)
class DerivedSize:
    """What a store that holds the bases reads of something that its super hub has made."""

    target_sha256: str
    method: str
    read_bytes: int
    base_sha256s: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SeededBytes:
    """What went from a super hub to its stores one way since its process began, broken transfers included."""

    method: str
    sent_bytes: int = 0
