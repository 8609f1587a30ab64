"""What a store hub keeps about devices, swaps, waves and intents, as values: one class a table."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from storehub.swaps import Slot
    from wavemesh.trust.statements import (
        DeviceStatus,
        Digest,
        Envelope,
        OperatorIntent,
        WaveOrder,
        WaveState,
    )


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """The last status of a device, when the hub got it, and the firmware that ran before the one that runs."""

    status: DeviceStatus
    seen_at: datetime
    last_known_good_sha256: str = ""


@dataclass(frozen=True, slots=True)
class SlotRecord:
    """An occupied slot and what its device is sent: for a swap the encoded LeaseGrant, for a rollback the intent's id.

    ``epoch`` and ``counter`` are the version under which the lease is served.
    """

    slot: Slot
    lease_id: str = ""
    grant: bytes = b""
    intent_id: str = ""
    epoch: str = ""
    counter: int = 0


@dataclass(frozen=True, slots=True)
class WaveRecord:
    """The latest order of a wave at this store, kept for a while after the wave closed; ``blobs`` are what it needs."""

    order: WaveOrder
    first_seen_at: datetime
    blobs: tuple[Digest, ...] = ()
    closed_state: WaveState | None = None
    closed_at: datetime | None = None


class Disposition(enum.Enum):
    """What became of an intent; values as in operator.proto."""

    APPLIED = 1
    QUEUED = 2
    REFUSED = 3
    CANCELLED = 4


class IntentSource(enum.Enum):
    """Who gave an intent to this hub."""

    OPERATOR = "operator"
    PARENT = "parent"


@dataclass(frozen=True, slots=True)
class IntentRecord:
    """An intent and its fate. ``device_path`` is the device of this store it is about, empty if none;
    ``report_number`` is the number of the report that carries it up, 0 when none does; ``counter`` and ``epoch`` are
    the version under which a rollback is served to its device; ``digests`` are what a prefetch wants.
    """

    intent: OperatorIntent
    envelope: Envelope
    operator: str
    source: IntentSource
    disposition: Disposition
    received_at: datetime
    device_path: str = ""
    waiting_for: tuple[str, ...] = ()
    detail: str = ""
    report_number: int = 0
    epoch: str = ""
    counter: int = 0
    digests: tuple[Digest, ...] = ()

    @property
    def intent_id(self) -> str:
        """The intent's id."""
        return self.intent.intent_id
