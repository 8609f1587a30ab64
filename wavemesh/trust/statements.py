"""The signed statements of the mesh as values: what rollout.proto and report.proto say, free of generated code.

Each statement knows its payload type (what DSSE signs along with the bytes) and nothing about signatures. Bytes come
from and go to ``wavemesh/codec/statements.py``. Times are aware UTC datetimes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from wavemesh.trust.cachestats import CacheStatistics  # noqa: TC001  # the codec reads the fields' types
from wavemesh.trust.delivered import DeliveryView, DerivedSize, SeededBytes  # noqa: TC001
from wavemesh.trust.quotes import AttestationAnswer, Quote  # noqa: TC001

if TYPE_CHECKING:
    from datetime import datetime

_PREFIX = "application/vnd.wavemesh."


class WaveState(enum.Enum):
    """Whether a wave runs; values as in rollout.proto."""

    PLANNED = 1
    RUNNING = 2
    PAUSED = 3
    HALTED = 4
    CLOSED = 5


class IntentKind(enum.Enum):
    """What an operator wants; values as in rollout.proto."""

    START_WAVE = 1
    PAUSE_WAVE = 2
    RESUME_WAVE = 3
    HALT_WAVE = 4
    ROLLBACK_DEVICE = 5
    PREFETCH = 6
    OVERRIDE_HOLD_AGE = 7
    APPROVE_ROLLBACK = 8
    REHEARSE_DEVICE = 9

    @property
    def is_for_device(self) -> bool:
        """Whether it is about one device, which verifies and answers it itself."""
        return self in {IntentKind.ROLLBACK_DEVICE, IntentKind.APPROVE_ROLLBACK, IntentKind.REHEARSE_DEVICE}

    @property
    def lowers_risk(self) -> bool:
        """Whether a hub without its parent may act on it at once (semantics, "Trust")."""
        return self.is_for_device or self in {IntentKind.PAUSE_WAVE, IntentKind.HALT_WAVE, IntentKind.PREFETCH}


class OutcomeKind(enum.Enum):
    """What became of a target device in a wave; values as in report.proto."""

    PENDING = 1
    REFUSED = 2
    UPDATED = 3
    ROLLED_BACK = 4
    FAILED = 5
    SILENT = 6
    UNKNOWN = 7
    INCONCLUSIVE = 8

    __hash__ = object.__hash__  # as for UpdateState


class UpdateState(enum.Enum):
    """States of the device's update machine; values as in report.proto."""

    IDLE = 1
    PREFLIGHT = 2
    STAGING = 3
    PAUSED = 4
    VERIFIED = 5
    ARMED = 6
    TRIAL = 7
    COMMITTING = 8
    COMMITTED = 9
    ROLLING_BACK = 10
    ROLLED_BACK = 11
    AWAITING_SIGNOFF = 12
    REFUSED = 13

    # Members are one of a kind, and looked up for each device in each pass: Enum's own hash is a call in Python.
    __hash__ = object.__hash__


@dataclass(frozen=True, slots=True)
class Digest:
    """Name of a blob: SHA-256 in lower-case hex and the size in bytes, which is part of the identity."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature of an envelope.

    ``certificate`` is the signer's leaf in DER, ``intermediates`` what stands between it and the root; both are empty
    for TUF role keys.
    """

    keyid: str
    sig: bytes
    certificate: bytes = b""
    intermediates: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Envelope:
    """A DSSE envelope."""

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...]


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause of one origin ("operator:alice", "hub:store-209"); only that origin lifts it."""

    origin: str
    reason: str


@dataclass(frozen=True, slots=True)
class WaveOrder:
    """Control's order for one wave at one store; ``store`` is a path, ``devices`` are names within the store.

    ``pauses_taken`` are intents to pause that control acted on: ``pauses`` says which of them are in force.
    """

    payload_type: ClassVar[str] = _PREFIX + "order.v1"
    wave_id: str
    generation: int
    state: WaveState
    cohort: str
    device_class: str
    hardware_revision: str
    store: str
    devices: tuple[str, ...]
    release: str
    policy_digest: str
    least_hold_epoch: int
    issued_at: datetime
    expires_at: datetime
    pauses: tuple[Pause, ...] = ()
    planned_at: datetime | None = None
    pauses_taken: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to swap one device in one wave, burned by the device attempt by attempt."""

    payload_type: ClassVar[str] = _PREFIX + "permit.v1"
    wave_id: str
    device: str
    attempts: int
    generation: int
    firmware: Digest | None
    issued_at: datetime
    expires_at: datetime
    hub_incarnation: str


@dataclass(frozen=True, slots=True)
class Hold:
    """One release on hold."""

    release: str
    firmware_sha256: str
    reason: str


@dataclass(frozen=True, slots=True)
class HoldList:
    """The releases on hold, by monotonic epoch."""

    payload_type: ClassVar[str] = _PREFIX + "holds.v1"
    epoch: int
    holds: tuple[Hold, ...]
    issued_at: datetime


class RevocationReach(enum.Enum):
    """What one revocation takes back."""

    NODE = 1
    BELOW = 2
    AUTHORITY = 3


@dataclass(frozen=True, slots=True)
class Revocation:
    """Certificates of a path whose validity begins before ``issued_before``; identity/revocations.py has the rules."""

    path: str
    reach: RevocationReach
    issued_before: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class RevocationList:
    """The certificates taken back, by monotonic epoch."""

    payload_type: ClassVar[str] = _PREFIX + "revocations.v1"
    epoch: int
    revocations: tuple[Revocation, ...]
    issued_at: datetime


@dataclass(frozen=True, slots=True)
class WaveClosed:
    """Control's last word on a wave."""

    payload_type: ClassVar[str] = _PREFIX + "closed.v1"
    wave_id: str
    state: WaveState
    closed_at: datetime


@dataclass(frozen=True, slots=True)
class Lease:
    """A store hub's leave for one device to be inside a swap, from ARM to outcome."""

    payload_type: ClassVar[str] = _PREFIX + "lease.v1"
    wave_id: str
    device: str
    lease_id: str
    attempt: int
    granted_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class LeaseGrant:
    """What a device is given to ARM: the hub's lease and control's permit, both signed. Not itself signed."""

    lease: Envelope
    permit: Envelope


@dataclass(frozen=True, slots=True)
class OperatorIntent:
    """What an operator wants, signed with the operator's own key; ``intent_id`` is the idempotency key."""

    payload_type: ClassVar[str] = _PREFIX + "intent.v1"
    intent_id: str
    kind: IntentKind
    issued_at: datetime
    wave_id: str = ""
    cohort: str = ""
    device: str = ""
    reason: str = ""
    policy_yaml: bytes = b""
    window: str = ""
    stores: tuple[str, ...] = ()
    attempt: int = 0

    def asks_the_same(self, other: OperatorIntent) -> bool:
        """Whether the other is this intent given again; the moment at which it was signed does not matter."""
        return replace(self, issued_at=other.issued_at) == other


@dataclass(frozen=True, slots=True)
class IntentCancellation:
    """An operator takes an intent back that nobody has acted on."""

    payload_type: ClassVar[str] = _PREFIX + "intent-cancellation.v1"
    intent_id: str
    reason: str
    issued_at: datetime


@dataclass(frozen=True, slots=True)
class TrustMetadata:
    """A TUF metadata set as published, every root version included. Signed by itself."""

    roots: tuple[bytes, ...]
    timestamp: bytes
    snapshot: bytes
    targets: bytes
    delegated: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HealthPing:
    """A device's proof of health."""

    payload_type: ClassVar[str] = _PREFIX + "health-ping.v1"
    wave_id: str
    device: str
    boot_id: str
    slot: str
    firmware_sha256: str
    counter: int
    authority: str
    quote: Quote | None = None


@dataclass(frozen=True, slots=True)
class HealthAck:
    """An authority's acknowledgement of one ping, named by the SHA-256 of its payload."""

    payload_type: ClassVar[str] = _PREFIX + "health-ack.v1"
    ping_sha256: str
    authority: str
    at: datetime


@dataclass(frozen=True, slots=True)
class AuthorityDown:
    """A store hub's word that the health authority could not be reached, through no fault of the device."""

    payload_type: ClassVar[str] = _PREFIX + "authority-down.v1"
    ping_sha256: str
    authority: str
    at: datetime


@dataclass(frozen=True, slots=True)
class HealthPingAnswer:
    """The answer to a ping; ``lease_state`` is "live", "paused", "halted" or "none". Not itself signed."""

    ack: Envelope | None
    lease_state: str
    authority_down: Envelope | None
    attestation: AttestationAnswer | None = None


@dataclass(frozen=True, slots=True)
class SlotContent:
    """What is on a slot of a device; without digest and version nothing on it was verified. Not itself signed."""

    slot: str
    sha256: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class DeviceOutcome:
    """The latest outcome of one device in one wave; the highest (attempt, sequence) wins.

    ``observed`` and ``required`` are what the gate found and what it wanted, ``slots`` what the device has on both.
    """

    payload_type: ClassVar[str] = _PREFIX + "outcome.v1"
    wave_id: str
    device: str
    attempt: int
    sequence: int
    kind: OutcomeKind
    gate: str
    evidence: str
    boot_id: str
    slot: str
    firmware_sha256: str
    firmware_version: str
    log_sha256: str
    at: datetime
    observed: str = ""
    required: str = ""
    slots: tuple[SlotContent, ...] = ()


@dataclass(frozen=True, slots=True)
class OutcomeReport:
    """Body of a report of kind "outcome". Not itself signed."""

    outcomes: tuple[Envelope, ...]


@dataclass(frozen=True, slots=True)
class SnapshotReport:
    """Body of a report of kind "snapshot". Not itself signed."""

    node: str
    incarnation: str
    outcomes: tuple[Envelope, ...]
    last: bool


@dataclass(frozen=True, slots=True)
class IntentReport:
    """Body of a report of kind "intent". Not itself signed; ``cancellation`` is, by the operator who took it back."""

    intent: Envelope
    via: str
    cancellation: Envelope | None = None


INTENT_REFUSED = "intent-refused"
"""Kind of the event by which a node answers that nothing will come of an intent; its subject is the intent's id."""
ROLLBACK_FAILED = "rollback-failed"
"""Kind of the event by which a device says that it is still where it was; its subject is the intent's id, or empty."""
REHEARSED = "rehearsed"
"""Kind of the event by which a device tells what came of a rehearsal; its subject is the intent's id."""
ROLLBACK_DONE = "rollback-done"
"""Kind of the event that answers a rollback of a device in no wave, of which there is no outcome; subject as above."""


@dataclass(frozen=True, slots=True)
class EventReport:
    """Body of a report of kind "event"; ``event_id`` makes a replay harmless. Not itself signed."""

    event_id: str
    node: str
    kind: str
    gate: str
    wave_id: str
    subject: str
    detail: str
    at: datetime


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """Latest-wins status of a device."""

    device: str
    state: UpdateState
    at: datetime
    wave_id: str = ""
    attempt: int = 0
    gate: str = ""
    slot: str = ""
    firmware_version: str = ""
    firmware_sha256: str = ""
    config_version: str = ""
    staged_bytes: int = 0
    target_bytes: int = 0
    battery_percent: int | None = None
    temperature_celsius: float | None = None
    agent_version: str = ""
    connected: bool = False
    device_class: str = ""
    hardware_revision: str = ""
    certificate_issued_at: datetime | None = None
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class LocalPause:
    """A pause in force at one hub for one wave."""

    wave_id: str
    origin: str
    reason: str


@dataclass(frozen=True, slots=True)
class SwapWait:
    """A device, by name, that its availability groups keep from a swap or a rollback, and for people why."""

    device: str
    reason: str
    wave_id: str = ""


@dataclass(frozen=True, slots=True)
class LedgerView:
    """Which outcomes of a wave count at a hub, as ``outcomes.ledger_digest``."""

    wave_id: str
    sha256: str


@dataclass(frozen=True, slots=True)
class HubStatus:
    """Latest-wins status of a hub."""

    hub: str
    at: datetime
    software_version: str = ""
    incarnation: str = ""
    devices_connected: int = 0
    swaps_active: int = 0
    cache_bytes: int = 0
    cache_quota_bytes: int = 0
    local_pauses: tuple[LocalPause, ...] = ()
    connected: bool = False
    waits: tuple[SwapWait, ...] = ()
    ledgers: tuple[LedgerView, ...] = ()
    cache: CacheStatistics | None = None
    origin: str = ""
    deliveries: tuple[DeliveryView, ...] = ()
    held: tuple[Digest, ...] = ()
    derived: tuple[DerivedSize, ...] = ()
    seeded: tuple[SeededBytes, ...] = ()
